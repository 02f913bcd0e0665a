"""Publishing: an export gets its name only when it reads back as the live model, and then as a whole."""

import dataclasses
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import tokenizers
import torch

from logtrain.core.config import load
from logtrain.core.world import World
from logtrain.cpt import CptConfig
from logtrain.training.publish import ExportResult, publish_model
from logtrain.training.run_data import ChatStyle
from logtrain.training.setup import RunSetup, set_up
from tests.support.synthetic import edit_json, write_data, write_model


class DamagingSetup(RunSetup):
    """Reads back another model than was written."""

    def build_model(self, source, *, adapters=True):
        model = super().build_model(source, adapters=adapters)
        with torch.no_grad():
            model.head.weight.mul_(3)
        return model


class Case:
    def __init__(self, folder: Path):
        self.source, self.there = write_model(folder / "model"), folder / "v1.0"
        tokenizer = tokenizers.Tokenizer.from_file(str(self.source / "tokenizer.json"))
        tokenizer.add_special_tokens(["w9"])
        tokenizer.save(str(self.source / "tokenizer.json"))
        data = write_data(folder / "data", self.source, seq_len=64, lengths={"train": [50, 20, 64]})
        flags = ["--name", "run", "--model", str(self.source), "--data", str(data), "--loader.seq_len", "64"]
        self.run = set_up(load(CptConfig, [*flags, "--loader.rows_per_step", "1"]))
        self.model = self.run.build_model(self.run.initial_weights())

    def publish(self, *, damaged: bool = False, chat: ChatStyle | None = None) -> ExportResult:
        run = dataclasses.replace(self.run, data=dataclasses.replace(self.run.data, chat=chat))
        return publish_model(self.there, self.model, DamagingSetup(**vars(run)) if damaged else run)


@pytest.fixture
def case(tmp_path) -> Iterator[Case]:
    case = Case(tmp_path)
    yield case
    case.run.world.close()


def test_the_watchdog_knows_of_a_model_that_is_read_to_be_described(case, monkeypatch):
    """At 200 MB/s a model of 140 GB takes longer than its timeout, and all other ranks wait."""
    noted = []
    monkeypatch.setattr(World, "note", lambda _, doing: noted.append(doing))
    (case.source / "lineage.json").write_text("{}")
    case.publish()
    assert {f"reading {case.source / name} for its checksum" for name in ("config.json", "model.safetensors")} <= {
        *noted
    }


def test_what_reads_back_otherwise_is_not_exported(case):
    with pytest.raises(ValueError, match="not exported") as caught:
        case.publish(damaged=True)
    assert "\n" not in str(caught.value)
    assert not case.there.exists()
    assert not case.there.with_name("v1.0.json").exists()


def test_an_export_is_recorded_and_an_older_one_gives_way_whole(case):
    first = case.publish()
    assert first.difference == 0
    assert 5 < first.live_loss < 7  # near ln 320 = 5.77: random weights
    assert json.loads(case.there.with_name("v1.0.json").read_text())["live_loss"] == first.live_loss
    (case.there / "stale").touch()
    with pytest.raises(ValueError, match="not exported"):
        case.publish(damaged=True)
    assert (case.there / "stale").exists()  # a failed export takes nothing away
    case.publish()
    assert not (case.there / "stale").exists()
    names = {path.name for path in case.there.parent.iterdir()}
    assert names == {"model", "data", "v1.0", "v1.0.json"}


@pytest.mark.parametrize(
    ("before", "after"),
    [(None, [1, 9]), ({}, [1, 9]), ({"eos_token_id": None}, [1, 9]), ({"eos_token_id": 9}, 9),
     ({"eos_token_id": [3, 9]}, [3, 9]), ({"eos_token_id": [3]}, [3, 9]), ({"eos_token_id": 0}, [0, 9])],
    ids=["no file", "config", "null", "same", "among", "new", "zero"],
)  # fmt: skip
def test_a_model_trained_on_chats_carries_their_template_and_their_end(case, before, after):
    """As others load it: transformers takes the file before what tokenizer_config.json says."""
    from transformers import AutoTokenizer, GenerationConfig

    file = case.source / "generation_config.json"
    file.unlink() if before is None else file.write_text(json.dumps(before))
    template = "{{ bos_token }}{% for message in messages %}{{ ' ' ~ message['content'] }} w9{% endfor %}"
    said = str(case.publish(chat=ChatStyle(template, 9)))
    assert "the tokenizer's eos_token is <|end_of_text|> (1), but answers end with" in said or 1 in as_list(after)
    assert GenerationConfig.from_pretrained(case.there).eos_token_id == after
    tokenizer = AutoTokenizer.from_pretrained(case.there)
    assert (
        tokenizer.apply_chat_template([{"role": "user", "content": "w3"}], tokenize=False) == "<|begin_of_text|> w3 w9"
    )
    config = json.loads((case.there / "config.json").read_text())
    assert before is not None or set(as_list(config["eos_token_id"])) <= set(as_list(after))


def as_list(ids: int | list[int]) -> list[int]:
    return ids if isinstance(ids, list) else [ids]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640)])
def test_an_export_holds_one_template_and_is_as_open_as_other_files(case, umask, mode):
    """Of public reports: a server that reads tokenizer_config.json alone took the older template, and an account of its
    own could not read the weights."""
    edit_json(case.source / "tokenizer_config.json", chat_template="older")
    before = os.umask(umask)
    try:
        case.publish(chat=ChatStyle("{% for message in messages %}{{ message['content'] }} w9{% endfor %}", 9))
    finally:
        os.umask(before)
    assert "chat_template" not in json.loads((case.there / "tokenizer_config.json").read_text())
    assert (case.there / "chat_template.jinja").read_text().endswith(" w9{% endfor %}")
    assert {stat.S_IMODE(file.stat().st_mode) for file in case.there.iterdir()} == {mode}
