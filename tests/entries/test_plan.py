"""The plan: what it says of small jobs, its cost model at the points it was measured at, and its one-line errors."""

import json
from pathlib import Path

import numpy as np
import pytest

from logtrain import plan
from logtrain.core.config import load
from logtrain.planning.cost import GPUS, Gpu, Workload, breakdown, seconds, simulate
from logtrain.planning.operation import Op
from logtrain.planning.prediction import Plan, PlanConfig, make_plan, named
from tests.support import RECIPES
from tests.support.synthetic import write_data, write_model

KEYS = [
    "fits",
    "peak_memory_gib",
    "memory_gib",
    "tokens_per_second_per_gpu",
    "step_seconds",
    "step_seconds_by",
    "mfu_full",
    "mfu_causal",
    "flops_per_token_model",
    "flops_per_token_executed",
    "collectives",
    "host_syncs",
    "steps",
    "train_minutes",
    "gpu_hours",
    "cost_usd",
]


@pytest.fixture(scope="module")
def flags(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("plan")
    model = write_model(folder / "model", weights=False, hidden_size=256, intermediate_size=512)
    lengths = np.random.default_rng(0).integers(20, 200, 300).tolist()
    data = write_data(folder / "data", model, seq_len=256, lengths={"train": lengths})
    flags = ["--model", str(model), "--data", str(data), "--loader.seq_len", "256", "--loader.rows_per_step", "32"]
    return [*flags, "--gpus", "4"]


def op(kind: str, stream: str = "compute", waits: tuple = (), **changes) -> Op:
    return Op("x", kind, "forward", "", 1, stream, waits, **{"read": 0, "written": 0, **changes})


def test_json_has_every_key_and_adds_up(flags, capsys):
    assert plan.main([*flags, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert set(KEYS) <= result.keys()
    assert result["fits"]
    assert result["host_syncs"] == 0
    assert sum(result["memory_gib"].values()) == pytest.approx(result["peak_memory_gib"])
    assert sum(result["step_seconds_by"].values()) == pytest.approx(result["step_seconds"])
    assert result["cost_usd"] == pytest.approx(2.31 * 4 * result["steps"] * result["step_seconds"] / 3600)
    assert result["mfu_causal"] < result["mfu_full"]


def test_recomputation_costs_flops_and_saves_memory(flags):
    results = {name: make_plan(load(PlanConfig, [*flags, "--recompute", name])).result for name in ("none", "full")}
    assert results["full"]["peak_memory_gib"] < results["none"]["peak_memory_gib"]
    assert results["none"]["flops_per_token_executed"] < results["full"]["flops_per_token_executed"]
    # nothing is counted twice: products are 6 a weight, attention's backward computes the scores once more
    assert 1 <= results["none"]["flops_per_token_executed"] / results["none"]["flops_per_token_model"] < 1.05


def test_the_picture(flags, tmp_path):
    plan.main([*flags, "--picture", str(tmp_path / "plan.svg")])
    text = (tmp_path / "plan.svg").read_text()
    assert text.startswith("<svg")
    assert "_reduce_scatter_base_" in text
    assert "polyline" in text


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["--gpu", "h1000"], ["gpu h1000", "a100-80g, h100-sxm"]),
        (["--gpus", "12"], ["gpus = 12", "whole nodes of 8"]),
        (["--model", "Mistral"], ["model = Mistral", "Llama-3.1-8B", "--model"]),
        (["--loader.rows_per_step", "33"], ["rows_per_step = 33", "set rows_per_step to"]),
        (["--parallel.shard_ranks", "3"], ["shard_ranks = 3"]),
    ],
)
def test_an_impossible_job_is_one_line(flags, extra, words):
    with pytest.raises(ValueError) as error:
        plan.main([*flags, *extra])
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words)


def test_a_job_that_does_not_fit_says_what_would(flags, tmp_path, capsys):
    text = (GPUS / "h100-sxm.toml").read_text()
    results = {name: make_plan(load(PlanConfig, [*flags, "--recompute", name])).trace.peak for name in ("none", "full")}
    room = 2_147_483_648 + (results["none"].reserved + results["full"].reserved) // 2
    small = tmp_path / "small.toml"
    small.write_text(text.replace("84_947_000_000", str(room)))
    with pytest.raises(ValueError, match=r"recompute = .* makes it fit"):
        plan.main([*flags, "--gpu", str(small)])


def test_a_gpu_without_a_source_is_refused(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text((GPUS / "h100-sxm.toml").read_text().replace("value = 370e9\nsource", "value = 370e9\nno"))
    with pytest.raises(ValueError, match=r"\[links\] needs a value and its source"):
        Gpu(str(path))


@pytest.fixture(scope="module")
def fine_tuning() -> dict[int, Plan]:
    """The plan of the LoRA recipe as it stands, with nothing on disk, and with all parameters trained."""
    argv = [str(RECIPES / "sft_lora_4xh100.toml")]
    return {rank: make_plan(load(PlanConfig, [*plan.gpus_of(argv), *argv, *flags])) for rank, flags in RANKS.items()}


RANKS = {16: [], 0: ["--lora.rank", "0", "--recompute", "full"]}


def test_the_lora_recipe_keeps_its_promise(fine_tuning):
    """17,000 tokens/s a GPU and more, dropout and all, in the memory of an 80 GB GPU with a margin."""
    result, config = fine_tuning[16].result, fine_tuning[16].config
    assert (config.lora.rank, config.lora.dropout, len(config.lora.targets), config.gpus) == (16, 0.05, 7, 4)
    assert result["tokens_per_second_per_gpu"] >= 17_000
    assert result["reserved_memory_gib"] < 0.9 * result["available_memory_gib"]
    assert result["flops_per_token_executed"] < 1.01 * result["flops_per_token_model"]  # no product is recomputed


def test_lora_computes_no_gradient_of_a_frozen_matrix(fine_tuning):
    """A product over the tokens whose sides are both a matrix's."""
    flops = {}
    for rank, made in fine_tuning.items():
        tokens, widths = made.trace.tokens, {4096, 6144, 14336, 28672, 128256}
        products = [op for op in made.trace.ops if op.kind == "product" and not op.vocabulary and op.shape[2] == tokens]
        flops[rank] = sum(op.flops for op in products if set(op.shape[:2]) <= widths)
    assert flops == {16: 0, 0: 2 * 32 * 8192 * 4096 * (4096 + 6144 + 3 * 14336)}


def test_a_model_that_is_not_there_is_planned_by_its_name_or_size_and_that_is_said(fine_tuning, capsys):
    assert fine_tuning[16].result["model"] == "Llama-3.1-8B (no config.json at runs/nlplog-8b/export)"
    assert fine_tuning[16].llama.num_parameters == pytest.approx(8.03e9, rel=1e-3)
    for path, name in (("/data/Llama-3.2-3B-Instruct", "3B"), ("my_1b", "1B"), ("runs/LLAMA-3.1-70b/x", "3.1-70B")):
        assert named(path).endswith(name)
    for path in ("Mixtral-8x7B", "runs/18b", "llama-0.8b", "8bit"):
        with pytest.raises(ValueError, match="no shape known by that name or its size"):
            named(path)


@pytest.mark.parametrize(
    ("argv", "found"),
    [
        (["launch/recipes/sft_lora_4xh100.toml", "--gpus", "2"], ["--gpus", "4"]),  # before the other, which counts
        (["/a_2x/launch/recipes/cpt_8xh100.toml"], ["--gpus", "8"]),
        (["launch/recipes/demo.toml"], []),
        (["mine/llama_2x_lr.toml"], []),
        (["--gpu", "mine_4xh100.toml"], []),
        ([], []),
    ],
)
def test_the_number_of_gpus_is_that_of_the_recipes_name(argv, found):
    assert plan.gpus_of(argv) == found


@pytest.mark.parametrize("path", sorted(GPUS.glob("*.toml")), ids=lambda path: path.stem)
def test_rates_where_they_were_measured(path: Path):
    gpu = Gpu(path.stem)
    square = op("product", shape=(8192, 8192, 8192, 1))
    assert 2 * 8192**3 / gpu.product_seconds(square) == pytest.approx(gpu.product)
    for kernel, table in gpu.attention.items():
        for length, forward, backward in table:
            assert gpu.attention_rate(kernel, np.array([length]), False)[0] == pytest.approx(forward)
            assert gpu.attention_rate(kernel, np.array([length]), True)[0] == pytest.approx(backward)
        assert gpu.attention_rate(kernel, np.array([200]), False)[0] < table[0][1]


def test_the_published_bandwidth_at_128_mib():
    gathered = op("all_gather", shape=tuple(range(8)), written=128 * 2**20)
    bus = 128 * 2**20 * 7 / 8 / Gpu("h100-sxm").collective_seconds(gathered)
    assert bus == pytest.approx(305e9, rel=0.01)


def test_streams_overlap_and_share():
    """Two products of a second, beside a collective of one, then one that waits for it."""
    gpu, workload = Gpu("h100-sxm"), Workload(np.array([100]))
    gpu.host = 0.0
    product = {"shape": (1 << 17, 1 << 14, 1 << 14, 1)}
    ranks = tuple(range(8))
    a_product = seconds(op("product", **product), gpu, workload)
    size = round((a_product - gpu.links_latency) * gpu.links * 8 / 7)
    gather = op("all_gather", "all-gather", shape=ranks, written=size)
    ops = [gather, op("product", **product), op("product", waits=(0,), **product)]
    timeline = simulate(ops, gpu, workload)
    slow = gpu.beside_collectives
    assert timeline.end[0] == pytest.approx(a_product, rel=1e-6)
    assert timeline.end[1] == pytest.approx(a_product * (1 + 1 - 1 / slow), rel=1e-6)  # slower until the gather ends
    assert timeline.end[2] == pytest.approx(timeline.end[1] + a_product, rel=1e-6)
    total, parts = breakdown(ops, [1], timeline)
    assert total == pytest.approx(timeline.end[2])
    assert parts["gemm"] == pytest.approx(2 * a_product)
    quiet = simulate(ops, gpu, Workload(np.array([100]), quiet=("all_gather",)))
    assert quiet.end[2] == pytest.approx(2 * a_product, rel=1e-6)
