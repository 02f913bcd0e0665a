"""What leaves the house says what it is, and finds its model again."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from logtrain.core.lineage import parent_of
from logtrain.core.untrusted import sealed
from logtrain.model import hf, peft
from logtrain.model.base import base_folder, read_base, write_base
from logtrain.model.card import DataLine, Score, read_scores, write_card
from logtrain.model.config import LoraConfig
from tests.support.lora import adapted, trained
from tests.support.synthetic import edit_json, write_model


@pytest.fixture
def folders(tmp_path) -> tuple[Path, Path]:
    """A model, and an adapter of it."""
    model, config = write_model(tmp_path / "model"), LoraConfig(rank=2, alpha=4.0)
    llama = adapted(model, config)
    adapter = tmp_path / "runs" / "adapter"
    peft.save(adapter, trained(llama), llama.config, config, str(model))
    write_base(adapter, adapter, read_base(model), "float32")
    return model, adapter


def test_an_adapter_finds_its_model_when_both_have_moved(folders, tmp_path, monkeypatch):
    model, adapter = folders
    assert base_folder(adapter) == model
    moved = tmp_path / "elsewhere"
    shutil.move(tmp_path / "runs", moved / "runs")
    shutil.move(model, moved / "model")
    monkeypatch.chdir(tmp_path)
    assert base_folder(moved / "runs" / "adapter").resolve() == (moved / "model").resolve()
    edit_json(moved / "runs" / "adapter" / "base_model.json", hub_id="org/base")
    shutil.rmtree(moved / "model")
    with pytest.raises(ValueError, match=r"is no folder here; set it to the model's folder; it is org/base on the hub"):
        base_folder(moved / "runs" / "adapter")


def test_an_adapter_of_an_adapter_says_what_to_do(folders, tmp_path):
    """As DPO behind SFT leaves them."""
    _, first = folders
    second = shutil.copytree(first, tmp_path / "runs" / "second")
    (second / "base_model.json").unlink()
    edit_json(second / "adapter_config.json", base_model_name_or_path=str(first))
    with pytest.raises(ValueError, match=r"its model \S+/adapter is an adapter too; merge that one first"):
        base_folder(second)


@pytest.mark.parametrize("name", ["a" * 300, "a/" * 3000, "\0"])
def test_a_name_that_no_folder_can_have_is_no_folder(folders, name):
    _, adapter = folders
    for file, key in (("adapter_config.json", "base_model_name_or_path"), ("base_model.json", "path")):
        facts = json.loads((adapter / file).read_text())
        (adapter / file).write_text(json.dumps(facts | {key: name}))
    with pytest.raises(ValueError, match="is no folder here; set it to the model's folder"):
        base_folder(adapter)
    assert parent_of("model", name)["sha256"] == ""


def test_another_model_at_the_place_of_an_adapters_own_is_refused(folders):
    model, adapter = folders
    file = model / hf.WHOLE
    save_file({name: tensor + 1 for name, tensor in load_file(file).items()}, file)
    with pytest.raises(
        ValueError, match=r"is another model than .*adapter was trained on \(its weights have another ha"
    ):
        base_folder(adapter)


def test_where_a_models_hub_id_is_known_from(folders, tmp_path):
    model, _ = folders
    assert read_base(model).hub_id == ""
    edit_json(model / "config.json", _name_or_path="org/model-8B")
    (model / "README.md").write_text("---\nbase_model: x\nlicense: llama3.1\n---\n# x")
    assert (read_base(model).hub_id, read_base(model).license, read_base(model).name) == (
        "org/model-8B",
        "llama3.1",
        "org/model-8B",
    )
    (model / "checksums.json").write_text("{}")  # an export of ours has the config of what it was trained from
    assert read_base(model).name == "model"
    (model / "checksums.json").rename(model / "lineage.json")  # one that was changed by hand
    assert read_base(model).name == "model"
    cached = tmp_path / "models--org--other" / "snapshots" / "abc"
    shutil.copytree(model, cached)
    assert read_base(cached).hub_id == "org/other"


def test_a_card_is_read_by_the_hubs_own_library(folders, tmp_path):
    from huggingface_hub import ModelCard

    model, _ = folders
    (model / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    data = [DataLine("a|b.json", "chats", 9, 1234, "f" * 64)]
    scores = [Score("test.json", "fuzzy", 0.5), Score("test.json", "chrf", 0.25)]
    write_card(tmp_path, 'log: "x"', "adapter", read_base(model), data=data, recipe="lr = 1.0", scores=scores)
    card = ModelCard.load(tmp_path / "README.md")
    facts = card.data.to_dict()
    assert facts["base_model"] == "model"
    assert (facts["library_name"], facts["pipeline_tag"], facts["license"]) == ("peft", "text-generation", "apache-2.0")
    found = {one.metric_type: one.metric_value for one in card.data.eval_results}
    assert found == {"fuzzy": 0.5, "chrf": 0.25}
    for told in ("a\\|b.json | chats | 9 | 1,234", "```toml\nlr = 1.0\n```", "| test.json | fuzzy | 0.5000 |"):
        assert told in card.text


def test_scores_of_an_evaluation(tmp_path):
    result = {"data": {"path": "/x/test.json"}, "models": {"sft": {"metrics": {"fuzzy": {"mean": 0.5}}}}}
    (tmp_path / "scores.json").write_text(json.dumps(result))
    assert read_scores(f"sft={tmp_path}/scores.json") == [Score("test.json", "fuzzy", 0.5)]
    (tmp_path / "scores.json").write_bytes(sealed(result))
    assert read_scores(f"sft={tmp_path}/scores.json") == [Score("test.json", "fuzzy", 0.5)]
    (tmp_path / "scores.json").write_bytes(sealed(result).replace(b"0.5", b"0.6"))
    with pytest.raises(ValueError, match=r"scores\.json: its content has changed since it was written"):
        read_scores(f"sft={tmp_path}/scores.json")
    (tmp_path / "scores.json").write_bytes(sealed(result))
    assert read_scores("") == []
    with pytest.raises(ValueError, match=r"scores\.json: no scores of a model 'base'"):
        read_scores(f"base={tmp_path}/scores.json")
    with pytest.raises(ValueError, match=r"nowhere\.json: no such file; give NAME=FILE"):
        read_scores("a=nowhere.json")


def test_weights_with_another_value_have_another_hash(folders):
    model, _ = folders
    before = read_base(model).sha256
    file = model / hf.WHOLE
    tensors = load_file(file)
    tensors["model.norm.weight"] = torch.full((64,), 2.0)
    save_file(tensors, file)
    assert read_base(model).sha256 != before
