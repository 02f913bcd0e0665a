"""What another trainer's settings say of its rows, its data and its places is kept, or told."""

import tomllib

import pytest

from tests.support.foreign_recipes import AXOLOTL_SFT, FACTORY, imported, main, refused

pytest.importorskip("yaml", reason="needs PyYAML (logtrain[yaml])")


@pytest.fixture(autouse=True)
def not_fetched(monkeypatch):
    """A model of the hub is not fetched."""
    monkeypatch.setattr("logtrain.core.located.fetched", lambda uri, _: f"/{uri}")


def test_neat_packing_packs(tmp_path, capsys):
    """LLaMA-Factory sets `packing` for it: a step is so many rows, not so many documents."""
    text = FACTORY.replace("stage: pt", "stage: sft")
    for packing in ("", "\npacking: false"):
        _, found = imported(tmp_path, capsys, text + packing)
        assert (found["loader.documents_per_step"], found["loader.rows_per_step"]) == (0, 16)
        assert found["loader.attention"] == "document"


@pytest.mark.parametrize(
    ("output", "name", "runs"),
    [
        ("saves/a", "a", "saves"),
        ("./saves/a/", "a", "saves"),
        ("/saves/a", "a", "/saves"),
        ("s3://bucket/saves/a", "a", "s3://bucket/saves"),
        ("s3://bucket/a/", "a", "s3://bucket"),
        ("gs://bucket", "mine", "gs://bucket"),
        (".", "mine", "runs"),
        ("./", "mine", "runs"),
        ("/", "mine", "/"),
    ],
)
def test_where_a_run_writes(tmp_path, capsys, output, name, runs):
    file = tmp_path / "mine.yaml"
    file.write_text(FACTORY.replace("saves/llama/pretrain", output))
    main([str(file)])
    text = capsys.readouterr().out
    found = tomllib.loads(text)
    assert (found["name"], found.get("runs", "runs")) == (name, runs)
    assert f"--output data/{name} " in text


@pytest.mark.parametrize(("bf16", "dtype"), [("true", "bfloat16"), ("false", "float32"), ("auto", "auto")])
def test_the_dtype_of_axolotl(tmp_path, capsys, bf16, dtype):
    """Which computes in float32 where bf16 is off; LLaMA-Factory then takes the model's dtype."""
    assert imported(tmp_path, capsys, AXOLOTL_SFT.replace("bf16: auto", f"bf16: {bf16}"))[1]["dtype"] == dtype
    _, found = imported(tmp_path, capsys, FACTORY.replace("bf16: true", f"bf16: {bf16}"))
    assert found["dtype"] == ("auto" if dtype == "float32" else dtype)


@pytest.mark.parametrize(
    ("of_data", "format"),
    [
        ("type: alpaca", "alpaca"),
        ("type: sharegpt", "sharegpt"),
        ("type: chat_template", "messages"),
        ("type: chat_template\n    roles_to_train: [assistant]\n    train_on_eos: turn", "messages"),
        ("type: chat_template\n    field_messages: conversations", "sharegpt"),
    ],
)
def test_the_rows_of_axolotls_data_sets(tmp_path, capsys, of_data, format):
    text, _ = imported(tmp_path, capsys, AXOLOTL_SFT.replace("type: alpaca", of_data))
    assert f"--format {format} --seq_len 4096" in text


@pytest.mark.parametrize(
    "more", ["roles_to_train: [user, assistant]", "roles_to_train: all", "roles_to_train: [[]]", "train_on_eos: all"]
)
def test_other_targets_than_answers_are_refused(tmp_path, more):
    told = refused(tmp_path, AXOLOTL_SFT.replace("type: alpaca", f"type: chat_template\n    {more}"))
    assert "mine.yaml: datasets = " in told
    assert "all answers are trained on here, each with its end, and nothing else" in told


def test_rows_that_were_left_out_there_are_told(tmp_path, capsys):
    """prepare reads all of a file, and the rows of an epoch are always shuffled."""
    text, _ = imported(tmp_path, capsys, FACTORY)
    assert "max_samples: logtrain prepare reads all rows of its files" in text
    text, _ = imported(tmp_path, capsys, AXOLOTL_SFT + "min_sample_len: 9\ndataset_shard_num: 2\n")
    assert "min_sample_len, dataset_shard_num: logtrain prepare reads all rows of its files" in text
    told = refused(tmp_path, AXOLOTL_SFT + "curriculum_sampling: true\n")
    assert "curriculum_sampling = true: the rows of an epoch are always shuffled" in told
