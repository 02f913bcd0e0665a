"""What is written to a URI: it is written into a folder of this machine, and copied from there.

    NAME/...         the files, in an order in which a reader never finds a folder that seems complete and is not: what
                     names a folder's other files (MARKERS) comes last, and goes first
    NAME/.logtrain   who writes there: an id of the folder of this machine

A run is copied while it goes on, so that it can be resumed on another machine, which fetches it first and writes its
own id; whoever finds another's id stops. What this machine has is newer than what is there as long as the id is its
own. No lock holds off two that begin in the same second.
"""

import hashlib
import json
import os
import secrets
import shutil
import sys
import threading
from pathlib import Path

from logtrain.core.atomic import write_file
from logtrain.core.cache import Count, cache_folder, fetch
from logtrain.core.location import RemoteFile, file_system, remote_file, shown, tried
from logtrain.core.untrusted import read_json
from logtrain.core.web import Web

CLAIM, ID, SENT = ".logtrain", ".id", ".sent.json"
FIRST = "config.toml"  # by which a folder is a run
MARKERS = ("config.json", "adapter_config.json", "manifest.json", "checkpoint.json", "checksums.json", "scores.json")
EVERY = 5.0  # seconds between two looks at what has changed
WEIGHTS = ".safetensors"
MIRRORS: dict[str, "Mirror"] = {}
"""The outputs of this process, by URI."""


class Mirror:
    """A folder of this machine that is copied to a URI.

    path: the folder, which may not exist yet; a file NAME.json beside it is copied, too.
    """

    def __init__(self, uri: str, takes_part: bool):
        """`takes_part`: whether this process copies; the others of a job know the folder only. Raises ValueError where
        the folder there cannot be written, or was not written by logtrain.
        """
        self.uri, (self.system, self.remote) = uri.rstrip("/"), file_system(uri.rstrip("/"))
        self.name = self.remote.rpartition("/")[2]
        if isinstance(self.system, Web) or "/" not in self.remote:
            raise ValueError(f"{shown(uri)}: cannot be written; expected s3://BUCKET/FOLDER or the like")
        self.staging = cache_folder() / "outputs" / hashlib.sha256(self.uri.encode()).hexdigest()[:32]
        self.path = self.staging / self.name
        self.closing, self.problem = threading.Event(), ""
        self.thread = threading.Thread(target=self.keep_copying, name=f"mirror {self.name}", daemon=True)
        if takes_part:
            self.staging.mkdir(parents=True, exist_ok=True)
            self.open()
            self.thread.start()

    def open(self) -> None:
        """Have what is there here, too, and go on from it."""
        there = self.files_there()
        known = self.staging / ID
        own = known.read_text() if known.exists() else ""
        self.sent = read_json(self.staging / SENT) if (self.staging / SENT).exists() else {}
        claim = self.claim()
        is_ours = own and claim == own
        if not is_ours and (there or claim or self.sent):
            shutil.rmtree(self.staging)
            self.staging.mkdir()
            self.sent = {}
            self.fetch(there)
        self.id = own if is_ours else secrets.token_hex(8)
        write_file(self.staging / ID, self.id.encode())
        if there and not is_ours:
            self.put_claim()

    def claim(self) -> str:
        """The id that is there; "" for none."""
        where = f"{self.remote}/{CLAIM}"
        self.system.invalidate_cache()
        if not tried(self.uri, lambda: self.system.exists(where)):
            return ""
        return tried(self.uri, lambda: self.system.cat_file(where)).decode(errors="replace")

    def put_claim(self) -> None:
        """Write this machine's id there."""
        tried(self.uri, lambda: self.system.pipe_file(f"{self.remote}/{CLAIM}", self.id.encode()))

    def files_there(self) -> list[RemoteFile]:
        """The files of the folder there, and the report beside it."""
        self.system.invalidate_cache()
        found = tried(self.uri, lambda: self.system.find(f"{self.remote}/", detail=True))
        beside = f"{self.remote}.json"
        if found and tried(self.uri, lambda: self.system.exists(beside)):
            found[beside] = tried(self.uri, lambda: self.system.info(beside))
        base = self.remote.removesuffix(self.name)
        files = [remote_file(path.removeprefix(base), info) for path, info in sorted(found.items())]
        files = [file for file in files if not any(part.startswith(".") for part in file.name.split("/"))]
        names = {file.name.rpartition("/")[2] for file in files}
        if files and not names & {FIRST, *MARKERS} and not self.claim():
            raise ValueError(f"{shown(self.uri)}: holds files that logtrain has not written; choose another folder")
        return files

    def fetch(self, there: list[RemoteFile]) -> None:
        """Fetch what is there, but for folders of weights that are not complete."""
        complete = {os.path.dirname(file.name) for file in there if os.path.basename(file.name) in MARKERS}
        half = {os.path.dirname(file.name) for file in there if file.name.endswith(WEIGHTS)} - complete
        for file in there:
            if os.path.dirname(file.name) not in half:
                target = self.staging / file.name
                target.parent.mkdir(parents=True, exist_ok=True)
                fetch(self.uri, file, target, Count())
                self.sent[file.name] = facts_of(target)
        write_file(self.staging / SENT, json.dumps(self.sent).encode())

    # ---- copying

    def keep_copying(self) -> None:
        """In a thread: copy what has changed, now and then, until the end."""
        while not self.closing.wait(EVERY):
            try:
                self.copy()
                self.problem = ""
            except (ValueError, OSError) as error:
                if not self.problem:
                    print(f"{shown(self.uri)}: not copied yet: {error}", file=sys.stderr, flush=True)
                self.problem = str(error)

    def copy(self) -> None:
        """Copy what has changed, and remove there what is gone here. Raises ValueError where that fails."""
        here = self.files_here()
        changed = [name for name in here if here[name] != self.sent.get(name)]
        gone = [name for name in self.sent if name not in here]
        if not changed and not gone:
            return
        if (claim := self.claim()) not in ("", self.id):
            raise ValueError(f"{shown(self.uri)}: another machine ({printable_id(claim)}) writes there now")
        if not claim:
            self.put_claim()
        stale = [name for name in changed if is_marker(name) and name in self.sent]
        self.remove(stale)
        for name in sorted(changed, key=order):
            self.put(name, here[name])
        self.remove(sorted(gone, key=order, reverse=True))

    def put(self, name: str, facts: list[int]) -> None:
        """Copy a file."""
        file, where = self.staging / name, self.remote.removesuffix(self.name) + name
        if not file.exists():  # removed since we looked
            return
        tried(self.uri, lambda: self.system.put_file(str(file), where))
        self.sent[name] = facts
        write_file(self.staging / SENT, json.dumps(self.sent).encode())

    def remove(self, names: list[str]) -> None:
        """Remove files there."""
        for name in names:
            where = self.remote.removesuffix(self.name) + name
            if tried(self.uri, lambda: self.system.exists(where)):  # noqa: B023 (called at once)
                tried(self.uri, lambda: self.system.rm_file(where))  # noqa: B023
            del self.sent[name]
        if names:
            write_file(self.staging / SENT, json.dumps(self.sent).encode())

    def files_here(self) -> dict[str, list[int]]:
        """Size and time of change of every file here that has its name."""
        found = {}
        for parent, folders, names in os.walk(self.staging):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in names:
                path = Path(parent, name)
                if not name.startswith("."):
                    try:
                        found[str(path.relative_to(self.staging))] = facts_of(path)
                    except FileNotFoundError:
                        continue
        return found

    def close(self) -> None:
        """Copy what is left. Raises ValueError where that fails."""
        self.closing.set()
        if self.thread.is_alive():
            self.thread.join()
            try:
                self.copy()
            except ValueError as error:
                raise ValueError(f"{error}; all of it is in {self.path}, and the same command copies it") from None
            if self.sent:
                print(f"{shown(self.uri)}: written")


def facts_of(file: Path) -> list[int]:
    """What changes when a file does."""
    facts = file.stat()
    return [facts.st_size, facts.st_mtime_ns]


def is_marker(name: str) -> bool:
    """Whether a file says that the folder around it is complete."""
    return os.path.basename(name) in MARKERS


def order(name: str) -> tuple[bool, int, str]:
    """The place of a file among those that are copied: the run's config, what is plain, markers, outer ones last."""
    base = os.path.basename(name)
    return (base != FIRST, MARKERS.index(base) + 1 if base in MARKERS else 0, name)


def printable_id(text: str) -> str:
    """The beginning of an id that others may have written."""
    return ascii(text[:16])


def mirrored(uri: str) -> Path:
    """The folder of this machine in the place of a URI that is written, until the program ends."""
    if uri not in MIRRORS:
        MIRRORS[uri] = Mirror(uri, takes_part=os.environ.get("RANK", "0") == "0")
    return MIRRORS[uri].path


def close_all() -> None:
    """Copy what this process has written to URIs. Raises ValueError where that fails."""
    for uri in list(MIRRORS):
        MIRRORS.pop(uri).close()
