"""Token shards on disk: plain .npy arrays beside a manifest.json, written once, read memory-mapped.

    manifest.json              format version, fingerprint, tokenizer, settings, sources, domains, splits, their shards
    report.json                the account of every document and token
    train-00000.tokens.npy     uint32 [N]: the shard's documents, end to end; bit 31 set = context, not a target
    train-00000.documents.npy  DOCUMENT [D]: where each document lies and what it came from
    train-00000.teacher.npy    teacher_dtype(K) [N], where a teacher was asked: what it expected in each token's place

A checksum covers an array's data, not its header, which is held against the manifest: a shard is written as a stream.

Legend: N tokens of a shard, D documents (of a shard or of the whole split), K outcomes of a teacher's distribution.
"""

import bisect
import itertools
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from logtrain.data.manifest import Manifest, ShardFacts, SplitFacts
from logtrain.data.mapped import let_go
from logtrain.data.prepared import read_manifest
from logtrain.data.shard_checks import check_records, check_teacher, open_array

CONTEXT = 1 << 31  # Llama-3 ids need 17 bits
DOCUMENT = np.dtype(
    [
        ("offset", "<i8"),  # first token, within the shard
        ("length", "<i4"),  # tokens
        ("targets", "<i4"),  # tokens that are predicted: those at positions >= 1 that are not context
        ("row", "<i8"),  # 0-based, within the source file
        ("source", "<i4"),  # index into manifest["sources"]
        ("domain", "<i4"),  # index into manifest["domains"]
    ]
)
TOKEN = np.dtype("<u4")


def teacher_dtype(top_k: int) -> np.dtype:
    """What a teacher expected in a token's place, before it saw it: the `top_k` likeliest ids, the likeliest first, and
    their log-probabilities in nats; these are -inf for a token that is not predicted.
    """
    return np.dtype([("ids", "<u4", (top_k,)), ("log_probabilities", "<f2", (top_k,))])


class Split:
    """One split of a prepared folder, memory-mapped. Documents are numbered over its shards in order.

    lengths, targets, domains: int32 [D], tokens of each document, how many of them are predicted, and its index into
    manifest["domains"]; copied into memory when first asked for, `read` needs none. mapped: the arrays of all files.
    """

    mapped: Sequence[np.ndarray] = ()

    @staticmethod
    def open(
        folder: str | Path,
        split: str = "train",
        verify: bool = True,
        part: tuple[int, int] = (0, 1),
        note: Callable[[str], None] = lambda doing: None,
    ) -> "Split":
        """`verify` reads every byte once (about 4 GB/s from the page cache) and holds it against the checksums; with
        `part` = (i, n) only those of every n-th shard, from the i-th on. `note` is called with each of these, in words.
        Raises ValueError for a folder that is not prepared, or damaged, or that has no such split.
        """
        folder, manifest = Path(folder), read_manifest(Path(folder))
        if split not in manifest["splits"] and "replay" in manifest:
            raise ValueError(f"{folder}: a model wrote it (logtrain replay), so it trains and tells nothing of a model")
        if split not in manifest["splits"]:
            raise ValueError(
                f"{folder}: no documents in split {split!r} (it has {', '.join(manifest['splits'])}); "
                f"prepare it again with another valid_fraction"
            )
        return Split(folder, manifest, split, verify, part, note)

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        split: str,
        verify: bool = True,
        part: tuple[int, int] = (0, 1),
        note: Callable[[str], None] = lambda doing: None,
    ):
        """See `open`."""
        self.folder, self.manifest, self.name = folder, manifest, split
        self._tokens, self._documents, self._teacher = [], [], []
        self.teacher_top_k: int = manifest["settings"].get("teacher_top_k", 0)
        for number, shard in enumerate(manifest["splits"][split]["shards"]):
            is_mine = verify and number % part[1] == part[0]
            if is_mine:
                note(f"verifying {folder / shard['tokens']}")
            checksums = (shard["tokens_crc32"], shard["documents_crc32"]) if is_mine else (None, None)
            self._tokens.append(open_array(folder / shard["tokens"], TOKEN, shard["num_tokens"], checksums[0]))
            documents = open_array(folder / shard["documents"], DOCUMENT, shard["num_documents"], checksums[1])
            if is_mine:
                check_records(folder / shard["documents"], documents, shard, manifest)
            self._documents.append(documents)
            if "teacher" in shard:
                self._teacher.append(self._open_teacher(shard, is_mine))
        self._first_document = [0, *itertools.accumulate(map(len, self._documents))]
        self.mapped = (*self._tokens, *self._documents, *self._teacher)

    def _open_teacher(self, shard: ShardFacts, verify: bool) -> np.ndarray:
        """The teacher's records of the shard whose other arrays were the last to be opened."""
        assert "teacher" in shard and "teacher_crc32" in shard
        file, tokens_N = self.folder / shard["teacher"], self._tokens[-1]
        crc32 = shard["teacher_crc32"] if verify else None
        records_N = open_array(file, teacher_dtype(self.teacher_top_k), len(tokens_N), crc32)
        if verify:
            is_target_N = tokens_N < CONTEXT
            is_target_N[self._documents[-1]["offset"]] = False
            check_teacher(file, records_N, is_target_N, self.manifest["tokenizer"]["vocab_size"])
        return records_N

    @property
    def num_documents(self) -> int:
        """D."""
        return self._first_document[-1]

    @cached_property
    def lengths(self) -> np.ndarray:
        return self._column("length", np.int32)

    @cached_property
    def targets(self) -> np.ndarray:
        return self._column("targets", np.int32)

    @cached_property
    def domains(self) -> np.ndarray:
        return self._column("domain", np.int32)

    def parts(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """`lengths` and `targets` shard by shard. None of it stays in memory."""
        for documents in self._documents:
            yield documents["length"].copy(), documents["targets"].copy()
            let_go([documents])

    def _column(self, name: str, dtype: type) -> np.ndarray:
        column_D = np.empty(self.num_documents, dtype)
        for first, documents in zip(self._first_document, self._documents, strict=False):
            column_D[first : first + len(documents)] = documents[name]
            let_go([documents])  # all of a record for one column: 0.7 GB of 22 million documents
        return column_D

    def read(self, document: int, start: int, stop: int) -> np.ndarray:
        """Tokens [start, stop) of a document, as stored: a read-only uint32 view of the file, bit 31 included. Raises
        ValueError for what the split does not hold.
        """
        shard, offset = self._place(document, start, stop)
        return self._tokens[shard][offset + start : offset + stop]

    def teacher(self, document: int, start: int, stop: int) -> np.ndarray:
        """What the teacher expected in the place of the same tokens, in a split that has one: a view of
        `teacher_dtype(teacher_top_k)`. Raises ValueError as `read` does.
        """
        shard, offset = self._place(document, start, stop)
        return self._teacher[shard][offset + start : offset + stop]

    def _place(self, document: int, start: int, stop: int) -> tuple[int, int]:
        """(shard, where in it the document begins) of tokens that the split holds."""
        if not 0 <= document < self.num_documents:
            raise ValueError(f"document {document}: {self.folder} has {self.num_documents} in split {self.name!r}")
        shard = bisect.bisect_right(self._first_document, document) - 1
        record = self._documents[shard][document - self._first_document[shard]]
        if not 0 <= start <= stop <= record["length"]:
            raise ValueError(f"tokens {start} to {stop} of document {document}: it has {record['length']}")
        return shard, int(record["offset"])

    def origin(self, document: int) -> tuple[str, int, str]:
        """(file, row counted from 0, domain) that a document came from."""
        shard = bisect.bisect_right(self._first_document, document) - 1
        record = self._documents[shard][document - self._first_document[shard]]
        file = self.manifest["sources"][int(record["source"])]["path"]
        return file, int(record["row"]), self.manifest["domains"][int(record["domain"])]

    def targets_between(self, document: int, start: int, stop: int) -> int:
        """How many tokens in [start, stop) of a document are not context."""
        return int(np.count_nonzero(self.read(document, start, stop) < CONTEXT))


class ShardWriter:
    """Writes one split as a stream; memory does not grow with it. `close()` gives the split's part of the manifest.

    The document that brings a shard to `shard_tokens` is its last, so where shards end depends on the documents alone.
    """

    def __init__(self, folder: Path, split: str, shard_tokens: int, teacher_top_k: int = 0):
        """`teacher_top_k`: outcomes of the teacher's distribution that stands beside each token; 0: there is none."""
        self.folder, self.split, self.shard_tokens, self.teacher_top_k = folder, split, shard_tokens, teacher_top_k
        self.shards: list[ShardFacts] = []
        self._open: _OpenShard | None = None

    def add(self, tokens_N: np.ndarray, documents_D: np.ndarray, teacher_N: np.ndarray | None = None) -> None:
        """Documents in order: their tokens joined (uint32), their DOCUMENT records (`offset` is filled in here), and,
        where there is a teacher, its records of the tokens.
        """
        assert tokens_N.dtype == TOKEN and documents_D.dtype == DOCUMENT
        assert (teacher_N is None) == (not self.teacher_top_k)
        ends_D = np.cumsum(documents_D["length"], dtype=np.int64)
        assert len(tokens_N) == (ends_D[-1] if len(ends_D) else 0)
        first = 0
        while first < len(documents_D):
            if self._open is None:
                self._open = _OpenShard(self.folder, f"{self.split}-{len(self.shards):05d}", self.teacher_top_k)
            start = ends_D[first] - documents_D["length"][first]
            room = self.shard_tokens - self._open.num_tokens
            filling = int(np.searchsorted(ends_D, start + room))  # the first document to reach the end of the room
            end = min(filling + 1, len(documents_D))
            span = slice(start, ends_D[end - 1])
            self._open.add(tokens_N[span], documents_D[first:end], None if teacher_N is None else teacher_N[span])
            if self._open.num_tokens >= self.shard_tokens:
                self._close_shard()
            first = end

    def close(self) -> SplitFacts:
        """Finish the last shard."""
        self._close_shard()
        return {
            "documents": sum(shard["num_documents"] for shard in self.shards),
            "tokens": sum(shard["num_tokens"] for shard in self.shards),
            "targets": sum(shard["num_targets"] for shard in self.shards),
            "shards": self.shards,
        }

    def _close_shard(self) -> None:
        if self._open is not None:
            self.shards.append(self._open.close())
            self._open = None


class _OpenShard:
    """A shard that is being written: its tokens, its documents and, with `teacher_top_k`, its teacher's records."""

    def __init__(self, folder: Path, stem: str, teacher_top_k: int):
        self._tokens = _ArrayFile(folder / f"{stem}.tokens.npy", TOKEN)
        self._documents = _ArrayFile(folder / f"{stem}.documents.npy", DOCUMENT)
        dtype = teacher_dtype(teacher_top_k)
        self._teacher = _ArrayFile(folder / f"{stem}.teacher.npy", dtype) if teacher_top_k else None
        self._num_targets = 0

    @property
    def num_tokens(self) -> int:
        return self._tokens.length

    def add(self, tokens_N: np.ndarray, documents_D: np.ndarray, teacher_N: np.ndarray | None) -> None:
        records = documents_D.copy()
        records["offset"] = self.num_tokens + np.cumsum(records["length"], dtype=np.int64) - records["length"]
        self._documents.append(records)
        self._num_targets += int(records["targets"].sum())
        self._tokens.append(tokens_N)
        if self._teacher and teacher_N is not None:
            self._teacher.append(teacher_N)

    def close(self) -> ShardFacts:
        tokens, documents, teacher = self._tokens, self._documents, self._teacher
        facts: ShardFacts = {
            "tokens": tokens.file.name,
            "documents": documents.file.name,
            "num_tokens": tokens.length,
            "num_documents": documents.length,
            "num_targets": self._num_targets,
            "tokens_crc32": tokens.close(),
            "documents_crc32": documents.close(),
        }
        if teacher:
            facts["teacher"], facts["teacher_crc32"] = teacher.file.name, teacher.close()
        return facts


class _ArrayFile:
    """A 1-D .npy of a length not known beforehand: numpy pads its header so that the length can be put in last."""

    def __init__(self, file: Path, dtype: np.dtype):
        self.file, self.dtype = file, dtype
        self.length = 0
        self._crc32 = 0
        self._stream = open(file, "xb")  # noqa: SIM115 (closed by close())
        self._header_bytes = self._write_header()

    def append(self, array: np.ndarray) -> None:
        self._stream.write(array.data)
        self._crc32 = zlib.crc32(array.data, self._crc32)
        self.length += len(array)

    def close(self) -> int:
        """Put the length into the header -> the checksum of the data."""
        self._stream.seek(0)
        assert self._write_header() == self._header_bytes
        self._stream.close()
        return self._crc32

    def _write_header(self) -> int:
        header = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": (self.length,)}
        np.lib.format.write_array_header_1_0(self._stream, header)
        return self._stream.tell()
