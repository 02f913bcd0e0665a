"""Adapters of others: whatever PEFT trains of LoRA is merged as PEFT computes it, and the rest is refused by name."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from logtrain.generation.load import ModelFolder
from logtrain.model import hf, peft
from logtrain.model.adapter import Adapter, is_pattern
from logtrain.model.merging import logits, merge_folders
from logtrain.model.weights import read_model
from tests.support.llama import CPU, load_transformers
from tests.support.synthetic import edit_json, write_model

ATTENTION = ["q_proj", "v_proj"]
KINDS: dict[str, dict[str, Any]] = {
    "LoRA": {"target_modules": ATTENTION},
    "all linear": {"target_modules": "all-linear", "bias": "all"},
    "by a regular expression": {"target_modules": r".*layers\.1\.mlp\.(up|down)_proj"},
    "rsLoRA": {"target_modules": ATTENTION, "use_rslora": True},
    "DoRA": {"target_modules": [*ATTENTION, "down_proj"], "use_dora": True},
    "rsDoRA": {"target_modules": ATTENTION, "use_dora": True, "use_rslora": True},
    "patterns": {
        "target_modules": [*ATTENTION, "up_proj"],
        "rank_pattern": {"v_proj": 5, r"layers\.1\.self_attn\.q_proj": 2},
        "alpha_pattern": {"model.layers.0.mlp.up_proj": 3, "q_proj": 16},
    },
    "patterns, rsLoRA": {"target_modules": ATTENTION, "rank_pattern": {"v_proj": 5}, "use_rslora": True},
    "some layers": {"target_modules": ATTENTION, "layers_to_transform": [1]},
    "saved head": {"target_modules": ATTENTION, "modules_to_save": ["lm_head"]},
    "saved embedding and head": {"target_modules": ATTENTION, "modules_to_save": ["embed_tokens", "lm_head"]},
    "saved norms": {"target_modules": ATTENTION, "modules_to_save": ["norm", "input_layernorm"]},
    "head": {"target_modules": [*ATTENTION, "lm_head"]},
    "head, DoRA": {"target_modules": ["q_proj", "lm_head"], "use_dora": True},
    "embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "tokens": {"target_modules": ATTENTION, "trainable_token_indices": {"embed_tokens": [3, 7, 300]}},
    "tokens of both": {
        "target_modules": ATTENTION,
        "trainable_token_indices": {"embed_tokens": [3], "lm_head": [9, 7]},
    },
    "tied embedding": {"target_modules": ATTENTION, "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    "tied LoRA": {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True},
    "fan_in_fan_out": {"target_modules": ATTENTION, "fan_in_fan_out": True},
}
TOKENS = torch.randint(320, (256,), generator=torch.Generator().manual_seed(0))  # that `logits` asks
CLOSE = 1e-5  # logits of random models in fp32 differ so far from those in fp64; the weights are compared to 1e-6
TIED = (
    "LoRA",
    "saved head",
    "saved embedding and head",
    "head",
    "DoRA",
    "tokens",
    "tokens of both",
    "tied embedding",
    "tied LoRA",
)
STAY_TIED = ("LoRA", "DoRA", "tokens", "tied embedding")  # in PEFT head and embedding are one matrix


def trained_by_peft(model: Path, at: Path, rows: int = 0, **settings) -> torch.Tensor:
    """Saves an adapter that PEFT has made of a model and filled at random; returns the logits of both, in fp64."""
    import peft as theirs

    base = load_transformers(model)
    if rows:
        base.resize_token_embeddings(rows)
    adapted = theirs.get_peft_model(base, theirs.LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **settings))
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    adapted.save_pretrained(at)
    edit_json(at / peft.CONFIG, base_model_name_or_path=str(model))
    tokens = TOKENS if not rows else torch.randint(rows, (256,), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = adapted.eval().double()(tokens[None]).logits[0]
    merged = adapted.float().merge_and_unload().state_dict()
    save_file({name: tensor.clone().contiguous() for name, tensor in merged.items()}, at / "merged_by_peft")
    return expected


def differ(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found.double() - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize(
    ("kind", "tied"), [(kind, False) for kind in KINDS] + [(kind, True) for kind in (*TIED, "tokens of both")]
)
def test_what_peft_trains_is_loaded_and_merged_as_peft_computes_it(tmp_path, kind: str, tied: bool):
    model = write_model(tmp_path / "model", initializer_range=0.1, tie_word_embeddings=tied)
    expected = trained_by_peft(model, tmp_path / "adapter", **KINDS[kind])
    folder = ModelFolder(tmp_path / "adapter")
    assert differ(logits(folder.load(CPU).model), expected) < CLOSE
    merge_folders(model, tmp_path / "adapter", tmp_path / "merged", "float32")
    shape = hf.read_config(tmp_path / "merged")
    assert shape.tied == (tied and kind in STAY_TIED)
    assert (
        differ(logits(read_model(shape, hf.Weights(tmp_path / "merged", shape), CPU, torch.float32)), expected) < CLOSE
    )
    ours = load_transformers(tmp_path / "merged")
    with torch.no_grad():
        assert differ(ours(TOKENS[None]).logits[0], expected) < CLOSE
    if not tied:  # PEFT merges one matrix for both uses
        for name, tensor in load_file(tmp_path / "adapter" / "merged_by_peft").items():
            torch.testing.assert_close(ours.state_dict()[name], tensor, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("saved", [None, ["embed_tokens", "lm_head"]])
def test_a_vocabulary_that_was_resized(tmp_path, tied: bool, saved: list[str] | None):
    """Of public reports: tokens were added before training, and the adapter brings all rows."""
    model = write_model(tmp_path / "model", initializer_range=0.1, tie_word_embeddings=tied)
    expected = trained_by_peft(model, tmp_path / "adapter", 333, target_modules=ATTENTION, modules_to_save=saved)
    merge_folders(model, tmp_path / "adapter", tmp_path / "merged", "float32")
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["vocab_size"] == 333
    shape = hf.read_config(tmp_path / "merged")
    assert (
        differ(logits(read_model(shape, hf.Weights(tmp_path / "merged", shape), CPU, torch.float32)), expected) < CLOSE
    )
    tokens = torch.randint(333, (256,), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert differ(load_transformers(tmp_path / "merged")(tokens[None]).logits[0], expected) < CLOSE
    if not tied:
        tensors = load_file(tmp_path / "adapter" / peft.WEIGHTS)
        save_file({n: t for n, t in tensors.items() if "lm_head" not in n}, tmp_path / "adapter" / peft.WEIGHTS)
        with pytest.raises(
            ValueError, match=r"has embed_tokens of 333 rows, the model 320: its vocabulary was resized"
        ):
            ModelFolder(tmp_path / "adapter").load(CPU)


@pytest.mark.parametrize(
    "older",
    [
        lambda name: name.replace("lora_A.", "lora_A.default.").replace("lora_B.", "lora_B.default."),
        lambda name: name.removeprefix("base_model.model."),
        lambda name: name.replace("magnitude_vector", "magnitude_vector.weight"),
        lambda name: name.replace("lm_head.weight", "lm_head.modules_to_save.default.weight"),
        lambda name: name.replace("lm_head.weight", "lm_head.modules_to_save.weight"),
    ],
)
def test_older_names_of_tensors(tmp_path, older: Callable[[str], str]):
    model = write_model(tmp_path / "model", initializer_range=0.1)
    settings = {"target_modules": ATTENTION, "use_dora": True, "modules_to_save": ["lm_head"]}
    expected = trained_by_peft(model, tmp_path / "adapter", **settings)
    file = tmp_path / "adapter" / peft.WEIGHTS
    save_file({older(name): tensor for name, tensor in load_file(file).items()}, file)
    assert differ(logits(ModelFolder(tmp_path / "adapter").load(CPU).model), expected) < CLOSE


REFUSED = {
    "another method": ({"peft_type": "LOHA"}, 'peft_type = "LOHA" is not supported'),
    "PiSSA": ({"init_lora_weights": "pissa"}, 'init_lora_weights = "pissa" is not supported'),
    "biases": ({"lora_bias": True}, "lora_bias = true is not supported"),
    "copied layers": ({"layer_replication": [[0, 2]]}, "layer_replication = [[0, 2]] is not supported"),
    "parameters": ({"target_parameters": ["x"]}, 'target_parameters = ["x"] is not supported'),
    "a slow pattern": ({"alpha_pattern": {"(a+)+b": 1}}, "alpha_pattern = "),
    "a pattern of nothing": ({"alpha_pattern": {"a": "x"}}, "alpha_pattern = "),
    "DoRA without its vectors": (
        {"use_dora": True},
        "no tensor base_model.model.model.layers.0.self_attn.q_proj.lora_m",
    ),
    "another rank": ({"r": 3}, "q_proj.lora_A.weight has shape [4, 64], model and rank ask for [3, 64]"),
}


@pytest.mark.parametrize("mistake", REFUSED)
def test_what_is_not_merged_is_named(tmp_path, mistake: str):
    model = write_model(tmp_path / "model")
    trained_by_peft(model, tmp_path / "adapter", target_modules=ATTENTION)
    changes, message = REFUSED[mistake]
    edit_json(tmp_path / "adapter" / peft.CONFIG, **changes)
    with pytest.raises(ValueError) as caught:
        Adapter(tmp_path / "adapter", hf.read_config(model))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["LoRA", "rsLoRA", "some layers", "embedding", "saved norms"])
def test_a_file_that_lacks_a_layer_is_told(tmp_path, kind: str):
    """PEFT warns and takes the model's own."""
    model = write_model(tmp_path / "model")
    trained_by_peft(model, tmp_path / "adapter", **KINDS[kind])
    file = tmp_path / "adapter" / peft.WEIGHTS
    for lost in sorted({name.partition(".lora_")[0] for name in load_file(file) if ".lora_" in name}):
        whole = load_file(file)
        save_file({name: tensor for name, tensor in whole.items() if not name.startswith(f"{lost}.")}, file)
        with pytest.raises(ValueError, match=r"safetensors: no tensors? (of )?[\w.]*, which|safetensors: no tensors;"):
            ModelFolder(tmp_path / "adapter").load(CPU)
        save_file(whole, file)
    ModelFolder(tmp_path / "adapter").load(CPU)


def test_a_pickled_adapter_is_named_with_its_conversion(tmp_path):
    model = write_model(tmp_path / "model", initializer_range=0.1)
    expected = trained_by_peft(model, tmp_path / "adapter", target_modules=ATTENTION)
    file = tmp_path / "adapter" / peft.WEIGHTS
    torch.save(load_file(file), file.with_name("adapter_model.bin"))
    file.unlink()
    with pytest.raises(
        ValueError, match=r"adapter_model\.bin: a pickled adapter, .*convert it in its folder with: pyth"
    ) as caught:
        ModelFolder(tmp_path / "adapter").load(CPU)
    run_there(str(caught.value).partition("python -c ")[2][1:-1], tmp_path / "adapter")
    assert differ(logits(ModelFolder(tmp_path / "adapter").load(CPU).model), expected) < CLOSE


def run_there(code: str, folder: Path) -> None:
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True, timeout=60)


def test_patterns_are_names():
    assert all(map(is_pattern, ["q_proj", r"layers\.\d+\.mlp", "^model.layers.0", "(k|v)_proj", "model.*q_proj"]))
    assert not any(map(is_pattern, ["(a+)+", "(a|b)*c", "", "a" * 201, "(", "a*b*c*d*", "a{9}", 7]))
