"""config.json as transformers 4 and 5 write it, and what of it is refused."""

import json
import re
from pathlib import Path

import pytest

from logtrain.model.hf import read_config
from logtrain.model.llama import Llama3Scaling, LlamaConfig

SIZES = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "mlp_bias": False,
    "pretraining_tp": 1,
    "tie_word_embeddings": False,
}
SCALING = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
LLAMA31_8B = LlamaConfig(
    vocab_size=128256,
    hidden_size=4096,
    intermediate_size=14336,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    norm_eps=1e-5,
    rope_theta=500_000.0,
    rope_scaling=Llama3Scaling(**SCALING),
    max_positions=131072,
    tied=False,
)
LAYOUTS = {
    "transformers 4": {
        "rope_theta": 500000.0,
        "rope_scaling": {**SCALING, "rope_type": "llama3"},
        "torch_dtype": "bfloat16",
    },
    "transformers 4.43, key `type`": {"rope_theta": 500000.0, "rope_scaling": {**SCALING, "type": "llama3"}},
    "transformers 5": {
        "rope_parameters": {**SCALING, "rope_type": "llama3", "rope_theta": 500000.0},
        "head_dim": 128,
        "dtype": "bfloat16",
    },
    "rope_theta beside rope_parameters": {
        "rope_theta": 500000.0,
        "rope_parameters": {**SCALING, "rope_type": "llama3"},
    },
}


def write_config(folder: Path, **changes) -> Path:
    (folder / "config.json").write_text(json.dumps({**SIZES, **changes}))
    return folder


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_config_of_llama31_8b_in_every_layout(tmp_path, layout):
    assert read_config(write_config(tmp_path, **layout)) == LLAMA31_8B
    assert LLAMA31_8B.num_parameters == 8_030_261_248  # as the model card says


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_scaling": None, "rope_theta": 10000.0},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 123.0}},
        {"num_key_value_heads": None, "head_dim": 64},
        *({key: None} for key in ("num_key_value_heads", "rms_norm_eps", "max_position_embeddings")),
        {"tie_word_embeddings": True},
        *LAYOUTS.values(),
    ],
    ids=str,
)
def test_what_a_config_leaves_out_is_what_transformers_takes(tmp_path, changes):
    from transformers import LlamaConfig as TransformersConfig

    config = {key: value for key, value in {**SIZES, **changes}.items() if value is not None}
    (tmp_path / "config.json").write_text(json.dumps(config))
    ours, theirs = read_config(tmp_path), TransformersConfig.from_pretrained(tmp_path)
    assert ours.num_kv_heads == theirs.num_key_value_heads
    assert ours.head_dim == theirs.head_dim
    assert ours.norm_eps == theirs.rms_norm_eps
    assert ours.max_positions == theirs.max_position_embeddings
    assert ours.tied == theirs.tie_word_embeddings
    assert ours.rope_theta == theirs.rope_parameters["rope_theta"]
    assert (ours.rope_scaling is not None) == (theirs.rope_parameters["rope_type"] == "llama3")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mistral"}, 'model_type = "mistral" is not supported'),
        ({"hidden_act": "gelu"}, 'hidden_act = "gelu" is not supported'),
        ({"attention_bias": True}, "attention_bias = true is not supported"),
        ({"mlp_bias": True}, "mlp_bias = true is not supported"),
        ({"attention_dropout": 0.1}, "attention_dropout = 0.1 is not supported"),
        ({"sliding_window": 4096}, "sliding_window = 4096 is not supported"),
        ({"quantization_config": {"quant_method": "fp8"}}, 'quantization_config = {"quant_method": "fp8"} is not'),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5 is not supported"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor = 0.5 is not"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, 'rope type = "linear" is not supported'),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, 'rope type = "dynamic" is not supported'),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, 'rope type = "yarn" is not supported'),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "without a number for low_freq_factor, high_freq"),
        ({"rope_scaling": "llama3"}, 'rope_scaling = "llama3"; expected an object'),
        ({"rope_scaling": {"rope_theta": "1e4"}}, 'rope_theta = "1e4"; expected a positive number'),
        ({"rms_norm_eps": -1}, "rms_norm_eps = -1; expected a positive number"),
        ({"vocab_size": None, "hidden_size": None}, "no vocab_size, hidden_size"),
        ({"num_hidden_layers": "32"}, 'num_hidden_layers = "32"; expected a positive integer'),
        ({"num_attention_heads": 0}, "num_attention_heads = 0; expected a positive integer"),
        ({"num_key_value_heads": 5}, "32 query heads over 5 key-value heads"),
        ({"head_dim": 127}, "key-value heads of size 127"),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
def test_a_feature_we_do_not_compute_is_refused_by_name(tmp_path, changes, message):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        read_config(write_config(tmp_path, **changes))
    assert str(tmp_path / "config.json") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b'{"model_type": "llama"', "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[1]", "found an array"),
    ],
    ids=["missing", "cut short", "not text", "a list"],
)
def test_a_config_that_is_none_is_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=f"config.json: .*{message}"):
        read_config(tmp_path)
