"""Publishing: an export gets its name only when it reads back as the live model, and then as a whole."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from logtrain.data.loader import Loader, LoaderConfig
from logtrain.data.shards import Split
from logtrain.model import hf
from logtrain.model.llama import Llama
from logtrain.training.publish import publish
from logtrain.training.sharding import ParallelConfig, World, build, full_tensors
from tests.support.synthetic import write_data, write_model


class Case:
    def __init__(self, folder: Path):
        self.world, self.source, self.there = World(), write_model(folder / "model"), folder / "v1.0"
        data = write_data(folder / "data", self.source, seq_len=64, lengths={"train": [50, 20, 64]})
        self.loader = Loader(Split.open(data), LoaderConfig(seq_len=64, rows_per_step=1), seed=0, pad_id=1)
        self.config = hf.read_config(self.source)
        self.model = self.read(hf.Weights(self.source, self.config))

    def read(self, weights: hf.Weights) -> Llama:
        return build(self.config, self.world.mesh(ParallelConfig()), ParallelConfig(), torch.float32, weights.rows)

    def publish(self, read_back, chat=None) -> dict:
        return publish(
            self.there,
            self.model,
            full_tensors(self.model),
            dtype=torch.float32,
            world=self.world,
            source=self.source,
            tokenizer_files=(self.source / "tokenizer.json",),
            read_back=read_back,
            check=self.loader,
            chat=chat,
        )


@pytest.fixture
def case(tmp_path) -> Iterator[Case]:
    case = Case(tmp_path)
    yield case
    case.world.close()


def damaged(case: Case):
    def read(weights: hf.Weights) -> Llama:
        model = case.read(weights)
        with torch.no_grad():
            model.head.weight.mul_(3)
        return model

    return read


def test_what_reads_back_otherwise_is_not_exported(case):
    with pytest.raises(ValueError, match="not exported") as caught:
        case.publish(damaged(case))
    assert "\n" not in str(caught.value)
    assert not case.there.exists()
    assert not case.there.with_name("v1.0.json").exists()


def test_an_export_is_recorded_and_an_older_one_gives_way_whole(case):
    first = case.publish(case.read)
    assert first["difference"] == 0
    assert 5 < first["live_loss"] < 7  # near ln 320 = 5.77: random weights
    (case.there / "stale").touch()
    with pytest.raises(ValueError, match="not exported"):
        case.publish(damaged(case))
    assert (case.there / "stale").exists()  # a failed export takes nothing away
    case.publish(case.read)
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
    case.publish(case.read, chat=("{{ messages[0]['content'] }} w9", 9))
    assert GenerationConfig.from_pretrained(case.there).eos_token_id == after
    tokenizer = AutoTokenizer.from_pretrained(case.there)
    assert tokenizer.apply_chat_template([{"role": "user", "content": "w3"}], tokenize=False) == "w3 w9"
