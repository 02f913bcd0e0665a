"""A step whose gradients are not finite updates nothing, and the run goes on as if it had only been counted."""

from types import SimpleNamespace
from typing import get_args

import pytest
import torch

from logtrain.core.config import load
from logtrain.core.kinds import kinds_of
from logtrain.cpt import CptConfig
from logtrain.model.llama import Llama
from logtrain.training.optim import make_optimizer, skip_where
from logtrain.training.optim_config import OptimConfig
from logtrain.training.setup import set_up
from logtrain.training.sharding import full_tensors
from logtrain.training.step import TrainStep
from tests.support.ranks import Ranks
from tests.support.synthetic import write_data, write_model
from tests.support.training import records, train, whole

ONE_CALL = ["--loader.rows_per_batch", "4"]  # of the model, a step


@pytest.fixture(scope="module")
def case(tmp_path_factory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("skipped")
    model = write_model(folder / "model", hidden_size=32, intermediate_size=48, vocab_size=130, num_attention_heads=4)
    data = write_data(folder / "data", model, seq_len=32, lengths={"train": [32] * 60, "valid": [32] * 4})
    flags = ["--name", "run", "--model", str(model), "--data", str(data), "--optim.lr", "1e-2"]
    flags += ["--loader.seq_len", "32", "--loader.rows_per_step", "4", "--trainer.log_every", "1"]
    return SimpleNamespace(folder=folder, flags=flags)


def with_bad_calls(bad: set[int], value: float, function, *arguments):
    """`function(*arguments)`, with losses of this value at these calls of the model that are to be trained on."""
    forward, calls = Llama.forward, [0]

    def damaged(self, batch, end_id=None):
        loss = forward(self, batch, end_id)
        if torch.is_grad_enabled():
            calls[0] += 1
            loss = loss * value if calls[0] in bad else loss
        return loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Llama, "forward", damaged)
        return function(*arguments)


def two_steps(flags: list[str], value: float) -> tuple[bool, list[float], float]:
    """A bad step and a good one: -> whether the bad one left all as it was, the flags of both, updates counted."""
    run = set_up(load(CptConfig, flags))
    model = run.build_model(run.initial_weights())
    optimizer = make_optimizer(model, run.config.optim)
    step = TrainStep(model, optimizer, run.config.optim, 1.0, 3, run.world)
    skipped = [step(run.data.train.at(0), 0).skipped.item()]  # makes the moments
    before = {name: tensor.clone() for name, tensor in full_tensors(model)}
    moments = [whole(state["exp_avg"]).clone() for state in optimizer.state.values()]
    skipped.append(with_bad_calls({1, 2}, value, lambda: step(run.data.train.at(1), 1)).skipped.item())
    same = all(torch.equal(tensor, before[name]) for name, tensor in full_tensors(model))
    after = (whole(state["exp_avg"]) for state in optimizer.state.values())
    same &= all(torch.equal(a, b) for a, b in zip(after, moments, strict=True))
    skipped.append(step(run.data.train.at(2), 2).skipped.item())
    counts = {float(state["step"]) for state in optimizer.state.values()}
    run.world.close()
    return same, skipped, counts.pop() if len(counts) == 1 else -1.0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("size", [1, 2])
def test_a_bad_step_changes_neither_weights_nor_moments_nor_their_count(case, ranks: Ranks, size: int, value: float):
    assert ranks.run(size, two_steps, case.flags, value) == [(True, [0.0, 1.0, 0.0], 2.0)] * size


def optimizers() -> list[dict[str, str]]:
    """A config's changes for each optimizer there is: for each choice of `optim.name`, where there are several."""
    kind = kinds_of(OptimConfig).get("name")
    return [{"name": choice} for choice in get_args(kind)] if kind else [{}]


@pytest.mark.parametrize("changes", optimizers())
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_every_optimizer_leaves_all_as_it_is_where_it_is_told_to_skip(changes, value):
    """One that does not read `found_inf` would put the NaN into the weights without a word."""
    torch.manual_seed(1309)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
    optimizer = make_optimizer(model, OptimConfig(lr=0.1, **changes))

    def update(gradient: float, skipped: float) -> list[torch.Tensor]:
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, gradient)
        skip_where(optimizer, torch.tensor(skipped))
        optimizer.step()
        states = (x for state in optimizer.state.values() for x in state.values() if isinstance(x, torch.Tensor))
        return [x.detach().clone() for x in (*model.parameters(), *states)]

    initial = [parameter.detach().clone() for parameter in model.parameters()]
    before, after, next_ = update(0.5, 0.0), update(value, 1.0), update(0.5, 0.0)
    assert all(not torch.equal(a, b) for a, b in zip(initial, before, strict=False)), "a good step trains"
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(x.isfinite().all() for x in next_)
    assert all(not torch.equal(a, b) for a, b in zip(after, next_, strict=True)), "the next good step trains"


def test_a_run_goes_on_counts_and_resumes_bit_for_bit(case, tmp_path):
    """The fifth of 15 steps is bad, so the Adam of a run that is resumed later has made one update less than steps."""
    flags = [*case.flags, *ONE_CALL, "--runs", str(tmp_path / "whole")]
    assert with_bad_calls({5}, float("nan"), train, flags) == 0
    whole = records(tmp_path / "whole" / "run")
    assert len(whole) == 15
    assert [record["skipped_steps"] for record in whole] == [0] * 4 + [1] * 11
    assert [record["loss"] is None for record in whole] == [False] * 4 + [True] + [False] * 10
    assert "step 5: 1 of the last 1 steps had gradients" in (tmp_path / "whole" / "run" / "log.txt").read_text()
    flags = [*case.flags, *ONE_CALL, "--runs", str(tmp_path / "parts"), "--trainer.stop_after", "8"]
    assert with_bad_calls({5}, float("nan"), train, flags) == 75
    assert train([*flags, "--trainer.stop_after", "0", "--resume", "auto"]) == 0
    parts = records(tmp_path / "parts" / "run")
    for key in ("loss", "grad_norm", "skipped_steps"):
        assert [record[key] for record in parts] == [record[key] for record in whole]
    exports = (tmp_path / name / "run" / "export" / "model.safetensors" for name in ("whole", "parts"))
    assert len({export.read_bytes() for export in exports}) == 1


def test_what_may_be_damaged_is_not_saved(case, tmp_path):
    """A save falls due at a bad step: it is left to the next one."""
    flags = [*case.flags, *ONE_CALL, "--runs", str(tmp_path), "--trainer.save_every", "5", "--trainer.keep", "0"]
    assert with_bad_calls({5}, float("nan"), train, flags) == 0
    saved = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert saved == ["step-000010", "step-000015"]


def test_bad_steps_between_records_are_found_at_the_next(case, tmp_path):
    flags = [*case.flags, *ONE_CALL, "--runs", str(tmp_path), "--trainer.log_every", "10"]
    with pytest.raises(ValueError, match=r"step 10: loss .*, 3 steps in a row: training has diverged"):
        with_bad_calls({4, 5, 6}, float("inf"), train, flags)
