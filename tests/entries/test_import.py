"""Settings of other trainers become a recipe of the same rows, steps and rates, or an error that names them."""

import dataclasses
import json
import re
import subprocess
import sys

import pytest

from logtrain.core.config import load
from logtrain.core.run_folder import flatten
from logtrain.cpt import CptConfig
from logtrain.training.foreign_file import AXOLOTL, LLAMAFACTORY, tables_of
from tests.support import ROOT
from tests.support.foreign_recipes import AXOLOTL_SFT, FACTORY, HOSTED, HOSTED_SFT, imported, main, refused

yaml = pytest.importorskip("yaml", reason="needs PyYAML (logtrain[yaml])")


@pytest.fixture(autouse=True)
def not_fetched(monkeypatch):
    """A model of the hub is not fetched."""
    monkeypatch.setattr("logtrain.core.located.fetched", lambda uri, _: f"/{uri}")


@pytest.mark.parametrize(
    ("settings", "gpus", "published", "but"),
    [
        (HOSTED, 8, "cpt_8xh100", {"recompute": "full", "loader.rows_per_batch": 8, "trainer.keep": 1}),
        (HOSTED_SFT, 4, "sft_lora_4xh100", {"recompute": "full", "trainer.keep": 1}),
    ],
)
def test_the_hosted_services_runs_are_the_recipes_that_were_written_by_hand(
    tmp_path, capsys, settings, gpus, published, but
):
    """But for what changes no loss."""
    _, found = imported(tmp_path, capsys, settings, "--gpus", str(gpus))
    expected = flatten(load(CptConfig, [str(ROOT / f"launch/recipes/{published}.toml")]))
    where = {"name": "mine", "data": "data/mine", "model": "MODEL"}
    assert found == expected | where | but


def test_a_recipe_of_llama_factory(tmp_path, capsys):
    text, found = imported(tmp_path, capsys, FACTORY, "--gpus", "4")
    expected = {
        "name": "pretrain",
        "runs": "saves/llama",
        "model": "/hf://meta-llama/Llama-3.1-8B-Instruct",
        "seed": 42,
        "loader.seq_len": 4096,
        "loader.rows_per_step": 64,
        "loader.rows_per_batch": 2,
        "loader.attention": "document",
        "loader.documents_per_step": 0,
        "attention_backend": "fa3",
        "optim.lr": 1e-4,
        "optim.schedule": "cosine",
        "optim.warmup_steps": 20,
        "optim.weight_decay": 0.0,
        "lora.rank": 8,
        "lora.dropout": 0.0,
        "lora.targets": ("q_proj", "v_proj"),
        "trainer.epochs": 3,
        "trainer.log_every": 5,
        "trainer.valid_every": 250,
        "trainer.save_every": 500,
        "dtype": "bfloat16",
        "recompute": "full",
    }
    assert {key: found[key] for key in expected} == expected
    assert found["optim.min_lr_ratio"] == pytest.approx(0.1)
    assert found["lora.alpha"] / 8 == pytest.approx(16 / 8**0.5)  # PEFT's scale with use_rslora, of its alpha of 2 rank
    assert "--seq_len 4096 --valid_fraction 0.1" in text
    for key in ("trust_remote_code", "max_samples", "report_to", "do_train"):
        assert key in text


def test_a_recipe_of_axolotl(tmp_path, capsys):
    text, found = imported(tmp_path, capsys, AXOLOTL_SFT, "--gpus", "2")
    expected = {
        "name": "lora-out",
        "runs": "outputs",
        "model": "/hf://NousResearch/Meta-Llama-3.1-8B",
        "dtype": "auto",
        "loader.seq_len": 4096,
        "loader.rows_per_step": 16,
        "loader.rows_per_batch": 2,
        "loader.attention": "document",
        "optim.lr": 2e-4,
        "optim.schedule": "cosine",
        "optim.warmup_ratio": 0.1,
        "lora.rank": 32,
        "lora.alpha": 16.0,
        "lora.dropout": 0.05,
        "trainer.epochs": 4,
        "trainer.log_every": 1,
        "trainer.patience": 3,
        "recompute": "full",
        "optim.weight_decay": 0.0,
    }
    assert {key: found[key] for key in expected} == expected
    assert "--format alpaca --seq_len 4096 --valid_fraction 0.05" in text
    for key in ("load_in_8bit", "liger_rope", "evals_per_epoch", "optimizer"):
        assert key in text
    assert "wandb_project" not in text  # it is not set


def test_documents_that_were_rows(tmp_path, capsys):
    """SFT of LLaMA-Factory pads each conversation to a row."""
    text = FACTORY.replace("stage: pt", "stage: sft").replace("neat_packing: true\n", "")
    _, found = imported(tmp_path, capsys, text)
    assert (found["loader.documents_per_step"], found["loader.rows_per_batch"]) == (16, 1)
    _, found = imported(tmp_path, capsys, text.replace("stage: sft", "stage: sft\npacking: true"))
    assert (found["loader.documents_per_step"], found["loader.rows_per_step"]) == (0, 16)
    assert found["loader.attention"] == "row"


def test_the_stage_and_the_gpus_that_a_file_does_not_say_are_said_to_be_assumed(tmp_path, capsys):
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(HOSTED))
    main([str(file)])
    told = capsys.readouterr().err
    assert "taken for cpt" in told
    assert "--gpus N" in told
    main(["--file", str(file), "--gpus", "8", "--stage", "sft"])
    told = capsys.readouterr()
    assert "taken for" not in told.err
    assert "documents_per_step = 128" in told.out


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            {"learning_rat": 1e-5},
            "learning_rat: no key of hyper-parameters of a hosted service; did you mean learning_rate",
        ),
        ({"quux": 1}, "quux: no key"),
        ({"neftune_noise_alpha": 5}, "neftune_noise_alpha = 5: the loss is the cross-entropy"),
        ({"use_dora": True}, "use_dora = true: logtrain trains all parameters or LoRA"),
        ({"optimizer": "adafactor"}, 'optimizer = "adafactor": logtrain has AdamW'),
        *(
            ({"optimizer": name}, f'optimizer = "{name}": logtrain has AdamW')
            for name in ("galore_adamw", "schedule_free_adamw", "apollo_adamw_layerwise", "stable_adamw", "grokadamw")
        ),
        ({"training_type": "lora", "lora_alpha": 0}, "lora: rank 16, alpha 0.0"),
        ({"lr_scheduler_type": "polynomial"}, 'lr_scheduler_type = "polynomial": logtrain has linear, cosine'),
        ({"mixed_precision": "fp16"}, 'mixed_precision = "fp16": logtrain computes in bfloat16 or float32'),
        ({"training_type": "freeze"}, 'training_type = "freeze": logtrain trains all parameters'),
        ({"training_type": "lora", "target_modules": "q_proj,embed_tokens"}, "embed_tokens: adapters are for all"),
        ({"batch_size": "eight"}, 'batch_size = "eight": expected a number'),
        ({"batch_size": 1.5}, "batch_size = 1.5: expected a whole number"),
        ({"batch_size": True}, "batch_size = true: expected a number"),
        ({"epochs": 0.5}, "epochs = 0.5: logtrain takes whole passes; max_steps"),
        ({"weight_decay": -1}, "optim.weight_decay = -1.0 must be a finite number >= 0"),
        ({"learning_rate": float("nan")}, "learning_rate = NaN: expected a number"),
        ({"stage": "dpo"}, 'stage = "dpo": logtrain trains pt and sft'),
        ({"liger_kernel": True, "lr_scheduler_type": ["cosine"]}, "expected a string"),
    ],
)
def test_what_has_no_like_here_is_refused_by_its_own_name(tmp_path, change, expected):
    assert expected in refused(tmp_path, HOSTED | change)


def test_a_key_can_be_left_out(tmp_path, capsys):
    _, found = imported(tmp_path, capsys, HOSTED | {"use_dora": True, "quux": 1}, "--ignore", "use_dora", "quux")
    assert found["optim.lr"] == 1e-5
    assert "has no quuux" in refused(tmp_path, HOSTED, "--ignore", "quuux")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: &x [1]\nb: *x\n", "line 2: *x: write the value itself there"),
        ("a: " + "[" * 5000, "too deep"),
        ("learning_rate: 1\nlearning_rate: 2\n", "learning_rate: there twice"),
        ("a: !!python/object/apply:os.system [ls]\n", "not YAML"),
        ("- 1\n", "expected a table of settings"),
        ("a: b: c\n", "not YAML"),
        ("a: \x1b]0;x\x07\n", "holds characters that no text has"),
        ("a: " + "x" * (1 << 19), "bytes, more than"),
        ("", "expected a table"),
    ],
)
def test_yaml_that_is_no_recipe(tmp_path, text, expected):
    assert expected in refused(tmp_path, text)


@pytest.mark.parametrize("value", [".nan", ".inf", "2020-01-01", "!!set {a}", "!!binary aGk=", "[[1]]", "9" * 400])
@pytest.mark.parametrize("key", ["learning_rate", "save_steps", "num_train_epochs"])
def test_a_value_that_is_no_number_is_named(tmp_path, key, value):
    told = refused(tmp_path, f"model_name_or_path: m\nstage: pt\n{key}: {value}\n")
    assert re.search(rf"mine.yaml: {key} = .*: expected a (whole )?number", told)


def test_json_that_is_too_deep_or_no_text(tmp_path):
    deep: list = []
    for _ in range(400):
        deep = [deep]
    assert "too deep" in refused(tmp_path, {"epochs": deep})
    assert "surrogates not allowed" in refused(tmp_path, {"model": "\ud800"})


def test_a_json_key_that_is_there_twice(tmp_path):
    file = tmp_path / "mine.json"
    file.write_text('{"epochs": 1, "epochs": 3}')
    with pytest.raises(ValueError, match="epochs: there twice"):
        main([str(file)])


def test_every_setting_of_transformers_is_known():
    transformers = pytest.importorskip("transformers")
    names, unused, refused = tables_of(LLAMAFACTORY)
    fields = {each.name for each in dataclasses.fields(transformers.Seq2SeqTrainingArguments)}
    assert not fields - {**names, **unused, **refused}.keys()


@pytest.mark.parametrize("trainer", [LLAMAFACTORY, AXOLOTL])
def test_every_key_is_in_one_table(trainer):
    names, unused, refused = tables_of(trainer)
    assert not (names.keys() & unused.keys() or names.keys() & refused.keys() or unused.keys() & refused.keys())
    source = "".join((ROOT / f"logtrain/training/foreign_{name}.py").read_text() for name in ("recipe", "data"))
    assert [name for name in names.values() if f'"{name}"' not in source] == []


def test_the_command(tmp_path):
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(HOSTED))
    command = [sys.executable, "-m", "logtrain", "import", str(file), "--gpus", "8"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "rows_per_step = 128" in done.stdout
