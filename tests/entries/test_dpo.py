"""`python -m logtrain.dpo`: preferred answers become likelier than the others; what does not fit is refused."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import logtrain
from logtrain.core.origin import read_sealed_in
from logtrain.data.config import LoaderConfig
from logtrain.model import hf, peft
from logtrain.observe.page import forgotten
from logtrain.observe.run_files import read_run
from tests.support import RECIPES
from tests.support.evaluation import write_chat_model
from tests.support.llama import load_transformers
from tests.support.pairs import make_pairs, prepare_pairs
from tests.support.synthetic import write_data, write_model
from tests.support.training import records, train

pytestmark = pytest.mark.slow

DPO = "logtrain.dpo"
FULL = ["--lora.rank", "0", "--optim.lr", "1e-3"]


@pytest.fixture(scope="module")
def case(tmp_path_factory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("dpo")
    model = write_chat_model(folder / "model", 0.05)
    with pytest.MonkeyPatch.context() as patched:
        data = prepare_pairs(folder, model, make_pairs(60), patched, "--valid_fraction", "0.2")
    flags = ["--name", "run", "--model", str(model), "--data", str(data), "--loader.seq_len", "96"]
    flags += ["--loader.rows_per_step", "4", "--trainer.epochs", "3", "--trainer.log_every", "1", "--dpo.beta", "0.5"]
    return SimpleNamespace(folder=folder, model=model, data=data, flags=flags)


@pytest.fixture(scope="module")
def whole(case) -> Path:
    """A run of all parameters, with a checkpoint every 4 steps."""
    flags = [*case.flags, *FULL, "--trainer.save_every", "4", "--trainer.keep", "0"]
    assert train([*flags, "--runs", str(case.folder / "whole")], DPO) == 0
    return case.folder / "whole" / "run"


def test_the_margin_of_held_out_pairs_rises_from_nothing(whole):
    before, *_, after = records(whole, "valid_loss")
    assert before["valid_loss"] == pytest.approx(np.log(2), abs=1e-5)  # the model is its own reference
    assert before["margin"] == pytest.approx(0, abs=1e-5)
    assert after["margin"] > 0.5 and after["accuracy"] > 0.9 and after["valid_loss"] < 0.6
    assert after["margin"] == pytest.approx(after["chosen_reward"] - after["rejected_reward"], rel=1e-4)
    steps = records(whole)
    assert all({"margin", "accuracy", "chosen_reward", "rejected_reward"} <= step.keys() for step in steps)
    assert steps[0]["loss"] == pytest.approx(np.log(2), abs=1e-5)
    assert steps[-1]["margin"] > steps[0]["margin"]


def test_what_is_told_at_the_end_is_no_loss_of_a_language(case, whole):
    """forgetting.json and the report call the loss of pairs by its name, and so do the run's last lines."""
    (of_set,) = read_sealed_in(whole / "forgetting.json", "forgetting")["sets"]
    assert (of_set["measure"], of_set["before"]) == ("DPO loss", pytest.approx(np.log(2), abs=1e-5))
    assert (
        f"{of_set['name']} (domain): DPO loss {of_set['before']:.4f} -> {of_set['after']:.4f}, "
        in (whole / "log.txt").read_text()
    )
    assert forgotten(read_run(whole))[0][1] == f"{of_set['name']} (domain), DPO loss"


def test_the_export_is_the_trained_model_and_export_writes_any_checkpoint(case, whole, tmp_path):
    before, after = (load_transformers(folder).state_dict() for folder in (case.model, whole / "export"))
    assert not torch.equal(before["model.norm.weight"], after["model.norm.weight"])
    assert train(["--run", str(whole), "--step", "4", "--output", str(tmp_path / "four")], "logtrain.export") == 0
    assert not torch.equal(
        load_transformers(tmp_path / "four").state_dict()["model.norm.weight"], after["model.norm.weight"]
    )


def test_a_stopped_run_goes_on_bit_for_bit_with_the_reference_that_it_began_with(case, whole, tmp_path):
    flags = [*case.flags, *FULL, "--trainer.save_every", "4", "--trainer.keep", "0", "--runs", str(tmp_path)]
    assert train([*flags, "--trainer.stop_after", "5"], DPO) == 75
    (reference,) = case.data.glob("reference-*-train.npy")
    aside = shutil.move(reference.with_suffix(".json"), tmp_path / "aside.json")
    with pytest.raises(
        ValueError, match=r"reference-.*-train.npy: missing, and this run has left the model that it began"
    ):
        train([*flags, "--resume", "auto"], DPO)
    shutil.move(aside, reference.with_suffix(".json"))
    assert train([*flags, "--resume", "auto"], DPO) == 0
    one, two = (load_file(run / "export" / hf.WHOLE) for run in (whole, tmp_path / "run"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_reference_that_does_not_fit_is_refused(case, whole, tmp_path):
    """Another model has a reference of its own; damage and a reference of something else are found."""
    data = shutil.copytree(case.data, tmp_path / "data")
    flags = [*case.flags, *FULL, "--data", str(data), "--runs", str(tmp_path), "--trainer.max_steps", "1"]
    (file,) = data.glob("reference-*-train.npy")
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(
        ValueError, match=r"-train.npy: damaged; delete it and reference-.*-train.json to compute it anew"
    ):
        train([*flags, "--name", "a"], DPO)
    assert not (tmp_path / "a").exists()
    file.write_bytes(content)
    other = write_chat_model(tmp_path / "other", 0.06)
    assert train([*flags, "--name", "b", "--model", str(other)], DPO) == 0
    names = sorted(path.name for path in data.glob("reference-*-train.npy"))
    assert len(names) == 2
    mine = next(name for name in names if name != file.name)
    shutil.copy((data / mine).with_suffix(".json"), file.with_suffix(".json"))
    with pytest.raises(ValueError, match=r"is the reference of another model_sha256 than this run has; delete it"):
        train([*flags, "--name", "c"], DPO)
    assert not (tmp_path / "c").exists()
    file.with_suffix(".json").write_text("{")
    with pytest.raises(ValueError, match=rf"train.json: not JSON .*; delete {file.stem}\.\* to compute it anew$"):
        train([*flags, "--name", "d"], DPO)
    assert not (tmp_path / "d").exists()


def test_a_model_without_finite_answers_leaves_no_reference(case, tmp_path):
    """A pair is named, and a run of the repaired model finds nothing that is wrong."""
    model, data = shutil.copytree(case.model, tmp_path / "model"), shutil.copytree(case.data, tmp_path / "data")
    for file in data.glob("reference-*"):
        file.unlink()
    tensors = load_file(model / hf.WHOLE)
    name = next(name for name in tensors if name.endswith("norm.weight"))
    save_file(tensors | {name: torch.full_like(tensors[name], 3e38)}, model / hf.WHOLE, metadata={"format": "pt"})
    flags = [*case.flags, *FULL, "--model", str(model), "--data", str(data), "--runs", str(tmp_path)]
    told = r"model: gives no finite log-probability for \d+ of \d+ pairs, first .*pairs.json row \d+; the model is dam"
    with pytest.raises(ValueError, match=told):
        train(flags, DPO)
    assert not list(data.glob("reference-*"))


def test_float8_has_a_reference_of_its_own(case, tmp_path):
    """It answers otherwise: margins would not begin at 0."""
    data = shutil.copytree(case.data, tmp_path / "data")
    for file in data.glob("reference-*"):
        file.unlink()
    flags = [*case.flags, *FULL, "--data", str(data), "--runs", str(tmp_path), "--trainer.max_steps", "1"]
    for name, more in (("plain", []), ("fp8", ["--precision", "fp8"])):
        assert train([*flags, *more, "--name", name], DPO) == 0
        assert records(tmp_path / name, "valid_loss")[0]["margin"] == pytest.approx(0, abs=1e-5)
    assert len(list(data.glob("reference-*-train.npy"))) == 2


def test_the_recipe_trains_a_model(case, tmp_path):
    """As it stands, but for what is the machine's and the size of rows."""
    _, _, *of_case = case.flags[: case.flags.index("--trainer.epochs")]
    recipe = str(RECIPES / "dpo_lora_8xh100.toml")
    flags = [recipe, *of_case, "--loader.documents_per_step", "4", "--dtype", "float32", "--runs", str(tmp_path)]
    assert train([*flags, "--trainer.max_steps", "3"], DPO) == 0
    before, *_, after = records(tmp_path / "preferred-8b-lora", "valid_loss")
    assert before["margin"] == pytest.approx(0, abs=1e-5) and after["margin"] != before["margin"]
    assert (tmp_path / "preferred-8b-lora" / "adapter" / peft.CONFIG).exists()


def test_adapters_learn_the_same_and_are_written_in_pefts_format(case, tmp_path):
    flags = [*case.flags, "--lora.rank", "4", "--optim.lr", "1e-2", "--runs", str(tmp_path)]
    assert train(flags, DPO) == 0
    before, *_, after = records(tmp_path / "run", "valid_loss")
    assert before["margin"] == pytest.approx(0, abs=1e-5)
    assert after["margin"] > 0.5 and after["accuracy"] > 0.9
    assert json.loads((tmp_path / "run" / "adapter" / peft.CONFIG).read_text())["r"] == 4
    assert (tmp_path / "run" / "export" / hf.WHOLE).exists()


def test_smoothing_changes_the_loss_and_beta_the_rewards(case, tmp_path):
    found = {}
    for name, more in (("plain", []), ("smooth", ["--dpo.label_smoothing", "0.3"]), ("beta", ["--dpo.beta", "0.05"])):
        flags = [*case.flags, *FULL, *more, "--name", name, "--trainer.max_steps", "3", "--runs", str(tmp_path)]
        assert train(flags, DPO) == 0
        found[name] = records(tmp_path / name)[1]
    assert found["smooth"]["loss"] != found["plain"]["loss"]
    assert 0 < found["beta"]["margin"] < 0.5 * found["plain"]["margin"]


def test_each_trainer_refuses_the_data_of_another(case, tmp_path, monkeypatch):
    flags = [*case.flags[:-2], "--runs", str(tmp_path)]
    for entry in ("logtrain.cpt", "logtrain.sft"):
        with pytest.raises(ValueError, match="prepared as pairs of answers, which `logtrain dpo` trains on"):
            train(flags, entry)
        with pytest.raises(ValueError, match="dpo: its settings are of logtrain dpo alone"):
            train([*flags, "--dpo.beta", "0.5"], entry)
    data = case.flags[case.flags.index("--data") + 1]
    with pytest.raises(ValueError, match="prepared as pairs of answers"):
        logtrain.Training(
            logtrain.RunConfig(
                name="x", model=case.flags[case.flags.index("--model") + 1], data=data, loader=LoaderConfig(seq_len=96)
            )
        )
    documents = write_data(
        tmp_path / "documents", write_model(tmp_path / "plain"), seq_len=96, lengths={"train": [9] * 8}
    )
    with pytest.raises(ValueError, match=r"documents: `logtrain dpo` trains on one folder of pairs;"):
        train([*flags, "--data", str(documents)], DPO)
    rows = [{"instruction": row["prompt"], "output": row["chosen"]} for row in make_pairs(9)]
    chats = prepare_pairs(tmp_path / "chats", case.model, rows, monkeypatch, "--format", "alpaca")
    with pytest.raises(ValueError, match="prepared as pairs of answers, which `logtrain dpo` trains on"):
        train([*flags, "--data", str(chats), "--valid", f"more={data}"], "logtrain.sft")
    for wrong in (["--dpo.beta", "0"], ["--dpo.label_smoothing", "0.5"]):
        with pytest.raises(ValueError, match=f"{wrong[0][2:]} = {wrong[1]}"):
            train([*flags, *wrong], DPO)
