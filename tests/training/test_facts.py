"""What a run says it is: the figures are those of its model and data, and what is odd is said."""

from dataclasses import replace
from pathlib import Path

import pytest

from logtrain.core.config import load
from logtrain.cpt import CptConfig
from logtrain.dpo import DpoConfig
from logtrain.model.config import LoraConfig
from logtrain.sft import SftConfig
from logtrain.training.config import RunConfig
from logtrain.training.facts import odd_rate
from logtrain.training.optim_config import OptimConfig
from tests.support.synthetic import write_data, write_model
from tests.support.training import train


@pytest.fixture(scope="module")
def flags(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("facts")
    model = write_model(folder / "model", hidden_size=32, intermediate_size=48, vocab_size=130, num_attention_heads=4)
    data = write_data(folder / "data", model, seq_len=32, lengths={"train": [30] * 88, "valid": [30] * 4}, context=0.3)
    flags = ["--name", "run", "--model", str(model), "--data", str(data), "--loader.seq_len", "32"]
    return [*flags, "--optim.lr", "1e-3"]


def first_lines(flags: list[str], runs: Path, capsys, *more: str) -> list[str]:
    assert train([*flags, "--runs", str(runs), *more]) == 0
    return capsys.readouterr().out.split("step=0/")[0].splitlines()


def test_the_figures_of_model_data_steps_and_disk(flags, tmp_path, capsys):
    lines = first_lines(flags, tmp_path, capsys, "--loader.rows_per_step", "4")
    facts = dict(line.split(": ", 1) for line in lines)
    embedding, norms = 130 * 32, 5 * 32
    block = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48  # q and out; k and v, of 2 of 4 heads; the gated layer
    parameters = 2 * embedding + 2 * block + norms
    assert facts["model"] == f"model, {parameters:,} parameters, {parameters:,} trained"
    assert facts["data"] == "88 documents, 2,640 tokens in rows of 32; held out: valid"
    assert facts["steps"] == "22 of 4 rows, about 120 tokens each; 1.00 epochs of 22 steps"
    assert facts["on"] == "1 x rank without a GPU, float32 products, float32 master weights, reference operations"
    assert f"{12 * parameters / 1000:.0f} kB a checkpoint" in facts["disk"]
    assert facts["disk"].endswith(f"everything goes to {tmp_path}/run")
    assert "warning" not in facts
    assert facts["memory and time"].startswith("not predicted on a CPU")


def test_few_and_large_steps_are_warned_about_and_adapters_are_named(flags, tmp_path, capsys):
    lines = first_lines(flags, tmp_path, capsys, "--loader.rows_per_step", "8", "--lora.rank", "2")
    assert "trained (adapters of rank 2)" in lines[0]
    assert lines[-3] == "warning: a step is 1/11 of an epoch; set loader.rows_per_step = 8 to 4 or less"
    assert lines[-2].startswith("warning: only 11 steps in all")


def test_a_rate_that_is_for_adapters_or_for_all_parameters_is_warned_about():
    whole = RunConfig(name="run", model="model", data="data")
    adapted = replace(whole, lora=LoraConfig(rank=16))
    high, low = OptimConfig(lr=2e-4), OptimConfig(lr=1e-5)
    assert "is one for adapters" in odd_rate(replace(whole, optim=high), 8 * 10**9)[0]
    assert "is one for all parameters" in odd_rate(replace(adapted, optim=low), 8 * 10**9)[0]
    assert odd_rate(replace(whole, optim=low), 8 * 10**9) == odd_rate(replace(adapted, optim=high), 8 * 10**9) == []
    assert odd_rate(replace(whole, optim=high), 10**6) == []  # a small model
    sft = load(SftConfig, ["--name", "a", "--model", "m", "--data", "d"])
    assert (sft.lora.rank, sft.optim.lr) == (16, 2e-4)
    assert load(CptConfig, ["--name", "a", "--model", "m", "--data", "d"]).optim.lr == 1e-5


def test_the_rates_of_pairs_are_others():
    adapted = load(DpoConfig, ["--name", "a", "--model", "m", "--data", "d"])
    whole = replace(adapted, lora=LoraConfig())
    assert (adapted.lora.rank, adapted.optim.lr) == (16, 5e-6)

    def told(config: DpoConfig, lr: float) -> list[str]:
        return odd_rate(replace(config, optim=OptimConfig(lr=lr)), 8 * 10**9)

    assert told(adapted, 5e-6) == told(adapted, 4e-5) == told(whole, 5e-7) == []
    assert told(adapted, 5e-7)[0].endswith("is one for all parameters; adapters take about 5e-06")
    assert told(whole, 5e-6)[0].endswith("all parameters are trained; about 5e-07 is usual")
    assert told(adapted, 2e-4)[0].endswith("is one for text and chats; pairs of answers take about 5e-06")
    assert told(whole, 1e-5)[0].endswith("is one for text and chats; pairs of answers take about 5e-07")


def test_documents_are_shown_as_they_are_trained(flags, tmp_path, capsys):
    lines = first_lines(flags, tmp_path, capsys, "--loader.rows_per_step", "4", "--show", "2")
    shown = [line for line in lines if "w" in line and "«" in line]
    assert len(shown) == 2
    for line in shown:
        assert not line.startswith("«")  # nothing predicts the first token
        assert line.count("«") == line.count("»") > 1 and line.endswith("<|end_of_text|>»")
