"""The plan: what it says of small jobs and of the recipes, and its one-line errors."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from logtrain import plan
from logtrain.core.config import load
from logtrain.planning import operation, picture, prediction
from logtrain.planning.config import PlanConfig
from logtrain.planning.corpus import read_corpus
from logtrain.planning.estimate import estimate
from logtrain.planning.gpu_file import GPUS
from logtrain.planning.memory import UNSEEN
from logtrain.planning.plan_table import search_table
from logtrain.planning.prediction import Plan, make_plan
from logtrain.planning.search import changes_of, search
from logtrain.planning.shape import published_name
from tests.support import RECIPES, ROOT
from tests.support.synthetic import write_data, write_model

pytestmark = pytest.mark.slow

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
    for name in ("tokens_per_second_per_gpu", "step_seconds", "gpu_hours", "cost_usd", "reserved_memory_gib"):
        low, high = result["intervals"][name]
        assert low < result[name] < high


def test_recomputation_costs_flops_and_saves_memory(flags):
    results = {name: make_plan(load(PlanConfig, [*flags, "--recompute", name])).result for name in ("none", "full")}
    assert results["full"]["peak_memory_gib"] < results["none"]["peak_memory_gib"]
    assert results["none"]["flops_per_token_executed"] < results["full"]["flops_per_token_executed"]
    # nothing is counted twice: products are 6 a weight, attention's backward computes the scores once more
    assert 1 <= results["none"]["flops_per_token_executed"] / results["none"]["flops_per_token_model"] < 1.05


@pytest.mark.parametrize(("known", "words"), [(True, "not counted: mm;"), (False, "none that PyTorch knows")])
def test_a_product_that_the_plan_does_not_know_is_refused(flags, monkeypatch, known, words):
    """As if recompute.PRODUCTS lacked the products; `known`: whether PyTorch has a formula of their FLOPs."""
    monkeypatch.setattr(operation, "PRODUCTS", set())
    if not known:
        monkeypatch.setattr(prediction, "flop_registry", {})
    with pytest.raises(ValueError, match=words) as error:
        make_plan(load(PlanConfig, flags))
    assert re.match(r"\d+% of the model's FLOPs are in operations that the plan counts", str(error.value))
    assert "\n" not in str(error.value)


def test_the_picture(flags, tmp_path):
    plan.main([*flags, "--picture", str(tmp_path / "plan.svg")])
    text = (tmp_path / "plan.svg").read_text()
    assert text.startswith("<svg")
    assert "_allgather_base_" in text
    for mark in ("polyline", "stroke-dasharray", "GiB there</text>", ">0 ms</text>", ">0 s</text>"):
        assert mark in text, mark
    shown = set(re.findall(r'<text x="\d+" y="[\d.]+">([a-z -]+)</text>', text))  # lanes and the legend
    drawn = set(re.findall(r'<rect x[^>]+ fill="(#\w+)" stroke', text))
    assert {picture.COLOURS[name] for name in shown if name in picture.COLOURS} == drawn
    assert "all-reduce" not in shown


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


def small_gpu(folder: Path, room: int) -> Path:
    """The description of a GPU with `room` bytes for tensors."""
    text = (GPUS / "h100-sxm.toml").read_text().replace("84_947_000_000", str(room + 1))
    for number in ("2_147_483_648", "1_300_000_000", "3_000_000_000"):  # of [reserved]
        text = text.replace(number, "1")
    path = folder / "small.toml"
    path.write_text(text)
    return path


def test_a_job_that_does_not_fit_says_what_would(flags, tmp_path, capsys):
    results = {name: make_plan(load(PlanConfig, [*flags, "--recompute", name])).trace.peak for name in ("none", "full")}
    small = small_gpu(tmp_path, round((1 + UNSEEN) * (results["none"].reserved + results["full"].reserved) / 2))
    for extra in ([], ["--json"]):
        with pytest.raises(ValueError, match=r"recompute = .* makes it fit"):
            plan.main([*flags, "--gpu", str(small), *extra])
    table, _, last = capsys.readouterr().out.strip().rpartition("\n")
    assert "DOES NOT SURELY FIT" in table
    for text in (table, last):  # no speed and no price of what cannot run
        assert not re.search(r"tokens.s|tokens_per_second|step_seconds|\$|cost_usd|GPU-hours|MFU|mfu", text), text
    assert json.loads(last)["fits"] is False


def test_the_remedy_tries_half_the_rows_first_and_then_more_recomputation():
    config = load(PlanConfig, ["--model", "Llama-3.1-8B", "--data", "/none", "--loader.rows_per_batch", "4"])
    changes = list(changes_of(config))
    assert [change for change, _ in changes] == [
        *("loader.rows_per_batch = 2", "loader.rows_per_batch = 1", "recompute = selective", "recompute = full"),
        *(f"recompute = {name} and loader.rows_per_batch = {n}" for name in ("selective", "full") for n in (2, 1)),
    ]
    assert (changes[0][1].loader.rows_per_batch, changes[0][1].recompute) == (2, "none")
    assert (changes[-1][1].loader.rows_per_batch, changes[-1][1].recompute) == (1, "full")


@pytest.mark.parametrize("extra", [[], ["--recompute", "selective", "--loader.rows_per_batch", "2"]])
def test_an_estimate_by_few_blocks_is_the_plan_of_all(tmp_path, extra):
    model = write_model(tmp_path / "model", weights=False, hidden_size=256, intermediate_size=512, num_hidden_layers=7)
    flags = ["--model", str(model), "--data", "/none", "--documents", "500", "--document_tokens", "200"]
    config = load(
        PlanConfig, [*flags, "--loader.seq_len", "512", "--loader.rows_per_step", "32", "--gpus", "4", *extra]
    )
    found, plan = estimate(config, read_corpus(config)), make_plan(config)
    assert found.tokens_per_second == pytest.approx(plan.result["tokens_per_second_per_gpu"], rel=0.01)
    assert found.reserved_gib == pytest.approx(plan.memory.middle, rel=0.05)
    assert sum(found.seconds_by.values()) == pytest.approx(plan.result["step_seconds"], rel=0.01)


def test_the_search_puts_the_fastest_first_and_says_why_the_others_lose(flags, tmp_path):
    smallest = make_plan(load(PlanConfig, [*flags, "--recompute", "full"])).trace.peak.reserved
    gpu = small_gpu(tmp_path, round(1.2 * smallest))  # full recomputation, a row a micro-batch, and little more
    told: list[str] = []
    variants = search(load(PlanConfig, [*flags, "--gpu", str(gpu), "--loader.rows_per_step", "8"]), told.append)
    tried = [variant.to_json() for variant in variants]
    assert len(tried) == 3 * 2 * 4  # recomputation; one or two rows; reduce dtype and resharding
    fitting = [variant for variant in tried if not variant["why_not"].startswith(("does not fit", "not tried"))]
    speeds = [variant["tokens_per_second_per_gpu"] for variant in fitting]
    assert fitting == tried[: len(fitting)]
    assert 1 < len(fitting) < len(tried)
    assert speeds == sorted(speeds, reverse=True)
    assert [variant["why_not"] == "" for variant in tried] == [True, *[False] * (len(tried) - 1)]
    assert [variant.plan is not None for variant in variants] == [True, *[False] * (len(tried) - 1)]
    assert any("reserved_memory_gib" not in variant for variant in tried)  # as a smaller one did not fit
    assert not any("tokens_per_second_per_gpu" in variant for variant in tried if variant not in fitting)
    assert len(told) == sum(variant.estimate is not None for variant in variants)
    assert "best so far rows" in told[-1]
    lines = search_table(variants).splitlines()
    assert len(lines) == 1 + len(tried)
    assert "<- fastest that fits" in lines[1]


@pytest.mark.parametrize(
    ("flags", "words"),
    [(["--gpu", "h300"], "gpu h300: not known"), (["--gpuu", "h100"], "did you mean --gpu?")],
)
def test_a_mistyped_flag_or_gpu_is_told_without_torch(flags, words):
    called = "import sys; from logtrain import plan\ntry: plan.main(sys.argv[1:])"
    code = f"{called}\nfinally: assert 'torch' not in sys.modules"
    argv = [sys.executable, "-c", code, str(RECIPES / "cpt_8xh100.toml"), *flags]
    last = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True).stderr.splitlines()[-1]
    assert last.startswith("ValueError: ")
    assert words in last


@pytest.fixture(scope="module")
def fine_tuning() -> dict[int, Plan]:
    """The plan of the LoRA recipe as it stands, with nothing on disk, and with all parameters trained."""
    argv = [str(RECIPES / "sft_lora_4xh100.toml")]
    return {rank: make_plan(load(PlanConfig, [*plan.gpus_of(argv), *argv, *flags])) for rank, flags in RANKS.items()}


RANKS = {16: [], 0: ["--lora.rank", "0", "--recompute", "full"]}


def test_the_lora_recipe_keeps_its_promise(fine_tuning):
    """16,000 tokens/s a GPU and more, dropout and all, in the memory of an 80 GB GPU with a margin."""
    result, config = fine_tuning[16].result, fine_tuning[16].config
    assert (config.lora.rank, config.lora.dropout, len(config.lora.targets), config.gpus) == (16, 0.05, 7, 4)
    assert result["tokens_per_second_per_gpu"] >= 16_000
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
    assert fine_tuning[16].shape.num_parameters == pytest.approx(8.03e9, rel=1e-3)
    for path, name in (("/data/Llama-3.2-3B-Instruct", "3B"), ("my_1b", "1B"), ("runs/LLAMA-3.1-70b/x", "3.1-70B")):
        assert published_name(path).endswith(name)
    for path in ("Mixtral-8x7B", "runs/18b", "llama-0.8b", "8bit"):
        with pytest.raises(ValueError, match="no shape known by that name or its size"):
            published_name(path)


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


def test_help_has_the_flags_of_a_plan_alone(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        plan.main(["--help"])
    shown = capsys.readouterr().out
    assert set(re.findall(r"^│ --(\w+)", shown, re.M)) >= {"model", "gpus", "loader", "lora", "search", "trainer"}
    assert "--trainer.max_steps INT" in shown
    for flag in ("--resume", "--optim", "--trainer.log_every", "--parallel.timeout", "optim options", "--runs"):
        assert flag not in shown
    with pytest.raises(ValueError, match=r"--trainer.log_every: changes nothing here; --help lists what does"):
        plan.main([str(RECIPES / "cpt_8xh100.toml"), "--trainer.log_every", "3"])


def test_a_model_folder_is_enough(tmp_path, capsys):
    """Of 256 positions: a row is no longer than the model knows."""
    model = write_model(tmp_path / "model", weights=False, max_position_embeddings=256)
    assert plan.main(["--model", str(model), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["documents"] == "lognormal, mean 444 tokens, sigma 0.6"
    assert result["tokens_per_second_per_gpu"] > 0
