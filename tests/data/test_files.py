"""Reading: whatever the blocks, the packing and the layout, the rows are the file's, and no damage goes unseen."""

import bz2
import gzip
import itertools
import json
import lzma
import re
import time
import tracemalloc
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from logtrain.data import compression
from logtrain.data.files import BadRow, InputFile
from logtrain.data.lines import encoding_of, refuse_other_kinds
from tests.support.bombs import write_gzip, write_zstd

generated = settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), text)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3), max_leaves=6
)
block_sizes = st.sampled_from([1, 2, 3, 7, 64, 1 << 20])
PACK = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress, ".xz": lzma.compress, ".bz2": bz2.compress}
packings = st.sampled_from([*PACK])


def write(path: Path, data: bytes, packing: str = "", members: int = 1) -> Path:
    """The file, packed as several members one after the other if asked."""
    path = path.with_name(path.name + packing)
    size = -(-len(data) // members) or 1
    parts = [data[i : i + size] for i in range(0, len(data), size)] or [b""]
    path.write_bytes(b"".join(PACK[packing](part) for part in parts))
    return path


def read(path: Path, block: int = 1 << 20, text_chars: int = 100) -> list[tuple[int, object]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compression, "BLOCK_BYTES", block)
        patch.setattr(compression, "PACKED_BLOCK_BYTES", block)
        file = InputFile(path)
        rows = list(file.rows(text_chars))
    assert file.bytes_read == file.num_bytes == path.stat().st_size
    return rows


# -- JSON --------------------------------------------------------------------------------------------


@given(
    elements=st.lists(values, max_size=6),
    indent=st.sampled_from([None, 0, 1]),
    ascii_only=st.booleans(),
    around=st.sampled_from(["", " ", "\r\n\t"]),
    bom=st.booleans(),
    block=block_sizes,
    packing=packings,
    members=st.integers(1, 3),
)
@generated
def test_arrays(tmp_path, elements, indent, ascii_only, around, bom, block, packing, members):
    encoded = around + json.dumps(elements, indent=indent, ensure_ascii=ascii_only) + around
    path = write(tmp_path / "a.json", encoded.encode("utf-8-sig" if bom else "utf-8"), packing, members)
    assert read(path, block) == list(enumerate(elements))


@pytest.mark.parametrize("block", range(1, 12))
def test_numbers_at_the_edge_of_a_block(tmp_path, block):
    path = write(tmp_path / "a.json", b"[-0.0,1e+16,12,1E-7 ,0,123456]")
    assert read(path, block) == list(enumerate([-0.0, 1e16, 12, 1e-7, 0, 123456]))


@given(
    elements=st.lists(st.one_of(st.just(...), values), max_size=6),  # ...: a blank line
    first=st.dictionaries(text, values, max_size=2),
    end=st.sampled_from(["", "\n", "\r\n", "\n\n"]),
    block=block_sizes,
    packing=packings,
)
@generated
def test_json_lines(tmp_path, elements, first, end, block, packing):
    elements = [first, *elements]  # the first character decides that it is lines
    encoded = "\n".join(" " if e is ... else json.dumps(e, ensure_ascii=False) for e in elements) + end
    path = write(tmp_path / "a.jsonl", encoded.encode(), packing)
    assert read(path, block) == [(row, e) for row, e in enumerate(elements) if e is not ...]


ARRAY = json.dumps(
    [{"text": 'a"]},{\\ \u00e9'}, {"n": [1, {"x": "]"}], "t": 12.5}, "\\u00e9", {}], ensure_ascii=False
).encode()


@pytest.mark.parametrize("block", [1, 5, 1 << 20])
def test_an_array_cut_short_anywhere_is_an_error(tmp_path, block):
    whole = json.loads(ARRAY)
    for length in range(1, len(ARRAY)):
        path = write(tmp_path / "a.json", ARRAY[:length])
        rows = []
        with pytest.MonkeyPatch.context() as patch, pytest.raises(ValueError, match=re.escape(str(path))) as error:
            patch.setattr(compression, "BLOCK_BYTES", block)
            for row in InputFile(path).rows(100):
                rows.append(row)
        assert rows == list(enumerate(whole))[: len(rows)], "what comes before the cut is whole"
        assert f"row {len(rows)}: " in str(error.value)
        assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("packing", [*PACK][1:])
def test_a_packed_file_cut_short_anywhere_is_an_error(tmp_path, packing):
    data = b"".join(b"line %d of a log\n" % i for i in range(200))
    packed = write(tmp_path / "a.log", data, packing, members=2).read_bytes()
    ends = {len(packed), len(write(tmp_path / "b.log", data[: len(data) // 2], packing).read_bytes())}
    path = tmp_path / f"c.log{packing}"
    for length in set(range(len(packed))) - ends:
        path.write_bytes(packed[:length])
        with pytest.raises(ValueError, match=r"c\.log\.\w+: row \d+: the compressed file is cut short"):
            list(InputFile(path).rows(100))


@pytest.mark.parametrize(
    ("content", "row", "message"),
    [
        ("[1 2]", 1, "not JSON: '2' where , or ] belongs"),
        ('[1,{"a" 1}', 2, "the array is cut short"),
        ("[1] 2", 1, "not JSON: '2' after the end of the array"),
        (
            "[" * 100_000,
            0,
            "no end in 1,000 bytes: not JSON, or a longer element (arrays and objects within each other",
        ),
        (f'["{"x" * 9000}", 1]', 0, "no end in 1,000 bytes: not JSON, or a longer element (Unterminated string"),
        (f"[1,{' ' * 9000}2]", 1, "no end in 1,000 bytes: blanks"),
        (" " * 9000 + "[1]", 0, "no end in 1,000 bytes: blanks"),
        ('[1, "' + "x" * 500, 1, "cut short, or not JSON (Unterminated string"),
    ],
)
def test_an_array_that_cannot_be_read_on(tmp_path, monkeypatch, content, row, message):
    monkeypatch.setattr(compression, "BLOCK_BYTES", 300)
    path = write(tmp_path / "a.json", content.encode())
    with pytest.raises(ValueError, match=re.escape(f"{path}: row {row}: ")) as error:
        list(limited(path).rows(100))
    assert message in str(error.value)


@pytest.mark.parametrize("block", [1, 300, 1 << 20])
@pytest.mark.parametrize(
    ("element", "reason"),
    [
        ('{"a" 1}', "not JSON (Expecting ':' delimiter, character 5 of the row)"),
        ('{"a": "]", "b": [tru]}', "not JSON (Expecting value, character 17 of the row)"),
        ("nul", "not JSON (Expecting value, character 0 of the row)"),
        ("", "not JSON (Expecting value, character 0 of the row)"),
        ("7" * 600, "an integer of 600 digits"),
        ("[" * 400 + "]" * 400, None),  # is JSON, and no row
        (f'"{"x" * 999}"', "longer than 1,000 bytes; if it is meant, give a greater --max_row_mb"),
        (f'"{"é" * 500}"', "longer than 1,000 bytes; if it is meant, give a greater --max_row_mb"),
        ('{"text": "one", "text": "two"}', '"text" stands twice in an object: one of the two would be lost'),
        ('{"a": [{"b": 1, "c": 2, "b": 1}]}', '"b" stands twice in an object: one of the two would be lost'),
    ],
)
def test_a_bad_element_spoils_no_other(tmp_path, monkeypatch, block, element, reason):
    monkeypatch.setattr(compression, "BLOCK_BYTES", block)
    rows = list(limited(write(tmp_path / "a.json", f"[1, {element} ,3]".encode())).rows(100))
    assert [row for row, _ in rows] == [0, 1, 2]
    assert (rows[0][1], rows[2][1]) == (1, 3)
    assert (str(rows[1][1]) == reason) is isinstance(rows[1][1], BadRow) is (reason is not None)


GOOD = [{"text": 'a"}{é', "n": [1, {"x": "]"}]}, {"text": "b\n", "n": None}, {"text": "c", "n": {"y": {}}}]


@pytest.mark.parametrize("block", [1, 5, 1 << 20])
@pytest.mark.parametrize("indent", [None, 0, 1, "\t"])
@pytest.mark.parametrize("between", ["", "\n", ",\n", "\r\n\r\n"])
def test_objects_over_several_lines_or_behind_each_other(tmp_path, monkeypatch, block, indent, between):
    if indent is None and "," in between:
        return  # lines that end with a comma
    monkeypatch.setattr(compression, "BLOCK_BYTES", block)
    path = write(tmp_path / "a.json", between.join(json.dumps(row, indent=indent) for row in GOOD).encode())
    assert [value for _, value in InputFile(path).rows(1)] == GOOD


@pytest.mark.parametrize("wrong", ['"x"y"', "tru", "", '"x\n', '{"y": 1, "y": 2}', "9" * 5000])
@pytest.mark.parametrize("indent", [None, 2])
def test_a_bad_object_spoils_no_other(tmp_path, wrong, indent):
    texts = [json.dumps(row, indent=indent) for row in GOOD]
    texts[1] = texts[1].replace("null", wrong)
    rows = [value for _, value in InputFile(write(tmp_path / "a.json", "\n".join(texts).encode())).rows(1)]
    assert (rows[0], rows[-1]) == (GOOD[0], GOOD[2])
    assert rows[1:-1]
    assert all(isinstance(row, BadRow) for row in rows[1:-1])


def test_lists_a_line_are_rows(tmp_path):
    path = write(tmp_path / "a.jsonl", b'[{"role": "user"}, 1]\n[2]\n')
    assert list(InputFile(path).rows(1)) == [(0, [{"role": "user"}, 1]), (1, [2])]


def limited(path: Path, max_row_bytes: int = 1000) -> InputFile:
    file = InputFile(path)
    file.max_row_bytes = max_row_bytes
    return file


@pytest.mark.parametrize("block", [1, 300, 1 << 20])
@pytest.mark.parametrize("letter", ["2", "é", "\U0001f600"])
def test_a_line_that_is_too_long_spoils_no_other(tmp_path, monkeypatch, block, letter):
    monkeypatch.setattr(compression, "BLOCK_BYTES", block)
    most = 1000 // len(letter.encode())
    texts = ["1", letter * most, letter * (most + 1), "4", letter * 4 * most, letter * most, letter * (most + 1)]
    path = write(tmp_path / "a.log", "\n".join(texts).encode())
    rows = [value for _, value in limited(path).rows(1)]
    assert [row for row, _ in limited(path).rows(1)] == list(range(7))
    for i, text in enumerate(texts):
        if i in (2, 4, 6):
            assert str(rows[i]) == "longer than 1,000 bytes; if it is meant, give a greater --max_row_mb"
        else:
            assert rows[i] == text + "\n"
    assert [row for row, _ in limited(path).rows(100_000)] == [0, 1, 2, 3, 4, 5], "rows of text hold several lines"
    fits = letter * (998 // len(letter.encode()))
    encoded = "\n".join(f'"{text}"' for text in (fits, fits + letter, "3", fits + letter))
    values = dict(limited(write(tmp_path / "a.jsonl", encoded.encode())).rows(1))
    assert [i for i, value in values.items() if isinstance(value, BadRow)] == [1, 3]
    assert (values[0], values[2]) == (fits, "3")


@pytest.mark.parametrize("name", ["a.jsonl", "a.log"])
def test_a_line_without_end(tmp_path, monkeypatch, name):
    monkeypatch.setattr(compression, "BLOCK_BYTES", 300)
    path = write(tmp_path / name, b"1\n" + b"2" * 20_000)
    with pytest.raises(ValueError, match=r"row \d: no line end in 16,000 bytes"):
        list(limited(path).rows(1))


@pytest.mark.parametrize(
    ("name", "head"), [("a.log.gz", b"1\n"), ("a.log.zst", b"1\n"), ("a.jsonl.zst", b"1\n"), ("a.json.zst", b"[1,")]
)
def test_a_bomb_is_never_unpacked_at_once(tmp_path, name, head):
    path = tmp_path / name
    if name.endswith(".gz"):
        write_gzip(path, head, b" ", 1 << 29)
    else:
        write_zstd(path, head, b" ", 1 << 16)  # 8 GiB
    assert path.stat().st_size < 3_000_000
    began = time.monotonic()
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"row [01]: no (line end in 16,777,216|end in 1,048,576) bytes"):
            list(limited(path, 1 << 20).rows(1))
        assert tracemalloc.get_traced_memory()[1] < 100 << 20
    finally:
        tracemalloc.stop()
    assert time.monotonic() - began < 20


def test_a_bad_line_spoils_no_other(tmp_path):
    path = write(tmp_path / "a.jsonl", b'{"a": 1}\n{"a": \n\n{"a": "\xff"}\nnull\n{"a": 3')
    rows = dict(read(path))
    assert rows.keys() == {0, 1, 3, 4, 5}
    assert (rows[0], rows[3], rows[4]) == ({"a": 1}, {"a": "\udcff"}, None)
    for row in (1, 5):
        assert isinstance(rows[row], BadRow)
        assert str(rows[row]).startswith("not JSON on one line (")


def test_memory_does_not_grow_with_an_array(tmp_path):
    row = json.dumps({"instruction": "x" * 500, "output": "y\n" * 500})
    path = write(tmp_path / "a.json", f"[{','.join([row] * 20_000)}]".encode())  # 30 MB
    tracemalloc.start()
    try:
        assert sum(1 for _ in InputFile(path).rows(100)) == 20_000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 * compression.BLOCK_BYTES


# -- text --------------------------------------------------------------------------------------------


@given(
    data=st.one_of(
        st.binary(max_size=60),
        st.lists(
            st.sampled_from([b"a", b"bb", b"\n", b"\r\n", b"\r", b"\xc3\xa9", b"\xe2\x80\xa8", b"\xff", b"\0"])
        ).map(b"".join),
    ),
    text_chars=st.integers(1, 12),
    block=block_sizes,
    packing=packings,
    members=st.integers(1, 3),
)
@generated
def test_text_joined_is_the_file(tmp_path, data, text_chars, block, packing, members):
    try:
        refuse_other_kinds(data)
        if encoding_of(data)[0] != "utf-8":
            return
    except ValueError:  # of another kind, by how it begins
        return
    rows = read(write(tmp_path / "a.log", data, packing, members), block, text_chars)
    assert [row for row, _ in rows] == list(range(len(rows)))
    texts = [value for _, value in rows]
    assert "".join(texts).encode("utf-8", "surrogateescape") == data.removeprefix(b"\xef\xbb\xbf")
    for value in texts:
        assert value.endswith("\n") or value is texts[-1]
        assert len(value) <= text_chars or value.count("\n", 0, -1) == 0, "only a line alone may be longer"
    for value, after in itertools.pairwise(texts):
        assert len(value) + len(after.split("\n")[0] + "\n") > text_chars or after == after.split("\n")[0], (
            "one more line would fit"
        )


LINES = "disk error on host\r\nnetwork é 磁盘错误 😀\r\n"


@pytest.mark.parametrize("block", [1, 3, 1 << 20])
@pytest.mark.parametrize("packing", ["", ".gz"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_encodings_with_a_mark(tmp_path, block, packing, encoding):
    path = write(tmp_path / "a.log", f"\ufeff{LINES}".encode(encoding), packing)
    assert "".join(value for _, value in read(path, block)) == LINES


@pytest.mark.parametrize("block", [1, 3, 1 << 20])
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize(
    "text",
    [
        "disk error\r\n",
        LINES,
        "磁盘错误 12:00\n" * 3,
        "x" * 9000 + "\n",
        "ошибка диска на узле 7\n",
        "σφάλμα δίσκου στον κόμβο\n",
        "خطأ في القرص 12:00\n",
        "שגיאת דיסק בשרת\n",
        "ข้อผิดพลาด ดิสก์\n",
        "डिस्क त्रुटि\n",
    ],
)
def test_utf16_and_utf32_without_a_mark(tmp_path, block, encoding, text):
    rows = read(write(tmp_path / "a.log", text.encode(encoding)), block, 100_000)
    assert "".join(value for _, value in rows) == text
    cut = read(write(tmp_path / "b.log", text.encode(encoding)[:-1]), block, 100_000)
    assert "".join(value for _, value in cut) == text[:-1] + "\udcff"


def test_zero_bytes_are_no_utf16(tmp_path):
    for data in (b"a\3log\4\0\0\n" * 9, b"a\0\0\0\0b\n" * 9, b"a log\n" + bytes(1000) + b"goes on\n", b"\0" * 50):
        assert "".join(value for _, value in read(write(tmp_path / "a.log", data))) == data.decode()


def test_utf16_behind_other_text_is_refused(tmp_path):
    """As shells of Windows leave it that append to a file: read as UTF-16, the first lines would be Chinese."""
    path = write(tmp_path / "a.log", b"disk error here\nnet error\n" * 3 + ("net error\n" * 9).encode("utf-16-le"))
    with pytest.raises(ValueError, match="begins as UTF-8 and goes on as UTF-16"):
        read(path)


def test_half_a_pair_spoils_only_its_row(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"t": "a"}\n{"t": "\ud800"}\n{"t": "b"}\n'.encode("utf-16", "surrogatepass"))
    assert [value["t"] for _, value in read(path)] == ["a", "\ud800", "b"]


@pytest.mark.parametrize("packing", [*PACK][1:])
@pytest.mark.parametrize("block", [1, 7, 1 << 20])
def test_zeros_after_a_member_are_no_other(tmp_path, packing, block):
    path = write(tmp_path / "a.log", b"one\ntwo\n", packing, members=2)
    path.write_bytes(path.read_bytes() + bytes(4096))
    assert read(path, block) == [(0, "one\ntwo\n")]
