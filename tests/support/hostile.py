"""Files that a model's folder must not be believed for: what each is called, and how it is written."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

DEEP = 100_000  # arrays within each other
Damage = Callable[[Path], None]


def edited(**changes: Any) -> Damage:
    """Sets keys of a JSON file; what JSON has no word for is written as Python writes it (NaN)."""
    return lambda file: write(file, {**(json.loads(file.read_text()) if file.exists() else {}), **changes})


def write(file: Path, content: object) -> None:
    file.write_text(json.dumps(content))


def text(content: str) -> Damage:
    return lambda file: void(file.write_text(content))


def data(content: bytes) -> Damage:
    return lambda file: void(file.write_bytes(content))


def void(_: object) -> None:
    return None


def replaced(make: Callable[[Path], object]) -> Damage:
    """Something that is no regular file in the place of the file."""

    def replace(file: Path) -> None:
        file.unlink(missing_ok=True)
        make(file)

    return replace


def safetensors(header: object, size: int | None = None, rest: int = 0) -> Damage:
    """A file with this header, which says that it has `size` bytes, and `rest` bytes of tensors."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return data(struct.pack("<Q", len(raw) if size is None else size) + raw + bytes(rest))


def sparse(size: int) -> Damage:
    """A file of zeros that takes no room on the disk."""

    def make(file: Path) -> None:
        file.write_bytes(b"")
        os.truncate(file, size)

    return make


def tensor(start: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


NO_FILE: dict[str, Damage] = {
    "a pipe": replaced(os.mkfifo),
    "a device": replaced(lambda file: file.symlink_to("/dev/zero")),
    "a folder": replaced(Path.mkdir),
    "a dangling link": replaced(lambda file: file.symlink_to("nowhere")),
    "a link to itself": replaced(lambda file: file.symlink_to(file.name)),
    "a name too long": replaced(lambda file: file.symlink_to("n" * 300)),
}
NO_OBJECT: dict[str, Damage] = {
    "deep arrays": text("[" * DEEP + "]" * DEEP),
    "deep objects": text('{"a":' * DEEP + "1" + "}" * DEEP),
    "deep but read": text('{"a":' + "[" * 200 + "]" * 200 + "}"),
    "a list": text("[1]"),
    "null": text("null"),
    "empty": text(""),
    "half": text('{"a": '),
    "not text": data(b"\xff\xfe\x00{}"),
    "a long integer": text('{"a": ' + "9" * 1_000_000 + "}"),
    "large": sparse(1 << 33),
}
CONFIG: dict[str, Damage] = {
    "vocab_size 2**62": edited(vocab_size=2**62),
    "vocab_size -1": edited(vocab_size=-1),
    "vocab_size true": edited(vocab_size=True),
    "vocab_size a list": edited(vocab_size=[320]),
    "vocab_size a float": edited(vocab_size=320.0),
    "a million layers": edited(num_hidden_layers=10**6),
    "no layers": edited(num_hidden_layers=0),
    "no heads": edited(num_attention_heads=0),
    "heads 2**31": edited(num_attention_heads=2**31),
    "head_dim 2**40": edited(head_dim=2**40),
    "positions 2**62": edited(max_position_embeddings=2**62),
    "positions as text": edited(max_position_embeddings="2048"),
    "all sizes at their most": edited(
        vocab_size=1 << 21, hidden_size=1 << 17, intermediate_size=1 << 19, num_hidden_layers=1 << 10
    ),
    "hidden_size an object": edited(hidden_size={}),
    "epsilon NaN": edited(rms_norm_eps=float("nan")),
    "epsilon infinite": edited(rms_norm_eps=float("inf")),
    "theta 1e999": lambda file: void(
        file.write_text(file.read_text().replace("500000.0", "1e999").replace("10000.0", "1e999"))
    ),
    "theta negative": edited(rope_parameters=None, rope_theta=-1.0),
    "rope a list": edited(rope_parameters=[1]),
    "rope type a list": edited(rope_parameters={"rope_type": ["llama3"]}),
    "rope factor 0": edited(rope_parameters={"rope_type": "llama3", "factor": 0, "low_freq_factor": 1,
                                             "high_freq_factor": 4, "original_max_position_embeddings": 64}),
    "rope factors equal": edited(rope_parameters={"rope_type": "llama3", "factor": 8, "low_freq_factor": 4,
                                                  "high_freq_factor": 4, "original_max_position_embeddings": 64}),
    "model_type a list": edited(model_type=["llama"]),
    "tie_word_embeddings as text": edited(tie_word_embeddings="false"),
    "attention_dropout an object": edited(attention_dropout={"p": 0}),
    "end ids an object": edited(eos_token_id={"id": 1}),
}  # fmt: skip
GENERATION: dict[str, Damage] = {
    "an end as text": edited(eos_token_id="</s>"),
    "an end below 0": edited(eos_token_id=-1),
    "an end of 2**62": edited(eos_token_id=[2**62]),
    "a million ends": edited(eos_token_id=list(range(10**6))),
    "ends within ends": edited(eos_token_id=[[1]]),
    "temperature NaN": edited(temperature=float("nan")),
    "temperature infinite": edited(temperature=float("inf")),
    "temperature as text": edited(temperature="1"),
    "top_k 2**63": edited(top_k=2**63),
    "top_p a list": edited(top_p=[0.9]),
    "repetition_penalty 0": edited(repetition_penalty=0),
}
TOKENIZER_CONFIG: dict[str, Damage] = {
    "bos a list": edited(bos_token=["<|begin|>"]),
    "bos a number": edited(bos_token=1),
    "bos an object without content": edited(bos_token={"lstrip": False}),
    "bos content a list": edited(bos_token={"content": ["<|begin|>"]}),
    "bos of no token": edited(bos_token="nowhere" * 10_000),
    "eos a list": edited(eos_token=[1]),
    "template a number": edited(chat_template=7),
    "templates of strings": edited(chat_template=["default"]),
    "templates without names": edited(chat_template=[{"template": "x"}]),
    "default template a list": edited(chat_template=[{"name": "default", "template": ["x"]}]),
    "template names objects": edited(chat_template=[{"name": {"a": 1}, "template": "x"}]),
    "template of 8 MB": edited(chat_template="x" * (1 << 23)),
}
TOKENIZER: dict[str, Damage] = {
    "no model": text('{"version": "1.0"}'),
    "model a list": edited(model=[]),
    "vocabulary a list": edited(model={"type": "BPE", "vocab": [], "merges": []}),
    "id 2**62": edited(model={"type": "WordLevel", "vocab": {"a": 2**62}, "unk_token": "a"}),
    "id -1": edited(model={"type": "WordLevel", "vocab": {"a": -1}, "unk_token": "a"}),
    "id 2**31": edited(model={"type": "WordLevel", "vocab": {"a": 2**31}, "unk_token": "a"}),
    "merges of nothing": edited(model={"type": "BPE", "vocab": {"a": 0}, "merges": [["x", "y"]]}),
    "an unknown type": edited(pre_tokenizer={"type": "Nothing"}),
    "a regular expression that is none": edited(
        pre_tokenizer={"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False}
    ),
}
WEIGHTS: dict[str, Damage] = {
    "header of 100 MB": safetensors(b" " * (100 << 20)),
    "header of 2**63": safetensors({}, size=2**63),
    "header past the end": safetensors({}, size=1000),
    "deep header": safetensors(b'{"a":' + b"[" * DEEP + b"]" * DEEP + b"}"),
    "header a list": safetensors([1]),
    "header not text": safetensors(b"\xff" * 64),
    "overlapping": safetensors({"a": tensor(0, 8, [2]), "b": tensor(4, 12, [2])}, rest=12),
    "offsets past the end": safetensors({"a": tensor(0, 2**40, [2**38])}, rest=8),
    "offsets backwards": safetensors({"a": tensor(8, 0, [2])}, rest=8),
    "a shape of 2**64": safetensors({"a": tensor(0, 8, [2**32, 2**32, 2**32])}, rest=8),
    "a shape below 0": safetensors({"a": tensor(0, 8, [-2])}, rest=8),
    "an unknown dtype": safetensors({"a": tensor(0, 8, [2], "F65")}, rest=8),
    "a tensor a list": safetensors({"a": [0, 8]}, rest=8),
    "other tensors by the ten thousand": safetensors({"x" * 100 + str(i): tensor(0, 0, [0]) for i in range(50_000)}),
    "zeros without end": sparse(1 << 40),
}
INDEX: dict[str, Damage] = {
    "a list": edited(weight_map=["model.safetensors"]),
    "an absolute path": edited(weight_map={"lm_head.weight": "/dev/zero"}),
    "the folder above": edited(weight_map={"lm_head.weight": "../model.safetensors"}),
    "a null byte": edited(weight_map={"lm_head.weight": "a\0b"}),
    "a file that is a pipe": lambda file: (os.mkfifo(file.parent / "pipe"), edited(weight_map={"a": "pipe"})(file))[1],
    "lists for names": edited(weight_map={"lm_head.weight": ["a"]}),
    "a hundred thousand files": edited(weight_map={str(i): f"{i}.safetensors" for i in range(100_000)}),
}
ADAPTER: dict[str, Damage] = {
    "rank 2**62": edited(r=2**62),
    "rank a list": edited(r=[3]),
    "rank true": edited(r=True),
    "alpha NaN": edited(lora_alpha=float("nan")),
    "alpha infinite": edited(lora_alpha=float("inf")),
    "alpha negative": edited(lora_alpha=-1),
    "dropout 2": edited(lora_dropout=2),
    "base a list": edited(base_model_name_or_path=["model"]),
    "base a null byte": edited(base_model_name_or_path="a\0b"),
    "base empty": edited(base_model_name_or_path=""),
    "base a pipe": lambda file: (
        os.mkfifo(file.parent / "pipe"), edited(base_model_name_or_path=str(file.parent / "pipe"))(file))[1],
    "peft_type a list": edited(peft_type=["LORA"]),
}  # fmt: skip
JSON_FILES = ("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json")
DAMAGES: dict[tuple[str, str], Damage] = {
    (file, name): damage
    for file, damages in {
        **dict.fromkeys((*JSON_FILES, "tokenizer.json", "adapter_config.json"), NO_FILE | NO_OBJECT),
        "model.safetensors": NO_FILE | WEIGHTS,
        "adapter_model.safetensors": NO_FILE | WEIGHTS,
        "model.safetensors.index.json": NO_FILE | NO_OBJECT | INDEX,
        "chat_template.jinja": NO_FILE | {"not text": data(b"\xff\xfe"), "large": sparse(1 << 33)},
    }.items()
    for name, damage in damages.items()
} | {
    (file, name): damage
    for file, damages in {
        "config.json": CONFIG,
        "generation_config.json": GENERATION,
        "tokenizer_config.json": TOKENIZER_CONFIG,
        "tokenizer.json": TOKENIZER,
        "adapter_config.json": ADAPTER,
    }.items()
    for name, damage in damages.items()
}
