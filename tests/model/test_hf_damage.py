"""Weights that are damaged, incomplete or another model's: one line that names the file and the tensor."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from logtrain.model.hf import Weights, read_config
from tests.support.synthetic import edit_json, read_model, write_model

INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_model(tmp_path / "model")


@pytest.fixture
def sharded(folder, tmp_path) -> Path:
    """The model of `folder` in several files, as transformers writes them."""
    from transformers import LlamaForCausalLM

    sharded = Path(shutil.copytree(folder, tmp_path / "sharded", ignore=shutil.ignore_patterns("*.safetensors")))
    LlamaForCausalLM.from_pretrained(folder).save_pretrained(sharded, max_shard_size="100KB")
    return sharded


def change_tensors(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def with_a_head_of_its_own(folder: Path, change=lambda head: head) -> None:
    """Of a tied model: transformers ties the two no more where they differ in one row, as of a token that was added."""

    def add(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"] = change(tensors["model.embed_tokens.weight"].clone())

    change_tensors(folder, add)
    edit_json(folder / "config.json", tie_word_embeddings=True)


def last_row(head: torch.Tensor) -> torch.Tensor:
    head[-1] += 1
    return head


GATE = "model.layers.1.mlp.gate_proj.weight"
DAMAGE = {
    "tensor missing": (
        lambda folder: change_tensors(folder, lambda tensors: tensors.pop(GATE)),
        rf"model\.safetensors has no tensor {GATE} \(nearest: model\.layers\.\d\.mlp",
    ),
    "head missing though not tied": (
        lambda folder: change_tensors(folder, lambda tensors: tensors.pop("lm_head.weight")),
        r"model\.safetensors has no tensor lm_head\.weight",
    ),
    "wrong shape": (
        lambda folder: change_tensors(folder, lambda tensors: tensors.update({GATE: torch.zeros(112, 63)})),
        rf"model\.safetensors: {GATE} has shape \[112, 63\], config\.json asks for \[112, 64\]",
    ),
    "wrong dtype": (
        lambda folder: change_tensors(
            folder, lambda tensors: tensors.update({GATE: tensors[GATE].to(torch.float8_e4m3fn)})
        ),
        rf"model\.safetensors: {GATE} has dtype F8_E4M3; expected F32, BF16, F16",
    ),
    "tensor of another model": (
        lambda folder: change_tensors(
            folder, lambda tensors: tensors.update({"model.layers.0.self_attn.q_proj.bias": torch.zeros(64)})
        ),
        r"model\.safetensors: unexpected tensor model\.layers\.0\.self_attn\.q_proj\.bias \(1 in all\)",
    ),
    "a head of its own though tied": (
        lambda folder: edit_json(folder / "config.json", tie_word_embeddings=True),
        r"model\.safetensors: lm_head\.weight is not the embedding",
    ),
    "one row of a head of its own though tied": (
        lambda folder: with_a_head_of_its_own(folder, last_row),
        r"model\.safetensors: lm_head\.weight is not the embedding",
    ),
    "more rows in the head than in the embedding though tied": (
        lambda folder: with_a_head_of_its_own(folder, lambda head: torch.cat([head, head])),
        r"model\.safetensors: lm_head\.weight is not the embedding",
    ),
    "more layers than the config": (
        lambda folder: edit_json(folder / "config.json", num_hidden_layers=1),
        r"model\.safetensors: unexpected tensor model\.layers\.1\..* \(9 in all\)",
    ),
    "another vocabulary than the config": (
        lambda folder: edit_json(folder / "config.json", vocab_size=300),
        r"model\.embed_tokens\.weight has shape \[320, 64\], config\.json asks for \[300, 64\]",
    ),
    "cut short": (lambda folder: cut_short(folder / "model.safetensors"), r"model\.safetensors: damaged or cut short"),
    "empty file": (
        lambda folder: (folder / "model.safetensors").write_bytes(b""),
        r"model\.safetensors: damaged or cut short",
    ),
    "not safetensors": (
        lambda folder: (folder / "model.safetensors").write_bytes(b"weights of a model, in another form\n"),
        r"model\.safetensors: damaged or cut short",
    ),
    "a pointer": (
        lambda folder: (folder / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n"),
        r"model\.safetensors: only a pointer of Git LFS to the file; fetch the file itself: git lfs pull",
    ),
    "another form": (
        lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model-00001-of-00002.bin"),
        r"neither model\.safetensors nor model\.safetensors\.index\.json, but pytorch_model-00001-of-00002\.bin; tra",
    ),
    "no weights": (
        lambda folder: (folder / "model.safetensors").unlink(),
        r"neither model\.safetensors nor model\.safetensors\.index\.json",
    ),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE)
def test_damaged_weights_are_one_line_that_names_file_and_tensor(folder, damage, message):
    damage(folder)
    with pytest.raises(ValueError, match=message) as caught:
        Weights(folder, read_config(folder))
    assert str(caught.value).startswith(str(folder))
    assert "\n" not in str(caught.value)


def change_index(folder: Path, file: object) -> None:
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["lm_head.weight"] = file
    (folder / INDEX).write_text(json.dumps(index))


INDEX_DAMAGE = {
    "file missing": (
        lambda folder: (folder / "model-00002-of-00005.safetensors").unlink(),
        r"model-00002-of-00005\.safetensors: no such file; the index names it",
    ),
    "file cut short": (
        lambda folder: cut_short(folder / "model-00002-of-00005.safetensors"),
        r"model-00002-of-00005\.safetensors: damaged or cut short",
    ),
    "file left out": (
        lambda folder: edit_json(folder / INDEX, weight_map={"lm_head.weight": "model-00005-of-00005.safetensors"}),
        r"has no tensor model\.embed_tokens\.weight",
    ),
    "path outside": (
        lambda folder: change_index(folder, "../secret.safetensors"),
        r'index\.json: "\.\./secret\.safetensors" is not a plain file name',
    ),
    "absolute path": (lambda folder: change_index(folder, "/etc/passwd"), '"/etc/passwd" is not a plain file name'),
    "the folder above": (lambda folder: change_index(folder, ".."), r"'?\.\.'?"),
    "no file name": (lambda folder: change_index(folder, 7), "7 is not a plain file name"),
    "no weight_map": (lambda folder: edit_json(folder / INDEX, weight_map=None), r"index\.json: no weight_map"),
    "index cut short": (lambda folder: cut_short(folder / INDEX), r"index\.json: not JSON"),
}


def test_a_tied_model_may_store_its_matrix_twice(folder):
    with_a_head_of_its_own(folder)
    Weights(folder, read_config(folder))


@pytest.mark.parametrize(("damage", "message"), INDEX_DAMAGE.values(), ids=INDEX_DAMAGE)
def test_a_damaged_index_is_one_line(sharded, damage, message):
    damage(sharded)
    with pytest.raises(ValueError, match=message) as caught:
        Weights(sharded, read_config(sharded))
    assert str(caught.value).startswith(str(sharded))
    assert "\n" not in str(caught.value)


def test_what_transformers_stores_beside_the_weights_is_no_damage(folder):
    """Old checkpoints hold the rotary frequencies; some tied ones hold the head, which is the embedding."""
    edit_json(folder / "config.json", tie_word_embeddings=True)
    change_tensors(
        folder,
        lambda tensors: tensors.update(
            {
                "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4),
                "lm_head.weight": tensors["model.embed_tokens.weight"].clone(),
            }
        ),
    )
    assert torch.equal(
        read_model(folder).head.weight, load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    )
