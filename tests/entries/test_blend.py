"""`python -m logtrain.blend`: the blend is the one line of PyTorch, bit for bit, and loads as any model does."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from logtrain.core.checksums import check_folder
from logtrain.model import blending, hf, peft
from logtrain.model.config import LoraConfig
from tests.support.llama import load_transformers
from tests.support.lora import adapted, trained
from tests.support.program import Program
from tests.support.synthetic import edit_json, write_data, write_model
from tests.support.training import train

Weights = dict[str, torch.Tensor]
SHAPE = {
    "vocab_size": 131,
    "hidden_size": 30,
    "intermediate_size": 53,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
}


def another(model: Path, folder: Path, seed: int, dtype: torch.dtype = torch.float32) -> Path:
    """A model of the same shape with other weights."""
    shutil.copytree(model, folder)
    generator = torch.Generator().manual_seed(seed)
    tensors = load_file(model / hf.WHOLE)
    save_file({n: (t + 0.1 * torch.randn(t.shape, generator=generator)).to(dtype) for n, t in tensors.items()},
              folder / hf.WHOLE, metadata={"format": "pt"})  # fmt: skip
    edit_json(folder / "config.json", dtype=str(dtype).removeprefix("torch."))
    return folder


@pytest.fixture(scope="module")
def case(tmp_path_factory) -> SimpleNamespace:
    """Three models of one shape, in fp32 and in bf16."""
    folder = tmp_path_factory.mktemp("blend")
    first = write_model(folder / "first", **SHAPE)
    fp32 = [another(first, folder / f"{seed}", seed) for seed in range(3)]
    bf16 = [another(first, folder / f"bf16-{seed}", seed, torch.bfloat16) for seed in range(3)]
    large = another(first, folder / "large", 3)
    tensors = load_file(large / hf.WHOLE)
    tensors["model.embed_tokens.weight"][7, 5] = 7e4
    save_file(tensors, large / hf.WHOLE, metadata={"format": "pt"})
    nan = another(first, folder / "nan", 4)
    tensors = load_file(nan / hf.WHOLE)
    tensors["model.layers.1.mlp.down_proj.weight"][3, 2] = torch.nan
    save_file(tensors, nan / hf.WHOLE, metadata={"format": "pt"})
    wide = write_model(folder / "wide", **SHAPE | {"hidden_size": 60})
    return SimpleNamespace(folder=folder, fp32=fp32, bf16=bf16, large=large, nan=nan, wide=wide)


def blended(output: Path, *arguments: object) -> Weights:
    """What the command writes, as transformers reads it."""
    assert train(["--models", *map(str, arguments), "--output", str(output)], "logtrain.blend") == 0
    check_folder(output)
    return dict(load_transformers(output).state_dict())


FORMULAS: dict[str, tuple[list[str], Callable[..., torch.Tensor]]] = {
    "average": ([], lambda a, b, c: (a + b + c) / 3),
    "weights": (["--weights", "0.5", "2", "-0.3"], lambda a, b, c: (0.5 * a + 2.0 * b + -0.3 * c) / 2.2),
    "near base": (["--kind", "interpolate", "--alpha", "0.3"], lambda a, b: a + 0.3 * (b - a)),
    "near trained": (["--kind", "interpolate", "--alpha", "0.8"], lambda a, b: b - (1 - 0.8) * (b - a)),
    "trained": (["--kind", "interpolate", "--alpha", "1"], lambda a, b: b),
    "base": (["--kind", "interpolate", "--alpha", "0"], lambda a, b: a),
    "residual": (["--kind", "residual", "--alpha", "0.7"], lambda cpt, instruct, base: cpt + 0.7 * (instruct - base)),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_a_blend_is_the_line_of_torch_bit_for_bit(case, tmp_path, monkeypatch, name):
    """Also cut into pieces of few rows, and into several files."""
    flags, formula = FORMULAS[name]
    models = case.fp32[: 2 if "interpolate" in flags else 3]
    states = [load_transformers(model).state_dict() for model in models]
    expected = {key: formula(*(state[key] for state in states)) for key in states[0]}
    monkeypatch.setattr(blending, "PIECE", 7 * 30)
    monkeypatch.setattr(hf, "FILE_BYTES", 20_000)
    found = blended(tmp_path / "out", *models, *flags)
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 3
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_models_in_bf16_are_added_in_fp32_and_rounded_once(case, tmp_path):
    states = [load_file(model / hf.WHOLE) for model in case.bf16]
    blended(tmp_path / "out", *case.bf16)
    found = load_file(tmp_path / "out" / hf.WHOLE)
    for key, tensor in found.items():
        assert torch.equal(tensor, ((states[0][key].float() + states[1][key] + states[2][key]) / 3).bfloat16()), key
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    mixed = blended(tmp_path / "mixed", case.bf16[0], case.fp32[1])
    assert json.loads((tmp_path / "mixed" / "config.json").read_text())["dtype"] == "float32"
    other = load_transformers(case.fp32[1]).state_dict()
    key = "model.layers.1.mlp.up_proj.weight"
    assert torch.equal(mixed[key], (states[0][key].float() + other[key]) / 2)
    blended(tmp_path / "asked", *case.fp32, "--dtype", "float16")
    assert load_file(tmp_path / "asked" / hf.WHOLE)[key].dtype == torch.float16


def test_two_ranks_write_what_one_does(case, tmp_path):
    """Byte for byte; each writes files of its own. The embedding alone is 1.4 MB, so there are several files."""
    models = [
        another(write_model(tmp_path / "wide", **{**SHAPE, "vocab_size": 3000}), tmp_path / f"w{i}", i) for i in (1, 2)
    ]
    flags = [*map(str, models), "--output"]
    two = Program([*flags, str(tmp_path / "two")], tmp_path / "log", ranks=2, entry="tests.support.small_files")
    one = Program([*flags, str(tmp_path / "one")], tmp_path / "log1", entry="tests.support.small_files")
    assert two.wait() + one.wait() == [0, 0, 0], two.output.read_text()
    names = {path.name for path in (tmp_path / "one").iterdir()}
    assert sum(name.endswith(".safetensors") for name in names) > 2
    for name in names - {"lineage.json", "README.md", "checksums.json"}:  # which tell the name of the folder
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
    assert {path.name for path in (tmp_path / "two").iterdir()} == names


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run of 4 steps with a checkpoint each."""
    folder = tmp_path_factory.mktemp("runs")
    model = write_model(folder / "model", **SHAPE)
    data = write_data(folder / "data", model, seq_len=32, lengths={"train": [20] * 40, "valid": [15] * 4})
    flags = ["--name", "run", "--model", str(model), "--data", str(data), "--runs", str(folder), "--optim.lr", "1e-2"]
    flags += ["--loader.seq_len", "32", "--loader.rows_per_step", "4", "--trainer.max_steps", "4"]
    flags += ["--trainer.save_every", "1", "--trainer.keep", "0", "--optim.schedule", "constant"]
    assert train(flags) == 0
    return folder / "run"


def test_checkpoints_are_averaged_as_their_exports_are(run, tmp_path):
    for step in (2, 4):
        flags = ["--run", str(run), "--step", str(step), "--output", str(tmp_path / f"{step}"), "--dtype", "float32"]
        assert train(flags, "logtrain.export") == 0
    states = [load_transformers(tmp_path / f"{step}").state_dict() for step in (2, 4)]
    found = blended(tmp_path / "out", f"{run}:step-000002", run / "checkpoints" / "step-000004")
    assert all(torch.equal(found[key], (states[0][key] + states[1][key]) / 2) for key in found)
    assert not torch.equal(states[0]["model.norm.weight"], states[1]["model.norm.weight"])
    lineage = json.loads((tmp_path / "out" / "lineage.json").read_text())
    assert [Path(parent["path"]).name for parent in lineage["parents"]] == ["step-000002", "step-000004"]
    assert all(len(parent["sha256"]) == 64 for parent in lineage["parents"])
    assert lineage["config"]["weights"] == [0.5, 0.5]
    assert 'base_model_relation: "merge"' in (tmp_path / "out" / "README.md").read_text()


@pytest.fixture(scope="module")
def adapters(tmp_path_factory) -> SimpleNamespace:
    """Two adapters of one model, of other ranks and layers."""
    folder = tmp_path_factory.mktemp("adapters")
    model = write_model(folder / "model", initializer_range=0.1)
    loras = [LoraConfig(rank=3, alpha=5.0), LoraConfig(rank=2, alpha=7.0, targets=("v_proj", "o_proj", "down_proj"))]
    for i, lora in enumerate(loras):
        llama = adapted(model, lora)
        peft.save(folder / f"{i}", trained(llama), llama.config, lora, str(model))
    return SimpleNamespace(model=model, folders=[folder / "0", folder / "1"], loras=loras)


def test_adapters_are_added_up_to_one_that_peft_loads(adapters, tmp_path):
    from peft import PeftModel

    names = [str(folder) for folder in adapters.folders]
    flags = [*names, "--kind", "sum", "--weights", "0.5", "-2", "--output", str(tmp_path / "sum")]
    assert train(flags, "logtrain.blend") == 0
    base = load_transformers(adapters.model).state_dict()
    whole = (
        PeftModel.from_pretrained(load_transformers(adapters.model), tmp_path / "sum").merge_and_unload().state_dict()
    )
    changed = 0
    for module in (key.removesuffix(".weight") for key in base if key.endswith("_proj.weight")):
        delta = torch.zeros_like(base[f"{module}.weight"], dtype=torch.float64)
        for folder, lora, factor in zip(adapters.folders, adapters.loras, (0.5, -2), strict=True):
            tensors = load_file(folder / peft.WEIGHTS)
            a, b = (tensors.get(f"base_model.model.{module}.lora_{x}.weight") for x in "AB")
            if a is not None:
                delta += factor * lora.scale * (b.double() @ a.double())
        changed += bool(delta.any())
        torch.testing.assert_close(
            whole[f"{module}.weight"].double(), base[f"{module}.weight"] + delta, rtol=1e-5, atol=1e-6
        )
    assert changed == 14
    assert train([*names, "--output", str(tmp_path / "mean")], "logtrain.blend") == 0
    facts = json.loads((tmp_path / "mean" / peft.CONFIG).read_text())
    assert (facts["r"], facts["lora_alpha"]) == (5, 5.0)


def test_an_adapter_without_finite_numbers_is_named(adapters, tmp_path):
    damaged = shutil.copytree(adapters.folders[1], tmp_path / "damaged")
    tensors = load_file(damaged / peft.WEIGHTS)
    next(iter(tensors.values()))[0, 0] = torch.nan
    save_file(tensors, damaged / peft.WEIGHTS, metadata={"format": "pt"})
    words = [str(adapters.folders[0]), str(damaged), "--kind", "sum", "--output", str(tmp_path / "out")]
    with pytest.raises(ValueError, match=r"damaged: numbers of blocks\..* are not finite; the adapter is damaged"):
        train(words, "logtrain.blend")
    words[1] = str(adapters.folders[1])
    with pytest.raises(ValueError, match=r"weights = 1e\+39 1.0: numbers of blocks\..* are not finite"):
        train([*words, "--weights", "1e39", "1"], "logtrain.blend")
    assert not (tmp_path / "out").exists()


MISTAKES = {
    "one model": (lambda c: c.fp32[:1], [], "kind = average takes two models or more; 1 given"),
    "two for three": (lambda c: c.fp32[:2], ["--kind", "residual"], "takes 3 models, CPT INSTRUCT BASE; 2 given"),
    "weights": (
        lambda c: c.fp32,
        ["--weights", "1", "2"],
        "weights: 2 given; kind = average takes a weight for each of",
    ),
    "sum 0": (
        lambda c: c.fp32[:2],
        ["--weights", "1", "-1"],
        "weights have the sum 0; those of an average are divided",
    ),
    "not finite": (
        lambda c: c.fp32[:2],
        ["--kind", "interpolate", "--alpha", "1e39"],
        "rows 0 to 131 are not finite; alpha is",
    ),
    "a damaged model": (lambda c: [c.fp32[0], c.nan], [], "/nan: blocks.1.feed_forward.down.weight, rows 0 to 30, has"),
    "like": (lambda c: c.fp32[:2], ["--like", "WIDE"], "wide: hidden_size is 60, that of"),
    "no model": (lambda c: [c.fp32[0], c.folder / "none"], [], "none/config.json: no such file"),
    "no checkpoint": (lambda c: [c.fp32[0], f"{c.fp32[1]}:step-000007"], [], "not a run (no config.toml)"),
    "no adapter": (lambda c: c.fp32, ["--kind", "sum"], "no adapter (adapter_config.json); adapters are blended with"),
    "sets alone": (lambda c: c.fp32[:2], ["--sets", "a=b"], "sets = a=b: read only with --choose alpha"),
    "alphas alone": (lambda c: c.fp32[:2], ["--alphas", "0", "1"], "alphas = (0.0, 1.0): read only with --choose"),
    "documents alone": (lambda c: c.fp32[:2], ["--documents", "9"], "documents = 9: read only with --choose alpha"),
    "alpha of an average": (
        lambda c: c.fp32[:2],
        ["--alpha", "0.7"],
        "alpha = 0.7: not read, for --kind average goes by --weights; leave one of the two out",
    ),
    "float16": (lambda c: [c.large] * 2, ["--dtype", "float16"], "embed_tokens.weight: has numbers above 65,504"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(case, tmp_path, mistake):
    models, flags, message = MISTAKES[mistake]
    with pytest.raises(ValueError) as raised:
        flags = [str(case.wide) if flag == "WIDE" else flag for flag in flags]
        train([*map(str, models(case)), *flags, "--output", str(tmp_path / "out")], "logtrain.blend")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_models_of_other_shapes_and_tokenizers_are_refused(case, tmp_path):
    wide = write_model(tmp_path / "wide", **{**SHAPE, "vocab_size": 140})
    with pytest.raises(ValueError, match=r"wide: vocab_size is 140, that of .*0 131; only models of one shape"):
        blended(tmp_path / "out", case.fp32[0], wide)
    strange = another(case.fp32[0], tmp_path / "strange", 5)
    edit_json(strange / "tokenizer.json", truncation={"max_length": 9, "strategy": "LongestFirst", "stride": 0,
                                                      "direction": "Right"})  # fmt: skip
    with pytest.raises(ValueError, match=r"strange: has another tokenizer than .*; blend models of one vocabulary"):
        blended(tmp_path / "out", case.fp32[0], strange)
    blended(tmp_path / "out", case.fp32[0], strange, "--like", case.fp32[0])
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (case.fp32[0] / "tokenizer.json").read_bytes()
