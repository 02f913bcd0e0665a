"""Checkpoints of older and newer versions of the program: resumed where what is missing is known, or told as what they
are, never as damaged.
"""

import dataclasses
import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from logtrain.core.untrusted import ALWAYS, read_sealed, sealed
from logtrain.training.state import TrainState
from tests.support.synthetic import write_data, write_model
from tests.support.training import train

LATER = [field.name for field in dataclasses.fields(TrainState) if field.metadata != ALWAYS][2:]


@pytest.fixture(scope="module")
def flags(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("older")
    model = write_model(folder / "model", hidden_size=32, intermediate_size=48, vocab_size=130, num_attention_heads=4)
    data = write_data(folder / "data", model, seq_len=32, lengths={"train": [30] * 40, "valid": [30] * 4})
    fixed = [
        "--name",
        "run",
        "--model",
        str(model),
        "--data",
        str(data),
        "--loader.seq_len",
        "32",
        "--optim.lr",
        "1e-3",
    ]
    steps = ["--loader.rows_per_step", "4", "--trainer.max_steps", "4", "--trainer.valid_every", "2"]
    return [*fixed, *steps, "--trainer.log_every", "1"]


@pytest.fixture
def stopped(flags, tmp_path) -> Path:
    """checkpoint.json of a run that has made 2 of 4 steps."""
    assert train([*flags, "--runs", str(tmp_path), "--trainer.stop_after", "2"]) == 75
    return tmp_path / "run" / "checkpoints" / "step-000002" / "checkpoint.json"


def weights(runs: Path) -> dict:
    return load_file(runs / "run" / "checkpoints" / "step-000004" / "rank-00000.safetensors")


def test_what_an_older_version_did_not_write_is_known(flags, stopped, tmp_path):
    assert {"skipped", "sizes", "start_rows", "kept_rows", "share_changes", "records_crc32"} < set(LATER)
    facts = read_sealed(stopped)
    for name in LATER:
        del facts["state"][name]
    stopped.write_bytes(sealed(facts))
    assert train([*flags, "--runs", str(tmp_path), "--resume", "auto"]) == 0
    assert train([*flags, "--runs", str(tmp_path / "whole")]) == 0
    resumed, whole = weights(tmp_path), weights(tmp_path / "whole")
    assert resumed.keys() == whole.keys() and all(resumed[name].equal(whole[name]) for name in whole)
    state = json.loads((tmp_path / "run/checkpoints/step-000004/checkpoint.json").read_text())["state"]
    undisturbed = json.loads((tmp_path / "whole/run/checkpoints/step-000004/checkpoint.json").read_text())["state"]
    for name in ("step", "tokens", "targets", "best_loss", "skipped", "sizes", "kept_rows"):
        assert state[name] == undisturbed[name], name


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda facts: facts["state"].pop("tokens"), "an older version of logtrain: tokens is missing"),
        (lambda facts: facts["state"].update(phase=1), "a newer version of logtrain: phase is unknown to this one"),
        (lambda facts: facts.update(made_by="x"), "a newer version of logtrain: made_by is unknown to this one"),
    ],
)
def test_other_versions_are_told(flags, stopped, tmp_path, change, told):
    facts = read_sealed(stopped)
    change(facts)
    stopped.write_bytes(sealed(facts))
    with pytest.raises(ValueError, match=f"checkpoint.json: written by {told}; go on with that version"):
        train([*flags, "--runs", str(tmp_path), "--resume", "auto"])
    stopped.write_bytes(sealed(facts).replace(b'"step": 2', b'"step": 3'))
    with pytest.raises(ValueError, match=r"checkpoint.json: damaged \(its content has changed"):
        train([*flags, "--runs", str(tmp_path), "--resume", "auto"])
