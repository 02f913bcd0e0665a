"""prepare where a folder is there already, an input changes, or a setting cannot be: one line, and nothing touched."""

import re
from pathlib import Path

import pytest

from logtrain import prepare
from tests.support.preparing import arguments, contents, dump, make_rows


def test_prepared_already(bytes_tokenizer, tmp_path, inline, monkeypatch, capsys):
    path = dump(tmp_path / "a" / "a.json", make_rows(50))
    prepare.main(arguments(bytes_tokenizer, tmp_path / "out", path))
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").iterdir()}
    monkeypatch.setattr(prepare, "prepare", None)  # not to be called
    moved = tmp_path / "elsewhere" / "a.json"
    moved.parent.mkdir()
    path.rename(moved)
    capsys.readouterr()
    prepare.main(arguments(bytes_tokenizer, tmp_path / "out", moved, workers=2))  # neither where nor how matters
    assert "already prepared from this input with these settings" in capsys.readouterr().out
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "out").iterdir()} == before


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seq_len": 32}, "seq_len (100 there, 32 now)"),
        ({"seed": 7}, "seed (1309 there, 7 now)"),
        ({"valid_fraction": 0.3}, "valid_fraction (0.2 there, 0.3 now)"),
        ({"format": "nlplog"}, "format (auto there, nlplog now)"),
        ({"document_end": "<|begin_of_text|>"}, "document_end (<|end_of_text|> there, <|begin_of_text|> now)"),
        ({"text_chars": 5}, "text_chars (32768 there, 5 now)"),
        ({"shard_tokens": 5}, "shard_tokens (100000000 there, 5 now)"),
        ({"ignore_columns": ("x", "y")}, "ignore_columns ([] there, ['x', 'y'] now)"),
        ({"max_bad_rows": 1}, "max_bad_rows (0 there, 1 now)"),
        ("input", "input (a.json)"),
        ("name", "input (b.json)"),
        ("more", "input (b.json)"),
        ("tokenizer", "other tokenizer;"),
        ("bos", "bos_id (256 there, None now)"),
    ],
)
def test_prepared_otherwise_is_named_and_not_touched(bytes_tokenizer, tmp_path, inline, changed, message):
    inputs, tokenizer = [dump(tmp_path / "a.json", make_rows(50))], tmp_path / "tokenizer"
    tokenizer.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tokenizer / name).write_bytes((bytes_tokenizer / name).read_bytes())
    prepare.main(arguments(tokenizer, tmp_path / "out", *inputs))
    before = contents(tmp_path / "out")
    if changed == "input":
        dump(inputs[0], make_rows(51))
    elif changed == "name":
        inputs = [inputs[0].rename(tmp_path / "b.json")]
    elif changed == "more":
        inputs.append(dump(tmp_path / "b.json", make_rows(5)))
    elif changed == "tokenizer":
        (tokenizer / "tokenizer.json").write_text((tokenizer / "tokenizer.json").read_text() + " ")
    elif changed == "bos":
        (tokenizer / "tokenizer_config.json").write_text('{"add_bos_token": false}')
    flags = changed if isinstance(changed, dict) else {}
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        prepare.main(arguments(tokenizer, tmp_path / "out", *inputs, **flags))
    assert re.match(
        rf"{tmp_path}/out: was prepared with other [^;]*; delete it, or give another --output$", str(error.value)
    )
    assert contents(tmp_path / "out") == before


def test_a_file_that_changes_while_it_is_read(bytes_tokenizer, tmp_path, inline, monkeypatch):
    path = dump(tmp_path / "a.json", make_rows(50))
    begin = prepare.read_origin

    def begin_and_touch(*arguments):
        manifest = begin(*arguments)
        dump(path, make_rows(51))
        return manifest

    monkeypatch.setattr(prepare, "read_origin", begin_and_touch)
    with pytest.raises(ValueError, match=r"a\.json: changed while it was read; run again"):
        prepare.main(arguments(bytes_tokenizer, tmp_path / "out", path))
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"seq_len": 1}, "seq_len = 1 must be at least 2"),
        ({"valid_fraction": 1}, "valid_fraction = 1.0 must be at least 0 and below 1"),
        ({"valid_fraction": -0.1}, "valid_fraction = -0.1 must be at least 0 and below 1"),
        ({"seed": -1}, "seed = -1 must be at least 0"),
        ({"workers": -1}, "workers = -1 must be at least 0"),
        ({"document_end": "<|eot_id|>"}, "document_end <|eot_id|> marks a turn of a chat"),
    ],
)
def test_bad_settings(bytes_tokenizer, tmp_path, monkeypatch, flags, message):
    dump(tmp_path / "a.json", make_rows(5))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=re.escape(message)):
        prepare.main(arguments(bytes_tokenizer, tmp_path / "out", Path("a.json"), **flags))
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]
