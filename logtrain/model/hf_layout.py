"""What a Hugging Face folder says of its model: config.json as transformers 4 and 5 write it, the ids that end an
answer, and the published names of our parameters. The tensors themselves are hf.py's.
"""

import math
import os
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple, NoReturn, TypeGuard

from logtrain.core import untrusted
from logtrain.core.untrusted import shown
from logtrain.model.llama import Llama3Scaling, LlamaConfig

COMPUTED = {  # keys that may have one value only, and what that means
    "model_type": ("llama", "models of type llama"),
    "hidden_act": ("silu", "silu"),
    "attention_bias": (False, "projections without bias"),
    "mlp_bias": (False, "projections without bias"),
    "attention_dropout": (0.0, "attention without dropout"),
    "quantization_config": (None, "unquantised weights"),
    "partial_rotary_factor": (1.0, "rotary embedding over whole heads"),
    "sliding_window": (None, "full causal attention"),
}
SAME = {"hidden_act": "swish"}  # other names of these values
SIZES = {  # that a config.json must name, and the largest that are believed: Llama-3.1-405B has at most an eighth
    "vocab_size": 1 << 21,
    "hidden_size": 1 << 17,
    "intermediate_size": 1 << 19,
    "num_hidden_layers": 1 << 10,
    "num_attention_heads": 1 << 10,
}
OPTIONAL_SIZES = {
    "num_key_value_heads": 1 << 10,
    "head_dim": 1 << 12,
    "max_position_embeddings": 1 << 30,  # positions are int32
}
MAX_PARAMETERS = 10**13
MAX_JSON_BYTES = 1 << 24  # the largest that is honest, a tokenizer_config.json of many added tokens, has some 3 MB
MAX_END_IDS = 100
LARGEST = 1e30  # of a factor or an epsilon: fp32 holds it
SCALING = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


def read_json(path: Path, remedy: str = "give a Hugging Face model folder") -> dict[str, Any]:
    """Returns the object in a JSON file of a model's folder. Raises ValueError where the file is missing, with the
    remedy, and where it is larger or deeper than such a file may be.
    """
    if not os.path.lexists(path):
        raise ValueError(f"{path}: no such file; {remedy}")
    return untrusted.read_json(path, max_bytes=MAX_JSON_BYTES)


# ---- config.json


def read_config(folder: str | Path) -> LlamaConfig:
    """Returns the shape that `folder/config.json` describes. What that leaves out has the value that transformers
    takes.

    Raises ValueError for a feature that llama.py does not compute, by name, and for values that make no model.
    """
    path = Path(folder) / "config.json"
    raw = read_json(path)
    check_features(path, raw)
    check_sizes(path, raw)
    rope_theta, rope_scaling = read_rope(path, raw)
    heads = raw["num_attention_heads"]
    config = LlamaConfig(
        vocab_size=raw["vocab_size"],
        hidden_size=raw["hidden_size"],
        intermediate_size=raw["intermediate_size"],
        num_layers=raw["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=raw.get("num_key_value_heads") or heads,
        head_dim=raw.get("head_dim") or raw["hidden_size"] // heads,
        norm_eps=raw.get("rms_norm_eps") or 1e-6,
        rope_theta=rope_theta,
        rope_scaling=rope_scaling,
        max_positions=raw.get("max_position_embeddings") or 2048,
        tied=raw.get("tie_word_embeddings") or False,
    )
    if config.num_parameters > MAX_PARAMETERS:
        raise ValueError(f"{path}: {config.num_parameters:.0e} parameters by its sizes; no such model is known")
    if config.num_heads % config.num_kv_heads or config.head_dim % 2:
        raise ValueError(
            f"{path}: {config.num_heads} query heads over {config.num_kv_heads} key-value heads of "
            f"size {config.head_dim}; the first must be a multiple of the second and the size even"
        )
    return config


def read_positions(folder: Path) -> int | None:
    """Returns how many positions the model of a folder knows by its config.json. Returns None where that does not say
    it or is not there: of a server's model only the tokenizer has to be. Raises ValueError for what is no size.
    """
    path, key = folder / "config.json", "max_position_embeddings"
    found = read_json(path).get(key) if os.path.lexists(path) else None
    check_size(path, key, found, OPTIONAL_SIZES[key])
    return found


def check_features(path: Path, raw: dict[str, Any]) -> None:
    """Raises ValueError for a feature that the config switches on and llama.py does not compute."""
    for key, (computed, _) in COMPUTED.items():
        if raw.get(key, computed) not in (computed, None, SAME.get(key)):
            refuse(path, key, raw[key], COMPUTED[key][1])


def refuse(path: Path, key: str, value: object, computed: str) -> NoReturn:
    """Raises ValueError for the value of a key; `computed` says in words which values llama.py computes."""
    raise ValueError(f"{path}: {key} = {shown(value)} is not supported; logtrain computes {computed}")


def check_sizes(path: Path, raw: dict[str, Any]) -> None:
    """Raises ValueError for sizes that are absent, no positive integers, or larger than any model's."""
    if missing := [key for key in ("model_type", *SIZES) if raw.get(key) is None]:
        raise ValueError(f"{path}: no {', '.join(missing)}; give the config.json of a Llama model")
    for key, most in (SIZES | OPTIONAL_SIZES).items():
        check_size(path, key, raw.get(key), most)
    check_positive(path, "rms_norm_eps", raw.get("rms_norm_eps"))
    if type(raw.get("tie_word_embeddings")) not in (bool, NoneType):
        raise ValueError(f"{path}: tie_word_embeddings = {shown(raw['tie_word_embeddings'])}; expected true or false")


def check_size(path: Path, key: str, value: object, most: int) -> None:
    """Raises ValueError for a value that is neither None nor an integer from 1 to `most`."""
    if value is not None and not (type(value) is int and 0 < value <= most):
        raise ValueError(f"{path}: {key} = {shown(value)}; expected a positive integer, {most:,} at most")


def check_positive(path: Path, key: str, value: object) -> None:
    """Raises ValueError for a value that is neither None nor a positive finite number."""
    if value is not None and not (is_number(value) and 0 < value < LARGEST):
        raise ValueError(f"{path}: {key} = {shown(value)}; expected a positive number")


def is_number(value: object) -> TypeGuard[float]:
    """Tells whether a value of JSON is a finite number, which true, false and NaN are not."""
    return type(value) is int or (type(value) is float and math.isfinite(value))


def read_rope(path: Path, raw: dict[str, Any]) -> tuple[float, Llama3Scaling | None]:
    """Returns theta and the scaling of the rotary embedding. transformers 4 writes the first beside the second
    (`rope_scaling`), transformers 5 writes both into one object (`rope_parameters`). Raises ValueError for what rope.py
    does not compute.
    """
    section = "rope_scaling" if raw.get("rope_scaling") else "rope_parameters"
    if not isinstance(raw.get(section) or {}, dict):
        raise ValueError(f"{path}: {section} = {shown(raw[section])}; expected an object")
    rope = {"rope_theta": raw.get("rope_theta"), **(raw.get(section) or {})}
    check_positive(path, "rope_theta", rope["rope_theta"])
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind not in ("default", "llama3"):
        refuse(path, "rope type", kind, "default and llama3")
    if rope.get("partial_rotary_factor", 1.0) not in (1.0, None):
        refuse(path, "partial_rotary_factor", rope["partial_rotary_factor"], COMPUTED["partial_rotary_factor"][1])
    theta = float(rope["rope_theta"] or 10_000.0)
    if kind == "default":
        return theta, None
    if absent := [key for key in SCALING if not is_number(rope.get(key))]:
        raise ValueError(f"{path}: rope type llama3 without a number for {', '.join(absent)}")
    for key in SCALING:
        check_positive(path, key, rope[key])
    if not rope["low_freq_factor"] < rope["high_freq_factor"]:
        raise ValueError(f"{path}: low_freq_factor must be below high_freq_factor")
    return theta, Llama3Scaling(**{key: rope[key] for key in SCALING})


def end_ids(*files: Path) -> list[int]:
    """Returns the ids that end an answer: `eos_token_id`, one or several, of the first file that names any. All files
    are checked. `files`: a generation_config.json, then a config.json. Raises ValueError for what is no id.
    """
    named: list[int] = []
    for file in files:
        found = read_json(file).get("eos_token_id") if os.path.lexists(file) else None
        if found is None:
            continue
        ids = found if isinstance(found, list) else [found]
        if len(ids) > MAX_END_IDS or not all(type(id) is int and 0 <= id < SIZES["vocab_size"] for id in ids):
            raise ValueError(f"{file}: eos_token_id = {shown(found)}; expected an id or a list of ids")
        named = named or ids
    return named


# ---- names


class PublishedTensor(NamedTuple):
    """A tensor of the published files, which is a run of rows of one of our parameters."""

    name: str
    shape: tuple[int, ...]


def published_tensors(config: LlamaConfig) -> dict[str, list[PublishedTensor]]:
    """Returns, for each of our parameter names in the order of `Llama.named_parameters`, the published tensors that are
    its rows, in order.
    """
    hidden, inner, vocab = config.hidden_size, config.intermediate_size, config.vocab_size
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    names = {"embedding.weight": [PublishedTensor("model.embed_tokens.weight", (vocab, hidden))]}
    for i in range(config.num_layers):
        ours, theirs = f"blocks.{i}", f"model.layers.{i}"
        names |= {
            f"{ours}.attention_norm.weight": [PublishedTensor(f"{theirs}.input_layernorm.weight", (hidden,))],
            f"{ours}.attention.qkv.weight": [
                PublishedTensor(f"{theirs}.self_attn.q_proj.weight", (q, hidden)),
                PublishedTensor(f"{theirs}.self_attn.k_proj.weight", (kv, hidden)),
                PublishedTensor(f"{theirs}.self_attn.v_proj.weight", (kv, hidden)),
            ],
            f"{ours}.attention.out.weight": [PublishedTensor(f"{theirs}.self_attn.o_proj.weight", (hidden, q))],
            f"{ours}.feed_forward_norm.weight": [
                PublishedTensor(f"{theirs}.post_attention_layernorm.weight", (hidden,))
            ],
            f"{ours}.feed_forward.gate_up.weight": [
                PublishedTensor(f"{theirs}.mlp.gate_proj.weight", (inner, hidden)),
                PublishedTensor(f"{theirs}.mlp.up_proj.weight", (inner, hidden)),
            ],
            f"{ours}.feed_forward.down.weight": [PublishedTensor(f"{theirs}.mlp.down_proj.weight", (hidden, inner))],
        }
    if not config.tied:
        names["head.weight"] = [PublishedTensor("lm_head.weight", (vocab, hidden))]
    names["head.norm.weight"] = [PublishedTensor("model.norm.weight", (hidden,))]
    return names
