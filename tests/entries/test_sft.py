"""Fine-tuning runs: PEFT's run however they are spread, resumed or killed, and the best of them kept."""

import gc
import json
import math
import shutil
import signal
import sys
from collections.abc import Callable
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from logtrain import sft
from logtrain.core import config as configs
from logtrain.core import entry
from logtrain.data.config import LoaderConfig
from logtrain.data.loader import Loader
from logtrain.data.shards import Split
from logtrain.generation.load import ModelFolder
from logtrain.model import hf
from logtrain.model.config import LoraConfig
from logtrain.model.lora import InitialAdapters
from logtrain.training.optim import make_optimizer
from logtrain.training.setup import set_up
from logtrain.training.sharding import full_tensors
from logtrain.training.step import TrainStep
from logtrain_kernels import dropout_steps
from logtrain_kernels.dropout import kept_reference, kept_scale
from tests.support.lora import in_peft, with_adapters
from tests.support.program import Program, last_step
from tests.support.ranks import Ranks
from tests.support.synthetic import edit_json, write_data, write_model
from tests.support.training import records, train

SEQ_LEN, ROWS_PER_STEP, STEPS, LR, DROPOUT = 48, 8, 10, 3e-2, 0.2
LORA, DROP = LoraConfig(rank=3, alpha=8.0, dropout=DROPOUT), dropout_steps(DROPOUT)
# No matrix has a multiple of 4 rows, and 3 is the rank: over 4 ranks they are uneven, one holds nothing of some.
SHAPE = {"vocab_size": 131, "hidden_size": 30, "intermediate_size": 53, "num_attention_heads": 3}
EXACT = ("step", "epoch", "loss", "grad_norm", "lr", "tokens", "targets", "set", "valid_loss", "valid_targets")
SFT = "logtrain.sft"


@pytest.fixture(scope="module")
def case(tmp_path_factory) -> SimpleNamespace:
    """A model, its data, the flags of a run of 10 steps, and the same run by PEFT."""
    folder = tmp_path_factory.mktemp("sft")
    model = write_model(folder / "model", num_key_value_heads=1, initializer_range=0.2, **SHAPE)
    lengths = np.random.default_rng(5).integers(2, 48, 120).tolist()
    splits = {"train": lengths, "valid": lengths[:20]}
    data = write_data(folder / "data", model, seq_len=SEQ_LEN, lengths=splits, context=0.4)
    flags = ["--model", str(model), "--data", str(data), "--optim.lr", str(LR), "--loader.seq_len", str(SEQ_LEN)]
    flags += ["--lora.rank", "3", "--lora.alpha", "8", "--lora.dropout", str(DROPOUT)]
    flags += ["--loader.rows_per_step", str(ROWS_PER_STEP), "--trainer.epochs", "2", "--trainer.max_steps", str(STEPS)]
    flags += ["--trainer.log_every", "1", "--name", "run"]
    return SimpleNamespace(folder=folder, model=model, data=data, flags=flags, plain=pefts_run(folder, model, data))


# ---- PEFT's run


class Masked(nn.Module):
    """In place of PEFT's dropout: what we drop of the document under way."""

    def __init__(self, name: str, width: int, now: SimpleNamespace):
        super().__init__()
        self.salt = int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), signed=True)
        self.width, self.now = width, now

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * kept_reference(self.now.seeds, self.salt, DROP, self.width) * kept_scale(DROP)


OURS = {"q_proj": "attention.qkv", "k_proj": "attention.qkv", "v_proj": "attention.qkv", "o_proj": "attention.out"}
OURS |= {"gate_proj": "feed_forward.gate_up", "up_proj": "feed_forward.gate_up", "down_proj": "feed_forward.down"}


def pefts_run(folder: Path, model: Path, data: Path) -> SimpleNamespace:
    """10 steps by transformers, PEFT and torch's AdamW on one document at a time, from our initial adapters."""
    shape, now = hf.read_config(model), SimpleNamespace()
    initial = InitialAdapters(hf.Weights(model, shape), shape, LORA, seed=1309)
    ours = with_adapters(model, LORA, initial)
    theirs = in_peft(ours, model, LORA, folder / "initial")
    for name, layer in theirs.named_modules():
        if hasattr(layer, "lora_dropout"):
            _, block, _, target = name.split("layers.")[1].rpartition(".")[0], *name.split(".")[-3:]
            layer.lora_dropout["default"] = Masked(f"blocks.{block}.{OURS[target]}", layer.in_features, now)
    loader, valid = (
        Loader(Split.open(data, split), LoaderConfig(seq_len=SEQ_LEN, rows_per_step=rows), seed=1309, pad_id=1)
        for split, rows in (("train", ROWS_PER_STEP), ("valid", 1))
    )
    assert loader.steps_per_epoch < STEPS < 2 * loader.steps_per_epoch, "10 steps are to reach into a second epoch"
    assert loader.num_rows % ROWS_PER_STEP, "the last step of an epoch is to be incomplete"

    def summed(step) -> Tensor:
        total = torch.zeros(())
        for batch in step.batches:
            for start, end in pairwise(batch.cu_seqlens.unique().tolist()):
                now.seeds = batch.seeds_T[start:end]
                logits = theirs(batch.tokens_T[None, start:end]).logits[0]
                labels = batch.labels_T[start:end]
                total = total + F.cross_entropy(logits, labels, ignore_index=-100, reduction="sum")
        return total

    def validate() -> float:
        theirs.eval()
        steps = [valid.at(i) for i in range(valid.steps_per_epoch)]
        with torch.no_grad():
            return sum(summed(step).item() for step in steps) / sum(step.targets for step in steps)

    trained = [p for p in theirs.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LR, weight_decay=0.01, fused=False, foreach=False)
    losses, norms, valid_losses = [], [], [validate()]
    for i in range(STEPS):
        if i == loader.steps_per_epoch:
            valid_losses.append(validate())
        theirs.train()
        step = loader.at(i)
        loss = summed(step) / step.targets
        loss.backward()
        norms.append(nn.utils.clip_grad_norm_(trained, 1.0).item())
        losses.append(loss.item())
        progress = max(0, i - 1) / (STEPS - 1)
        for group in optimizer.param_groups:
            group["lr"] = LR * (1 if i < 1 else 0.5 + 0.5 * math.cos(math.pi * progress))
        optimizer.step()
        optimizer.zero_grad()
    valid_losses.append(validate())
    return SimpleNamespace(losses=losses, grad_norms=norms, valid_losses=valid_losses, model=theirs)


SPREADS = {  # ranks, flags
    "1 rank, 8 micro-batches": (1, ["--loader.rows_per_batch", "1"]),
    "1 rank, 1 micro-batch, recomputed": (1, ["--loader.rows_per_batch", "8", "--recompute", "full"]),
    "1 rank, 1 micro-batch, compiled": (1, ["--loader.rows_per_batch", "8", "--recompute", "selective", "--compile"]),
    "2 ranks, 2 micro-batches": (2, ["--loader.rows_per_batch", "2", "--recompute", "selective"]),
    "4 ranks, 1 micro-batch": (4, ["--loader.rows_per_batch", "2"]),
    "2 whole copies, 1 micro-batch": (2, ["--loader.rows_per_batch", "4", "--parallel.shard_ranks", "1"]),
    "4 whole copies, 2 micro-batches": (4, ["--loader.rows_per_batch", "1", "--parallel.shard_ranks", "1"]),
    "2 x 2 ranks, 2 micro-batches": (4, ["--loader.rows_per_batch", "1", "--parallel.shard_ranks", "2"]),
}


@pytest.mark.parametrize("spread", SPREADS)
def test_every_spread_gives_pefts_run(case, ranks: Ranks, tmp_path, spread: str):
    """Losses, gradient norms and, of the trained adapters, validation losses; the same is dropped everywhere."""
    size, flags = SPREADS[spread]
    assert ranks.run(size, train, [*case.flags, "--runs", str(tmp_path), *flags], SFT) == [0] * size
    found, valid = records(tmp_path / "run"), records(tmp_path / "run", "valid_loss")
    assert [record["step"] for record in found] == list(range(1, STEPS + 1))
    np.testing.assert_allclose([record["loss"] for record in found], case.plain.losses, rtol=5e-6)
    np.testing.assert_allclose([record["grad_norm"] for record in found], case.plain.grad_norms, rtol=1e-5)
    np.testing.assert_allclose([record["valid_loss"] for record in valid], case.plain.valid_losses, rtol=5e-6)


def test_pefts_run_learns(case):
    valid_losses = case.plain.valid_losses
    assert valid_losses[-1] < 0.97 * valid_losses[0], valid_losses


def test_all_parameters_are_trained_as_in_pretraining(case, tmp_path):
    flags = [*case.flags, "--lora.rank", "0", "--runs"]
    assert train([*flags, str(tmp_path / "sft")], SFT) == train([*flags, str(tmp_path / "cpt")]) == 0
    assert series(tmp_path / "sft" / "run") == series(tmp_path / "cpt" / "run")
    assert not (tmp_path / "sft" / "run" / "adapter").exists()


def series(run: Path) -> list[dict]:
    """What the steps gave, without what the clock and the machine gave."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{key: record[key] for key in EXACT if key in record} for record in lines]


# ---- what stays as it was


def three_steps(flags: list[str]) -> dict[str, tuple[bool, bool, torch.dtype, bool]]:
    """Train three steps; -> name: is it trained, does it lie in FSDP, its dtype, is it bit for bit what it was."""
    run = set_up(configs.load(sft.SftConfig, flags))
    model = run.build_model(run.initial_weights())
    before = {name: tensor.clone() for name, tensor in full_tensors(model)}
    optim = run.config.optim
    train_step = TrainStep(model, make_optimizer(model, optim), optim, 1.0, 3, run.world)
    for step in range(3):
        train_step(run.data.train.at(step), step)
    same = {name: torch.equal(tensor, before[name]) for name, tensor in full_tensors(model)}
    found = {
        name: (p.requires_grad, isinstance(p, DTensor), p.dtype, same[name]) for name, p in model.named_parameters()
    }
    run.world.close()
    return found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("size", "shard_ranks"), [(1, 0), (2, 0), (2, 1)])
def test_only_adapters_change_and_whole_copies_keep_the_model_out_of_fsdp(case, ranks, size, shard_ranks, dtype):
    flags = [*case.flags, "--dtype", dtype, "--parallel.shard_ranks", str(shard_ranks)]
    for found in ranks.run(size, three_steps, flags):
        assert len(found) == 2 * (6 + 8) + 3
        for name, facts in found.items():
            adapter = "lora_" in name
            in_fsdp = adapter or (size, shard_ranks) == (2, 0)
            assert facts == (adapter, in_fsdp, torch.float32 if adapter else getattr(torch, dtype), not adapter), name


def test_in_bf16_the_losses_are_near(case, ranks: Ranks, tmp_path):
    flags = [*case.flags, "--runs", str(tmp_path), "--dtype", "bfloat16"]
    assert ranks.run(2, train, flags, SFT) == [0, 0]
    np.testing.assert_allclose([r["loss"] for r in records(tmp_path / "run")], case.plain.losses, rtol=1e-2)
    assert json.loads((tmp_path / "run" / "export.json").read_text())["dtype"] == "bfloat16"


# ---- stopped and resumed


@pytest.fixture(scope="module")
def whole(case, ranks: Ranks) -> dict[int, Path]:
    """The run without interruption: on one rank, and as two whole copies."""
    runs = {size: case.folder / f"whole-{size}" for size in (1, 2)}
    for size, folder in runs.items():
        flags = [*case.flags, "--parallel.shard_ranks", "1", "--trainer.save_every", "2", "--runs", str(folder)]
        assert ranks.run(size, train, flags, SFT) == [0] * size
    return {size: folder / "run" for size, folder in runs.items()}


def written(run: Path) -> list[bytes]:
    return [(run / name).read_bytes() for name in ("export/model.safetensors", "adapter/adapter_model.safetensors")]


@pytest.mark.parametrize("size", [1, 2])
def test_stopped_and_resumed_is_bit_identical(case, whole, ranks: Ranks, tmp_path, size: int):
    flags, run = [*case.flags, "--parallel.shard_ranks", "1", "--runs", str(tmp_path)], tmp_path / "run"
    assert ranks.run(size, train, [*flags, "--trainer.stop_after", "5"], SFT) == [75] * size
    assert not (run / "adapter").exists()
    assert ranks.run(size, train, [*flags, "--resume", "auto"], SFT) == [0] * size
    assert series(run) == series(whole[size])
    assert written(run) == written(whole[size])


def test_resumed_on_other_ranks_gives_the_same_losses(case, ranks: Ranks, tmp_path):
    """From two that share a copy to four whole ones."""
    flags, run = [*case.flags, "--runs", str(tmp_path)], tmp_path / "run"
    assert ranks.run(2, train, [*flags, "--trainer.stop_after", "5"], SFT) == [75] * 2
    flags += ["--resume", "auto", "--parallel.shard_ranks", "1"]
    assert ranks.run(4, train, flags, SFT) == [0] * 4
    np.testing.assert_allclose([record["loss"] for record in records(run)], case.plain.losses, rtol=1e-5)


def test_killed_it_resumes_as_if_never_killed(case, whole, tmp_path):
    flags = [*case.flags, "--trainer.save_every", "2", "--runs", str(tmp_path), "--resume", "auto"]
    program, run = Program(flags, tmp_path / "output", entry=SFT), tmp_path / "run"
    program.until(lambda: last_step(run) >= 5)
    program.send(signal.SIGKILL)
    assert program.wait() == [-signal.SIGKILL]
    assert 5 <= last_step(run) < STEPS
    program = Program(flags, tmp_path / "output", entry=SFT)
    assert program.wait() == [0], program.output.read_text()
    assert series(run) == series(whole[1])
    assert written(run) == written(whole[1])


def test_a_checkpoint_holds_the_adapters_alone_and_exports_as_the_run_did(case, whole, tmp_path):
    run = shutil.copytree(whole[1], tmp_path / "run")
    index = load_file(run / "checkpoints" / f"step-{STEPS:06d}" / "rank-00000.safetensors")
    assert len(index) == 3 * 2 * 8  # adapters and two moments; of a block: A and B of four matrices
    assert all("lora_" in name for name in index)
    assert train(["--run", str(run), "--output", str(tmp_path / "again")], "logtrain.export") == 0
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == written(run)[0]


# ---- what a run leaves


@torch.no_grad()
def test_export_and_adapter_are_the_trained_model(case, whole):
    from peft import PeftModel
    from transformers import LlamaForCausalLM

    def load(folder: Path):
        return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    case.plain.model.eval()
    tokens = torch.randint(131, (1, 40), generator=torch.Generator().manual_seed(2))
    expected = case.plain.model(tokens).logits
    plain = load(case.model)(tokens).logits
    assert (plain - expected).abs().max() > 0.05 * expected.abs().max()  # training has moved it
    for found in (load(whole[1] / "export"), PeftModel.from_pretrained(load(case.model), whole[1] / "adapter")):
        assert (found(tokens).logits - expected).abs().max() <= 1e-4 * expected.abs().max()
    facts = json.loads((whole[1] / "adapter" / "adapter_config.json").read_text())
    assert facts["base_model_name_or_path"] == str(case.model)
    assert (facts["r"], facts["lora_alpha"], facts["lora_dropout"]) == (3, 8.0, DROPOUT)


def test_an_adapter_answers_as_its_export_does(case, tmp_path):
    """By the template of the training data, to the end that they have taught; merged by hand, too."""
    data = shutil.copytree(case.data, tmp_path / "data")
    written = "{{ bos_token }}{% for message in messages %}{{ message['content'] + eos_token }}{% endfor %}"
    edit_json(data / "manifest.json", chat={"template": written})
    flags = [*case.flags, "--trainer.max_steps", "1", "--data", str(data), "--runs", str(tmp_path)]
    assert train(flags, SFT) == 0
    run, end = tmp_path / "run", json.loads((data / "manifest.json").read_text())["tokenizer"]["document_end_id"]
    flags = ["--model", str(case.model), "--adapter", str(run / "adapter"), "--output", str(tmp_path / "merged")]
    assert train(flags, "logtrain.merge") == 0
    for folder in (run / "adapter", run / "export", tmp_path / "merged"):
        assert (folder / "chat_template.jinja").read_text() == written
        assert end in ModelFolder(folder).stop_ids, folder
        assert ModelFolder(folder).stop_ids == ModelFolder(run / "export").stop_ids
    assert ModelFolder(run / "adapter").template.where == str(run / "adapter" / "chat_template.jinja")


# ---- the best checkpoint


@pytest.fixture(scope="module")
def overfitting(case) -> SimpleNamespace:
    """A run of 12 steps, validated after each, that learns three documents by heart and gets worse on another."""
    splits = {"train": [48] * 3, "valid": [48]}
    data = write_data(case.folder / "few", case.model, seq_len=SEQ_LEN, lengths=splits, context=0.4)
    flags = [*case.flags, "--data", str(data), "--optim.schedule", "constant", "--optim.lr", "7e-2"]
    flags += ["--loader.rows_per_step", "3", "--trainer.epochs", "12", "--trainer.max_steps", "12"]
    flags += ["--trainer.valid_every", "1", "--trainer.save_every", "3", "--trainer.keep", "1"]
    return SimpleNamespace(data=data, flags=flags)


def valid_losses(run: Path) -> list[float]:
    """After steps 1, 2, ..."""
    return [record["valid_loss"] for record in records(run, "valid_loss")][1:]


def checkpoints(run: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in (run / "checkpoints").iterdir())


@pytest.mark.parametrize("lora", [True, False], ids=["LoRA", "full"])
def test_the_best_checkpoint_stays_and_is_exported_also_after_a_resume(overfitting, tmp_path, lora: bool):
    flags = [*overfitting.flags, *([] if lora else ["--lora.rank", "0", "--optim.lr", "3e-2"])]
    assert train([*flags, "--trainer.keep", "0", "--trainer.save_every", "1", "--runs", str(tmp_path)], SFT) == 0
    losses = valid_losses(tmp_path / "run")
    best = int(np.argmin(losses)) + 1
    assert 1 < best < 9 and best % 3, losses  # saved for what it is
    assert losses[-1] > 1.05 * losses[best - 1]
    export = ["--run", str(tmp_path / "run"), "--step", str(best), "--output", str(tmp_path / "wanted")]
    assert train(export, "logtrain.export") == 0
    for name, stops in (("whole", []), ("resumed", [best, best + 2])):
        kept = [*flags, "--trainer.keep_best", "--runs", str(tmp_path / name), "--resume", "auto"]
        for stop in stops:
            assert train([*kept, "--trainer.stop_after", str(stop)], SFT) == 75
        assert train(kept, SFT) == 0
        run = tmp_path / name / "run"
        assert valid_losses(run) == losses
        assert checkpoints(run) == [best, 12]
        assert f"step {best} is the best: loss {losses[best - 1]:.4f}, and is exported" in (run / "log.txt").read_text()
        assert json.loads((run / "export.json").read_text())["exported_loss"] == pytest.approx(losses[best - 1])
        found, wanted = run / "export" / "model.safetensors", tmp_path / "wanted" / "model.safetensors"
        assert found.read_bytes() == wanted.read_bytes()


def test_patience_ends_a_run_that_gets_no_better(case, overfitting, tmp_path):
    flags, run = [*overfitting.flags, "--trainer.patience", "2", "--runs", str(tmp_path)], tmp_path / "run"
    assert train([*flags, "--trainer.keep_best", "--resume", "auto"], SFT) == 0
    losses = valid_losses(run)
    best = int(np.argmin(losses)) + 1
    assert len(losses) == best + 2 < 12
    assert checkpoints(run) == [best, best + 2]
    before = series(run), written(run)
    shutil.rmtree(run / "export")
    shutil.rmtree(run / "adapter")
    assert train([*flags, "--trainer.keep_best", "--resume", "auto"], SFT) == 0  # has given up: only exports
    assert (series(run), written(run)) == before


# ---- so many conversations a step


def test_documents_per_step_are_rows_that_hold_as_many_on_every_rank(case, ranks: Ranks, tmp_path):
    loader = Loader(Split.open(case.data), LoaderConfig(seq_len=SEQ_LEN, rows_per_step=1), seed=1309, pad_id=1)
    a_row = 120 / loader.num_rows
    assert 1.5 < a_row < 2.5
    steps = {}
    for size, rows in ((1, round(11 / a_row)), (4, 4 * round(11 / a_row / 4))):
        runs = tmp_path / str(size)
        flags = [*case.flags, "--loader.documents_per_step", "11", "--runs", str(runs), "--trainer.max_steps", "0"]
        assert ranks.run(size, train, [*flags, "--trainer.epochs", "1"], SFT) == [0] * size
        told = f"{rows} rows a step hold {rows * a_row:.1f} documents on average, 11 were asked for"
        assert told in (runs / "run" / "log.txt").read_text()
        steps[size] = records(runs / "run")[-1]["step"]
        assert steps[size] == -(-loader.num_rows // rows)
        assert abs(rows * a_row - 11) <= size * a_row / 2
    assert len(set(steps.values())) == 2  # else the next says nothing
    flags = [*case.flags, "--loader.documents_per_step", "11", "--runs", str(tmp_path), "--trainer.max_steps", "0"]
    assert ranks.run(4, train, [*flags, "--trainer.stop_after", "2"], SFT) == [75] * 4
    with pytest.raises(ValueError, match=r"step-000002: its steps have 4 rows, here they would have 6; go on with the"):
        train([*flags, "--resume", "auto"], SFT)


# ---- mistakes


@pytest.fixture
def command(monkeypatch, capsys) -> Callable[[list[str]], tuple[int, str]]:
    """`python -m logtrain.sft FLAGS` in this process; -> exit status and stderr."""

    def command(flags: list[str]) -> tuple[int, str]:
        gc.collect()  # an error before holds the lock of the run as long as it is there itself
        monkeypatch.setattr(sys, "argv", ["logtrain.sft", *flags])
        try:
            with pytest.raises(SystemExit) as ended:
                entry.run(sft.main)
        finally:
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()
        return ended.value.code, capsys.readouterr().err

    return command


@pytest.fixture(scope="module")
def without_valid(case) -> Path:
    return write_data(case.folder / "without", case.model, seq_len=SEQ_LEN, lengths={"train": [40] * 9})


RULE = "expected rank >= 0, alpha > 0, 0 <= dropout < 1"
MISTAKES = {  # flags, what is said
    "negative rank": (["--lora.rank", "-1"], f"lora: rank -1, alpha 8.0, dropout {DROPOUT}: {RULE}"),
    "no alpha": (["--lora.alpha", "0"], f"lora: rank 3, alpha 0.0, dropout {DROPOUT}: {RULE}"),
    "alpha not a number": (["--lora.alpha", "nan"], RULE),
    "everything dropped": (["--lora.dropout", "1"], RULE),
    "unknown layer": (
        ["--lora.targets", "q_proj", "lm_head"],
        '--lora.targets lm_head: expected one of "q_proj", ',
    ),
    "no layers": (["--lora.targets"], "lora.targets = (): expected at least one layer, each once"),
    "a layer twice": (["--lora.targets", "q_proj", "q_proj"], "expected at least one layer, each once"),
    "best of nothing": (
        ["--data", "{without}", "--trainer.keep_best"],
        "trainer.keep_best goes by the validation loss, but {without} has no validation split",
    ),
    "patience with nothing": (
        ["--data", "{without}", "--trainer.patience", "2"],
        "trainer.patience goes by the validation loss, but {without} has no validation split",
    ),
    "negative documents": (
        ["--loader.documents_per_step", "-1"],
        "loader.documents_per_step = -1 must not be negative",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(case, without_valid, command, tmp_path, mistake: str):
    flags, message = MISTAKES[mistake]
    flags = [flag.format(without=without_valid) for flag in flags]
    status, said = command([*case.flags, "--runs", str(tmp_path), *flags])
    assert (status, said.count("\n")) == (2, 1)
    assert said.startswith("error: ")
    assert message.format(without=without_valid) in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--lora.rank", "4"], "was started with lora.rank = 3, now it is 4"),
        (["--lora.rank", "0"], "was started with lora.rank = 3, now it is 0"),
        (["--lora.dropout", "0"], f"was started with lora.dropout = {DROPOUT}, now it is 0.0"),
        (["--lora.targets", "q_proj"], "now it is ('q_proj',)"),
        (["--trainer.keep_best"], "was started with trainer.keep_best = False, now it is True"),
    ],
)
def test_a_resumed_run_keeps_its_adapters(case, whole, command, flags: list[str], message: str):
    before = {path: path.stat().st_mtime_ns for path in whole[1].rglob("*") if path.name != ".lock"}
    runs = ["--runs", str(whole[1].parent), "--parallel.shard_ranks", "1", "--resume", "auto"]
    status, said = command([*case.flags, *runs, *flags])
    assert (status, said.count("\n")) == (2, 1)
    assert message in said
    assert before == {path: path.stat().st_mtime_ns for path in whole[1].rglob("*") if path.name != ".lock"}


@pytest.mark.parametrize("best", [[], ["--trainer.keep_best"]], ids=["last", "best"])
def test_a_loss_that_is_no_number_in_validation_ends_the_run(case, command, tmp_path, best: list[str]):
    flags = [*case.flags, "--runs", str(tmp_path), "--optim.lr", "1e15", "--trainer.valid_every", "1"]
    status, said = command([*flags, *best])
    assert (status, said.count("\n")) == (2, 1)
    assert said.startswith("error: step 1: loss nan on valid: training has diverged; ")
    assert checkpoints(tmp_path / "run") == []


# ---- real input


def test_smollm2_learns_log_instructions(smollm2, shared, tmp_path):
    """LoRA on LogLM's rows; the export, loaded by transformers, answers."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rows = json.loads((shared / "data" / "loglm" / "loglm_instruction_2632.json").read_text())
    (tmp_path / "rows.json").write_text(json.dumps(rows[::40]))
    options = ["--format", "alpaca", "--input", str(tmp_path / "rows.json"), "--tokenizer", str(smollm2)]
    options += ["--output", str(tmp_path / "data"), "--seq_len", "512", "--valid_fraction", "0.06"]
    assert train([*options, "--workers", "1"], "logtrain.prepare") in (0, None)
    flags = ["--name", "run", "--runs", str(tmp_path), "--model", str(smollm2), "--data", str(tmp_path / "data")]
    flags += ["--loader.seq_len", "512", "--loader.rows_per_step", "1", "--trainer.max_steps", "12"]
    flags += ["--optim.lr", "5e-4", "--trainer.log_every", "1", "--trainer.keep_best"]
    assert train(flags, SFT) == 0
    losses = [record["loss"] for record in records(tmp_path / "run")]
    before, *_, after = (record["valid_loss"] for record in records(tmp_path / "run", "valid_loss"))
    assert np.mean(losses[-4:]) < 0.9 * np.mean(losses[:4]), losses
    assert after < 0.95 * before, (before, after)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run" / "export")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "export", dtype=torch.float32)
    chat = [{"role": "user", "content": rows[1]["instruction"] + "\n" + rows[1]["input"]}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        text = model.generate(**ids, max_new_tokens=16, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert tokenizer.decode(text, skip_special_tokens=True).strip()
