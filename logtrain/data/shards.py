"""Token shards on disk: plain .npy arrays beside a manifest.json, written once, read memory-mapped.

    manifest.json              format version, fingerprint, tokenizer, settings, sources, domains, splits, their shards
    report.json                the account of every document and token
    train-00000.tokens.npy     uint32 [N]: the shard's documents, end to end; bit 31 set = context, not a target
    train-00000.documents.npy  DOCUMENT [D]: where each document lies and what it came from

The manifest is written last, so a folder without one is not a prepared folder. A checksum covers an array's data; its
header is held against the manifest instead (dtype and length), so a shard can be written as a stream.

Legend: N tokens of a shard, D documents (of a shard or of the whole split).
"""

import bisect
import contextlib
import fcntl
import itertools
import json
import os
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

FORMAT_VERSION = 1
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
LOCK = ".lock"


class Split:
    """One split of a prepared folder. Documents are numbered over its shards in order.

    manifest: dict. lengths, targets: int64 [D]. domains: int32 [D], indices into manifest["domains"].
    """

    @staticmethod
    def open(folder: str | Path, split: str = "train", verify: bool = True) -> "Split":
        """`verify` reads every byte once (about 4 GB/s from the page cache) and holds it against the checksums."""
        folder = Path(folder)
        manifest = read_manifest(folder)
        if split not in manifest["splits"]:
            raise ValueError(
                f"{folder}: no documents in split {split!r} (it has {', '.join(manifest['splits'])}); "
                f"prepare it again with another valid_fraction"
            )
        return Split(folder, manifest, split, verify)

    def __init__(self, folder: Path, manifest: dict, split: str, verify: bool):
        self.folder, self.manifest, self.name = folder, manifest, split
        shards = manifest["splits"][split]["shards"]
        self._tokens = [_open_array(folder, shard, "tokens", TOKEN, verify) for shard in shards]
        documents = [_open_array(folder, shard, "documents", DOCUMENT, verify) for shard in shards]
        self._first_document = [0, *itertools.accumulate(len(d) for d in documents)]
        documents_D = np.concatenate(documents)
        self._offset_D = documents_D["offset"].copy()
        self.lengths = documents_D["length"].astype(np.int64)
        self.targets = documents_D["targets"].astype(np.int64)
        self.domains = documents_D["domain"].astype(np.int32)

    def read(self, document: int, start: int, stop: int) -> np.ndarray:
        """Tokens [start, stop) of a document, as stored: a read-only uint32 view of the file, bit 31 included."""
        assert 0 <= start <= stop <= self.lengths[document], (document, start, stop)
        shard = bisect.bisect_right(self._first_document, document) - 1
        offset = self._offset_D[document]
        return self._tokens[shard][offset + start : offset + stop]

    def targets_between(self, document: int, start: int, stop: int) -> int:
        """Tokens in [start, stop) that are not context."""
        return int(np.count_nonzero(self.read(document, start, stop) < CONTEXT))


def read_manifest(folder: Path) -> dict:
    """The manifest of a complete prepared folder."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such prepared folder")
    file = folder / "manifest.json"
    if not file.is_file():
        raise ValueError(f"{folder}: not a prepared folder (no manifest.json); run logtrain.prepare with this --output")
    damaged = ValueError(f"{file}: damaged (not a manifest); prepare the folder again")
    try:
        manifest = json.loads(file.read_bytes())
        version = manifest["format_version"]
    except (ValueError, KeyError, TypeError):
        raise damaged from None
    if version != FORMAT_VERSION:
        raise ValueError(f"{file}: format version {version}, this program reads {FORMAT_VERSION}; prepare it again")
    try:
        for key in ("fingerprint", "settings", "sources", "domains"):
            manifest[key]
        for key in ("sha256", "bos_id", "document_end_id"):
            manifest["tokenizer"][key]
        for shard in (shard for split in manifest["splits"].values() for shard in split["shards"]):
            for kind in ("tokens", "documents"):
                shard[f"num_{kind}"], shard[f"{kind}_crc32"]
                if Path(shard[kind]).name != shard[kind]:
                    raise ValueError(f"{file}: {shard[kind]!r} is not a plain file name; prepare the folder again")
    except (AttributeError, KeyError, TypeError):
        raise damaged from None
    return manifest


def _open_array(folder: Path, shard: dict, kind: str, dtype: np.dtype, verify: bool) -> np.ndarray:
    file = folder / shard[kind]
    again = "prepare the folder again"
    try:
        # A plain ndarray over the mapping: slices of np.memmap cost microseconds each.
        array = np.load(file, mmap_mode="r", allow_pickle=False).view(np.ndarray)
    except FileNotFoundError:
        raise ValueError(f"{file}: missing, though the manifest names it; {again}") from None
    except OSError:
        raise
    except Exception:  # numpy reads the header as Python code, so damage there raises almost anything
        raise ValueError(f"{file}: cut short or damaged; {again}") from None
    if array.dtype != dtype or array.shape != (shard[f"num_{kind}"],):
        raise ValueError(
            f"{file}: holds {array.dtype.kind}{array.dtype.itemsize} {list(array.shape)}, "
            f"the manifest says {dtype.kind}{dtype.itemsize} [{shard[f'num_{kind}']}]; {again}"
        )
    if verify and zlib.crc32(array) != shard[f"{kind}_crc32"]:
        raise ValueError(f"{file}: damaged (its checksum differs from the manifest's); {again}")
    return array


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder that comes to be all at once: what the block writes into the folder it is given appears as `folder`.

    If the block fails, nothing stays. If the process is killed, `folder`.partial stays, and the next writer clears it.
    Only one process writes at a time: it holds a lock that dies with it. `folder` itself may exist only if it is empty.
    """
    aside = folder.with_name(folder.name + ".partial")
    aside.mkdir(parents=True, exist_ok=True)
    with open(aside / LOCK, "wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ours = os.path.samestat(os.fstat(lock.fileno()), os.stat(aside / LOCK))
        except (BlockingIOError, FileNotFoundError):
            ours = False  # held by another, or renamed along with its folder before we came to hold it
        if not ours:
            raise ValueError(f"{folder}: another process is writing it; wait for that one, or give another --output")
        try:
            if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
                raise ValueError(f"{folder}: not empty; empty it, or give another --output")
            for file in aside.iterdir():
                if file.name != LOCK:
                    file.unlink()
            yield aside
            _sync(aside)
            aside.rename(folder)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        (folder / LOCK).unlink()  # after the rename: whoever opens it before still finds it held
        _sync(folder.parent)


def _sync(folder: Path) -> None:
    """Puts the names in a folder on the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class ShardWriter:
    """Writes one split as a stream; memory does not grow with it. `close()` gives the split's part of the manifest.

    The document that brings a shard to `shard_tokens` is its last, so where shards end depends on the documents alone.
    """

    def __init__(self, folder: Path, split: str, shard_tokens: int):
        self.folder, self.split, self.shard_tokens = folder, split, shard_tokens
        self.shards: list[dict] = []
        self._tokens: _ArrayFile | None = None
        self._documents: _ArrayFile | None = None

    def add(self, tokens_N: np.ndarray, documents_D: np.ndarray) -> None:
        """Documents in order: their tokens joined, and their DOCUMENT records (`offset` is filled in here)."""
        assert tokens_N.dtype == TOKEN and documents_D.dtype == DOCUMENT
        ends_D = np.cumsum(documents_D["length"], dtype=np.int64)
        assert len(tokens_N) == (ends_D[-1] if len(ends_D) else 0)
        first = 0
        while first < len(documents_D):
            if self._tokens is None:
                stem = f"{self.split}-{len(self.shards):05d}"
                self._tokens = _ArrayFile(self.folder / f"{stem}.tokens.npy", TOKEN)
                self._documents = _ArrayFile(self.folder / f"{stem}.documents.npy", DOCUMENT)
                self._num_targets = 0
            start = ends_D[first] - documents_D["length"][first]
            room = self.shard_tokens - self._tokens.length
            filling = int(np.searchsorted(ends_D, start + room))  # the first document to reach the end of the room
            last = min(filling, len(documents_D) - 1)
            records = documents_D[first : last + 1].copy()
            records["offset"] = self._tokens.length + ends_D[first : last + 1] - records["length"] - start
            self._documents.append(records)
            self._num_targets += int(records["targets"].sum())
            self._tokens.append(tokens_N[start : ends_D[last]])
            if self._tokens.length >= self.shard_tokens:
                self._finish_shard()
            first = last + 1

    def close(self) -> dict:
        if self._tokens is not None:
            self._finish_shard()
        sums = {name: sum(shard[f"num_{name}"] for shard in self.shards) for name in ("documents", "tokens", "targets")}
        return {**sums, "shards": self.shards}

    def _finish_shard(self) -> None:
        tokens, documents = self._tokens, self._documents
        self._tokens = self._documents = None
        self.shards.append(
            {
                "tokens": tokens.file.name,
                "documents": documents.file.name,
                "num_tokens": tokens.length,
                "num_documents": documents.length,
                "num_targets": self._num_targets,
                "tokens_crc32": tokens.close(),
                "documents_crc32": documents.close(),
            }
        )


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
        self._crc32 = zlib.crc32(array, self._crc32)
        self.length += len(array)

    def close(self) -> int:
        """Gives the checksum of the data, which is then on the disk and not only in its cache."""
        self._stream.seek(0)
        assert self._write_header() == self._header_bytes
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._stream.close()
        return self._crc32

    def _write_header(self) -> int:
        header = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": (self.length,)}
        np.lib.format.write_array_header_1_0(self._stream, header)
        return self._stream.tell()
