"""Adapter files of others that are damaged, another model's, or of a kind that is not computed."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from logtrain.model import hf
from logtrain.model import peft as adapter
from logtrain.model.config import LoraConfig
from tests.support.llama import load_transformers
from tests.support.lora import adapted, trained
from tests.support.synthetic import edit_json


def edit_tensors(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / adapter.WEIGHTS)
    change(tensors)
    save_file(tensors, folder / adapter.WEIGHTS)


NAME = "base_model.model.model.layers.1.self_attn.k_proj.lora_{}.weight"
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (
        lambda f: f.rename(f.with_name("away")),
        "adapter_config.json: no such file; give a folder that PEFT",
    ),
    "no config": (lambda f: (f / adapter.CONFIG).unlink(), "adapter_config.json: no such file"),
    "no weights": (lambda f: (f / adapter.WEIGHTS).unlink(), "adapter_model.safetensors: no such file"),
    "config cut": (lambda f: (f / adapter.CONFIG).write_text('{"r": '), "adapter_config.json: not JSON"),
    "config not text": (lambda f: (f / adapter.CONFIG).write_bytes(b"\xff\xfe{}"), "adapter_config.json: not JSON"),
    "config not an object": (lambda f: (f / adapter.CONFIG).write_text("[]"), "expected a JSON object, found an array"),
    "weights cut": (
        lambda f: (f / adapter.WEIGHTS).write_bytes((f / adapter.WEIGHTS).read_bytes()[:-5]),
        "adapter_model.safetensors: damaged or cut short",
    ),
    "weights empty": (lambda f: (f / adapter.WEIGHTS).write_bytes(b""), "adapter_model.safetensors: damaged or"),
    "no rank": (lambda f: edit_json(f / adapter.CONFIG, r=None), "r = null, lora_alpha = 5.0, lora_dropout = 0.0; exp"),
    "rank as text": (lambda f: edit_json(f / adapter.CONFIG, r="3"), 'r = "3", '),
    "rank 0": (lambda f: edit_json(f / adapter.CONFIG, r=0), "r = 0, "),
    "no alpha": (lambda f: edit_json(f / adapter.CONFIG, lora_alpha=None), "lora_alpha = null"),
    "alpha 0": (lambda f: edit_json(f / adapter.CONFIG, lora_alpha=0), "lora_alpha = 0, "),
    "rank of another adapter": (
        lambda f: edit_json(f / adapter.CONFIG, r=4),
        "self_attn.q_proj.lora_A.weight has shape [3, 64], model and rank ask for [4, 64]",
    ),
    "A of another width": (
        lambda f: edit_tensors(f, lambda t: t.update({NAME.format("A"): torch.zeros(3, 63)})),
        NAME.format("A") + " has shape [3, 63], model and rank ask for [3, 64]",
    ),
    "B of another height": (
        lambda f: edit_tensors(f, lambda t: t.update({NAME.format("B"): torch.zeros(48, 3)})),
        NAME.format("B") + " has shape [48, 3], model and rank ask for [12, 3]",
    ),
    "a tensor missing": (
        lambda f: edit_tensors(f, lambda t: t.pop(NAME.format("B"))),
        f"no tensor {NAME.format('B')}; an adapter of another model?",
    ),
    "more layers than the model": (
        lambda f: edit_tensors(f, lambda t: t.update({NAME.format("A").replace(".1.", ".2."): torch.zeros(3, 64)})),
        "unexpected tensor base_model.model.model.layers.2.self_attn.k_proj.lora_A.weight; an adapter of another",
    ),
    "another layer": (
        lambda f: edit_tensors(f, lambda t: t.update({"base_model.model.lm_head.lora_A.weight": torch.zeros(3, 64)})),
        "adapts lm_head; supported: q_proj, k_proj",
    ),
    "another tensor": (lambda f: edit_tensors(f, lambda t: t.update(x=torch.zeros(1))), "adapts x; supported: q_proj"),
    "another method": (
        lambda f: edit_json(f / adapter.CONFIG, peft_type="LOHA"),
        'peft_type = "LOHA" is not supported',
    ),
    "biases": (lambda f: edit_json(f / adapter.CONFIG, bias="all"), 'bias = "all" is not supported'),
    "rsLoRA": (lambda f: edit_json(f / adapter.CONFIG, use_rslora=True), "use_rslora = true is not supported"),
    "DoRA": (lambda f: edit_json(f / adapter.CONFIG, use_dora=True), "use_dora = true is not supported"),
    "ranks by layer": (lambda f: edit_json(f / adapter.CONFIG, rank_pattern={"k_proj": 4}), 'rank_pattern = {"k_proj"'),
    "alphas by layer": (lambda f: edit_json(f / adapter.CONFIG, alpha_pattern={"k_proj": 4}), 'alpha_pattern = {"k_pr'),
    "some layers": (
        lambda f: edit_json(f / adapter.CONFIG, layers_to_transform=[0]),
        "layers_to_transform = [0] is no",
    ),
    "whole modules": (lambda f: edit_json(f / adapter.CONFIG, modules_to_save=["lm_head"]), 'modules_to_save = ["lm_h'),
    "PiSSA": (lambda f: edit_json(f / adapter.CONFIG, init_lora_weights="pissa"), 'init_lora_weights = "pissa" is not'),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_wrong_with_an_adapter_is_one_line(folder_of, tmp_path, damage: str):
    config = LoraConfig(rank=3, alpha=5.0)
    model, folder = adapted(folder_of("untied"), config), tmp_path / "adapter"
    adapter.save(folder, trained(model), model.config, config, "")
    do, message = DAMAGES[damage]
    do(folder)
    with pytest.raises(ValueError) as caught:
        adapter.read(folder, model.config)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_peft_writes_of_features_not_in_use_is_accepted(folder_of, tmp_path):
    import peft

    settings = peft.LoraConfig(r=2, target_modules=["k_proj"], init_lora_weights="gaussian")
    peft.get_peft_model(load_transformers(folder_of("untied")), settings).save_pretrained(tmp_path)
    written = json.loads((tmp_path / adapter.CONFIG).read_text())
    assert set(adapter.UNSUPPORTED) - {"lora_bias"} <= written.keys()  # each is a name of PEFT's
    assert adapter.read(tmp_path, hf.read_config(folder_of("untied")))[0].targets == ("k_proj",)
