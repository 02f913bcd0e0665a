"""Raw logs -> chunks, which the teacher is asked about: some records in a row of one file, or a single one.

No two are near-twins, of whatever system: chunks that differ only in values, or in little else, teach the same, and of
two on different sides of a split the one would tell the other's answer (data/near_twins.py). Of two the earlier stays.

    systems apart   some systems are held out whole
    times apart     of each other system the latest chunks are held out
"""

import hashlib
import os
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import orjson

from logtrain.core.atomic import write_file
from logtrain.core.printable import printable
from logtrain.core.sealed_lines import object_of, sealed_line
from logtrain.core.untrusted import read_bytes
from logtrain.data.files import InputFile
from logtrain.data.lines import MAX_ROW_MB, BadRow, lines
from logtrain.data.log import as_log
from logtrain.data.near_twins import BAND, SIGNATURE, SURELY_LESS
from logtrain.data.records import blocks
from logtrain.data.twins import Twins
from logtrain.observe.progress import Progress
from logtrain.synthesis.config import SynthesiseConfig
from logtrain.text.log_templates import LogTemplates

T = TypeVar("T")
FILE = "chunks.jsonl"
Split = Literal["train", "valid", "valid_systems"]
AT_ONCE = 256  # records whose templates, chunks whose signatures are found together
MOST_TEMPLATES = 20_000  # of a system's single records; what comes then is left out
FEWEST_RECORD_CHARS = 20
MOST_CHARS = 1 << 31  # of all chunks, which are in memory


class Record(NamedTuple):
    """A line, or several that belong together."""

    line: int
    """number of the first, from 1"""
    text: str
    """printable, without a line end behind it"""


@dataclass(frozen=True)
class Chunk:
    """Records of a log, in a row."""

    system: str
    file: str
    first_line: int
    """its number in the file, from 1"""
    num_lines: int
    text: str
    """printable, without a line end behind it"""
    split: Split = "train"


@dataclass
class Chunks:
    """What the teacher is asked about, and what was left out of the logs."""

    chunks: list[Chunk]
    left_out: Counter[str] = field(default_factory=Counter)
    """chunks by the reason: near_twin, short, surplus; records: long"""

    @property
    def sha256(self) -> str:
        """A hash over all chunks."""
        return hashlib.sha256(repr([tuple(asdict(chunk).values()) for chunk in self.chunks]).encode()).hexdigest()


def read_chunks(config: SynthesiseConfig) -> Chunks:
    """The chunks of all logs, each with its split, in the order of files and lines. Raises ValueError for a log that
    cannot be read, and where no chunk is left.
    """
    found, seen = Chunks([]), NearTwins()
    by_system: dict[str, list[Chunk]] = {}
    templates: dict[str, LogTemplates] = {}
    files = [(system, open_log(path)) for system, path in config.systems()]
    num_chars = done = 0
    with Progress("read", sum(file.num_bytes for _, file in files), title="reading", in_bytes=True) as progress:
        for system, file in files:
            read = records(file, config.most_chars, found.left_out)
            shown = with_progress(read, progress, done, file)
            done += file.num_bytes
            if config.rows == "nlplog":
                made = single_records(shown, system, file, found.left_out, templates.setdefault(system, LogTemplates()))
            else:
                made = runs_of_records(shown, config, system, file, found.left_out)
            for chunk in seen.without(made, found.left_out):
                by_system.setdefault(system, []).append(chunk)
                num_chars += len(chunk.text)
                if num_chars > MOST_CHARS:
                    raise ValueError(f"{file.path}: more than {MOST_CHARS:,} characters in chunks; give fewer logs")
    for system, chunks in by_system.items():
        by_system[system] = spread(chunks, config.chunks_per_system, f"{config.seed} {system}")
        found.left_out["surplus"] += len(chunks) - len(by_system[system])
    found.chunks = [chunk for chunks in with_splits(by_system, config) for chunk in chunks]
    if not found.chunks:
        left = ", ".join(f"{count:,} {reason}" for reason, count in found.left_out.items() if count)
        raise ValueError(
            f"input: no chunk of {config.least_lines} to {config.most_lines} lines in it ({left or 'empty'})"
        )
    return found


def kept_chunks(config: SynthesiseConfig, folder: Path, prompts_sha256: str) -> Chunks:
    """The chunks of a run: those that its folder has, or those of the logs, which it has then. Raises ValueError as
    `read_chunks` does, and where the folder's have been changed, or the file of prompts has.
    """
    file = folder / FILE
    if not os.path.lexists(file):
        found = read_chunks(config)
        head = {"left_out": dict(found.left_out), "chunks_sha256": found.sha256, "prompts": prompts_sha256}
        write_file(file, sealed_line(head) + b"".join(map(line_of, found.chunks)))
        return found
    try:
        first, *rest = read_bytes(file, 4 * MOST_CHARS).splitlines(keepends=True)
        head = head_of(first)
        found = Chunks([chunk_of(one) for one in rest], Counter(head["left_out"]))
        if head["chunks_sha256"] != found.sha256:
            raise ValueError("its hash does not fit")
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{file}: not as it was written: {error}; restore it, or choose another --run") from None
    if head["prompts"] != prompts_sha256:
        raise ValueError(f"{folder}: was started with other prompts; restore the file, or choose another --run")
    return found


def line_of(chunk: Chunk) -> bytes:
    """A chunk as a line."""
    return orjson.dumps(asdict(chunk), option=orjson.OPT_APPEND_NEWLINE)


def chunk_of(line: bytes) -> Chunk:
    """What `line_of` was given. Raises ValueError and TypeError where a byte has changed, be it the line's end."""
    chunk = Chunk(**orjson.loads(line))
    if line_of(chunk) != line:
        raise ValueError(f"the line of the chunk at {chunk.file} line {chunk.first_line} has changed")
    return chunk


def head_of(line: bytes) -> dict[str, Any]:
    """What the first line of a run's chunks says of all. Raises ValueError where it has changed."""
    facts = orjson.loads(line)
    if isinstance(facts, dict) and facts.keys() == {"left_out", "sha256", "prompts"}:  # of an older version
        return {**facts, "chunks_sha256": facts["sha256"]}
    if (found := object_of(line)) is None or sealed_line(found) != line:
        raise ValueError("its first line has changed")
    return found


def open_log(path: str) -> InputFile:
    """A raw log. Raises ValueError for a file that is none."""
    file = InputFile(path)
    if not file.kind.is_text:
        raise ValueError(f"{path}: not a raw log; give a .log or .txt file")
    return file


def records(file: InputFile, most_chars: int, left_out: Counter[str]) -> Iterator[Record]:
    """The records of a log; one that is too long is left out. Raises ValueError."""
    number = 1
    for record in blocks(lines(file.texts(), MAX_ROW_MB << 20)):
        if isinstance(record, BadRow) or len(record) > most_chars:
            left_out["long"] += 1
        elif record.strip():
            whole = [f"{line}\n" for line in record.removesuffix("\n").split("\n")]
            yield Record(number, printable("\n".join(as_log(str(file.path), whole, 1).lines).rstrip("\n")))
        number += 1 if isinstance(record, BadRow) else record.count("\n")


def with_progress(some: Iterable[Record], progress: Progress, before: int, file: InputFile) -> Iterator[Record]:
    """The records, with what is read of their file shown on the way. `before`: bytes of the files before it."""
    for count, record in enumerate(some):
        if not count % AT_ONCE:
            progress.update(before + file.bytes_read, {"file": file.path.name, "megabytes": file.bytes_read >> 20})
        yield record


def runs_of_records(
    some: Iterable[Record], config: SynthesiseConfig, system: str, file: InputFile, left_out: Counter[str]
) -> Iterator[Chunk]:
    """Chunks of a log: as many records in a row as have a random number of lines."""
    draws = random.Random(f"{config.seed} {system} {file.path}")
    held: list[Record] = []
    num_lines = num_chars = 0
    wanted = draws.randint(config.least_lines, config.most_lines)

    def taken() -> Iterator[Chunk]:
        if num_lines < config.least_lines:
            left_out["short"] += 1
        else:
            yield Chunk(system, str(file.path), held[0].line, num_lines, "\n".join(one.text for one in held))

    for record in some:
        size = len(record.text) + 1
        if held and (num_lines >= wanted or num_chars + size > config.most_chars):
            yield from taken()
            held, num_lines, num_chars = [], 0, 0
            wanted = draws.randint(config.least_lines, config.most_lines)
        held.append(record)
        num_lines, num_chars = num_lines + record.text.count("\n") + 1, num_chars + size
    if held:
        yield from taken()


def single_records(
    some: Iterable[Record], system: str, file: InputFile, left_out: Counter[str], templates: LogTemplates
) -> Iterator[Chunk]:
    """The first record of each template of a log, as a chunk of its own."""
    for group in batched(some, AT_ONCE):
        known = len(templates.templates)
        for record, number in zip(group, templates.add([one.text for one in group]).tolist(), strict=True):
            if number < known:
                left_out["template"] += 1
            elif len(record.text) < FEWEST_RECORD_CHARS or number >= MOST_TEMPLATES:
                left_out["short"] += 1
            else:
                yield Chunk(system, str(file.path), record.line, record.text.count("\n") + 1, record.text)
            known = max(known, number + 1)


class NearTwins:
    """The signatures of the chunks so far, by their bands."""

    def __init__(self):
        self.signatures = np.empty((0, SIGNATURE), np.uint8)
        self.count = 0
        self.by_band: dict[tuple[int, int], list[int]] = {}

    def without(self, chunks: Iterable[Chunk], left_out: Counter[str]) -> Iterator[Chunk]:
        """The chunks that are no near-twins of earlier ones; the others are counted."""
        for some in batched(chunks, AT_ONCE):
            for chunk, signature_S in zip(some, Twins.of([one.text for one in some], b"").signatures_I, strict=True):
                if self.add(signature_S):
                    yield chunk
                else:
                    left_out["near_twin"] += 1

    def add(self, signature_S: np.ndarray) -> bool:
        """Whether a text is new, by its signature: uint8 [S]. It is remembered then."""
        keys = list(enumerate(signature_S.view(BAND).tolist()))
        alike = sorted({number for key in keys for number in self.by_band.get(key, ())})
        equal = (self.signatures[alike] == signature_S).mean(1)  # by chance 1 in 256
        if len(alike) and (equal.max() - 1 / 256) / (1 - 1 / 256) >= SURELY_LESS:
            return False
        if self.count == len(self.signatures):
            self.signatures = np.resize(self.signatures, (max(1024, 2 * self.count), SIGNATURE))
        self.signatures[self.count] = signature_S
        for key in keys:
            self.by_band.setdefault(key, []).append(self.count)
        self.count += 1
        return True


def batched(some: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of so many; the last may have fewer."""
    for _, group in groupby(enumerate(some), key=lambda pair: pair[0] // size):
        yield [one for _, one in group]


def spread(chunks: list[Chunk], most: int, seed: str) -> list[Chunk]:
    """At most so many chunks: one at random of each of as many equal parts of the time. 0: all."""
    if not most or len(chunks) <= most:
        return chunks
    draws = random.Random(seed)
    ends = [len(chunks) * part // most for part in range(most + 1)]
    return [chunks[draws.randrange(first, stop)] for first, stop in pairwise(ends)]


def with_splits(by_system: Mapping[str, Sequence[Chunk]], config: SynthesiseConfig) -> Iterator[list[Chunk]]:
    """The chunks of each system with their splits."""

    def key(system: str) -> bytes:
        return hashlib.blake2b(system.encode(), key=str(config.seed).encode()).digest()

    held = set(sorted(by_system, key=key)[: min(config.valid_systems, len(by_system) - 1)])
    for system, chunks in by_system.items():
        num_train = len(chunks) - round(config.valid_fraction * len(chunks))
        splits: list[Split] = [
            "valid_systems" if system in held else "train" if i < num_train else "valid" for i in range(len(chunks))
        ]
        yield [Chunk(**{**asdict(chunk), "split": split}) for chunk, split in zip(chunks, splits, strict=True)]
