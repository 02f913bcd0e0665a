"""Llamas as they are published: the keys of their config.json with small sizes, and weights made by transformers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from logtrain.generation.load import ModelFolder
from logtrain.model import hf
from logtrain.model.merging import logits
from logtrain.model.weights import read_model
from tests.support import chats
from tests.support.llama import CPU
from tests.support.synthetic import edit_json, write_model
from tests.support.synthetic import read_model as read_folder

SMALL = {"hidden_size": 64, "intermediate_size": 112, "num_hidden_layers": 2, "vocab_size": 320}
LLAMA31 = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009], "hidden_act": "silu", "initializer_range": 0.02, "mlp_bias": False,
    "max_position_embeddings": 131072, "model_type": "llama", "num_attention_heads": 8, "num_key_value_heads": 2,
    "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_theta": 500000.0, "tie_word_embeddings": False,
    "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                     "original_max_position_embeddings": 8192, "rope_type": "llama3"},
    "torch_dtype": "bfloat16", "transformers_version": "4.42.3", "use_cache": True,
}  # fmt: skip
OLD = {
    "architectures": ["LlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
    "initializer_range": 0.02, "max_position_embeddings": 2048, "model_type": "llama", "num_attention_heads": 8,
    "rms_norm_eps": 1e-05, "tie_word_embeddings": False, "torch_dtype": "float16", "use_cache": True,
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "Llama-3.1-8B": LLAMA31,
    "Llama-3.2-1B": LLAMA31
    | {"head_dim": 8, "tie_word_embeddings": True, "rope_scaling": LLAMA31["rope_scaling"] | {"factor": 32.0}},
    "Llama-3.3-70B": LLAMA31 | {"head_dim": 16, "attn_implementation": None},
    "Llama-2-7b": OLD | {"pretraining_tp": 1, "rope_scaling": None, "num_key_value_heads": 8},
    "TinyLlama-1.1B": OLD | {"num_key_value_heads": 4, "rope_scaling": None, "rope_theta": 10000.0},
    "the first Llama": OLD | {"pad_token_id": 0},
    "SmolLM2-135M": OLD
    | {"is_llama_config": True, "rope_interleaved": False, "rope_theta": 100000, "tie_word_embeddings": True,
       "num_key_value_heads": 4, "pad_token_id": 2, "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}}},
    "DeepSeek-R1-Distill-Llama-8B": LLAMA31 | {"eos_token_id": 128001, "transformers_version": "4.43.0.dev0"},
    "Hermes-3-Llama-3.1-8B": LLAMA31 | {"eos_token_id": 128040, "use_cache": False},
    "older rope": LLAMA31 | {"rope_scaling": {"rope_type": "llama3", "type": "llama3"} | LLAMA31["rope_scaling"]},
    "swish": OLD | {"hidden_act": "swish"},
}  # fmt: skip


def write_published(folder: Path, config: dict[str, Any]) -> torch.Tensor:
    """A folder as published, in the dtype that the config names; returns transformers' logits in fp32."""
    from transformers import LlamaForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config | SMALL))
    torch.manual_seed(0)
    names = ("num_attention_heads", "num_key_value_heads", "head_dim", "tie_word_embeddings")
    sizes = {"num_key_value_heads": 8} | {name: config[name] for name in names if config.get(name) is not None}
    ours = write_model(folder.with_name("random"), initializer_range=0.1, **sizes)
    dtype = getattr(torch, config["torch_dtype"])
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(ours / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    tokens = torch.randint(320, (1, 256), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()(tokens).logits[0]


@pytest.mark.parametrize("name", SHAPES)
def test_a_published_shape_computes_as_transformers_does(tmp_path, name: str):
    expected = write_published(tmp_path / "model", SHAPES[name])
    shape = hf.read_config(tmp_path / "model")
    found = logits(read_model(shape, hf.Weights(tmp_path / "model", shape), CPU, torch.float32))
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("stored", ["lm_head alone", "no prefix", "buffers"])
def test_other_ways_to_store_a_model(tmp_path, stored: str):
    folder = write_model(tmp_path / "model", tie_word_embeddings=True)
    expected, file = logits(read_folder(folder)), folder / "model.safetensors"
    tensors = load_file(file)
    if stored == "lm_head alone":
        tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    elif stored == "no prefix":
        tensors = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    else:
        for i in range(2):
            for name in ("inv_freq", "cos_cached", "sin_cached"):
                tensors[f"model.layers.{i}.self_attn.rotary_emb.{name}"] = torch.ones(4)
    save_file(tensors, file, metadata={"format": "pt"})
    assert torch.equal(logits(read_folder(folder)), expected)


REFUSED = {
    "SmolLM3": ({"model_type": "smollm3", "no_rope_layers": [1, 0]}, 'model_type = "smollm3" is not supported'),
    "Qwen 2": ({"model_type": "qwen2"}, 'model_type = "qwen2" is not supported'),
    "biases": ({"attention_bias": True}, "attention_bias = true is not supported; logtrain computes projections"),
    "GPTQ": ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config = "),
    "linear scaling": ({"rope_scaling": {"type": "linear", "factor": 4.0}}, 'rope type = "linear" is not supported'),
    "YaRN": ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, 'rope type = "yarn" is not supported'),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_computed_is_refused_by_name(tmp_path, name: str):
    changes, message = REFUSED[name]
    (tmp_path / "config.json").write_text(json.dumps(LLAMA31 | SMALL | changes))
    with pytest.raises(ValueError) as caught:
        hf.read_config(tmp_path)
    assert message in str(caught.value)


def test_a_padding_token_beyond_the_model_does_no_harm_unless_it_is_written(tmp_path):
    """Of a public report: <pad> was added to the tokenizer, and the model not resized."""
    import tokenizers

    folder = tmp_path / "model"
    size = (
        chats.write_tokenizer(folder)
        and tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()
    )
    write_model(folder, vocab_size=size)
    chats.write_tokenizer(folder, pad_token="<pad>")
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens(["<pad>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    assert ModelFolder(folder).tokenizer.vocab_size == size + 1
    ModelFolder(folder).load(CPU)
    assert max(ModelFolder(folder).tokenizer.encode("a<pad>")) < size
    edit_json(folder / "tokenizer_config.json", chat_template="{{ '<pad>' }}")
    with pytest.raises(
        ValueError, match=rf"has {size + 1} ids, its model only {size} rows, as <pad> \({size}\), which stand"
    ):
        ModelFolder(folder).load(CPU)
    tokenizer.add_tokens(["sshd9"])
    tokenizer.save(str(folder / "tokenizer.json"))
    edit_json(folder / "tokenizer_config.json", chat_template=chats.TRIMMING)
    with pytest.raises(ValueError, match=r"as sshd9 .* resize_token_embeddings"):
        ModelFolder(folder).load(CPU)
