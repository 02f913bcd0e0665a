"""Models in the Hugging Face layout: read by ranks, written, and read again by transformers."""

import json
import re
import resource
import shutil
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from logtrain.core.world import World
from logtrain.model import hf
from logtrain.model.hf import Weights, read_config
from logtrain.model.llama import Llama, LlamaConfig
from logtrain.model.weights import local_rows
from logtrain.model.weights import read_model as read_weights
from logtrain.training.config import RunConfig
from logtrain.training.sharding import build_model, full_tensors, make_mesh
from tests.support.synthetic import edit_json, read_model, write_model

INDEX = "model.safetensors.index.json"


def export(folder: Path, source: Path, dtype: torch.dtype = torch.float32) -> None:
    llama = read_model(source)
    tokenizer_files = [source / "tokenizer.json", source / "tokenizer_config.json"]
    hf.save(folder, llama.config, full_tensors(llama), dtype, source=source, tokenizer_files=tokenizer_files)


def tensors_in(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def assert_same_tensors(folder: Path, other: Path) -> None:
    ours, theirs = tensors_in(folder), tensors_in(other)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype
        assert torch.equal(tensor, theirs[name]), name


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("published"))


@pytest.fixture
def folder(published, tmp_path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(published, tmp_path / "model"))


@pytest.mark.parametrize("files", ["one file", "many files"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_there_and_back_every_tensor_is_bit_identical(tmp_path, monkeypatch, dtype, tied, files):
    from transformers import LlamaForCausalLM

    source, there = write_model(tmp_path / "source", tie_word_embeddings=tied), tmp_path / "there"
    theirs = LlamaForCausalLM.from_pretrained(source, dtype=dtype)
    theirs.save_pretrained(source, max_shard_size="5GB" if files == "one file" else "60KB")
    if files == "many files":
        (source / "model.safetensors").unlink()
        monkeypatch.setattr(hf, "FILE_BYTES", 60_000)
    assert (source / INDEX).exists() == (files == "many files")
    export(there, source, dtype)
    assert_same_tensors(there, source)
    assert (there / INDEX).exists() == (files == "many files")

    again, info = LlamaForCausalLM.from_pretrained(there, output_loading_info=True)  # no flags
    assert again.dtype == dtype
    assert not any(info.values()), info
    tokens = torch.arange(300)[None]
    assert torch.equal(again(tokens).logits, theirs(tokens).logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_weights_in_double_precision_are_rounded_once_as_transformers_does(folder, dtype):
    from transformers import LlamaForCausalLM

    file = folder / "model.safetensors"
    wide = {name: tensor.double() * (1 + 2**-8 + 2**-30) for name, tensor in load_file(file).items()}
    save_file(wide, file, metadata={"format": "pt"})
    edit_json(folder / "config.json", dtype="float64")
    config = read_config(folder)
    ours = read_weights(config, Weights(folder, config), torch.device("cpu"), dtype)
    theirs = LlamaForCausalLM.from_pretrained(folder, dtype=dtype)
    assert any(not torch.equal(tensor, tensor.float().double()) for tensor in wide.values())
    published = dict(hf.published_rows(config, ours.named_parameters()))
    expected = theirs.state_dict()
    assert published.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in published.items())


def test_an_export_carries_the_folder_it_came_from(folder, tmp_path):
    there, later = tmp_path / "there", tmp_path / "later"
    edit_json(folder / "config.json", dtype=None, torch_dtype="float32", extra={"kept": 1})
    (folder / "generation_config.json").write_text('{"temperature": 0.6, "top_p": 0.9}')
    export(there, folder, torch.bfloat16)
    before, after = (json.loads((path / "config.json").read_text()) for path in (folder, there))
    assert after == {**before, "torch_dtype": "bfloat16"}
    for name in ("generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (there / name).read_bytes() == (folder / name).read_bytes()
    assert {path.name for path in there.iterdir()} == {path.name for path in folder.iterdir()}

    (folder / "generation_config.json").unlink()
    edit_json(folder / "config.json", torch_dtype=None, dtype="float32")
    export(later, folder, torch.bfloat16)
    assert json.loads((later / "config.json").read_text())["dtype"] == "bfloat16"
    assert json.loads((later / "generation_config.json").read_text()) == {"bos_token_id": 0, "eos_token_id": 1}


def test_files_are_filled_up_to_the_limit_wherever_it_falls(published, tmp_path, monkeypatch):
    """A file may end after any tensor, so every boundary there is gets its turn as the first."""
    config = read_config(published)
    sizes = [tensor.nbytes for tensor in tensors_in(published).values()]
    names = [tensor.name for tensors in hf.published_tensors(config).values() for tensor in tensors]
    in_order = [tensors_in(published)[name].nbytes for name in names]
    limits = {sum(in_order[: count + 1]) - short for count in range(len(in_order)) for short in (0, 1)}
    splits = set()
    for limit in sorted(limits):
        there = tmp_path / str(limit)
        monkeypatch.setattr(hf, "FILE_BYTES", limit)
        export(there, published)
        assert_same_tensors(there, published)
        files = sorted(there.glob("*.safetensors"))
        contents = [[tensor.nbytes for tensor in load_file(file).values()] for file in files]
        assert all(sum(content) <= limit or len(content) == 1 for content in contents)
        splits.add(len(files))
        if len(files) > 1:
            index = json.loads((there / INDEX).read_text())
            assert index["metadata"]["total_size"] == sum(sizes)
            assert index["weight_map"] == {name: file.name for file in files for name in load_file(file)}
    assert {1, 2, 3, 4} <= splits


def test_names_come_in_the_order_of_the_parameters(published):
    """`save` fills one file after the other; with another order it would go back to one already written."""
    for tied in (False, True):
        config = LlamaConfig(**{**vars(read_config(published)), "tied": tied})
        with torch.device("meta"):
            parameters = [name for name, _ in Llama(config).named_parameters()]
        assert list(hf.published_tensors(config)) == parameters


def test_an_export_without_room_says_so(published, tmp_path):
    llama, limits = read_model(published), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(ValueError, match=r"model\.safetensors: not written \(.*\); make room") as caught:
            hf.save(
                tmp_path / "there",
                llama.config,
                full_tensors(llama),
                torch.float32,
                source=published,
                tokenizer_files=[],
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(caught.value)


# Every rank reads its own rows


class Recorder:
    """Stands for an open file; notes which rows of which tensor are read, and memory while they are in hand."""

    def __init__(self, file, reads: list, memory: list):
        self.file, self.reads, self.memory = file, reads, memory

    def get_slice(self, name: str) -> "Recorder":
        recorder = Recorder(self.file.get_slice(name), self.reads, self.memory)
        recorder.name = name
        return recorder

    def __getitem__(self, rows: slice) -> torch.Tensor:
        self.reads.append((self.name, rows.start, rows.stop))
        tensor = self.file[rows]
        self.memory.append(anonymous_bytes())
        return tensor


def anonymous_bytes() -> int:
    """Memory of this process that no file stands behind."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"RssAnon:\s+(\d+) kB", status)[1])


def number_rows(config: LlamaConfig) -> dict[str, torch.Tensor]:
    """Our names -> a number for every row, another in every row of every published tensor."""
    numbers, tensor = {}, 0
    for name, parts in hf.published_tensors(config).items():
        of_parts = []
        for part in parts:
            of_parts.append(torch.arange(part.shape[0], dtype=torch.float32) + 100_000 * tensor)  # exact below 2^24
            tensor += 1
        numbers[name] = torch.cat(of_parts)
    return numbers


def write_numbered(folder: Path, config: LlamaConfig) -> None:
    """Weights in which every row holds its number."""
    numbers, tensors = number_rows(config), {}
    for name, parts in hf.published_tensors(config).items():
        for part, rows in zip(parts, numbers[name].split([part.shape[0] for part in parts]), strict=True):
            tensors[part.name] = rows.view(-1, *[1] * (len(part.shape) - 1)).expand(part.shape).contiguous()
    save_file(tensors, folder / "model.safetensors")


def read_as_rank(folder: Path) -> tuple[list, int, int]:
    """On a rank: (what it read, growth of its anonymous memory at the most, bytes of its shards)."""
    world, config = World(), read_config(folder)
    weights, reads, memory = Weights(folder, config), [], []
    weights.files = {name: Recorder(file, reads, memory) for name, file in weights.files.items()}
    run = RunConfig(name="run", model="", data="")
    mesh = make_mesh("cpu", world.size, run.parallel)
    before = anonymous_bytes()
    llama = build_model(run, config, mesh, torch.float32, weights)
    memory.append(anonymous_bytes())
    numbers, shards = number_rows(config), 0
    for name, parameter in llama.named_parameters():
        start, rows = local_rows(parameter)
        shards += rows.nbytes
        expected = numbers[name][start : start + len(rows)]
        assert torch.equal(rows, expected.view(-1, *[1] * (rows.ndim - 1)).expand_as(rows)), name
    return reads, max(memory) - before, shards


def test_ranks_read_their_own_rows_and_nothing_else(tmp_path, ranks):
    """A model of 200 MB on four ranks: together they read every row once, and none holds more than its part."""
    write_model(
        tmp_path,
        weights=False,
        vocab_size=32_001,  # four ranks have 8,001, 8,001, 8,001 and 7,998 rows
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=6,
    )
    config = read_config(tmp_path)
    write_numbered(tmp_path, config)
    results = ranks.run(4, read_as_rank, tmp_path)
    (tmp_path / "model.safetensors").unlink()

    read = defaultdict(list)
    for reads, _, _ in results:
        for name, start, stop in reads:
            read[name].append((start, stop))
    shapes = {part.name: part.shape for parts in hf.published_tensors(config).values() for part in parts}
    assert read.keys() == shapes.keys()
    for name, spans in read.items():
        ends = [0, *(stop for _, stop in sorted(spans))]
        assert [start for start, _ in sorted(spans)] == ends[:-1], name  # no gap, no overlap
        assert ends[-1] == shapes[name][0]

    assert sum(shards for _, _, shards in results) == 4 * config.num_parameters > 195e6
    for _, growth, shards in results:
        assert shards < 52e6
        assert growth < shards + 8e6
