"""precision = "fp8": one run, however it is spread over ranks, micro-batches and recomputation, and close to fp32."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.precision.losses import weights_as_they_are
from logtrain.core.config import load
from logtrain.cpt import CptConfig
from logtrain.model import lora
from logtrain.model.float8 import SharedWeight, check_sides
from logtrain.training import checks
from logtrain.training.config import RunConfig
from logtrain.training.optim import make_optimizer
from logtrain.training.setup import set_up
from logtrain.training.step import TrainStep, validate
from tests.planning.test_trace import SHAPE
from tests.support.ranks import Ranks
from tests.support.synthetic import write_data, write_model
from tests.support.training import first_gradients, records, train

pytestmark = pytest.mark.slow

RECIPES = pytest.mark.parametrize("recipe", ["tensorwise", "rowwise"])
LORA = ["--lora.rank", "4", "--lora.dropout", "0.1"]


@pytest.fixture(scope="module")
def case(tmp_path_factory) -> SimpleNamespace:
    """A model whose heads and halves have no multiple of 4 rows, its data, and the flags of a run of 6 steps."""
    folder = tmp_path_factory.mktemp("float8")
    sizes: dict[str, Any] = {
        "hidden_size": 33,
        "intermediate_size": 47,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
    }
    models = {
        "even": write_model(folder / "even"),
        "uneven": write_model(folder / "uneven", head_dim=6, **sizes),
    }
    lengths = np.random.default_rng(5).integers(2, 70, 82).tolist()
    data = write_data(folder / "data", models["even"], seq_len=64, lengths={"train": lengths, "valid": lengths[:9]})
    flags = ["--name", "run", "--data", str(data), "--loader.seq_len", "64", "--loader.rows_per_step", "8"]
    flags += ["--trainer.epochs", "2", "--trainer.max_steps", "6", "--trainer.log_every", "1", "--optim.lr", "3e-3"]
    return SimpleNamespace(
        folder=folder, flags={name: [*flags, "--runs", str(folder), "--model", str(m)] for name, m in models.items()}
    )


def in_float8(case, recipe: str, *more: str, model: str = "even") -> list[str]:
    return [*case.flags[model], "--precision", "fp8", "--fp8.recipe", recipe, *more]


def most_different(found: dict, truth: dict) -> float:
    """The largest relative difference of a gradient tensor."""
    assert found.keys() == truth.keys()
    return max(((found[name] - truth[name]).norm() / truth[name].norm()).item() for name in truth)


@RECIPES
@pytest.mark.parametrize("model", ["even", "uneven"])
def test_gradients_are_the_same_on_any_ranks_and_near_those_in_fp32(case, ranks: Ranks, recipe, model):
    flags = in_float8(case, recipe, model=model)
    alone, exact = first_gradients(flags), first_gradients(case.flags[model])
    assert 0.01 < most_different(alone, exact) < 0.15  # of the roundings of e4m3, 2^-4 of a number
    for size in (2, 4):
        shared = ranks.run(size, first_gradients, [*flags, "--parallel.shard_ranks", "2"])[0]
        assert most_different(shared, alone) < 1e-6


@RECIPES
@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_recomputation_and_micro_batches_change_nothing(case, recipe, recompute):
    flags = in_float8(case, recipe)
    kept = first_gradients(flags)
    assert most_different(first_gradients([*flags, "--recompute", recompute]), kept) < 1e-6
    if recipe == "rowwise":  # all other scales are of a micro-batch: tensorwise, and dW's columns
        by_token = [*flags, "--fp8.weight_gradient", "bf16"]
        assert (
            most_different(first_gradients([*by_token, "--loader.rows_per_batch", "4"]), first_gradients(by_token))
            < 1e-5
        )


class Gathers(TorchDispatchMode):
    """Bytes that all-gathers have received."""

    received = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ == "_allgather_base_":
            self.received += args[0].nbytes
        return func(*args, **kwargs or {})


def bytes_gathered(flags: list[str]) -> int:
    """What a rank gathers in one step."""
    run = set_up(load(CptConfig, flags))
    model = run.build_model(run.initial_weights())
    step = TrainStep(model, make_optimizer(model, run.config.optim), run.config.optim, 1.0, 3, run.world)
    with Gathers() as gathers:
        step(replace(run.data.train.at(0), batches=run.data.train.at(0).batches[:1]), 0)
    run.world.close()
    return gathers.received


@RECIPES
def test_ranks_send_a_byte_for_each_weight_of_a_block(case, ranks: Ranks, recipe):
    flags = [*case.flags["even"], "--dtype", "bfloat16"]
    plain = ranks.run(2, bytes_gathered, flags)[0]
    in_bytes = ranks.run(2, bytes_gathered, in_float8(case, recipe, "--dtype", "bfloat16"))[0]
    rows, matrices = 96 + 64 + 2 * 112 + 64, (96 + 64) * 64 + 3 * 112 * 64  # of a block
    scales = 4 * rows if recipe == "rowwise" else 0
    gathers = 3  # forward of both blocks, backward of the first
    assert plain - in_bytes == gathers * (matrices - scales)


@RECIPES
def test_a_run_on_two_ranks_is_saved_resumed_and_exported_as_on_one(case, ranks: Ranks, recipe):
    flags, runs = in_float8(case, recipe), {}
    for name, size, parts in (("one", 1, [[]]), ("two", 2, [["--trainer.stop_after", "3"], ["--resume", "auto"]])):
        for part in parts:
            assert ranks.run(size, train, [*flags, "--name", f"{recipe}-{name}", *part])[0] in (0, 75)
        runs[name] = case.folder / f"{recipe}-{name}"
    one, two = ([record["loss"] for record in records(run)] for run in runs.values())
    assert len(one) == 6
    assert two == pytest.approx(one, abs=2e-3)
    assert records(runs["two"], "valid_loss")[-1]["valid_loss"] < records(runs["two"], "valid_loss")[0]["valid_loss"]
    first, second = ((run / "export/model.safetensors").stat().st_size for run in runs.values())
    assert first == second


@RECIPES
@pytest.mark.parametrize("shard_ranks", ["1", "2"])
def test_adapters_train_beside_frozen_weights_in_float8(case, ranks: Ranks, recipe, shard_ranks):
    flags = in_float8(case, recipe, *LORA)
    alone, exact = first_gradients(flags), first_gradients([*case.flags["even"], *LORA])
    trained = [name for name in exact if name.endswith("lora_B")]  # As have no gradient while B is zero
    assert 0.01 < most_different(*({name: g[name] for name in trained} for g in (alone, exact))) < 0.15
    shared = ranks.run(2, first_gradients, [*flags, "--parallel.shard_ranks", shard_ranks])[0]
    assert most_different(*({name: g[name] for name in trained} for g in (shared, alone))) < 1e-6


@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_adapters_have_the_same_gradients_where_blocks_are_recomputed(case, recompute):
    """The frozen weights are cast in the first pass alone of the first micro-batch."""
    flags = in_float8(case, "tensorwise", *LORA)
    kept, again = first_gradients(flags), first_gradients([*flags, "--recompute", recompute])
    assert all(torch.equal(kept[name], again[name]) for name in kept)


def test_frozen_weights_are_cast_once(case):
    """In a step of eight micro-batches."""
    with patch.object(lora, "float8_weight", wraps=lora.float8_weight) as cast:
        first_gradients(in_float8(case, "tensorwise", *LORA))
    assert cast.call_count == 2 * 4  # blocks, matrices


@RECIPES
def test_a_step_with_a_gradient_that_is_not_finite_is_skipped(case, recipe):
    run = set_up(load(CptConfig, in_float8(case, recipe)))
    model: Any = run.build_model(run.initial_weights())
    optimizer = make_optimizer(model, run.config.optim)
    step = TrainStep(model, optimizer, run.config.optim, 1.0, 3, run.world)
    with torch.no_grad():
        model.blocks[0].feed_forward_norm.weight[3] = torch.inf
    before = model.blocks[1].attention.qkv.weight.clone()
    assert step(run.data.train.at(0), 0).skipped.item() == 1
    assert torch.equal(model.blocks[1].attention.qkv.weight, before)
    run.world.close()


@RECIPES
def test_a_model_can_compute_as_it_will_be_exported(case, recipe):
    """Meanwhile no product is in float8: the held-out loss is that of the same weights in fp32, bit by bit."""
    losses = []
    for flags in (in_float8(case, recipe), case.flags["even"]):
        run = set_up(load(CptConfig, flags))
        model = run.build_model(run.initial_weights())
        (valid,) = run.data.valid.values()
        with weights_as_they_are():
            losses.append(validate(model, valid, 1, run.world).loss)
        own = validate(model, valid, 1, run.world).loss
        run.world.close()
        assert (own != losses[-1]) == (flags != case.flags["even"])
    assert losses[0] == losses[1]


def test_precision_names_the_same_arithmetic_as_dtype(case):
    """Bit by bit."""
    for precision, dtype in (("bf16", "bfloat16"), ("fp32", "float32")):
        one, two = (
            first_gradients([*case.flags["even"], *flag]) for flag in (["--precision", precision], ["--dtype", dtype])
        )
        assert all(torch.equal(one[name], two[name]) for name in two)


def test_a_shard_stays_one_through_what_fsdp_does_to_it_and_is_plain_elsewhere():
    shard = SharedWeight(torch.arange(12.0).view(4, 3), "rowwise", [])
    for kept in (shard.detach(), shard[1:3], shard.view(-1), torch.empty_like(shard), shard.clone(), shard.chunk(2)[1]):
        assert type(kept) is SharedWeight
    assert type(shard + 1) is type(torch.zeros_like(shard)) is torch.Tensor
    assert shard[1:2].copy_(torch.ones(1, 3)) is not None
    assert shard.held[1].tolist() == [1.0] * 3


def test_what_cannot_be_had_is_one_line(monkeypatch):
    config = RunConfig(name="run", model="model", data="data", precision="fp8")
    wrong: tuple[tuple[dict[str, Any], str], ...] = (
        ({"dtype": "bfloat16", "precision": "fp32"}, "dtype = bfloat16 and precision = fp32 differ; leave one of them"),
        ({"precision": "fp8", "compile": True}, "precision = fp8: not with compile"),
    )
    for changes, message in wrong:
        with pytest.raises(ValueError, match=message):
            RunConfig(name="run", model="model", data="data", **changes)
    with pytest.raises(ValueError, match=r"^precision = fp8: tokens of a micro-batch: 1000 is no multiple of 16"):
        check_sides(SHAPE, 1000)
    gpu = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA A100")
    with pytest.raises(ValueError, match=r"^NVIDIA A100: precision = fp8 needs an Ada or Hopper GPU"):
        checks.check_device(gpu, torch.bfloat16, config, SHAPE)
    with pytest.raises(ValueError, match=r"^fp8\.keep = 3: the model has blocks 0 to 2$"):
        checks.check_device(torch.device("cpu"), torch.float32, load(RunConfig, KEEPING), SHAPE)


KEEPING = ["--name", "run", "--model", "m", "--data", "d", "--precision", "fp8", "--fp8.keep", "0", "3"]
