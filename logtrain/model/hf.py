"""Models in the Hugging Face layout: what hf_layout.py describes, with its safetensors in one file or many.

Reading: `Weights.rows` returns any rows of any of our matrices from the byte ranges that hold them, so that a rank
touches only what it owns. Writing: `save` streams full tensors into files of at most 5 GB beside an index.
"""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from logtrain.core.untrusted import check_regular, nearest, read_bytes, shown
from logtrain.model.hf_layout import end_ids as end_ids
from logtrain.model.hf_layout import published_tensors
from logtrain.model.hf_layout import read_config as read_config
from logtrain.model.hf_layout import read_json as read_json
from logtrain.model.hf_layout import read_positions as read_positions
from logtrain.model.llama import LlamaConfig
from logtrain.text import template_source

FILE_BYTES = 5 * 10**9
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
BUFFERS = tuple(f"rotary_emb.{name}" for name in ("inv_freq", "original_inv_freq", "cos_cached", "sin_cached"))
SAVED_ANEW = "transformers opens it and saves safetensors: LlamaForCausalLM.from_pretrained(DIR{}).save_pretrained(NEW)"
OTHERS = {  # weights in other forms, by the names of their files, and what to do
    "pytorch_model*.bin*": SAVED_ANEW.format(""),
    "*.gguf": SAVED_ANEW.format(", gguf_file=NAME"),
    "consolidated*": "Meta's own form; give the Hugging Face folder of the same model",
    "original/consolidated*": "Meta's own form; give the Hugging Face folder of the same model",
    "adapter_model.*": "an adapter; give the folder of its model",
}
HEAD_ROWS = 1 << 13  # that are compared at a time
MAX_FILES = 10_000  # of a model: each is open and mapped while it is read
MAX_HEADER_BYTES = 1 << 23  # of one file of safetensors: Llama-3.1-405B's largest has some 20 KB


# ---- reading


class Weights:
    """The safetensors of a model folder, checked against its config by their headers, read by rows.

    Raises ValueError for files that are missing, damaged or another model's.
    """

    def __init__(self, folder: str | Path, config: LlamaConfig):
        self.folder, self.published = Path(folder), published_tensors(config)
        self.files = {file: open_file(self.folder / file) for file in file_names(self.folder)}
        self.file_of = {name: file for file, opened in self.files.items() for name in opened.keys()}  # noqa: SIM118
        self.stored = self.other_names(config)
        self.check_tensors()
        self.check_others(config)
        if config.tied and HEAD in self.file_of and self.stored.get(EMBEDDING) != HEAD:
            self.check_tied_head()

    def other_names(self, config: LlamaConfig) -> dict[str, str]:
        """Returns the names under which tensors are stored, where these are others than the published ones: a tied
        model may have the head alone, and a model without its head has no "model." before them.
        """
        names = {part.name for parts in self.published.values() for part in parts} - self.file_of.keys()
        others = {name: name.removeprefix("model.") for name in names}
        if config.tied and HEAD in self.file_of:
            others[EMBEDDING] = HEAD
        return {name: other for name, other in others.items() if name in names and other in self.file_of}

    def check_tensors(self) -> None:
        """Raises ValueError unless every published tensor is there, with its shape, in a dtype that we read."""
        for name, shape in (tensor for tensors in self.published.values() for tensor in tensors):
            if name not in self.file_of and name not in self.stored:
                near = nearest(name, self.file_of)
                listing = next(iter(self.files)) if len(self.files) == 1 else "the files of its index"
                raise ValueError(
                    f"{self.folder}: {listing} has no tensor {name}{f' (nearest: {near[0]})' if near else ''}"
                )
            path = self.folder / self.file_of[self.stored.get(name, name)]
            found = self.slice_of(name)
            if tuple(found.get_shape()) != shape:
                raise ValueError(f"{path}: {name} has shape {found.get_shape()}, config.json asks for {list(shape)}")
            if found.get_dtype() not in DTYPES:
                raise ValueError(f"{path}: {name} has dtype {found.get_dtype()}; expected {', '.join(DTYPES)}")

    def check_others(self, config: LlamaConfig) -> None:
        """Raises ValueError for any other tensor, but for what transformers has stored beside the weights."""
        known = {tensor.name for tensors in self.published.values() for tensor in tensors} | set(self.stored.values())
        if config.tied:
            known.add(HEAD)
        extra = [name for name in self.file_of if name not in known and not name.endswith(BUFFERS)]
        if extra:
            path, name = self.folder / self.file_of[extra[0]], extra[0][:200]
            raise ValueError(f"{path}: unexpected tensor {name} ({len(extra)} in all); not this Llama")

    def check_tied_head(self) -> None:
        """Raises ValueError if the head that a tied model stores is not the embedding: transformers would use it. It
        may differ in one row alone, as of a token that was added, so all are compared, some at a time.
        """
        head, embedding = self.slice_of(HEAD), self.slice_of(EMBEDDING)
        rows = max(each.get_shape()[0] for each in (head, embedding))
        for start in range(0, rows, HEAD_ROWS):
            if not torch.equal(head[start : start + HEAD_ROWS], embedding[start : start + HEAD_ROWS]):
                raise ValueError(
                    f"{self.folder / self.file_of[HEAD]}: lm_head.weight is not the embedding, though "
                    f"config.json says tie_word_embeddings; set that to false"
                )

    def slice_of(self, name: str):
        """Returns a lazy slice of a published tensor; safetensors reads its rows when it is indexed."""
        name = self.stored.get(name, name)
        return self.files[self.file_of[name]].get_slice(name)

    def let_go(self) -> None:
        """Give back the memory that the mapped files take in this process: what has been read would stay in it."""
        self.files = {file: open_file(self.folder / file) for file in self.files}

    def rows(self, name: str, start: int, stop: int) -> Iterator[Tensor]:
        """Yields rows [start, stop) of our parameter `name`, in pieces, in the dtype in which they are stored."""
        for tensor in self.published[name]:
            first, last = max(start, 0), min(stop, tensor.shape[0])
            if first < last:
                yield self.slice_of(tensor.name)[first:last]
            start, stop = start - tensor.shape[0], stop - tensor.shape[0]


def file_names(folder: Path) -> list[str]:
    """Returns the names of a model folder's safetensors. Raises ValueError where there are none or the index is
    damaged.
    """
    if os.path.lexists(folder / WHOLE):
        return [WHOLE]
    index = folder / INDEX
    if not os.path.lexists(index):
        others = ((what, found) for pattern, what in OTHERS.items() for found in folder.glob(pattern))
        what, found = next(others, ("give a folder with safetensors weights", None))
        raise ValueError(f"{folder}: neither {WHOLE} nor {INDEX}{f', but {found.name}' if found else ''}; {what}")
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index}: no weight_map")
    for file in weight_map.values():
        if not isinstance(file, str) or Path(file).name != file or "\0" in file:
            raise ValueError(f"{index}: {shown(file)} is not a plain file name")
    files = set(weight_map.values())
    if len(files) > MAX_FILES:
        raise ValueError(f"{index}: names {len(files):,} files, more than {MAX_FILES:,}")
    return sorted(files)


def open_file(path: Path):
    """Opens a file of safetensors and reads only its header. Raises ValueError for one that is missing, no regular
    file, or damaged.
    """
    check_safetensors(path)
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: damaged or cut short ({error})") from None


def check_safetensors(path: Path, remedy: str = "the index names it") -> None:
    """Raises ValueError for what cannot be a file of safetensors, before the library reads and maps it, which takes
    minutes and gigabytes for a header of 100 MB. `remedy` ends the error of a missing file.
    """
    if not os.path.lexists(path):
        raise ValueError(f"{path}: no such file; {remedy}")
    check_regular(path)
    try:
        with open(path, "rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    if size > MAX_HEADER_BYTES:
        raise ValueError(f"{path}: damaged or cut short (a header of {size:,} bytes; {MAX_HEADER_BYTES:,} at most)")


# ---- writing


def published_rows(config: LlamaConfig, tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Yields the published tensors of our full ones: their published names, and views of the rows that they are."""
    published = published_tensors(config)
    for name, tensor in tensors:
        rows = tensor.split([part.shape[0] for part in published[name]])
        yield from zip((part.name for part in published[name]), rows, strict=True)


def assign_files(config: LlamaConfig, dtype: torch.dtype) -> dict[str, str]:
    """Returns the file of each published tensor, by name; files are filled in order up to FILE_BYTES each."""
    files: list[list[str]] = [[]]
    room = FILE_BYTES
    for tensor in (tensor for tensors in published_tensors(config).values() for tensor in tensors):
        size = dtype.itemsize * torch.Size(tensor.shape).numel()
        if size > room and files[-1]:
            files.append([])
            room = FILE_BYTES
        files[-1].append(tensor.name)
        room -= size
    if len(files) == 1:
        return dict.fromkeys(files[0], WHOLE)
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

    `tensors`: our names and full tensors in the order of `published_tensors`, taken one at a time. `source`: the folder
    whose config.json (and generation_config.json) the model came from; only the dtype in it changes, and what an
    adapter has changed of the shape. The folder must not hold a model yet, and is not whole before the end:
    `core/atomic.py` gives it its name. Raises ValueError where there is no room.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(folder, config, tensors, dtype)
    save_files(folder, config, dtype, source=source, tokenizer_files=tokenizer_files)


def save_files(
    folder: Path, config: LlamaConfig, dtype: torch.dtype, *, source: Path, tokenizer_files: Iterable[Path]
) -> None:
    """Write what stands beside the weights: config.json, generation_config.json and the tokenizer, as `save` does."""
    raw = read_json(source / "config.json")
    raw["dtype" if "dtype" in raw else "torch_dtype"] = str(dtype).removeprefix("torch.")
    raw["vocab_size"] = config.vocab_size
    if bool(raw.get("tie_word_embeddings")) != config.tied:
        raw["tie_word_embeddings"] = config.tied
    write_json(folder / "config.json", raw)
    generation = source / "generation_config.json"
    if os.path.lexists(generation):
        copy(generation, folder)
    else:
        ids = {key: raw[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if raw.get(key) is not None}
        write_json(folder / generation.name, ids)
    for file in tokenizer_files:
        copy(file, folder)
    leave_one_template(folder)


def leave_one_template(folder: Path) -> None:
    """Take the chat template out of tokenizer_config.json where chat_template.jinja is beside it, which goes first: a
    program that reads the former alone would write other prompts.
    """
    config = folder / template_source.CONFIG
    if os.path.lexists(folder / template_source.FILE) and os.path.lexists(config):
        facts = read_json(config)
        if facts.pop("chat_template", None) is not None:
            write_json(config, facts)


def copy(file: Path, folder: Path) -> None:
    """Copy a small file of a model into a folder. Raises ValueError where it is no regular file, or not small."""
    (folder / file.name).write_bytes(read_bytes(file))


def save_tensors(folder: Path, config: LlamaConfig, tensors: Iterable[tuple[str, Tensor]], dtype: torch.dtype) -> None:
    """Write the safetensors of a folder, one file after the other, and the index of several."""
    file_of = assign_files(config, dtype)
    pending: dict[str, Tensor] = {}  # of the file under way
    file, total = "", 0
    for name, rows in published_rows(config, tensors):
        if pending and file_of[name] != file:
            write(pending, folder / file)
            pending = {}
        file, pending[name] = file_of[name], rows.to("cpu", dtype, copy=True).contiguous()
        total += pending[name].nbytes
    write(pending, folder / file)
    if len(set(file_of.values())) > 1:
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": file_of})


def write(tensors: dict[str, Tensor], path: Path) -> None:
    """Write one file of safetensors. Raises ValueError where there is no room."""
    assert not path.exists(), f"{path}: the tensors did not come in the order of their files"
    try:
        with open(path, "xb") as stream:
            mode = os.fstat(stream.fileno()).st_mode  # as umask says; the library's files are for their owner alone
        save_file(tensors, path, metadata={"format": "pt"})
        os.chmod(path, mode)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not written ({error}); make room and export again") from error


def write_json(path: Path, content: dict) -> None:
    """Write a JSON file as people read it."""
    path.write_text(json.dumps(content, indent=2) + "\n")
