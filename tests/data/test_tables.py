"""CSV, Parquet, Arrow and zip as others leave them: damaged, hostile, or with a quote too many."""

import gzip
import io
import os
import struct
import sys
import zipfile
from pathlib import Path

import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest

from logtrain.data import archive, csv_rows, files
from logtrain.data.files import InputFile
from logtrain.data.inputs import Inputs
from logtrain.data.lines import BadRow


def rows_of(path: Path, content: str | bytes) -> list:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return [str(value) if isinstance(value, BadRow) else value for _, value in InputFile(path).rows(1)]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("a,b\n1,2\n", [{"a": "1", "b": "2"}]),
        ('\ufeff"a";b\r\n"1;""x""\r\ny";\r\n', [{"a": '1;"x"\r\ny', "b": None}]),
        ("sep=|\na|b\n1,5|2\n", [{"a": "1,5", "b": "2"}]),
        ("text\none\n\ntwo", [{"text": "one"}, {"text": "two"}]),
        (
            "a,b\n1\n1,2,3\n4,5\n",
            ["1 fields, where the first line names 2 columns", "3 fields", {"a": "4", "b": "5"}],
        ),
        ('a,b\n1,"x"y\n3,4\n', ["not CSV (',' expected after '\"')", {"a": "3", "b": "4"}]),
        ('a,b\n1,"open\n3,4\n5,6\n', ["not CSV (unexpected end of data)", {"a": "3", "b": "4"}, {"a": "5", "b": "6"}]),
        ('a,b\n1,"open\n3,"4"\n5,6\n', ["not CSV", {"a": "3", "b": "4"}, {"a": "5", "b": "6"}]),
        ("a,b\n1,\0\n", [{"a": "1", "b": "\0"}]),
        ("", []),
        ("a,b\n", []),
    ],
)
def test_csv(tmp_path, content, expected):
    found = rows_of(tmp_path / "a.csv", content)
    assert len(found) == len(expected)
    for value, wanted in zip(found, expected, strict=True):
        assert value.startswith(wanted) if isinstance(wanted, str) else value == wanted


def test_a_csv_record_that_is_too_long_spoils_no_other(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("a,b\n1,2\n" + 'x,"' + "y\n" * 900 + '"\n3,4\n' + "z" * 5000 + ",5\n6,7\n")
    file = InputFile(path)
    file.max_row_bytes = 1000
    rows = [value for _, value in file.rows(1)]
    assert [row for row in rows if not isinstance(row, BadRow)] == [
        {"a": "1", "b": "2"},
        {"a": "3", "b": "4"},
        {"a": "6", "b": "7"},
    ]
    assert "longer than 1,000 bytes" in str(next(row for row in rows if isinstance(row, BadRow)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b,a\n1,2,3\n", "the first line names two columns 'a'"),
        (",".join(map(str, range(5000))) + "\n", "5,000 columns, more than 4,096"),
    ],
)
def test_a_table_of_no_use(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        rows_of(tmp_path / "a.csv", content)


def test_quotes_that_never_close_take_no_quadratic_time(tmp_path, monkeypatch):
    monkeypatch.setattr(csv_rows, "MAX_REREAD", 3)
    with pytest.raises(ValueError, match=r"a\.csv: row 6: not CSV: quotes that do not close, 4 times"):
        rows_of(tmp_path / "a.csv", "a\n" + '"x\ny"z\n' * 9)


def parquet(rows: list[dict], **options) -> bytes:
    stream = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), stream, **options)
    return stream.getvalue()


def test_values_of_tables(tmp_path):
    table = pyarrow.table(
        {
            "text": pyarrow.array(["a", None], pyarrow.large_string()),
            "raw": pyarrow.array([b"b\xff", b""]),
            "when": pyarrow.array([0, 1], pyarrow.timestamp("s")),
            "tags": pyarrow.array([[("k", "v")], []], pyarrow.map_(pyarrow.string(), pyarrow.string())),
            "kind": pyarrow.array(["x", "x"]).dictionary_encode(),
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    first, second = (value for _, value in InputFile(tmp_path / "a.parquet").rows(1))
    assert first == {"text": "a", "raw": "b\udcff", "when": "1970-01-01 00:00:00", "tags": {"k": "v"}, "kind": "x"}
    assert second == {"text": None, "raw": "", "when": "1970-01-01 00:00:01", "tags": [], "kind": "x"}


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_a_date_beyond_all_dates_spoils_its_row_alone(tmp_path, name):
    days = pyarrow.array([0, 2**62, 1], pyarrow.int64()).cast(pyarrow.timestamp("us"))
    table = pyarrow.table({"text": ["a", "b", "c"], "when": days})
    if name == "a.parquet":
        pyarrow.parquet.write_table(table, tmp_path / name)
    else:
        with pyarrow.ipc.new_file(str(tmp_path / name), table.schema) as writer:
            writer.write_table(table)
    first, bad, last = [value for _, value in InputFile(tmp_path / name).rows(1)]
    assert (first["text"], last["text"]) == ("a", "c")
    assert isinstance(bad, BadRow) and "a date or a number that cannot be" in str(bad)


def test_a_row_of_a_table_that_is_too_long(tmp_path):
    (tmp_path / "a.parquet").write_bytes(parquet([{"a": "x"}, {"a": "y" * 2000}, {"a": "z"}]))
    file = InputFile(tmp_path / "a.parquet")
    file.max_row_bytes = 1000
    rows = [value for _, value in file.rows(1)]
    assert (rows[0], rows[2]) == ({"a": "x"}, {"a": "z"})
    assert str(rows[1]).startswith("longer than 1,000 bytes")
    assert file.bytes_read == file.num_bytes


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.feather", "a.parquet.gz", "a.zip"])
@pytest.mark.parametrize("content", [b"", b"PAR1", b"ARROW1\0\0" + b"x" * 99, b"FEA1", b"\xff" * 200, b"PK\5\6"])
def test_what_is_no_table_is_one_line(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=name) as error:
        for file in Inputs([str(tmp_path / name)], 64).files:
            list(file.rows(1))
    assert "\n" not in str(error.value)


def test_a_table_cut_short_or_damaged_anywhere_ends(tmp_path):
    whole = parquet([{"text": f"row {i} " * 9} for i in range(50)], row_group_size=10)
    for at in range(0, len(whole), 37):
        for content in (whole[:at], whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :]):
            (tmp_path / "a.parquet").write_bytes(content)
            try:
                list(InputFile(tmp_path / "a.parquet").rows(1))
            except ValueError as error:
                assert str(error).startswith(str(tmp_path / "a.parquet"))
                assert "\n" not in str(error)


@pytest.mark.parametrize("lie", [(0, 10, 12, 1 << 30), (0, -9, 12, 13), (0, 1 << 30, 12, 13), (-(1 << 30), 10, 12, 13)])
@pytest.mark.parametrize("open_new", [pyarrow.ipc.new_file, pyarrow.ipc.new_stream])
def test_a_text_that_would_lie_elsewhere_in_memory_is_refused(tmp_path, lie, open_new):
    """Arrow believes the places of texts unless it is told to look at them: the process would end, or read others'."""
    file, table = tmp_path / "a.arrow", pyarrow.table({"text": ["a" * 10, "bb", "c"]})
    with open_new(str(file), table.schema) as writer:
        writer.write_table(table)
    places = struct.pack("<4i", 0, 10, 12, 13)
    assert file.read_bytes().count(places) == 1
    file.write_bytes(file.read_bytes().replace(places, struct.pack("<4i", *lie)))
    with pytest.raises(ValueError, match=r"a.arrow: row 0: not Arrow, or damaged \(In column 0"):
        list(InputFile(file).rows(100))


def test_without_pyarrow_one_line_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(parquet([{"a": "x"}]))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(
        ValueError, match=r"a\.parquet: row 0: .* need pyarrow: pip install pyarrow, or logtrain\[parquet\]"
    ):
        list(InputFile(tmp_path / "a.parquet").rows(1))


def test_a_packed_table_unpacks_to_a_bounded_file(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MOST_UNPACKED", 1 << 20)
    monkeypatch.setattr(files, "MOST_RATIO", 2)
    (tmp_path / "a.parquet.gz").write_bytes(gzip.compress(bytes(1 << 23)))
    with pytest.raises(ValueError, match=r"a\.parquet\.gz: row 0: unpacks to more than 1,048,576 bytes"):
        list(InputFile(tmp_path / "a.parquet.gz").rows(1))


# ---- archives and folders


def archive_of(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as stream:
        for name, content in members.items():
            stream.writestr(name, content)
    return path


def test_files_of_an_archive_and_of_a_folder(tmp_path, monkeypatch):
    members = {"b/x.log.1": b"x\n", "a.jsonl": b"1\n", "README.md": b"#", "__MACOSX/a.jsonl": b"?", ".hidden.log": b"?"}
    folder = tmp_path / "in"
    (folder / "deep" / ".git").mkdir(parents=True)
    (folder / "deep" / ".git" / "a.log").write_text("?")
    (folder / "deep" / "c.csv").write_text("a\n1\n")
    (folder / "notes.doc").write_text("?")
    archive_of(folder / "z.zip", members)
    inputs = Inputs([str(folder)], 64)
    assert [str(file.path.relative_to(folder)) for file in inputs.files] == [
        "z.zip/a.jsonl",
        "z.zip/b/x.log.1",
        "deep/c.csv",
    ]
    assert inputs.told().startswith("left out, for their names are those of no data: ")
    assert "notes.doc" in inputs.told()
    assert "README.md" in inputs.told()
    values = [[value for _, value in file.rows(9)] for file in inputs.files]
    assert values == [[1], ["x\n"], [{"a": "1"}]]
    assert [file.again().sha256() for file in inputs.files] == [file.sha256() for file in inputs.files]
    assert all(file.bytes_read == file.num_bytes for file in inputs.files)
    monkeypatch.chdir(folder)
    assert [str(file.path) for file in Inputs(["deep/*.csv"], 64).files] == ["deep/c.csv"]
    with pytest.raises(ValueError, match=r"\*\.xml: no file matches"):
        Inputs(["*.xml"], 64)
    (folder / "deep" / "c.csv").unlink()
    with pytest.raises(ValueError, match="deep: no file in it is one to read: it is empty"):
        Inputs(["deep"], 64)
    with pytest.raises(ValueError, match="input: an empty path"):  # a variable of the shell that is not set
        Inputs(["deep", ""], 64)
    with pytest.raises(ValueError, match=r"notes\.doc: not named \.json"):
        Inputs(["notes.doc"], 64)


def test_archives_by_turns(tmp_path):
    """Only one is open at a time."""
    paths = [archive_of(tmp_path / f"{i}.zip", {"a.log": b"%d\n" % i}) for i in range(3)]
    inputs = Inputs(map(str, paths), 64)
    for _ in range(2):
        assert [next(iter(file.again().rows(9))) for file in inputs.files] == [(0, f"{i}\n") for i in range(3)]


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_methods_without_a_bound_are_refused(tmp_path, method):
    (file,) = Inputs([str(archive_of(tmp_path / "a.zip", {"a.log": b"x"}, method))], 64).files
    with pytest.raises(ValueError, match=r"a\.zip/a\.log: row 0: .*packed by (bzip2|lzma), not deflate"):
        list(file.rows(1))


def test_damaged_archives(tmp_path, monkeypatch):
    path = archive_of(tmp_path / "a.zip", {"a.log": b"a line of it\n" * 999})
    whole = path.read_bytes()
    for at in range(0, len(whole), 3):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :])
        try:
            for file in Inputs([str(path)], 64).files:
                list(file.rows(100))
        except ValueError as error:
            assert str(path) in str(error)
            assert "\n" not in str(error)
    path.write_bytes(whole)
    monkeypatch.setattr(archive, "MAX_DIRECTORY", 10)
    with pytest.raises(
        ValueError, match=r"a\.zip: no zip archive, or damaged \(a list of members of \d+ bytes, more than"
    ):
        Inputs([str(path)], 64)
    end = struct.pack("<LHHHHLLH", 0x06054B50, 0, 0, 1, 1, 1 << 31, 0, 0)
    path.write_bytes(end)
    with pytest.raises(ValueError, match="a list of members of 2,147,483,648 bytes"):
        Inputs([str(path)], 64)


def test_a_member_without_a_name(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        packed.writestr("a", "text")
    content = (tmp_path / "a.zip").read_bytes()
    end = content.index(b"PK\1\2")
    named = bytearray(content[:end] + content[end:].replace(b"a", b"", 1))  # in the list of members
    struct.pack_into("<H", named, end + 28, 0)  # the length of the name
    struct.pack_into("<L", named, len(named) - 10, len(named) - end - 22)  # the length of the list
    (tmp_path / "a.zip").write_bytes(named)
    with pytest.raises(ValueError, match=r"a\.zip"):
        for file in Inputs([str(tmp_path / "a.zip")], 64).files:
            list(file.rows(1))


def test_a_name_that_no_manifest_could_hold(tmp_path):
    try:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/a\xff.csv")).write_text("text\na\n")
    except OSError:
        pytest.skip("this file system has no names but UTF-8")
    with pytest.raises(ValueError, match=r"a\udcff.csv: a name that is not UTF-8"):
        Inputs([str(tmp_path)], 64)


def test_a_row_group_is_never_whole_in_memory(tmp_path):
    """As pandas writes it, a file has one row group for a million rows."""
    texts, path = [os.urandom(500).hex() for _ in range(32_000)], tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path, compression="NONE", use_dictionary=False)
    assert pyarrow.parquet.ParquetFile(path).num_row_groups == 1
    before, found, most = pyarrow.total_allocated_bytes(), [], 0
    for _, value in InputFile(path).rows(1):
        found.append(value["text"])
        most = max(most, pyarrow.total_allocated_bytes() - before)
    assert found == texts
    assert most < 16 << 20, "of 32 MB"
