"""Models in the Hugging Face layout: config.json as transformers 4 and 5 write it, safetensors in one file or many.

Reading: `Weights.rows` returns any rows of any of our matrices from the byte ranges that hold them, so that a rank
touches only what it owns. Writing: `save` streams full tensors into files of at most 5 GB beside an index.
"""

import json
import shutil
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from logtrain.model.llama import Llama3Scaling, LlamaConfig

FILE_BYTES = 5 * 10**9
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


# ---- config.json


def read_json(path: Path) -> dict:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; give a Hugging Face model folder") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def read_config(folder: str | Path) -> LlamaConfig:
    """The model described by `folder/config.json`. A feature that `model.py` does not compute is refused by name."""
    path = Path(folder) / "config.json"
    raw = read_json(path)

    def refuse(key: str, value: object, only: str) -> None:
        raise ValueError(f"{path}: {key} = {json.dumps(value)} is not supported; logtrain computes {only}")

    fixed = {
        "model_type": ("llama", "models of type llama"),
        "hidden_act": ("silu", "silu"),
        "attention_bias": (False, "projections without bias"),
        "mlp_bias": (False, "projections without bias"),
        "attention_dropout": (0.0, "attention without dropout"),
        "quantization_config": (None, "unquantised weights"),
        "partial_rotary_factor": (1.0, "rotary embedding over whole heads"),
        "sliding_window": (None, "full causal attention"),
    }
    for key, (wanted, only) in fixed.items():
        if raw.get(key, wanted) not in (wanted, None):
            refuse(key, raw[key], only)
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    if missing := [key for key in ("model_type", *sizes) if raw.get(key) is None]:
        raise ValueError(f"{path}: no {', '.join(missing)}; give the config.json of a Llama model")
    for key in (*sizes, "num_key_value_heads", "head_dim", "max_position_embeddings"):
        if raw.get(key) is not None and not (isinstance(raw[key], int) and raw[key] > 0):
            raise ValueError(f"{path}: {key} = {json.dumps(raw[key])}; expected a positive integer")
    heads = raw["num_attention_heads"]
    scaling = "rope_scaling" if raw.get("rope_scaling") else "rope_parameters"
    if not isinstance(raw.get(scaling) or {}, dict):
        raise ValueError(f"{path}: {scaling} = {json.dumps(raw[scaling])}; expected an object")
    rope = {"rope_theta": raw.get("rope_theta"), **(raw.get(scaling) or {})}
    for key, value in (("rope_theta", rope["rope_theta"]), ("rms_norm_eps", raw.get("rms_norm_eps"))):
        if value is not None and not (isinstance(value, int | float) and value > 0):
            raise ValueError(f"{path}: {key} = {json.dumps(value)}; expected a positive number")
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind not in ("default", "llama3"):
        refuse("rope type", kind, "default and llama3")
    if rope.get("partial_rotary_factor", 1.0) not in (1.0, None):
        refuse("partial_rotary_factor", rope["partial_rotary_factor"], fixed["partial_rotary_factor"][1])
    keys = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    if kind == "llama3" and (absent := [key for key in keys if not isinstance(rope.get(key), int | float)]):
        raise ValueError(f"{path}: rope type llama3 without a number for {', '.join(absent)}")
    config = LlamaConfig(
        vocab_size=raw["vocab_size"],
        hidden_size=raw["hidden_size"],
        intermediate_size=raw["intermediate_size"],
        num_layers=raw["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=raw.get("num_key_value_heads") or heads,
        head_dim=raw.get("head_dim") or raw["hidden_size"] // heads,
        norm_eps=raw.get("rms_norm_eps") or 1e-6,
        rope_theta=float(rope.get("rope_theta") or 10_000.0),
        rope_scaling=Llama3Scaling(**{key: rope[key] for key in keys}) if kind == "llama3" else None,
        max_positions=raw.get("max_position_embeddings") or 2048,
        tied=bool(raw.get("tie_word_embeddings", False)),
    )
    if config.num_heads % config.num_kv_heads or config.head_dim % 2:
        raise ValueError(
            f"{path}: {config.num_heads} query heads over {config.num_kv_heads} key-value heads of "
            f"size {config.head_dim}; the first must be a multiple of the second and the size even"
        )
    return config


# ---- names


class Part(NamedTuple):
    """A published tensor that is a run of rows of one of ours."""

    name: str
    shape: tuple[int, ...]


def parts_of(config: LlamaConfig) -> dict[str, list[Part]]:
    """Our parameter names, as `Llama.named_parameters` orders them -> the published tensors that are their rows, in
    order.
    """
    hidden, inner, vocab = config.hidden_size, config.intermediate_size, config.vocab_size
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    names = {"embedding.weight": [Part("model.embed_tokens.weight", (vocab, hidden))]}
    for i in range(config.num_layers):
        ours, theirs = f"blocks.{i}", f"model.layers.{i}"
        names |= {
            f"{ours}.attention_norm.weight": [Part(f"{theirs}.input_layernorm.weight", (hidden,))],
            f"{ours}.attention.qkv.weight": [
                Part(f"{theirs}.self_attn.q_proj.weight", (q, hidden)),
                Part(f"{theirs}.self_attn.k_proj.weight", (kv, hidden)),
                Part(f"{theirs}.self_attn.v_proj.weight", (kv, hidden)),
            ],
            f"{ours}.attention.out.weight": [Part(f"{theirs}.self_attn.o_proj.weight", (hidden, q))],
            f"{ours}.feed_forward_norm.weight": [Part(f"{theirs}.post_attention_layernorm.weight", (hidden,))],
            f"{ours}.feed_forward.gate_up.weight": [
                Part(f"{theirs}.mlp.gate_proj.weight", (inner, hidden)),
                Part(f"{theirs}.mlp.up_proj.weight", (inner, hidden)),
            ],
            f"{ours}.feed_forward.down.weight": [Part(f"{theirs}.mlp.down_proj.weight", (hidden, inner))],
        }
    if not config.tied:
        names["head.weight"] = [Part("lm_head.weight", (vocab, hidden))]
    names["head.norm.weight"] = [Part("model.norm.weight", (hidden,))]
    return names


# ---- reading


class Weights:
    """The safetensors of a model folder, checked against its config by their headers, read by rows."""

    def __init__(self, folder: str | Path, config: LlamaConfig):
        self.folder, self.parts = Path(folder), parts_of(config)
        self.files, where = {}, {}
        for file in self.list_files():
            try:
                self.files[file] = safe_open(self.folder / file, framework="pt")
            except FileNotFoundError:
                raise ValueError(f"{self.folder / file}: no such file, though the index names it") from None
            except (SafetensorError, OSError) as error:
                raise ValueError(f"{self.folder / file}: damaged or cut short ({error})") from None
            where |= dict.fromkeys(self.files[file].keys(), file)
        wanted = {part.name: part.shape for parts in self.parts.values() for part in parts}
        for name, shape in wanted.items():
            if name not in where:
                near = get_close_matches(name, where, n=1)
                listing = next(iter(self.files)) if len(self.files) == 1 else "the files of its index"
                raise ValueError(
                    f"{self.folder}: {listing} has no tensor {name}{f' (nearest: {near[0]})' if near else ''}"
                )
            found = self.files[where[name]].get_slice(name)
            if tuple(found.get_shape()) != shape:
                raise ValueError(
                    f"{self.folder / where[name]}: {name} has shape {found.get_shape()}, config.json "
                    f"asks for {list(shape)}"
                )
            if found.get_dtype() not in DTYPES:
                raise ValueError(
                    f"{self.folder / where[name]}: {name} has dtype {found.get_dtype()}; expected {', '.join(DTYPES)}"
                )
        ignored = {"lm_head.weight"} if config.tied else set()
        if extra := [
            n for n in where if n not in wanted and n not in ignored and not n.endswith("rotary_emb.inv_freq")
        ]:
            raise ValueError(
                f"{self.folder / where[extra[0]]}: unexpected tensor {extra[0]} ({len(extra)} in all); not this Llama"
            )
        self.where = where
        if config.tied and "lm_head.weight" in where:  # transformers would use it; every row of a head differs
            head, embedding = (
                self.files[where[n]].get_slice(n)[:16] for n in ("lm_head.weight", "model.embed_tokens.weight")
            )
            if not torch.equal(head, embedding):
                raise ValueError(
                    f"{self.folder / where['lm_head.weight']}: lm_head.weight is not the embedding, though config.json "
                    f"says tie_word_embeddings; set that to false"
                )

    def list_files(self) -> list[str]:
        single, index = "model.safetensors", self.folder / "model.safetensors.index.json"
        if (self.folder / single).exists():
            return [single]
        if not index.exists():
            raise ValueError(
                f"{self.folder}: neither {single} nor {index.name}; give a folder with safetensors weights"
            )
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ValueError(f"{index}: no weight_map")
        files = set(weight_map.values())
        if outside := [f for f in files if not isinstance(f, str) or Path(f).name != f]:
            raise ValueError(f"{index}: {outside[0]!r} is not a plain file name")
        return sorted(files)

    def rows(self, name: str, start: int, stop: int) -> Iterator[Tensor]:
        """Rows [start, stop) of our parameter `name`, in pieces, in the stored dtype."""
        for part in self.parts[name]:
            first, last = max(start, 0), min(stop, part.shape[0])
            if first < last:
                yield self.files[self.where[part.name]].get_slice(part.name)[first:last]
            start, stop = start - part.shape[0], stop - part.shape[0]


# ---- writing


def split_parts(config: LlamaConfig, tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Our named full tensors -> published names and their rows (views)."""
    parts = parts_of(config)
    for name, tensor in tensors:
        rows = tensor.split([part.shape[0] for part in parts[name]])
        yield from zip((part.name for part in parts[name]), rows, strict=True)


def plan_files(config: LlamaConfig, dtype: torch.dtype) -> dict[str, str]:
    """Published name -> file, filled in order up to FILE_BYTES each."""
    files: list[list[str]] = [[]]
    room = FILE_BYTES
    for part in (part for parts in parts_of(config).values() for part in parts):
        size = dtype.itemsize * torch.Size(part.shape).numel()
        if size > room and files[-1]:
            files.append([])
            room = FILE_BYTES
        files[-1].append(part.name)
        room -= size
    if len(files) == 1:
        return dict.fromkeys(files[0], "model.safetensors")
    return {n: f"model-{i:05d}-of-{len(files):05d}.safetensors" for i, names in enumerate(files, 1) for n in names}


def save(
    folder: Path,
    config: LlamaConfig,
    tensors: Iterable[tuple[str, Tensor]],
    dtype: torch.dtype,
    *,
    source: Path,
    tokenizer_files: Iterable[Path],
) -> None:
    """Write a folder that transformers and vLLM load with no flags.

    `tensors`: our names and full tensors in `parts_of` order, taken one at a time. `source`: the folder whose
    config.json (and generation_config.json) the model came from; only the dtype in it changes. The folder must not
    hold a model yet, and is not whole before the end: `core/atomic.py` gives it its name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files, pending, total = plan_files(config, dtype), {}, 0
    for name, tensor in split_parts(config, tensors):
        if pending and files[name] != files[next(iter(pending))]:
            write(pending, folder / files[next(iter(pending))])
            pending = {}
        pending[name] = tensor.to("cpu", dtype, copy=True).contiguous()
        total += pending[name].nbytes
    write(pending, folder / files[next(iter(pending))])
    if len(set(files.values())) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": files}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    raw = read_json(source / "config.json")
    raw["dtype" if "dtype" in raw else "torch_dtype"] = str(dtype).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(raw, indent=2) + "\n")
    generation = source / "generation_config.json"
    if generation.exists():
        shutil.copy(generation, folder)
    else:
        ids = {key: raw[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if raw.get(key) is not None}
        (folder / "generation_config.json").write_text(json.dumps(ids, indent=2) + "\n")
    for file in tokenizer_files:
        shutil.copy(file, folder)


def end_ids(*files: Path) -> list[int]:
    """eos_token_id, one or several, of the first file that names any: a generation_config.json, then a config.json."""
    for file in files:
        found = read_json(file).get("eos_token_id") if file.exists() else None
        ids = found if isinstance(found, list) else [found]
        if found is not None and not all(type(id) is int for id in ids):
            raise ValueError(f"{file}: eos_token_id = {json.dumps(found)}; expected an id or a list of ids")
        if found is not None:
            return ids
    return []


def write(tensors: dict[str, Tensor], path: Path) -> None:
    assert not path.exists(), f"{path}: the tensors did not come in the order of their files"
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not written ({error}); make room and export again") from error
