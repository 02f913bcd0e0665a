"""The shape of the model of a plan, from its folder's config.json or, by its name, from those that are published."""

import re
from pathlib import Path

from logtrain.model import hf
from logtrain.model.llama import LlamaConfig


def llama_shape(
    hidden: int, feed_forward: int, layers: int, heads: int, kv_heads: int, head: int, *, tied: bool
) -> LlamaConfig:
    """A shape of Llama 3.1 and 3.2, without the scaling of rotary positions, which costs nothing."""
    return LlamaConfig(
        vocab_size=128_256,
        hidden_size=hidden,
        intermediate_size=feed_forward,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head,
        norm_eps=1e-5,
        rope_theta=500_000.0,
        rope_scaling=None,
        max_positions=131_072,
        tied=tied,
    )


PUBLISHED = {  # as in the config.json files of meta-llama
    "Llama-3.1-8B": llama_shape(4096, 14336, 32, 32, 8, 128, tied=False),
    "Llama-3.2-1B": llama_shape(2048, 8192, 16, 32, 8, 64, tied=True),
    "Llama-3.2-3B": llama_shape(3072, 8192, 28, 24, 8, 128, tied=True),
    "Llama-3.1-70B": llama_shape(8192, 28672, 80, 64, 8, 128, tied=False),
}


def read_shape(model: str) -> LlamaConfig:
    """The shape in the folder `model`, else the published one of its name. Raises ValueError if there is neither."""
    return hf.read_config(model) if has_config(model) else PUBLISHED[published_name(model)]


def shape_source(model: str) -> str:
    """Where `read_shape` takes the shape from, in words."""
    return model if has_config(model) else f"{published_name(model)} (no config.json at {model})"


def has_config(model: str) -> bool:
    """Whether `model` is a folder with a config.json."""
    return (Path(model) / "config.json").is_file()


def published_name(model: str) -> str:
    """The published model whose name is in a path, or at least whose size is, as in runs/nlplog-8b/export. Raises
    ValueError if there is none.
    """
    for names in ({name: name for name in PUBLISHED}, {name.split("-")[-1]: name for name in PUBLISHED}):
        for word, name in names.items():
            if re.search(rf"(?<![0-9A-Za-z.]){re.escape(word)}(?![0-9A-Za-z])", model, re.I):
                return name
    raise ValueError(
        f"model = {model}: no config.json there, and no shape known by that name or its size ({', '.join(PUBLISHED)}); "
        f"set --model to a folder with the model's config.json"
    )
