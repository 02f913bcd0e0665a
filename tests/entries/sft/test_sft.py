"""Fine-tuning runs: PEFT's run however they are spread, and what they leave as it was."""

import json

import numpy as np
import pytest
import torch
from torch.distributed.tensor import DTensor

from logtrain import sft
from logtrain.core import config as configs
from logtrain.data.pack import pack, pieces
from logtrain.data.shards import Split
from logtrain.training.optim import make_optimizer
from logtrain.training.setup import set_up
from logtrain.training.sharding import full_tensors
from logtrain.training.step import TrainStep
from tests.support.finetuning import SEQ_LEN, SFT, STEPS, series
from tests.support.ranks import Ranks
from tests.support.training import compiled_is_slow, records, train

pytestmark = pytest.mark.slow

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


@pytest.mark.parametrize("spread", map(compiled_is_slow, SPREADS))
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
    assert train([*flags, str(tmp_path / "sft")], SFT) == 0
    assert train([*flags, str(tmp_path / "cpt"), "--data", str(case.documents)]) == 0
    assert series(tmp_path / "sft" / "run") == series(tmp_path / "cpt" / "run")
    assert not (tmp_path / "sft" / "run" / "adapter").exists()


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
            in_fsdp = (adapter and (size, dtype) != (1, "float32")) or (size, shard_ranks) == (2, 0)
            assert facts == (adapter, in_fsdp, torch.float32 if adapter else getattr(torch, dtype), not adapter), name


def test_in_bf16_the_losses_are_near(case, ranks: Ranks, tmp_path):
    flags = [*case.flags, "--runs", str(tmp_path), "--dtype", "bfloat16"]
    assert ranks.run(2, train, flags, SFT) == [0, 0]
    np.testing.assert_allclose([r["loss"] for r in records(tmp_path / "run")], case.plain.losses, rtol=1e-2)
    assert json.loads((tmp_path / "run" / "export.json").read_text())["dtype"] == "bfloat16"


# ---- so many conversations a step


def test_documents_per_step_are_rows_that_hold_as_many_on_every_rank(case, ranks: Ranks, tmp_path):
    split = Split.open(case.data)
    num_rows = pack(pieces(split.lengths, SEQ_LEN).length_P, SEQ_LEN, 1309, 0).num_rows
    a_row = split.num_documents / num_rows
    assert 1.5 < a_row < 2.5
    steps = {}
    for size, rows in ((1, round(11 / a_row)), (4, 4 * round(11 / a_row / 4))):
        runs = tmp_path / str(size)
        flags = [*case.flags, "--loader.documents_per_step", "11", "--runs", str(runs), "--trainer.max_steps", "0"]
        assert ranks.run(size, train, [*flags, "--trainer.epochs", "1"], SFT) == [0] * size
        steps[size] = records(runs / "run")[-1]["step"]
        assert steps[size] == -(-num_rows // rows)
        mean = split.num_documents / steps[size]
        told = f"{rows} rows a step hold {mean:.1f} documents on average, 11 were asked for"
        assert told in (runs / "run" / "log.txt").read_text()
        assert abs(rows * a_row - 11) <= size * a_row / 2
    assert len(set(steps.values())) == 2  # else the next says nothing
    flags = [*case.flags, "--loader.documents_per_step", "11", "--runs", str(tmp_path), "--trainer.max_steps", "0"]
    assert ranks.run(4, train, [*flags, "--trainer.stop_after", "2"], SFT) == [75] * 4
    with pytest.raises(ValueError, match=r"step-000002: its steps have 4 rows, here they would have 6; go on with the"):
        train([*flags, "--resume", "auto"], SFT)


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
