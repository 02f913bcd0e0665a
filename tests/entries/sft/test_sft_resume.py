"""Fine-tuning runs that are stopped, killed and resumed, what they export, and the best of them kept."""

import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from logtrain.generation.load import ModelFolder
from tests.support.finetuning import DROPOUT, SFT, STEPS, checkpoints, series, valid_losses, written
from tests.support.program import Program, last_step
from tests.support.ranks import Ranks
from tests.support.training import records, train

pytestmark = pytest.mark.slow


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
    from transformers import AutoTokenizer

    written = json.loads((case.data / "manifest.json").read_text())["chat"]["template"]
    flags = [*case.flags, "--trainer.max_steps", "1", "--runs", str(tmp_path)]
    assert train(flags, SFT) == 0
    run, end = tmp_path / "run", json.loads((case.data / "manifest.json").read_text())["tokenizer"]["document_end_id"]
    assert train(["--adapter", str(run / "adapter"), "--output", str(tmp_path / "merged")], "logtrain.merge") == 0
    weights = [(folder / "model.safetensors").read_bytes() for folder in (run / "export", tmp_path / "merged")]
    assert weights[0] == weights[1], "bit for bit, in the dtype of the run's export"
    for folder in (run / "adapter", run / "export", tmp_path / "merged"):
        assert AutoTokenizer.from_pretrained(folder).chat_template == written
        assert (folder / "README.md").read_text().startswith("---\nbase_model: ")
    for folder in (run / "adapter", run / "export", tmp_path / "merged"):
        assert (folder / "chat_template.jinja").read_text() == written
        assert end in ModelFolder(folder).stop_ids, folder
        assert ModelFolder(folder).stop_ids == ModelFolder(run / "export").stop_ids
    assert ModelFolder(run / "adapter").template.where == str(run / "adapter" / "chat_template.jinja")


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


def test_a_run_may_leave_its_adapters_and_nothing_else_of_its_last_step(case, whole, tmp_path):
    """They are read back beside the model, bit for bit; started again, the run has nothing to do while they are there,
    and goes on from its last checkpoint when they are not.
    """
    flags, run = [*case.flags, "--runs", str(tmp_path), "--resume", "auto"], tmp_path / "run"
    flags += ["--no-export_merged", "--trainer.no-save_last", "--trainer.save_every", "3"]
    assert train(flags, SFT) == 0
    assert not (run / "export").exists()
    assert checkpoints(run) == list(range(3, STEPS, 3))[-2:]
    proof = json.loads((run / "adapter.json").read_text())
    assert proof["difference"] == 0 and proof["live_loss"] > 0
    adapter = (run / "adapter" / "adapter_model.safetensors").read_bytes()
    assert adapter == (whole[1] / "adapter" / "adapter_model.safetensors").read_bytes()
    log = (run / "log.txt").read_bytes()
    assert train(flags, SFT) == 0
    assert (run / "log.txt").read_bytes() == log
    shutil.rmtree(run / "adapter")
    assert train(flags, SFT) == 0
    assert (run / "adapter" / "adapter_model.safetensors").read_bytes() == adapter
    assert series(run) == series(whole[1])
