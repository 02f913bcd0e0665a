"""Files as other programs leave them: nothing of them is lost without a word, and nothing else is taken for rows."""

import bz2
import datetime
import decimal
import gzip
import io
import json
import lzma
import tarfile
import zipfile
from pathlib import Path

import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest
import zstandard

from logtrain.data.conversations import row_conversation
from logtrain.data.documents import documents
from logtrain.data.files import InputFile
from logtrain.data.inputs import Inputs
from logtrain.data.lines import BadRow
from logtrain.data.log import read_log
from logtrain.data.rows import Reading
from logtrain.text.chat_template import Turn

ROWS = b'{"text": "disk error"}\n{"text": "no space left"}\n'


def texts(path: Path, ignore: tuple[str, ...] = ()) -> list[str]:
    """The texts of a file's documents; of a bad row what is wrong with it."""
    found = documents(InputFile(path), "auto", 1000, Reading(ignore))
    return [str(one) if isinstance(one, BadRow) else one.text for one in found]


# -- CSV ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", ["instruction,output,", "instruction,output,,", ",instruction,output"])
def test_text_under_no_name_is_not_lost(tmp_path, names):
    """Of spreadsheets: cells to the right of the table, which have no heading."""
    fields = {"instruction": "why?", "output": "because", "": "a remark"}
    path = tmp_path / "a.csv"
    path.write_text(f"{names}\n{','.join(fields[name] for name in names.split(','))}\n")
    place = names.split(",").index("") + 1
    assert texts(path)[0].startswith(f'no rule reads the text in "column {place}"; to leave it out, --ignore_columns')
    places = tuple(f"column {place}" for place, name in enumerate(names.split(","), 1) if not name)
    assert texts(path, places) == ["Human: why?\nAssistant: because\n"]
    path.write_text(path.read_text().replace("a remark", "7"))  # as the number of a row
    assert texts(path) == ["Human: why?\nAssistant: because\n"]


def test_text_under_an_empty_name_is_not_lost(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a", "": "b"}\n')
    assert texts(tmp_path / "a.jsonl") == ["no rule reads the text in \"\"; to leave it out, --ignore_columns ''"]
    assert texts(tmp_path / "a.jsonl", ("",)) == ["a"]


@pytest.mark.parametrize("end", ["\r", "\n", "\r\n"])
def test_line_ends(tmp_path, end):
    path = tmp_path / "a.csv"
    path.write_bytes(f'instruction,output{end}"why,{end}now?",because{end}and then?,late{end}'.encode())
    between = "\n" if end == "\r" else end
    assert texts(path) == [
        f"Human: why,{between}now?\nAssistant: because\n",
        "Human: and then?\nAssistant: late\n",
    ]


# -- Parquet and Arrow -------------------------------------------------------------------------------


def write(path: Path, table: pyarrow.Table) -> Path:
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(table, path)
    else:
        with pyarrow.ipc.new_stream(str(path), table.schema) as stream:
            stream.write_table(table)
    return path


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_two_columns_of_one_name(tmp_path, name):
    table = pyarrow.Table.from_arrays([pyarrow.array(["a"]), pyarrow.array(["b"])], names=["text", "text"])
    with pytest.raises(ValueError, match=f"{name}: row 0: two columns are named 'text'"):
        texts(write(tmp_path / name, table))


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_times_that_python_has_not(tmp_path, name):
    """pandas writes its times as nanoseconds, which stopped the file though nobody reads them."""
    nanoseconds = {
        "at": pyarrow.array([1_700_000_000_000_000_001], pyarrow.timestamp("ns")),
        "zoned": pyarrow.array([1_700_000_000_000_000_001], pyarrow.timestamp("ns", "UTC")),
        "in a list": pyarrow.array([[{"at": 1}]], pyarrow.list_(pyarrow.struct([("at", pyarrow.timestamp("ns"))]))),
        "of day": pyarrow.array([1], pyarrow.time64("ns")),
        "took": pyarrow.array([1], pyarrow.duration("ns")),
        "cost": pyarrow.array([decimal.Decimal("1.50")]),
        "day": pyarrow.array([datetime.date(2024, 1, 2)]),
    }
    path = write(tmp_path / name, pyarrow.table({"text": ["disk error"], **nanoseconds}))
    assert texts(path, ("at", "zoned", "in a list", "of day", "day")) == ["disk error"]
    found = next(InputFile(path).rows(1))[1]
    assert found == {
        "text": "disk error",
        "at": "2023-11-14 22:13:20.000000001",
        "zoned": "2023-11-14 22:13:20.000000001Z",
        "in a list": [{"at": "1970-01-01 00:00:00.000000001"}],
        "of day": "00:00:00.000000001",
        "took": 1,
        "cost": 1.5,
        "day": "2024-01-02",
    }


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_times_that_python_has_not_inside_of_others(tmp_path, name):
    """As polars and dictionary encoding leave them."""
    time, at = pyarrow.timestamp("ns"), 1_700_000_000_000_000_001
    struct = pyarrow.struct([("at", pyarrow.large_list(time))])
    nested = {
        "large": pyarrow.array([[at], None], pyarrow.large_list(time)),
        "fixed": pyarrow.array([[at, None], None], pyarrow.list_(time, 2)),
        "map": pyarrow.array([[("k", at)], []], pyarrow.map_(pyarrow.string(), time)),
        "encoded": pyarrow.array([at, None], time).dictionary_encode(),
        "deep": pyarrow.array([[{"at": [at]}], []], pyarrow.large_list(struct)),
        "took": pyarrow.array([[1], []], pyarrow.large_list(pyarrow.duration("ns"))),
        "words": pyarrow.array(["a", "b"]).dictionary_encode(),
    }
    path = write(tmp_path / name, pyarrow.table({"text": ["disk error", "ok"], **nested}))
    if name == "a.parquet" and int(pyarrow.__version__.partition(".")[0]) < 26:  # which cannot read what it wrote
        with pytest.raises(ValueError, match=r"lists to be of size=2 .*; pyarrow 26 and later read it: pip install"):
            list(InputFile(path).rows(1))
        path = write(tmp_path / "a.arrow", pyarrow.table({"text": ["disk error", "ok"], **nested}))
    text = "2023-11-14 22:13:20.000000001"
    assert [value for _, value in InputFile(path).rows(1)] == [
        {
            "text": "disk error",
            "large": [text],
            "fixed": [text, None],
            "map": {"k": text},
            "encoded": text,
            "deep": [{"at": [text]}],
            "took": [1],
            "words": "a",
        },
        {"text": "ok", "large": None, "fixed": None, "map": [], "encoded": None, "deep": [], "took": [], "words": "b"},
    ]


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
@pytest.mark.parametrize("unit", ["ns", "us"])
def test_a_zone_that_the_machine_does_not_know(tmp_path, name, unit):
    """As a small image without the zones of the world reads pandas' times of Europe/Berlin."""
    times = {
        "unknown": pyarrow.array([0], pyarrow.timestamp(unit, "Mars/Olympus")),
        "offset": pyarrow.array([0], pyarrow.timestamp("us", "+02:00")),
    }
    path = write(tmp_path / name, pyarrow.table({"text": ["disk error"], **times}))
    found = next(InputFile(path).rows(1))[1]
    zeros, zone = (".000000000", "Z") if unit == "ns" else ("", "+00:00")
    assert found == {
        "text": "disk error",
        "unknown": f"1970-01-01 00:00:00{zeros}{zone}",
        "offset": "1970-01-01 02:00:00+02:00",
    }


def test_a_map_with_a_key_twice(tmp_path):
    twice = pyarrow.array([[("k", "v"), ("k", "w")], [("k", "v")]], pyarrow.map_(pyarrow.string(), pyarrow.string()))
    path = write(tmp_path / "a.parquet", pyarrow.table({"text": ["a", "b"], "m": twice}))
    assert texts(path, ("m",)) == ["a key stands twice in a map: one of the two would be lost", "b"]


def test_the_folder_that_datasets_save(tmp_path):
    """Its facts are no rows, nor is the cache of what was made of them, which would double the rows."""
    (tmp_path / "ds" / "train").mkdir(parents=True)
    (tmp_path / "ds" / "dataset_dict.json").write_text('{"splits": ["train"]}')
    (tmp_path / "ds" / "train" / "dataset_info.json").write_text('{"features": {}}')
    (tmp_path / "ds" / "train" / "state.json").write_text('{"_data_files": []}')
    for name in ("data-00000-of-00001.arrow", "cache-0123456789abcdef.arrow"):
        write(tmp_path / "ds" / "train" / name, pyarrow.table({"text": ["a", "b"]}))
    for folder in (tmp_path / "ds", tmp_path / "ds" / "train"):
        inputs = Inputs([str(folder)], 64)
        assert [file.path.name for file in inputs.files] == ["data-00000-of-00001.arrow"]
        assert "cache-0123456789abcdef.arrow" in inputs.told()
        assert "state.json" in inputs.told()
    (tmp_path / "state.json").write_text('{"text": "of a state"}')  # of no data set
    assert [file.path.name for file in Inputs([str(tmp_path / "state.json")], 64).files] == ["state.json"]


# -- JSON --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mark", ["\x1e", "\ufeff", "\ufeff\ufeff"])
@pytest.mark.parametrize(
    "content",
    [
        '{"text": "a"}\n*{"text": "b"}\n',
        '*{"text": "a"}\n*{"text": "b"}\n',
        '*{"text": "a"}*{"text": "b"}',
        '*{\n  "text": "a"\n}\n*{\n  "text": "b"\n}\n',
        '*[{"text": "a"},\n{"text": "b"}]',
    ],
)
def test_marks_before_values(tmp_path, mark, content):
    """Those of json-seq (`journalctl -o json-seq`), and of UTF-8 where files with one were put behind each other."""
    (tmp_path / "a.json").write_text(content.replace("*", mark))
    assert texts(tmp_path / "a.json") == ["a", "b"]


def test_a_mark_does_not_hide_the_rows_behind_a_bad_one(tmp_path):
    (tmp_path / "a.json").write_text('\x1e{"text": "a"}\n\x1e{"text": "b"\n\x1e{"text": "c"}\n')
    first, second, third = texts(tmp_path / "a.json")
    assert (first, third) == ("a", "c")
    assert second.startswith("not JSON on one line")


@pytest.mark.parametrize("blank", ["\u00a0", "\f", "\x1c"])
def test_an_array_behind_blanks_that_are_none_in_json(tmp_path, blank):
    (tmp_path / "a.json").write_text(f'{blank}[{{"text": "a"}}]')
    assert texts(tmp_path / "a.json") == ["not JSON on one line (Expecting value, character 0 of the row)"]


# -- what is no text ---------------------------------------------------------------------------------


def in_tar(content: bytes) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        member = tarfile.TarInfo("a.log")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def in_zip(content: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a.log", content)
    return stream.getvalue()


NO_TEXT = {
    "gz": (gzip.compress, "what a file named .gz holds"),
    "zst": (zstandard.compress, "what a file named .zst holds"),
    "xz": (lzma.compress, "what a file named .xz holds"),
    "bz2": (bz2.compress, "what a file named .bz2 holds"),
    "zip": (in_zip, "what a file named .zip holds"),
    "tar": (in_tar, "a tar archive; unpack it"),
}


@pytest.mark.parametrize("kind", NO_TEXT)
@pytest.mark.parametrize("name", ["a.log", "a.jsonl", "a.csv", "a.log.gz"])
def test_what_is_no_text_is_named(tmp_path, kind, name):
    """A tar archive named app.log.gz was trained on, its headers of zeros included."""
    pack, said = NO_TEXT[kind]
    content = pack(ROWS)
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    with pytest.raises(ValueError, match=f"{name}: row 0: no text, but {said}"):
        list(InputFile(path).rows(100))
    with pytest.raises(ValueError, match=f"{name}: no text, but {said}"):
        read_log(str(path))


@pytest.mark.parametrize("name", ["a.jsonl", "a.log", "a.csv"])
def test_a_pointer_of_git_lfs(tmp_path, name):
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    with pytest.raises(ValueError, match=f"/{name}: row 0: only a pointer of Git LFS to the file; fetch the file its"):
        list(InputFile(tmp_path / name).rows(100))


def test_what_is_hidden_in_an_archive_is_passed_over_as_in_a_folder(tmp_path):
    names = ["d/a.jsonl", ".cache/b.jsonl", "d/.c.jsonl", "d/.git/e.json", "__MACOSX/d/._a.jsonl"]
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in names:
            archive.writestr(name, ROWS)
            (tmp_path / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "folder" / name).write_bytes(ROWS)
    for path, kept in ((tmp_path / "a.zip", ["a.jsonl"]), (tmp_path / "folder", ["a.jsonl"])):
        assert [file.path.name for file in Inputs([str(path)], 64).files] == kept


# -- chats -------------------------------------------------------------------------------------------

BY_ROLE = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
BY_FROM = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]


@pytest.mark.parametrize("turns", [BY_ROLE, BY_FROM])
def test_turns_with_the_names_of_the_other_format(turns):
    for format, column in (("sharegpt", "conversations"), ("messages", "messages")):
        expected = (Turn("user", "q"), Turn("assistant", "a"))
        assert row_conversation({column: turns}, format)[0] == expected
        assert row_conversation({column: json.dumps(turns)}, format)[0] == expected
        with pytest.raises(BadRow, match='turn 0: no rule reads "weight"; to leave it out'):
            row_conversation({column: [turns[0] | {"weight": 0}, turns[1]]}, format)


@pytest.mark.parametrize("turns", [BY_ROLE, BY_FROM])
def test_turns_by_columns(tmp_path, turns):
    """As Hugging Face's datasets keep a Sequence of objects."""
    by_column = {name: [turn[name] for turn in turns] for name in turns[0]}
    path = write(tmp_path / "a.parquet", pyarrow.table({"messages": [by_column]}))
    row = next(InputFile(path).rows(1))[1]
    assert row_conversation(row, "messages")[0] == (Turn("user", "q"), Turn("assistant", "a"))
    for wrong in ({"role": ["user"], "content": ["q", "a"]}, {"role": "user", "content": ["q"]}, {}):
        with pytest.raises(BadRow, match='"messages" is an object, not an array'):
            row_conversation({"messages": wrong}, "messages")


def test_rows_within_an_object(tmp_path):
    (tmp_path / "a.json").write_text('{"version": "1", "data": [{"text": "a"}, {"text": "b"}]}')
    assert texts(tmp_path / "a.json")[0].endswith('; if "data" holds the rows, write it alone into a file: jq .data')
    with pytest.raises(
        BadRow, match=r'no "messages" among its columns \(train\); if "train" holds the rows, write it alo'
    ):
        row_conversation({"train": [{"messages": BY_ROLE}]}, "messages")


def test_turns_that_are_no_json_in_a_table(tmp_path):
    """As pandas writes lists into CSV."""
    (tmp_path / "a.csv").write_text("conversations\n\"[{'from': 'human', 'value': 'q'}]\"\n")
    row = next(InputFile(tmp_path / "a.csv").rows(1))[1]
    with pytest.raises(BadRow, match='"conversations" is a string, not an array'):
        row_conversation(row, "sharegpt")


def test_a_file_that_is_given_twice_is_read_once(tmp_path):
    """By patterns that overlap, and by links as `current.log`: rows would count twice without a word."""
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "app.log").write_text("disk error\n")
    (tmp_path / "logs" / "current.log").symlink_to("app.log")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.jsonl", ROWS)
        archive.writestr("b.jsonl", ROWS)
    given = ["logs/*.log", "logs", "./logs/app.log", "a.zip", "a.zip"]
    inputs = Inputs([str(tmp_path / path) for path in given], 64)
    assert [file.path.name for file in inputs.files] == ["app.log", "a.jsonl", "b.jsonl"]
    assert inputs.told().startswith("left out, for they were given before: ")
    assert inputs.told().count("current.log") == 2
