"""`python -m logtrain.merge`: the merged model is the adapted one, and nothing else gets the output's name."""

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from logtrain import lineage, merge
from logtrain.core import entry
from logtrain.model import hf
from logtrain.model import peft as adapter
from logtrain.model.config import LoraConfig
from tests.support.llama import load_transformers
from tests.support.lora import adapted, in_peft
from tests.support.synthetic import edit_json, write_model

TARGETS = {"all": LoraConfig().targets, "q and down": ("q_proj", "down_proj")}


def make(folder: Path, targets: str = "all", **changes) -> SimpleNamespace:
    """A model, an adapter, and both in PEFT."""
    lora = LoraConfig(rank=3, alpha=5.0, dropout=0.1, targets=TARGETS[targets])
    model = write_model(folder / "model", head_dim=6, initializer_range=0.1, **changes)
    theirs = in_peft(adapted(model, lora), model, lora, folder / "adapter").eval()
    flags = ["--model", str(model), "--adapter", str(folder / "adapter"), "--output", str(folder / "merged")]
    return SimpleNamespace(folder=folder, model=model, adapter=folder / "adapter", peft=theirs, flags=flags)


@pytest.fixture
def case(tmp_path) -> SimpleNamespace:
    return make(tmp_path)


@pytest.fixture
def command(monkeypatch, capsys) -> Callable[[list[str]], tuple[int, str, str]]:
    """`python -m logtrain.merge FLAGS` in this process; -> exit status, stdout and stderr."""

    def command(flags: list[str]) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["logtrain.merge", *flags])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            entry.run(merge.main)
        return ended.value.code, *capsys.readouterr()

    return command


def logits(model) -> torch.Tensor:
    tokens = torch.randint(320, (1, 60), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        return model(tokens).logits[0]


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("targets", TARGETS)
def test_merged_in_fp32_is_pefts_model_and_pefts_merge(tmp_path, command, targets, tied):
    case = make(tmp_path, targets, tie_word_embeddings=tied)
    status, said, _ = command([*case.flags, "--dtype", "float32"])
    assert status == 0
    reported = re.fullmatch(rf"{case.folder}/merged \(float32\): logits differ by (\S+) of the largest .*\n", said)
    assert float(reported[1]) <= 1e-5
    expected, plain = logits(case.peft), logits(load_transformers(case.model))
    assert (plain - expected).abs().max() > 1e-2 * expected.abs().max()
    found = load_transformers(case.folder / "merged")
    assert (logits(found) - expected).abs().max() <= 1e-5 * expected.abs().max()
    theirs, before = case.peft.merge_and_unload().state_dict(), load_transformers(case.model).state_dict()
    for name, tensor in found.state_dict().items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-6, atol=1e-7)
        touched = any(target in name for target in TARGETS[targets])
        assert torch.equal(tensor, before[name]) != touched, name


def test_merged_in_bf16_is_rounded_once_and_says_how_far_it_is(case, command):
    status, said, _ = command(case.flags)
    assert status == 0
    reported = float(re.search(r"merged \(bfloat16\): logits differ by (\S+) of the largest", said)[1])
    assert 1e-4 < reported < 3e-2
    exact = case.peft.merge_and_unload().state_dict()
    for name, tensor in load_file(case.folder / "merged" / "model.safetensors").items():
        assert tensor.dtype == torch.bfloat16
        assert (tensor != exact[name].bfloat16()).float().mean() < 1e-3, (
            name
        )  # but where fp32 sums differ in the last bit
    expected = logits(case.peft)
    assert (logits(load_transformers(case.folder / "merged")) - expected).abs().max() < 3e-2 * expected.abs().max()


def test_the_folder_is_complete_and_nothing_is_left_beside_it(case, command):
    assert command(case.flags)[0] == 0
    names = {path.name for path in (case.folder / "merged").iterdir()}
    assert names >= {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"}
    assert json.loads((case.folder / "merged" / "config.json").read_text())["dtype"] == "bfloat16"
    assert {path.name for path in case.folder.iterdir()} == {"model", "adapter", "merged"}


def test_the_chain_of_a_merged_model_leads_to_its_model_and_its_adapter(case, command, capsys):
    assert command(case.flags)[0] == 0
    assert lineage.main(["--model", str(case.folder / "merged"), "--store", str(case.folder / "store")]) == 0
    chain = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in chain[1:3]] == [
        ["model:", "model", str(case.model)],
        ["adapter:", "adapter", str(case.adapter)],
    ]


def test_an_adapter_of_bf16_is_merged_in_fp32(case, command):
    file = case.adapter / adapter.WEIGHTS
    save_file({name: tensor.bfloat16() for name, tensor in load_file(file).items()}, file)
    assert command([*case.flags, "--dtype", "float32"])[0] == 0
    name = "layers.1.self_attn.v_proj"
    a, b = (load_file(file)[f"base_model.model.model.{name}.lora_{x}.weight"].float() for x in "AB")
    before, after = (
        load_file(folder / "model.safetensors")[f"model.{name}.weight"]
        for folder in (case.model, case.folder / "merged")
    )
    torch.testing.assert_close(after, before + 5 / 3 * b @ a, rtol=1e-6, atol=1e-7)


# ---- refused


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_merge_that_differs_by_more_than_the_tolerance_gets_no_name(case, command, monkeypatch, dtype):
    """One adapter of 14 is left out."""

    def forgetful(folder, shape, tensors, dtype, **files):
        left_out = "blocks.1.feed_forward.down.weight"
        original = torch.cat(list(hf.Weights(case.model, shape).rows(left_out, 0, 999)))
        save(folder, shape, ((n, original if n == left_out else t) for n, t in tensors), dtype, **files)

    save = hf.save
    monkeypatch.setattr(hf, "save", forgetful)
    status, _, said = command([*case.flags, "--dtype", dtype])
    assert (status, said.count("\n")) == (2, 1)
    tolerance = {"float32": "1e-04", "bfloat16": "5e-02"}[dtype]
    pattern = rf"error: \S+merged: logits differ by \S+ of the largest .*, more than {tolerance}; not written"
    pattern += "; --dtype float32 rounds less\n" if dtype == "bfloat16" else "\n"
    assert re.fullmatch(pattern, said), said
    assert not (case.folder / "merged").exists()


def test_a_merge_that_is_cut_short_leaves_no_output_and_the_next_one_succeeds(case, command, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(hf, "save_file", full)
        status, _, said = command(case.flags)
        assert (status, said.count("\n")) == (2, 1)
        assert "not written ([Errno 28] No space left on device); make room" in said
        assert not (case.folder / "merged").exists()
    assert command(case.flags)[0] == 0
    assert {path.name for path in case.folder.iterdir()} == {"model", "adapter", "merged"}


def test_logits_that_are_no_numbers_are_refused(case, command):
    file = case.adapter / adapter.WEIGHTS
    save_file({name: tensor.fill_(float("inf")) for name, tensor in load_file(file).items()}, file)
    status, _, said = command(case.flags)
    assert status == 2
    assert "logits differ by nan" in said
    assert not (case.folder / "merged").exists()


MISTAKES: dict[str, tuple[Callable[[SimpleNamespace], object], str]] = {
    "output exists": (
        lambda c: (c.folder / "merged").mkdir(),
        "{c.folder}/merged: exists already; choose another --ou",
    ),
    "no model": (lambda c: shutil.rmtree(c.model), "{c.model}/config.json: no such file"),
    "no weights": (lambda c: (c.model / "model.safetensors").unlink(), "{c.model}: neither model.safetensors nor"),
    "no tokenizer": (lambda c: (c.model / "tokenizer.json").unlink(), "{c.model}"),
    "no adapter": (lambda c: shutil.rmtree(c.adapter), "{c.adapter}/adapter_config.json: no such file; give a folder"),
    "no tensors": (
        lambda c: (c.adapter / adapter.WEIGHTS).unlink(),
        "{c.adapter}/adapter_model.safetensors: no such file; give a folder",
    ),
    "damaged": (
        lambda c: (c.adapter / adapter.WEIGHTS).write_bytes(b"12345678 no"),
        "{c.adapter}/adapter_model.safetensors: dam",
    ),
    "another feature": (
        lambda c: edit_json(c.adapter / adapter.CONFIG, use_dora=True),
        "{c.adapter}/adapter_model.safetensors: no tensor base_model.model.model.layers.0.mlp.down_proj.lora_magnitude",
    ),
    "another model": (
        lambda c: write_model(c.model, head_dim=8),
        "layers.0.self_attn.k_proj.lora_B.weight has shape [12, 3], model and rank ask for [16, 3]",
    ),
    "a shorter model": (
        lambda c: write_model(c.model, head_dim=6, num_hidden_layers=1),
        "unexpected tensor base_model.model.model.layers.1.",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(case, command, mistake: str):
    do, message = MISTAKES[mistake]
    do(case)
    status, _, said = command(case.flags)
    assert (status, said.count("\n")) == (2, 1)
    assert message.format(c=case) in said
    assert not (case.folder / "merged" / "config.json").exists()
    assert not list(case.folder.glob(".*"))
