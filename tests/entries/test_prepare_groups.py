"""Whole groups are held out with --split_by."""

import json

import pytest

from logtrain import prepare
from logtrain.data.groups import choose
from tests.support.chats import make_chats
from tests.support.preparing import arguments, contents, dump, make_rows, read_documents


def test_about_the_share_is_chosen_by_hash():
    even = {f"group {i}": 10 for i in range(100)}
    assert len(choose(even, 0.2, b"1")) == 20
    assert choose(even, 0.2, b"1") == choose(dict(reversed(even.items())), 0.2, b"1") != choose(even, 0.2, b"2")
    assert choose({"a": 900, "b": 60, "c": 40}, 0.001, b"1") == ["c"]  # at least one
    assert len(choose({"a": 1, "b": 1}, 0.999, b"1")) == 1  # never all
    assert choose({"a": 900, "b": 60, "c": 40}, 0.1, b"1") == ["b", "c"]
    assert choose({}, 0.1, b"1") == []


def groups_of(rows: list[dict], folder, column: str) -> dict[str, set[str]]:
    return {name: {rows[r["row"]][column] for _, r in documents} for name, documents in read_documents(folder).items()}


def test_a_column_that_no_rule_reads(bytes_tokenizer, tmp_path, inline, capsys):
    rows = [row | {"source": f"s{i % 10}", "text": f"error {i} of a disk"} for i, row in enumerate([{}] * 200)]
    path = dump(tmp_path / "a.json", rows)
    prepare.main(arguments(bytes_tokenizer, tmp_path / "out", path, split_by="source"))
    groups = groups_of(rows, tmp_path / "out", "source")
    assert len(groups["valid"]) == 2
    assert len(groups["train"]) == 8
    assert not groups["valid"] & groups["train"]
    assert len(groups["valid_seen"]) > 2
    assert groups["valid_seen"] <= groups["train"]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["held_out_groups"] == sorted(groups["valid"])
    assert manifest["settings"]["split_by"] == "source"
    held_out = json.loads((tmp_path / "out" / "report.json").read_text())["held_out"]
    expected = {"documents": 32, "returned": 0, "near_twins": 32, "is_least": True}  # all are equal but for numbers
    expected |= {"unseen": 40, "unseen_near_twins": 40}
    assert held_out == expected | {"groups": sorted(groups["valid"])}
    printed = capsys.readouterr().out
    assert "valid: 40 documents of held-out groups, 40 of them with a near-twin in training" in printed
    assert "valid_seen: of the other groups 32 documents, 32 of them with a near-twin in training" in printed
    assert all(f"held-out group: {group}" in printed for group in groups["valid"])
    prepare.main(arguments(bytes_tokenizer, tmp_path / "two", path, split_by="source", workers=2))
    assert contents(tmp_path / "two") == contents(tmp_path / "out")


def test_domains_and_systems(bytes_tokenizer, chat_tokenizer, tmp_path, inline):
    first, second = dump(tmp_path / "a.json", make_rows(40)), dump(tmp_path / "b.json", [{"text": "x"}] * 9)
    prepare.main(arguments(bytes_tokenizer, tmp_path / "out", first, second, split_by="domain", valid_fraction=0.01))
    valid = [(r["source"], r["row"]) for _, r in read_documents(tmp_path / "out")["valid"]]
    assert valid == [(0, i) for i, row in enumerate(make_rows(40)) if not row["domain"]]  # the smallest, named "a"
    assert 0 < len(valid) < 9

    chats = [
        {"conversations": row["conversations"], "system": f"You are {'ab'[i % 2]}."}
        for i, row in enumerate(make_chats(20))
    ]
    path = dump(tmp_path / "c.json", chats)
    flags = {"format": "sharegpt", "split_by": "system", "seq_len": 2000, "valid_fraction": 0.5}
    prepare.main(arguments(chat_tokenizer, tmp_path / "chat", path, **flags))
    groups = groups_of(chats, tmp_path / "chat", "system")
    assert len(groups["valid"]) == len(groups["train"]) == 1
    assert groups["valid_seen"] == groups["train"]


@pytest.mark.parametrize(
    ("rows", "flags", "message"),
    [
        ([{"text": "a", "source": "x"}, {"text": "b"}], {}, r"a\.json row 1: no \"source\", which split_by goes by"),
        (
            [{"text": "a", "source": ["x"]}],
            {},
            r"row 0: \"source\" is an array, not a string or a number, and split_by",
        ),
        (
            [{"text": "a", "source": 7}] * 3,
            {},
            "split_by = source: all 3 rows have the value '7'; take a column with two",
        ),
        ([{"text": "a"}], {"ignore_columns": ("source",)}, "split_by = source is among ignore_columns; leave out one"),
        ([{"text": "a"}], {"valid_fraction": 0}, "split_by = source has no meaning with valid_fraction = 0; leave out"),
    ],
)
def test_what_cannot_be_split(bytes_tokenizer, tmp_path, inline, rows, flags, message):
    path = dump(tmp_path / "a.json", rows)
    with pytest.raises(ValueError, match=message):
        prepare.main(arguments(bytes_tokenizer, tmp_path / "out", path, split_by="source", **flags))
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_a_text_file_has_no_columns(bytes_tokenizer, tmp_path, inline):
    (tmp_path / "a.log").write_text("a\nb\n")
    with pytest.raises(ValueError, match=r"a\.log: a text file has no column 'source'; --split_by domain goes by its"):
        prepare.main(arguments(bytes_tokenizer, tmp_path / "out", tmp_path / "a.log", split_by="source"))
