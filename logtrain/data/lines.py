"""Bytes -> text -> lines, as a stream: whatever a file holds, or unpacks to, no more than a row of it is in memory.

Legend: a block is some bytes or some text of a file; where it ends means nothing.
"""

import codecs
from collections.abc import Iterable, Iterator

MAX_ROW_MB = 64
SKIPPED_ROWS = 16  # lines of the most bytes; what has none ending after so many is no file of lines
HEAD_BYTES = 1 << 12  # by which the encoding is found
MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
CONTROLS = bytes(range(0x20))
NO_TEXT = {  # how files begin that are no text, and what their names should end with
    b"\x1f\x8b": ".gz",
    b"\x28\xb5\x2f\xfd": ".zst",
    b"\xfd7zXZ\0": ".xz",
    **{b"BZh%d1AY&SY" % level: ".bz2" for level in range(1, 10)},
    b"PK\3\4": ".zip",
    b"PAR1": ".parquet",
    b"ARROW1\0\0": ".arrow",
}


class BadRow(Exception):
    """A row that is no document, and why."""

    def __init__(self, reason: str, row: int = -1):
        super().__init__(reason if len(reason) <= 500 else f"{reason[:500]}...")  # it may quote a name of megabytes
        self.row = row


def decoded(blocks: Iterable[bytes]) -> Iterator[str]:
    """The text of a file's blocks, without a byte order mark. A byte that is not UTF-8 is a lone surrogate (PEP 383),
    as is half a pair in UTF-16, so that only its own row is bad.
    """
    blocks = iter(blocks)
    head = b""
    while len(head) < HEAD_BYTES and (block := next(blocks, None)) is not None:
        head += block
    refuse_other_kinds(head)
    encoding, mark = encoding_of(head)
    errors = "surrogateescape" if encoding == "utf-8" else "surrogatepass"
    decoder = codecs.getincrementaldecoder(encoding)(errors)
    try:
        yield decoder.decode(head[len(mark) :])
        yield from map(decoder.decode, blocks)
        yield decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:  # not of UTF-8
        if error.reason != "truncated data":
            raise ValueError(f"not {encoding.upper()}: {error.reason}") from None
        yield "\udcff"  # the file ends within a character


def refuse_other_kinds(head: bytes) -> None:
    """Raises ValueError for the beginning of a file that is no text, though its name says so."""
    ending = next((ending for mark, ending in NO_TEXT.items() if head.startswith(mark)), "")
    if ending:
        raise ValueError(f"no text, but what a file named {ending} holds; give it a name that ends so")
    if head[257:262] == b"ustar":
        raise ValueError("no text, but a tar archive; unpack it and give its files, or put them into a .zip")


def encoding_of(head: bytes) -> tuple[str, bytes]:
    """The encoding of a text that begins so, and its byte order mark. Without a mark it is UTF-8 but where zero bytes
    stand as in UTF-32, nearly always first and second of four and not last (or third and last and not first), or as in
    UTF-16 those of ASCII: nearly always first or nearly always second of two. Raises ValueError for text in UTF-16 that
    was appended to other text.
    """
    for mark, encoding in MARKS.items():
        if head.startswith(mark):
            return encoding, mark
    fourths = [head[nth::4].count(0) / max(1, len(head) // 4) for nth in range(4)]
    for (most, more, _, least), encoding in ((fourths[::-1], "utf-32-le"), (fourths, "utf-32-be")):
        if most > 0.95 and more > 0.95 and least < 0.05:
            return encoding, b""
    pairs, firsts, seconds = len(head) // 2, head[0::2], head[1::2]
    for high, low, encoding in ((seconds, firsts, "utf-16-le"), (firsts, seconds, "utf-16-be")):
        zeros = high.count(0)
        num_controls = len(high) - len(high.translate(None, CONTROLS))
        of_alphabet = num_controls > 0.9 * pairs  # up to U+1FFF; of UTF-8 these are controls
        if zeros <= 20 * low.count(0):
            continue
        if zeros > 0.3 * pairs or of_alphabet or (zeros > 1 and not is_utf8(head)):
            if 0 not in head[:16] and not of_alphabet and is_utf8(head):
                raise ValueError("begins as UTF-8 and goes on as UTF-16; write the two into files of their own")
            return encoding, b""
    return "utf-8", b""


def is_utf8(head: bytes) -> bool:
    """Whether bytes are UTF-8, but for what is cut off at their end."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return True


def lines(blocks: Iterable[str], max_bytes: int) -> Iterator[str | BadRow]:
    """Lines with their "\\n", which alone ends one: a "\\r" or a form feed inside a log line is part of the line. A
    BadRow in the place of a line of more bytes than `max_bytes`. Raises ValueError where a line goes on and on.
    """
    held: list[str] = []  # the beginning of a line; nothing of one that is too long
    held_bytes = 0
    for block in blocks:
        *whole, rest = block.split("\n")
        for line in whole:
            if held:
                held_bytes += utf8_bytes(line)
                held += (line, "\n")
                yield too_long(max_bytes) if held_bytes > max_bytes else "".join(held)
                held, held_bytes = [], 0
            else:
                yield too_long(max_bytes) if utf8_bytes(line) > max_bytes else line + "\n"
        if not rest:
            continue
        held_bytes += utf8_bytes(rest)
        if held_bytes > SKIPPED_ROWS * max_bytes:
            raise ValueError(f"no line end in {SKIPPED_ROWS * max_bytes:,} bytes")
        held.append(rest)
        if held_bytes > max_bytes:
            held = [""]
    if held:
        yield too_long(max_bytes) if held_bytes > max_bytes else "".join(held)


def utf8_bytes(text: str) -> int:
    """The bytes that a text takes in a file."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def too_long(max_bytes: int) -> BadRow:
    """What stands in the place of a row of more bytes than it may have."""
    return BadRow(f"longer than {max_bytes:,} bytes; if it is meant, give a greater --max_row_mb")
