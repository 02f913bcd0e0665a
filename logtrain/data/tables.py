"""Rows of Parquet and Arrow files, some at a time, as the values that a JSON file would have."""

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from decimal import Decimal
from types import ModuleType
from typing import Any, BinaryIO, Protocol

from logtrain.data.lines import BadRow, too_long

BATCH_BYTES, BATCH_ROWS = 1 << 23, 1024  # of rows made values at a time
COLUMN_BYTES = 1 << 16  # read of a column at a time; else the whole of it in a row group, 123 of 500 MB, is in memory
MAX_GROUP = 1 << 32  # bytes of a row group or a batch: one is in memory, as far as it is being read
PLAIN = {str, int, float, bool, type(None)}  # values that are as JSON has them
MAX_THRIFT = 1 << 27  # bytes, and entries, of a Parquet file's own description


class Table(Protocol):
    """What a reader needs of an InputFile."""

    max_row_bytes: int
    num_bytes: int
    bytes_read: int

    def seekable(self) -> AbstractContextManager[str | BinaryIO]: ...


def parquet_rows(file: Table) -> Iterator[tuple[int, object]]:
    """(row, {column: value} or a BadRow), row group by row group. Raises ValueError for a file that is damaged."""
    arrow, parquet = needed("pyarrow"), needed("pyarrow.parquet")
    with file.seekable() as source, plain_errors(arrow, "Parquet"):
        opened = parquet.ParquetFile(
            source,
            thrift_string_size_limit=MAX_THRIFT,
            thrift_container_size_limit=MAX_THRIFT,
            pre_buffer=False,
            buffer_size=COLUMN_BYTES,
        )
        check_names(opened.schema_arrow.names)
        row, begun = 0, file.bytes_read
        for number in range(opened.num_row_groups):
            group = opened.metadata.row_group(number)
            if group.total_byte_size > MAX_GROUP:
                raise ValueError(f"row group {number} has {group.total_byte_size:,} bytes, more than {MAX_GROUP:,}")
            size = batch_rows(group.num_rows, group.total_byte_size)
            for batch in opened.iter_batches(size, row_groups=[number], use_threads=False):
                batch.validate(full=True)
                for value in values_of(readable(batch, arrow)):
                    yield row, checked(value, file.max_row_bytes)
                    row += 1
                file.bytes_read = max(begun, file.num_bytes * row // max(1, opened.metadata.num_rows))
    file.bytes_read = file.num_bytes


def arrow_rows(file: Table) -> Iterator[tuple[int, object]]:
    """The same of Arrow's own format, a file or a stream."""
    arrow, ipc = needed("pyarrow"), needed("pyarrow.ipc")
    with file.seekable() as source, plain_errors(arrow, "Arrow"):
        row, begun = 0, file.bytes_read
        stream = arrow.OSFile(source) if isinstance(source, str) else arrow.PythonFile(source, mode="r")
        for batch in record_batches(stream, ipc):
            batch.validate(full=True)  # what a file says of its texts leads anywhere in memory until it is looked at
            check_names(batch.schema.names)
            for first in range(0, batch.num_rows, size := batch_rows(batch.num_rows, batch.nbytes)):
                for value in values_of(readable(batch.slice(first, size), arrow)):
                    yield row, checked(value, file.max_row_bytes)
                    row += 1
            file.bytes_read = max(begun, min(stream.tell(), file.num_bytes))
    file.bytes_read = file.num_bytes


def record_batches(stream: Any, ipc: ModuleType) -> Iterator[Any]:
    """The batches of a file, or of a stream."""
    mark = stream.read(6)
    stream.seek(0)
    if mark[:4] == b"FEA1":
        raise ValueError("of Feather's first version; write it anew")
    if mark != b"ARROW1":
        yield from ipc.open_stream(stream)
        return
    opened = ipc.open_file(stream)
    for number in range(opened.num_record_batches):
        yield opened.get_batch(number)


def check_names(names: Sequence[str]) -> None:
    """Raises ValueError where two columns have one name: one of the two would be lost."""
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"two columns are named {twice[0][:80]!r}")


def readable(batch: Any, arrow: ModuleType) -> Any:
    """A batch in which times that are finer than Python's have become text, and such durations integers."""
    columns = [in_known_zone(column, arrow) for column in batch.columns]
    kinds = [readable_type(column.type, arrow) for column in columns]
    columns = [column.cast(kind) for column, kind in zip(columns, kinds, strict=True)]
    return arrow.record_batch(columns, names=batch.schema.names) if kinds else batch


def in_known_zone(column: Any, arrow: ModuleType) -> Any:
    """A column; of times in a zone that this machine does not know, as small images know none, the same in UTC."""
    kind = column.type
    if not arrow.types.is_timestamp(kind) or not kind.tz:
        return column
    try:
        arrow.lib.string_to_tzinfo(kind.tz)
        return column
    except (arrow.ArrowException, ValueError, KeyError):
        return column.cast(arrow.timestamp(kind.unit, "UTC"))


def readable_type(kind: Any, arrow: ModuleType) -> Any:
    """The type of what a column, or what is in it, becomes."""
    types = arrow.types
    if types.is_struct(kind):
        return arrow.struct([(field.name, readable_type(field.type, arrow)) for field in kind])
    if types.is_map(kind):
        return arrow.map_(readable_type(kind.key_type, arrow), readable_type(kind.item_type, arrow))
    is_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    if is_list or types.is_dictionary(kind):
        inside = readable_type(kind.value_type, arrow)
        changed = arrow.list_(inside) if is_list else inside
        return kind if inside == kind.value_type else changed
    if getattr(kind, "unit", "") != "ns":
        return kind
    return arrow.int64() if types.is_duration(kind) else arrow.string()


def needed(module: str) -> ModuleType:
    """A module of pyarrow. Raises ValueError where that is not installed."""
    try:
        return __import__(module, fromlist=["_"])
    except ImportError:
        raise ValueError("Parquet and Arrow files need pyarrow: pip install pyarrow, or logtrain[parquet]") from None


@contextlib.contextmanager
def plain_errors(arrow: ModuleType, what: str) -> Iterator[None]:
    """What pyarrow raises becomes a ValueError of one line."""
    try:
        yield
    except (arrow.ArrowException, OSError) as error:
        told = " ".join(str(error).split())[:200]
        if "Expected all lists to be of size" in told:  # of pyarrow before 26, for a null in such a column
            told = f"{told}; pyarrow 26 and later read it: pip install -U pyarrow"
        raise ValueError(f"not {what}, or damaged ({told})") from None


def batch_rows(num_rows: int, num_bytes: int) -> int:
    """How many rows are made values at a time."""
    return max(1, min(BATCH_ROWS, num_rows * BATCH_BYTES // max(1, num_bytes)))


def values_of(batch: Any) -> list[Any]:
    """The rows of a batch; a BadRow for one with a date or a number that Python does not have."""
    try:
        return batch.to_pylist()
    except ArithmeticError as error:  # of dates, OverflowError; of decimal numbers, its own
        if batch.num_rows == 1:
            return [BadRow(f"a date or a number that cannot be ({str(error)[:80]})")]
    return [value for at in range(batch.num_rows) for value in values_of(batch.slice(at, 1))]


def checked(value: Any, max_bytes: int) -> object:
    """A row as JSON has it; a BadRow for one that is too long."""
    if isinstance(value, BadRow):
        return value
    if PLAIN.issuperset(map(type, value.values())):
        size = sum(len(text) for text in value.values() if type(text) is str)
        return too_long(max_bytes) if size > max_bytes else value
    size = 0

    def plain(value: Any) -> Any:
        nonlocal size
        if isinstance(value, str):
            size += len(value)
        elif isinstance(value, bytes):
            size += len(value)
            return value.decode("utf-8", "surrogateescape")
        elif isinstance(value, list):
            size += len(value)
            if value and all(isinstance(item, tuple) for item in value):  # a map
                found = {str(plain(key)): plain(item) for key, item in value}
                if len(found) < len(value):
                    raise BadRow("a key stands twice in a map: one of the two would be lost")
                return found
            return [plain(item) for item in value]
        elif isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        elif isinstance(value, Decimal):
            return float(value)
        elif not isinstance(value, bool | int | float | None):
            return str(value)  # a date
        return value

    try:
        row = plain(value)
    except BadRow as bad:
        return bad
    return too_long(max_bytes) if size > max_bytes else row
