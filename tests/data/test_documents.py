"""Which text a row becomes, and what is refused rather than lost."""

import json
from pathlib import Path

import pytest

from logtrain.data.documents import Document, documents, row_document
from logtrain.data.files import BadRow, InputFile
from logtrain.data.rows import Reading


def read(path: Path, format: str = "auto", ignore_columns: tuple[str, ...] = (), text_chars: int = 100) -> list:
    return list(documents(InputFile(path), format, text_chars, Reading(ignore_columns)))


NLPLOG = {"instruction": " Why 'a\r\n'? ", "log": "a", "output": "Because.\n", "domain": "HDFS"}


@pytest.mark.parametrize(
    ("row", "formats", "text"),
    [
        (NLPLOG, ["auto", "nlplog"], "Human:  Why 'a\r\n'? \nAssistant: Because.\n\n"),
        ({"instruction": "Q", "output": "A"}, ["auto", "nlplog"], "Human: Q\nAssistant: A\n"),
        ({"instruction": "Q", "input": "a\n", "output": "A"}, ["auto"], "Human: Q\na\n\nAssistant: A\n"),
        ({"instruction": "Q", "input": "", "output": "A"}, ["auto", "nlplog"], "Human: Q\nAssistant: A\n"),
        ({"instruction": "Q", "input": " \n", "output": "A"}, ["auto"], "Human: Q\nAssistant: A\n"),
        ({"instruction": "Q", "input": None, "output": "A"}, ["auto", "nlplog"], "Human: Q\nAssistant: A\n"),
        ({"instruction": "Q", "log": "l", "input": 5, "output": "A"}, ["auto", "nlplog"], "Human: Q\nAssistant: A\n"),
        ({"text": " a\tb \r\n"}, ["auto", "corpus"], " a\tb \r\n"),
        ({"text": "a\0b"}, ["auto", "corpus"], "a\0b"),  # rotated logs hold NULs, and a tokenizer has a token for them
        ({"text": "a", "score": 1.5, "ok": True, "none": None, "tags": [], "s": ""}, ["auto", "corpus"], "a"),
    ],
)
def test_rules(row, formats, text):
    for format in ("auto", "nlplog", "corpus"):
        if format in formats:
            assert row_document(row, format)[0] == text
        else:
            with pytest.raises(BadRow):
                row_document(row, format)


@pytest.mark.parametrize(
    ("row", "format", "reason"),
    [
        ([1], "auto", "an array, not an object"),
        ("text", "auto", "a string, not an object"),
        (None, "auto", "null, not an object"),
        ({}, "auto", "neither text nor instruction and output among its columns ()"),
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, "auto", "; pairs of answers are read with --format dpo"),
        ({"conversations": []}, "auto", "neither text nor instruction and output among its columns (conversations)"),
        ({"instruction": "Q", "log": "l"}, "auto", 'no "output"'),
        ({"output": "A"}, "auto", 'no "instruction"'),
        ({"instruction": "Q", "output": None}, "nlplog", 'no "output"'),
        ({"instruction": "Q", "output": " \n"}, "auto", '"output" is empty'),
        ({"text": ""}, "auto", '"text" is empty'),
        ({"text": 5}, "auto", '"text" is a number, not a string'),
        ({"text": True}, "auto", '"text" is a boolean, not a string'),
        ({"instruction": "Q", "output": ["A"]}, "auto", '"output" is an array, not a string'),
        ({"instruction": "Q", "input": {"a": 1}, "output": "A"}, "auto", '"input" is an object, not a string'),
        ({"text": "a", "domain": 3}, "auto", '"domain" is a number, not a string'),
        ({"instruction": "Q", "output": "A"}, "corpus", 'no "text"'),
        ({"text": "a"}, "nlplog", 'no "instruction"'),
        ({"instruction": "Q", "log": "l", "input": "i", "output": "A"}, "auto", 'no rule reads the text in "input"'),
        ({"instruction": "Q", "input": "i", "output": "A"}, "nlplog", 'no rule reads the text in "input"'),
        ({"text": "a", "instruction": "Q", "output": "A"}, "auto", "--ignore_columns instruction output"),
        ({"text": "a", "turns": [{"a": "b"}]}, "corpus", 'no rule reads the text in "turns"'),
        ({"text": "a", "log": "b"}, "auto", 'no rule reads the text in "log"'),
    ],
)
def test_bad_rows(row, format, reason):
    with pytest.raises(BadRow) as error:
        row_document(row, format)
    assert reason in str(error.value)


def test_ignored_columns_are_not_there():
    row = {"text": "a", "instruction": "Q", "output": "A", "label": "x"}
    assert row_document(row, "auto", Reading(["instruction", "output", "label"]))[0] == "a"
    assert row_document(row, "auto", Reading(["text", "label"]))[0] == "Human: Q\nAssistant: A\n"


def test_domains(tmp_path):
    domains = ["HDFS", " BGL ", "", "  ", None, ...]
    rows = [{"text": "a"} | ({} if domain is ... else {"domain": domain}) for domain in domains]
    path = tmp_path / "my.logs.json"
    path.write_text(json.dumps(rows))
    assert [document.domain for document in read(path)] == ["HDFS", "BGL", *["my.logs"] * 4]
    log = tmp_path / "Spark_2k.log"
    log.write_text("a\n")
    assert read(log) == [Document(0, "a\n", "Spark_2k")]


def test_bad_rows_stand_in_their_place(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = [
        b'{"text": "a"}',
        b"",
        b'{"text": "caf\xe9"}',
        b'{"text": "\\ud83d!"}',
        b'{"text": "\\ud83d\\ude00"}',
        b"{",
        b'{"text": "b", "domain": "\xff"}',
        b'{"instruction": "Q", "log": "\xff", "output": "A"}',  # not read, so no matter
    ]
    path.write_bytes(b"\n".join(lines))
    found = read(path)
    assert [item.row for item in found] == [0, 2, 3, 4, 5, 6, 7]
    assert [item.text for item in found if isinstance(item, Document)] == ["a", "😀", "Human: Q\nAssistant: A\n"]
    bad = {item.row: str(item) for item in found if isinstance(item, BadRow)}
    assert bad[2] == "not UTF-8: byte 0xe9 after 3 characters"
    assert bad[3] == "\\ud83d without its other half is no character"
    assert bad[5].startswith("not JSON on one line")
    assert bad[6] == "not UTF-8: byte 0xff after 0 characters"
    assert bad.keys() == {2, 3, 5, 6}


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.json", b"[]", "the file holds no row"),
        ("a.jsonl", b"\n \n", "the file holds no row"),
        ("a.txt", b"", "the file holds no row"),
        ("a.txt", b" \n", "empty"),
        ("a.log", b"ok \xe9\n", "not UTF-8: byte 0xe9 after 3 characters"),
    ],
)
def test_a_file_without_documents_is_a_bad_row(tmp_path, name, content, reason):
    (tmp_path / name).write_bytes(content)
    (bad,) = read(tmp_path / name)
    assert isinstance(bad, BadRow)
    assert (bad.row, str(bad)) == (0, reason)


def test_a_text_file_has_no_nlplog_rows(tmp_path):
    (tmp_path / "a.log").write_text("a\n")
    assert read(tmp_path / "a.log", "corpus") == [Document(0, "a\n", "a")]
    with pytest.raises(ValueError, match=r"a\.log: a text file has no NLPlog rows; use --format auto"):
        read(tmp_path / "a.log", "nlplog")


# -- real files --------------------------------------------------------------------------------------


def test_the_public_nlplog_record(shared):
    path = shared / "data" / "nlplog" / "nlplog_sample_1.json"
    (row,) = json.loads(path.read_bytes())
    text = f"Human: {row['instruction']}\nAssistant: {row['output']}\n"
    for format in ("auto", "nlplog"):
        assert read(path, format) == [Document(0, text, "Android")]


def test_loglm(shared):
    path = shared / "data" / "loglm" / "loglm_instruction_2632.json"
    rows = json.loads(path.read_bytes())
    found = read(path)
    assert len(found) == len(rows) == 2632
    for document, row in zip(found, rows, strict=True):
        assert document.text == f"Human: {row['instruction']}\n{row['input']}\nAssistant: {row['output']}\n"


def test_loghub_is_kept_to_the_last_character(shared):
    paths = sorted((shared / "data" / "loghub").glob("*/*.log"))
    assert len(paths) == 12
    for path in paths:
        found = read(path, text_chars=4096)
        assert "".join(document.text for document in found).encode() == path.read_bytes()
        assert {document.domain for document in found} == {f"{path.parent.name}_2k"}
        assert max(len(document.text) for document in found) <= 4096


def test_columns_of_alpaca_that_no_rule_reads(shared):
    path = shared / "data" / "general" / "alpaca_1k.json"  # also holds score (a number) and label (a string)
    assert all(isinstance(item, BadRow) and "--ignore_columns label" in str(item) for item in read(path))
    assert all(isinstance(item, Document) for item in read(path, ignore_columns=("label",)))
