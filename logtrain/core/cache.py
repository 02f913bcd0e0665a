"""The cache folder, into which what is elsewhere (location.py) is fetched once, by any number of processes.

A file is read in pieces, each tried again where it does not come whole, and what is fetched gets its name once it is
whole and still the same version over there. A cached folder is found by the names, sizes and versions of its files.
LOGTRAIN_CACHE is the cache folder, ~/.cache/logtrain by default; it can be deleted at any time when no program runs.
"""

import contextlib
import hashlib
import json
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from logtrain.core.atomic import new_folder
from logtrain.core.location import FILE, Place, RemoteFile, file_system, files_at, remote_file, shown, tried
from logtrain.core.lock import Held, Lock
from logtrain.core.web import Web

PIECE = 1 << 23  # bytes of a request
AT_ONCE = 4  # files that are fetched at a time
SILENCE = 5.0  # seconds between two lines about a long wait


def cache_folder() -> Path:
    """The cache folder."""
    return Path(os.environ.get("LOGTRAIN_CACHE") or Path.home() / ".cache" / "logtrain").absolute()


def fetched(uri: str, place: Place, files: Sequence[RemoteFile] = (), system: Any = None) -> Path:
    """The file or folder of a URI on this machine, fetched unless it is there. Any number of processes may call this;
    one fetches, the others wait. `files`, `system`: what it stands for, and where, if the URI itself does not say.
    Raises ValueError where it cannot be had whole.
    """
    files = files or files_at(uri, place)
    name = PurePosixPath(urlsplit(uri).path.rstrip("/")).name or urlsplit(uri).netloc
    name = files[0].name if place is FILE else name
    facts = [shown(uri), *(file[:1] + file[2:] for file in files)]
    folder = cache_folder() / "inputs" / hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]
    known = all(file.version for file in files)
    if not (folder.exists() and known):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with alone(folder.with_name(f".{folder.name}.lock"), f"another process, which fetches {shown(uri)}"):
            if not (folder.exists() and known):
                parts = cache_folder() / "parts" / folder.name
                parts.mkdir(parents=True, exist_ok=True)
                fetch_all(uri, files, parts, system)
                with new_folder(folder, replace=True) as aside:
                    for file in files:
                        target = aside / name if place is FILE else aside / name / file.name
                        target.parent.mkdir(parents=True, exist_ok=True)
                        os.rename(parts / part_of(file), target)
                parts.rmdir()
    return folder / name


def part_of(file: RemoteFile) -> str:
    """The name of a file while the others of its folder are not there yet."""
    return hashlib.sha256(file.name.encode()).hexdigest()[:32]


@contextlib.contextmanager
def alone(file: Path, other: str) -> Iterator[None]:
    """Hold a lock during the block. Waits for it, and says so."""
    last = time.monotonic()
    while True:
        with contextlib.suppress(Held), Lock(file):
            yield
            return
        if time.monotonic() - last > SILENCE:
            print(f"waiting for {other}", file=sys.stderr, flush=True)
            last = time.monotonic()
        time.sleep(0.2)


def fetch_all(uri: str, files: Sequence[RemoteFile], parts: Path, system: Any) -> None:
    """Fetch the files into `parts`, some at a time; what is whole there already stays."""
    total, done = sum(file.size or 0 for file in files), Count()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        waiting = {pool.submit(fetch, uri, file, parts / part_of(file), done, system) for file in files}
        try:
            while waiting:
                finished, waiting = wait(waiting, SILENCE, "FIRST_COMPLETED")
                for future in finished:
                    future.result()
                if not finished:
                    print(f"fetching {shown(uri)}: {done.bytes:,} of {total:,} bytes", file=sys.stderr, flush=True)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


class Count:
    """Bytes that several threads have fetched."""

    def __init__(self):
        self.bytes, self.lock = 0, threading.Lock()

    def add(self, count: int) -> None:
        """Count so many more."""
        with self.lock:
            self.bytes += count


def fetch(uri: str, file: RemoteFile, part: Path, done: Count, system: Any = None) -> None:
    """Fetch one file whole into `part`, going on where an earlier try of the same version ended."""
    if part.exists():
        done.add(part.stat().st_size)
        return
    system = system or file_system(uri)[0]
    partial = part.with_name(f"{part.name}.{hashlib.sha256(file.version.encode()).hexdigest()[:16]}")
    if isinstance(system, Web) and not tried(uri, lambda: system.info(file.path), file.name)["ranges"]:
        tried(uri, lambda: fetch_at_once(system, file, partial), file.name)
    else:
        with open(partial, "ab" if file.version else "wb") as out:
            while (at := out.tell()) < (file.size or 0):
                out.write(tried(uri, lambda: piece_of(system, file, at), file.name))
                done.add(out.tell() - at)
    if file.sha256:
        with open(partial, "rb") as stream:
            wrong = hashlib.file_digest(stream, "sha256").hexdigest() != file.sha256
        problem = "is damaged over there: it has not the hash that it was stored under"
    else:
        wrong = remote_file(file.name, tried(uri, lambda: system.info(file.path), file.name))[2:] != file[2:]
        problem = "changed while it was fetched; start again"
    if wrong:
        partial.unlink()
        raise ValueError(f"{shown(uri)}: {file.name} {problem}")
    os.rename(partial, part)


def piece_of(system: Any, file: RemoteFile, at: int) -> bytes:
    """The piece of a file that begins `at`. Raises OSError where other bytes come than were asked for."""
    end = min(at + PIECE, file.size or 0)
    piece = system.cat_file(file.path, start=at, end=end)
    if len(piece) != end - at:
        raise OSError(f"{len(piece):,} bytes came instead of {end - at:,}")
    return piece


def fetch_at_once(system: Web, file: RemoteFile, partial: Path) -> None:
    """Fetch a file whose server gives no pieces. Raises OSError where its length is another than the server said."""
    with open(partial, "wb") as out:
        for piece in system.pieces(file.path, PIECE):
            out.write(piece)
    if file.size is not None and partial.stat().st_size != file.size:
        raise OSError(f"{partial.stat().st_size:,} bytes came instead of {file.size:,}")
