"""Runs with `trainer.replay_kl`: their steps have the teacher's gradient on whatever ranks, and everything that makes
their steps again makes the same.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import logtrain
from logtrain.core.config import load
from logtrain.core.run_folder import read_run_config
from logtrain.cpt import CptConfig
from logtrain.training.config import RunConfig
from logtrain.training.rerun import Rerun
from logtrain.training.setup import set_up
from tests.support.llama import relative_difference
from tests.support.ranks import Ranks
from tests.support.synthetic import read_model, write_data, write_model
from tests.support.training import first_gradients, records, train

SEQ_LEN, TOP_K, KL = 32, 7, "0.7"
LENGTHS = np.random.default_rng(3).integers(4, 40, 60).tolist()  # some are cut


@pytest.fixture(scope="module")
def case(tmp_path_factory) -> Path:
    """A model, logs, and the same replay with a teacher and without."""
    folder = tmp_path_factory.mktemp("distillation")
    model = write_model(folder / "model", hidden_size=32, intermediate_size=48, vocab_size=130, num_attention_heads=4)
    for name, top_k, seed in (("logs", 0, 0), ("taught", TOP_K, 1), ("untaught", 0, 1)):
        lengths = {"train": LENGTHS, **({"valid": LENGTHS[:8]} if name == "logs" else {})}
        write_data(folder / name, model, seq_len=SEQ_LEN, lengths=lengths, seed=seed, context=0.2, teacher_top_k=top_k)
    return folder


def flags(case: Path, runs: Path, *more: str, replay: str = "taught") -> list[str]:
    found = ["--name", "run", "--model", str(case / "model"), "--runs", str(runs), "--optim.lr", "3e-3"]
    found += ["--data", f"logs={case / 'logs'}", f"replay={case / replay}", "--mix.logs", "0.6", "--mix.replay", "0.4"]
    found += ["--loader.seq_len", str(SEQ_LEN), "--loader.rows_per_step", "4", "--trainer.max_steps", "8"]
    return [*found, "--trainer.log_every", "1", "--trainer.save_every", "4", "--trainer.keep", "0", *more]


def series(run: Path, *keys: str) -> list[list]:
    return [[record[key] for key in keys] for record in records(run)]


def by_whole_logits(config: RunConfig) -> tuple[dict[str, torch.Tensor], list[int]]:
    """The gradients of the first step's mean objective, and the micro-batches that have a teacher."""
    run = set_up(config)
    step, model, objective = run.data.train.at(0), read_model(Path(config.model)), torch.zeros(())
    run.world.close()
    for batch in step.batches:
        log_p_TV = model(batch._replace(labels_T=None)).log_softmax(-1)
        for at in (batch.labels_T >= 0).nonzero()[:, 0].tolist():
            label, share, target_V = batch.labels_T[at], 0.0, F.one_hot(batch.labels_T[at], log_p_TV.shape[1]).float()
            if batch.teacher_TK is not None and label in batch.teacher_TK[at]:
                share, q_K = config.trainer.replay_kl, batch.teacher_log_TK[at].float().exp()
                of_teacher_V = torch.zeros_like(target_V).scatter(0, batch.teacher_TK[at].long(), q_K / q_K.sum())
                target_V = (1 - share) * target_V + share * of_teacher_V
            objective = objective - (target_V * log_p_TV[at]).sum()
    (objective / step.targets).backward()
    taught = [number for number, batch in enumerate(step.batches) if batch.teacher_TK is not None]
    return {name: p.grad for name, p in model.named_parameters()}, taught


def test_a_steps_gradients_are_those_of_whole_logits_on_any_ranks(case, ranks: Ranks, tmp_path):
    """Of two ranks, also where only one has a teacher's row at a time."""
    arguments = flags(case, tmp_path, "--trainer.replay_kl", KL, "--trainer.max_grad_norm", "0")
    wanted, taught = ranks.run(1, by_whole_logits, load(CptConfig, arguments))[0]
    assert 0 < len(taught) < 4
    for size in (1, 2):
        found = ranks.run(size, first_gradients, arguments)[0]
        for name, gradient in wanted.items():
            assert relative_difference(found[name], gradient) < 1e-5, name


def divergence_by_hand(case: Path, runs: Path) -> float:
    """Of the first step's tokens from their teacher, all that is not told as one outcome; in nats a token."""
    run = set_up(load(CptConfig, flags(case, runs, "--trainer.replay_kl", KL)))
    step, model, found = run.data.train.at(0), read_model(case / "model"), []
    run.world.close()
    for batch in (batch for batch in step.batches if batch.teacher_TK is not None):
        p_TV = model(batch._replace(labels_T=None)).detach().double().softmax(-1)
        for at in (batch.labels_T >= 0).nonzero()[:, 0].tolist():
            q_K, p_K = batch.teacher_log_TK[at].double().exp(), p_TV[at, batch.teacher_TK[at].long()]
            q_L, p_L = (torch.cat((x, 1 - x.sum(0, keepdim=True))) for x in (q_K, p_K))
            found.append((q_L * (q_L / p_L).log()).sum().item())
    return float(np.mean(found))


def test_the_loss_stays_the_cross_entropy_and_the_divergence_is_told(case, tmp_path):
    runs = {"0": tmp_path / "plain", KL: tmp_path / "taught"}
    for share, folder in runs.items():
        assert train(flags(case, folder, "--trainer.replay_kl", share)) == 0
    plain, taught = (records(folder / "run") for folder in runs.values())
    assert plain[0]["loss"] == pytest.approx(taught[0]["loss"], rel=1e-6)
    assert plain[0]["grad_norm"] != pytest.approx(taught[0]["grad_norm"], rel=1e-3)
    assert all("replay_kl" not in record for record in plain)
    assert all(0 < record["replay_kl"] < 20 for record in taught)
    assert taught[0]["replay_kl"] == pytest.approx(divergence_by_hand(case, tmp_path), rel=1e-5)
    assert [record["targets"] for record in plain] == [record["targets"] for record in taught]


def test_steps_without_replay_tell_no_divergence_and_records_cover_all_since_the_last(case, tmp_path):
    few = ["--trainer.replay_kl", KL, "--mix.logs", "0.9", "--mix.replay", "0.1", "--loader.rows_per_step", "2"]
    for every in ("1", "4"):
        assert train(flags(case, tmp_path / every, *few, "--trainer.log_every", every)) == 0
    each, told = (records(tmp_path / every / "run") for every in ("1", "4"))
    assert any(record["replay_kl"] is None for record in each)
    is_taught = [record["step"] for record in each if record["replay_kl"] is not None]
    assert is_taught == [record["step"] for record in each if record["loss.replay"] is not None]
    (one,) = [step for step in is_taught if step > 4]  # of the steps that the second record covers
    assert told[1]["replay_kl"] == pytest.approx(each[one - 1]["replay_kl"], rel=1e-6)


def test_a_share_of_0_is_the_run_without_a_teacher(case, tmp_path):
    for name in ("taught", "untaught"):
        assert train(flags(case, tmp_path / name, "--trainer.replay_kl", "0", replay=name)) == 0
    taught, untaught = (tmp_path / name / "run" for name in ("taught", "untaught"))
    keys = ("loss", "loss.replay", "grad_norm", "tokens")
    assert series(taught, *keys) == series(untaught, *keys)
    export = Path("export") / "model.safetensors"
    assert (taught / export).read_bytes() == (untaught / export).read_bytes()


def rerun_of(folder: Path) -> tuple[list[tuple[int, float, float]], list[float], float]:
    """The steps after the checkpoint of step 4, made again; the norms of the pieces of step 5, and its own."""
    of_run = set_up(read_run_config(folder, RunConfig))
    rerun = Rerun(of_run, 5)
    norms = [piece.grad_norm for piece in rerun.weigh(with_gradients=True)]
    steps = list(rerun.advance(8))
    of_run.world.close()
    return steps, norms, steps[0][2]


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2])
def test_a_resumed_run_and_a_rerun_are_the_run_bit_for_bit(case, ranks: Ranks, tmp_path, size):
    taught = ["--trainer.replay_kl", KL, "--trainer.max_grad_norm", "0"]
    assert ranks.run(size, train, flags(case, tmp_path / "whole", *taught)) == [0] * size
    assert ranks.run(size, train, flags(case, tmp_path, *taught, "--trainer.stop_after", "4")) == [75] * size
    assert ranks.run(size, train, flags(case, tmp_path, *taught, "--resume", "auto")) == [0] * size
    keys = ("step", "loss", "grad_norm", "replay_kl")
    whole = series(tmp_path / "whole" / "run", *keys)
    assert whole == series(tmp_path / "run", *keys)
    steps, norms, norm = ranks.run(size, rerun_of, tmp_path / "whole" / "run")[0]
    assert [list(step) for step in steps] == [record[:3] for record in whole[4:]]
    assert max(norms) < norm <= sum(norms) * (1 + 1e-5)


def test_training_under_the_callers_control_is_the_run(case, tmp_path):
    arguments = flags(case, tmp_path, "--trainer.replay_kl", KL)
    assert train(arguments) == 0
    torch.set_num_threads(1)
    training = logtrain.Training(dataclasses.replace(load(CptConfig, arguments), name="other"))
    norms = [training.step().grad_norm for _ in range(3)]
    torch.distributed.destroy_process_group()
    assert norms == pytest.approx([record["grad_norm"] for record in records(tmp_path / "run")[:3]], rel=1e-5)


def test_what_is_wrong_is_one_line(case, tmp_path):
    cases = [
        (flags(case, tmp_path, "--trainer.replay_kl", "0.5", replay="untaught"), "has no teacher's distribution"),
        (flags(case, tmp_path, "--trainer.replay_kl", "1.5"), "trainer.replay_kl = 1.5 must be from 0 to 1"),
        (flags(case, tmp_path, "--trainer.replay_kl", "nan"), "trainer.replay_kl = nan: expected a number"),
    ]
    for arguments, words in cases:
        with pytest.raises(ValueError, match=words) as error:
            train(arguments)
        assert len(str(error.value).splitlines()) == 1 and not (tmp_path / "run").exists()
    assert train(flags(case, tmp_path, "--trainer.replay_kl", KL, "--trainer.stop_after", "4")) == 75
    with pytest.raises(ValueError, match=r"trainer\.replay_kl = 0\.7, now it is 1"):
        train(flags(case, tmp_path, "--trainer.replay_kl", "1", "--resume", "auto"))
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 4
