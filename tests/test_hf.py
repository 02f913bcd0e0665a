"""The Hugging Face layout: what is read, what is written, and what is refused."""

import json
import re
import resource
import shutil
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from synthetic import write_model

from logtrain import hf
from logtrain.hf import Weights, read_config
from logtrain.model import Llama, Llama3Scaling, LlamaConfig
from logtrain.parallel import ParallelConfig, World, build, full_tensors, local_rows, materialize

INDEX = "model.safetensors.index.json"


def read_model(folder: Path) -> Llama:
    config = read_config(folder)
    with torch.device("meta"):
        llama = Llama(config)
    materialize(llama, torch.device("cpu"), Weights(folder, config).rows)
    return llama


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


def edit_json(path: Path, **changes) -> None:
    """Set keys of a JSON file; None removes one."""
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("published"))


@pytest.fixture
def folder(published, tmp_path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(published, tmp_path / "model"))


@pytest.fixture
def sharded(published, tmp_path) -> Path:
    """The same model in several files, as transformers writes them."""
    from transformers import LlamaForCausalLM

    folder = Path(shutil.copytree(published, tmp_path / "sharded", ignore=shutil.ignore_patterns("*.safetensors")))
    LlamaForCausalLM.from_pretrained(published).save_pretrained(folder, max_shard_size="100KB")
    return folder


# config.json

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
        (b"[1]", "found list"),
    ],
    ids=["missing", "cut short", "not text", "a list"],
)
def test_a_config_that_is_none_is_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=f"config.json: .*{message}"):
        read_config(tmp_path)


# There and back


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


def test_an_export_carries_the_folder_it_came_from(folder, tmp_path):
    there = tmp_path / "there"
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
    export(there, folder, torch.bfloat16)
    assert json.loads((there / "config.json").read_text())["dtype"] == "bfloat16"
    assert json.loads((there / "generation_config.json").read_text()) == {"bos_token_id": 0, "eos_token_id": 1}


def test_files_are_filled_up_to_the_limit_wherever_it_falls(published, tmp_path, monkeypatch):
    """A file may end after any tensor, so every boundary there is gets its turn as the first."""
    config = read_config(published)
    sizes = [tensor.nbytes for tensor in tensors_in(published).values()]
    names = [part.name for parts in hf.published(config).values() for part in parts]
    in_order = [tensors_in(published)[name].nbytes for name in names]
    limits = {sum(in_order[: count + 1]) - short for count in range(len(in_order)) for short in (0, 1)}
    splits = set()
    for limit in sorted(limits):
        monkeypatch.setattr(hf, "FILE_BYTES", limit)
        export(tmp_path / "there", published)
        assert_same_tensors(tmp_path / "there", published)
        files = sorted((tmp_path / "there").glob("*.safetensors"))
        contents = [[tensor.nbytes for tensor in load_file(file).values()] for file in files]
        assert all(sum(content) <= limit or len(content) == 1 for content in contents)
        splits.add(len(files))
        if len(files) > 1:
            index = json.loads((tmp_path / "there" / INDEX).read_text())
            assert index["metadata"]["total_size"] == sum(sizes)
            assert index["weight_map"] == {name: file.name for file in files for name in load_file(file)}
    assert {1, 2, 3, 4} <= splits


def test_names_come_in_the_order_of_the_parameters():
    """`save` fills one file after the other; with another order it would go back to one already written."""
    for tied in (False, True):
        config = LlamaConfig(**{**vars(LLAMA31_8B), "tied": tied})
        with torch.device("meta"):
            parameters = [name for name, _ in Llama(config).named_parameters()]
        assert list(hf.published(config)) == parameters


def test_an_export_that_fails_leaves_nothing_that_looks_like_one(published, tmp_path):
    there, config = tmp_path / "there", read_config(published)

    def until_it_breaks():
        yield from list(full_tensors(read_model(published)))[:4]
        raise RuntimeError("a rank died")

    with pytest.raises(RuntimeError, match="a rank died"):
        hf.save(there, config, until_it_breaks(), torch.float32, source=published, tokenizer_files=[])
    assert not there.exists()
    export(there, published)
    (there / "stale").touch()
    export(there, published)  # a newer export takes its place whole
    assert not (there / "stale").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


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
    assert not (tmp_path / "there").exists()


# Damage


def change_tensors(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


GATE = "model.layers.1.mlp.gate_proj.weight"
DAMAGE = {
    "tensor missing": (
        lambda folder: change_tensors(folder, lambda tensors: tensors.pop(GATE)),
        rf"model\.safetensors has no tensor {GATE} \(nearest: model\.layers\.\d\.mlp",
    ),
    "head missing though not tied": (
        lambda folder: change_tensors(folder, lambda tensors: tensors.pop("lm_head.weight")),
        r"model\.safetensors has no tensor lm_head\.weight",
    ),
    "wrong shape": (
        lambda folder: change_tensors(folder, lambda tensors: tensors.update({GATE: torch.zeros(112, 63)})),
        rf"model\.safetensors: {GATE} has shape \[112, 63\], config\.json asks for \[112, 64\]",
    ),
    "wrong dtype": (
        lambda folder: change_tensors(
            folder, lambda tensors: tensors.update({GATE: tensors[GATE].to(torch.float8_e4m3fn)})
        ),
        rf"model\.safetensors: {GATE} has dtype F8_E4M3; expected F32, BF16, F16",
    ),
    "tensor of another model": (
        lambda folder: change_tensors(
            folder, lambda tensors: tensors.update({"model.layers.0.self_attn.q_proj.bias": torch.zeros(64)})
        ),
        r"model\.safetensors: unexpected tensor model\.layers\.0\.self_attn\.q_proj\.bias \(1 in all\)",
    ),
    "a head of its own though tied": (
        lambda folder: edit_json(folder / "config.json", tie_word_embeddings=True),
        r"model\.safetensors: lm_head\.weight is not the embedding",
    ),
    "more layers than the config": (
        lambda folder: edit_json(folder / "config.json", num_hidden_layers=1),
        r"model\.safetensors: unexpected tensor model\.layers\.1\..* \(9 in all\)",
    ),
    "another vocabulary than the config": (
        lambda folder: edit_json(folder / "config.json", vocab_size=300),
        r"model\.embed_tokens\.weight has shape \[320, 64\], config\.json asks for \[300, 64\]",
    ),
    "cut short": (lambda folder: cut_short(folder / "model.safetensors"), r"model\.safetensors: damaged or cut short"),
    "empty file": (
        lambda folder: (folder / "model.safetensors").write_bytes(b""),
        r"model\.safetensors: damaged or cut short",
    ),
    "not safetensors": (
        lambda folder: (folder / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n"),
        r"model\.safetensors: damaged or cut short",
    ),
    "no weights": (
        lambda folder: (folder / "model.safetensors").unlink(),
        r"neither model\.safetensors nor model\.safetensors\.index\.json",
    ),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE)
def test_damaged_weights_are_one_line_that_names_file_and_tensor(folder, damage, message):
    damage(folder)
    with pytest.raises(ValueError, match=message) as caught:
        Weights(folder, read_config(folder))
    assert str(caught.value).startswith(str(folder))
    assert "\n" not in str(caught.value)


def change_index(folder: Path, file: object) -> None:
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["lm_head.weight"] = file
    (folder / INDEX).write_text(json.dumps(index))


INDEX_DAMAGE = {
    "file missing": (
        lambda folder: (folder / "model-00002-of-00005.safetensors").unlink(),
        r"model-00002-of-00005\.safetensors: no such file, though the index names it",
    ),
    "file cut short": (
        lambda folder: cut_short(folder / "model-00002-of-00005.safetensors"),
        r"model-00002-of-00005\.safetensors: damaged or cut short",
    ),
    "file left out": (
        lambda folder: edit_json(folder / INDEX, weight_map={"lm_head.weight": "model-00005-of-00005.safetensors"}),
        r"has no tensor model\.embed_tokens\.weight",
    ),
    "path outside": (
        lambda folder: change_index(folder, "../secret.safetensors"),
        r"index\.json: '\.\./secret\.safetensors' is not a plain file name",
    ),
    "absolute path": (lambda folder: change_index(folder, "/etc/passwd"), "'/etc/passwd' is not a plain file name"),
    "the folder above": (lambda folder: change_index(folder, ".."), r"'?\.\.'?"),
    "no file name": (lambda folder: change_index(folder, 7), "7 is not a plain file name"),
    "no weight_map": (lambda folder: edit_json(folder / INDEX, weight_map=None), r"index\.json: no weight_map"),
    "index cut short": (lambda folder: cut_short(folder / INDEX), r"index\.json: not JSON"),
}


@pytest.mark.parametrize(("damage", "message"), INDEX_DAMAGE.values(), ids=INDEX_DAMAGE)
def test_a_damaged_index_is_one_line(sharded, damage, message):
    damage(sharded)
    with pytest.raises(ValueError, match=message) as caught:
        Weights(sharded, read_config(sharded))
    assert str(caught.value).startswith(str(sharded))
    assert "\n" not in str(caught.value)


def test_what_transformers_stores_beside_the_weights_is_no_damage(folder):
    """Old checkpoints hold the rotary frequencies; some tied ones hold the head, which is the embedding."""
    edit_json(folder / "config.json", tie_word_embeddings=True)
    change_tensors(
        folder,
        lambda tensors: tensors.update(
            {
                "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4),
                "lm_head.weight": tensors["model.embed_tokens.weight"].clone(),
            }
        ),
    )
    assert torch.equal(read_model(folder).head.weight, tensors_in(folder)["model.embed_tokens.weight"])


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
    for name, parts in hf.published(config).items():
        of_parts = []
        for part in parts:
            of_parts.append(torch.arange(part.shape[0], dtype=torch.float32) + 100_000 * tensor)  # exact below 2^24
            tensor += 1
        numbers[name] = torch.cat(of_parts)
    return numbers


def write_numbered(folder: Path, config: LlamaConfig) -> None:
    """Weights in which every row holds its number."""
    numbers, tensors = number_rows(config), {}
    for name, parts in hf.published(config).items():
        for part, rows in zip(parts, numbers[name].split([part.shape[0] for part in parts]), strict=True):
            tensors[part.name] = rows.view(-1, *[1] * (len(part.shape) - 1)).expand(part.shape).contiguous()
    save_file(tensors, folder / "model.safetensors")


def read_as_rank(folder: Path) -> tuple[list, int, int]:
    """On a rank: (what it read, growth of its anonymous memory at the most, bytes of its shards)."""
    world, config = World(), read_config(folder)
    weights, reads, memory = Weights(folder, config), [], []
    weights.files = {name: Recorder(file, reads, memory) for name, file in weights.files.items()}
    mesh = world.mesh(ParallelConfig())
    before = anonymous_bytes()
    llama = build(config, mesh, ParallelConfig(), torch.float32, weights.rows)
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
    shapes = {part.name: part.shape for parts in hf.published(config).values() for part in parts}
    assert read.keys() == shapes.keys()
    for name, spans in read.items():
        ends = [0, *(stop for _, stop in sorted(spans))]
        assert [start for start, _ in sorted(spans)] == ends[:-1], name  # no gap, no overlap
        assert ends[-1] == shapes[name][0]

    assert sum(shards for _, _, shards in results) == 4 * config.num_parameters > 195e6
    for _, growth, shards in results:
        assert shards < 52e6
        assert growth < shards + 8e6
