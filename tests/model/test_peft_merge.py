"""Adapters of other methods than LoRA are merged by PEFT itself, and what it makes is held against the adapter."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from logtrain.generation.load import ModelFolder
from logtrain.model import hf, merging, peft
from logtrain.model.merging import merge_folders
from logtrain.model.weights import read_model
from tests.support.llama import CPU, load_transformers
from tests.support.synthetic import edit_json, write_model

ATTENTION, SQUARE = ["q_proj", "v_proj"], ["q_proj", "o_proj"]
TOKENS = torch.randint(320, (256,), generator=torch.Generator().manual_seed(0))  # that are asked
CLOSE = 1e-5  # of the largest logit: fp32 beside fp64
LORA = {"r": 4, "lora_alpha": 8, "target_modules": ATTENTION}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "LoHa": ("LoHaConfig", {"r": 4, "alpha": 8, "target_modules": ATTENTION}),
    "LoKr": ("LoKrConfig", {"r": 4, "alpha": 8, "target_modules": ATTENTION}),
    "IA3": (
        "IA3Config",
        {"target_modules": ["k_proj", "v_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
    ),
    "AdaLoRA": ("AdaLoraConfig", {"init_r": 4, "target_r": 2, "total_step": 10, "target_modules": ATTENTION}),
    "OFT": ("OFTConfig", {"oft_block_size": 8, "target_modules": ATTENTION}),
    "BOFT": ("BOFTConfig", {"boft_block_size": 4, "target_modules": ATTENTION}),
    "VeRA": ("VeraConfig", {"r": 4, "target_modules": SQUARE}),
    "HRA": ("HRAConfig", {"r": 4, "target_modules": ATTENTION}),
    "FourierFT": ("FourierFTConfig", {"n_frequency": 20, "target_modules": ATTENTION}),
    "LN tuning": ("LNTuningConfig", {"target_modules": ["input_layernorm", "norm"]}),
    "tokens alone": ("TrainableTokensConfig", {"token_indices": [3, 7], "target_modules": ["embed_tokens"]}),
    "OSF": ("OSFConfig", {"target_modules": ATTENTION}),
    "RoAd": ("RoadConfig", {"target_modules": SQUARE, "group_size": 16}),
    "LoRA of parameters": ("LoraConfig", {**LORA, "target_parameters": ["mlp.down_proj.weight"]}),
    "PiSSA": ("LoraConfig", {**LORA, "init_lora_weights": "pissa"}),
    "OLoRA": ("LoraConfig", {**LORA, "init_lora_weights": "olora"}),
    "DoRA of the embedding": ("LoraConfig", {**LORA, "target_modules": ["q_proj", "embed_tokens"], "use_dora": True}),
}

TIED = ("LoHa", "LN tuning", "tokens alone", "PiSSA")


def trained(model: Path, at: Path, name: str, settings: dict[str, Any]) -> torch.Tensor:
    """Saves an adapter that PEFT has made of a model and filled at random; returns the logits of both, in fp64."""
    import peft as theirs

    torch.manual_seed(0)
    adapted = theirs.get_peft_model(load_transformers(model), getattr(theirs, name)(task_type="CAUSAL_LM", **settings))
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    adapted.save_pretrained(at)
    edit_json(at / peft.CONFIG, base_model_name_or_path=str(model))
    return logits(adapted.eval().double())


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(TOKENS[None]).logits[0]


def differ(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found.double() - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize(("kind", "tied"), [(kind, False) for kind in KINDS] + [(kind, True) for kind in TIED])
def test_what_peft_merges_is_merged(tmp_path, kind: str, tied: bool):
    """As PEFT computes model and adapter apart; where it is loaded beside its model, it is said what to do."""
    model = write_model(tmp_path / "model", initializer_range=0.1, tie_word_embeddings=tied)
    expected = trained(model, tmp_path / "adapter", *KINDS[kind])
    assert differ(logits(load_transformers(model)), expected) > 1e-3, "the adapter does something"
    merged = merge_folders(model, tmp_path / "adapter", tmp_path / "merged", "float32")
    assert merged.difference < CLOSE
    assert differ(logits(load_transformers(tmp_path / "merged")), expected) < CLOSE
    assert differ(logits_of_ours(tmp_path / "merged"), expected) < CLOSE
    with pytest.raises(ValueError, match=r"is not supported.*; logtrain merge makes a model of it where PEFT can"):
        ModelFolder(tmp_path / "adapter").load(CPU)


def logits_of_ours(folder: Path) -> torch.Tensor:
    shape = hf.read_config(folder)
    return merging.logits(read_model(shape, hf.Weights(folder, shape), CPU, torch.float32))


def test_what_peft_merges_wrong_is_not_written(tmp_path):
    """Into a tied model PEFT merges the adapter of the embedding for the head, too."""
    model = write_model(tmp_path / "model", initializer_range=0.1, tie_word_embeddings=True)
    trained(model, tmp_path / "adapter", *KINDS["DoRA of the embedding"])
    refused(
        tmp_path, r"merged: logits differ by \S+ of the largest from those of model and adapter, more than 1e-04; not"
    )


# -- what is refused ---------------------------------------------------------------------------------


@pytest.fixture
def case(tmp_path) -> Path:
    model = write_model(tmp_path / "model", initializer_range=0.1)
    trained(model, tmp_path / "adapter", *KINDS["LoHa"])
    return tmp_path


def refused(case: Path, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        merge_folders(case / "model", case / "adapter", case / "merged", "float32")
    assert "\n" not in str(caught.value)
    assert not (case / "merged").exists()
    assert {path.name for path in case.iterdir()} == {"model", "adapter"}


def test_methods_without_weights_of_a_llama(tmp_path):
    model = write_model(tmp_path / "model", initializer_range=0.1)
    trained(model, tmp_path / "adapter", "PromptTuningConfig", {"num_virtual_tokens": 4})
    refused(
        tmp_path, r'peft_type = "PROMPT_TUNING": not merged by PEFT: what this method computes is no weight of a Llama'
    )


def test_methods_that_load_adapters_from_elsewhere(case):
    edit_json(case / "adapter" / peft.CONFIG, peft_type="XLORA", adapters={"0": "https://example.invalid/adapter"})
    refused(case, r'peft_type = "XLORA" is not supported, nor merged: it is several adapters, which lie elsewhere')


def test_without_peft(case, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    refused(
        case, r'peft_type = "LOHA" is not supported here; PEFT can merge it: pip install logtrain\[peft\], and again'
    )


def change_tensors(case: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    file = case / "adapter" / peft.WEIGHTS
    save_file({name: tensor.contiguous() for name, tensor in change(load_file(file)).items()}, file)


def test_tensors_that_are_missing_or_do_not_get_into_the_model(case):
    """PEFT goes on with random ones, and says so in a warning."""
    change_tensors(case, lambda tensors: dict(list(tensors.items())[1:]))
    refused(
        case, r'peft_type = "LOHA": not merged by PEFT: its tensor base_model\.model\.\S+ does not get into the model'
    )


def test_tensors_of_another_model(case):
    change_tensors(case, lambda tensors: {name.replace("layers.1", "layers.7"): t for name, t in tensors.items()})
    refused(case, "does not get into the model")


def test_tensors_of_other_shapes(case):
    change_tensors(case, lambda tensors: {name: t[:1] for name, t in tensors.items()})
    refused(case, r'peft_type = "LOHA": not merged by PEFT: ')


def test_what_peft_draws_at_random(tmp_path):
    """Of VeRA without its projections another seed makes another model, which no file tells."""
    model = write_model(tmp_path / "model", initializer_range=0.1)
    trained(model, tmp_path / "adapter", "LoraConfig", {**LORA, "init_lora_weights": "pissa_niter_1"})
    refused(tmp_path, "what it computes is drawn at random whenever it is loaded")


def test_biases_that_a_llama_has_not(case):
    adapter = case / "adapter"
    for file in adapter.iterdir():
        file.unlink()
    trained(case / "model", adapter, "LoraConfig", {**LORA, "lora_bias": True})
    refused(case, r'peft_type = "LORA": not merged by PEFT: ')


def test_facts_that_peft_does_not_know(case):
    edit_json(case / "adapter" / peft.CONFIG, r="four")
    refused(case, r'peft_type = "LOHA": not merged by PEFT: ')
    (case / "adapter" / peft.CONFIG).write_text(json.dumps({"peft_type": "NEW"}))
    refused(case, 'peft_type = "NEW": not merged by PEFT: ')
