"""A store of versions: a folder, here or at a URI, that anybody can read, and that any number of programs write.

    versions/NAME/000003.json       a version of NAME: its files by hash, its kind, what it was made from; sealed
    objects/3f/3f5a...              the bytes that have this SHA-256, once for all versions

A file is stored under its hash before a version names it, and a version comes to be whole or not at all, under a number
that nobody else has taken: a name is made only where it is not there yet. So two writers get two numbers, and a writer
that is killed leaves bytes that no version names, which `logtrain hub gc` removes.
"""

import contextlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import fsspec

from logtrain.core.atomic import naming, sync, write_file
from logtrain.core.checksums import sha256_of
from logtrain.core.location import RemoteFile, file_system, is_uri, regular, shown, tried
from logtrain.core.still import note
from logtrain.core.untrusted import DECODER, MAX_BYTES, OtherFields, check_depth, checked, sealed, unsealed

NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,99}")
SHA256 = re.compile(r"[0-9a-f]{64}")
CHUNK = 1 << 22
PARTIAL = ".partial-"
HOUR = 3600.0


class FileFacts(TypedDict):
    """A file of a version."""

    sha256: str
    bytes: int


class Version(TypedDict):
    """What a version is."""

    name: str
    version: int
    kind: str
    created: str
    note: str
    files: dict[str, FileFacts]
    """by their paths in the folder"""
    lineage: dict[str, Any]
    """as sharing/contents.py finds it"""
    writer: str
    """a random text, by which a writer knows its own"""


class Reference(NamedTuple):
    """hub://NAME:VERSION/PATH."""

    name: str
    """The name."""
    version: int
    """The number; 0 stands for the newest."""
    path: str = ""
    """A file or folder in it; "" for all."""


def parse(text: str) -> Reference:
    """NAME, NAME:VERSION or hub://NAME:VERSION/PATH. Raises ValueError for another text."""
    found = re.fullmatch(r"(?:hub://)?([^:/]+)(?::(\d{1,9}))?(?:/(.*))?", text)
    if not found or not NAME.fullmatch(found[1]):
        raise ValueError(f"{text}: expected NAME or NAME:VERSION, the name of letters, digits, ., _ and -")
    return Reference(found[1], int(found[2] or 0), (found[3] or "").strip("/"))


class Store:
    """A store. root: where it is."""

    def __init__(self, root: str = ""):
        """`root`: a folder or a URI; "" for that of LOGTRAIN_STORE, or ~/.logtrain/store. Raises ValueError for a
        scheme that is unknown, or whose library is missing.
        """
        self.root = (root or os.environ.get("LOGTRAIN_STORE") or str(Path.home() / ".logtrain/store")).rstrip("/")
        self.is_local = not is_uri(self.root)
        if self.is_local:
            self.root = os.path.abspath(self.root)
            self.system, self.base = fsspec.filesystem("file"), self.root
        else:
            self.system, self.base = file_system(self.root)

    # ---- versions

    def names(self) -> list[str]:
        """The names that have versions."""
        return sorted({name.split("/")[0] for name in self.listed("versions") if "/" in name})

    def numbers(self, name: str) -> list[int]:
        """The numbers that a name has given, also those of versions that were removed."""
        found = (re.fullmatch(r"(\d{6,9})\.json", file) for file in self.listed(f"versions/{name}"))
        return sorted(int(match[1]) for match in found if match)

    def versions(self, name: str) -> list[Version]:
        """The versions of a name, the oldest first."""
        found = (self.read(name, number) for number in self.numbers(name))
        return [version for version in found if version is not None]

    def newest(self, name: str) -> Version | None:
        """The newest version of a name; None where there is none."""
        found = (self.read(name, number) for number in reversed(self.numbers(name)))
        return next((version for version in found if version is not None), None)

    def read(self, name: str, number: int) -> Version | None:
        """A version; None where it was removed. Raises ValueError where there is none, or it is damaged."""
        where = self.path_of(name, number)
        try:
            place = regular(self.root, f"{self.base}/{where}")
            text = tried(self.root, lambda: self.system.cat_file(place, start=0, end=MAX_BYTES))
        except ValueError as error:
            there = ", ".join(map(str, self.numbers(name))) or "none"
            raise ValueError(f"{error}: hub://{name}:{number}; versions of {name}: {there}") from None
        try:
            facts = DECODER.decode(text.decode())
            check_depth(where, facts, "a version")
            rest = unsealed(Path(where), facts if isinstance(facts, dict) else {}, text)
            if rest.get("removed"):
                return None
            version: Version = checked(where, rest, Version)
        except OtherFields as other:
            raise ValueError(f"{self.shown}/{where}: {other.told()}") from None
        except (ValueError, RecursionError) as error:
            told = str(error).removeprefix(f"{where}: ")
            raise ValueError(f"{self.shown}/{where}: damaged: {told}; remove it to go without the version") from None
        for path, facts in version["files"].items():
            if not SHA256.fullmatch(facts["sha256"]) or not is_inside(path):
                raise ValueError(f"{self.shown}/{where}: damaged: {path[:80]!r} is no file of a version")
        if (version["name"], version["version"]) != (name, number):
            raise ValueError(f"{self.shown}/{where}: is of {version['name'][:80]}:{version['version']}")
        return version

    def find(self, reference: Reference) -> Version:
        """The version of a reference. Raises ValueError where there is none."""
        if reference.version:
            version = self.read(reference.name, reference.version)
        else:
            version = self.newest(reference.name)
        if version is None:
            number = f":{reference.version}" if reference.version else ""
            raise ValueError(f"{self.shown}: no hub://{reference.name}{number}; logtrain hub list shows what there is")
        return version

    def add(self, version: Version) -> int:
        """Store a version under the next number; -> the number."""
        number = max(self.numbers(version["name"]), default=0)
        while True:
            number += 1
            content = sealed({**version, "version": number})
            if self.create(self.path_of(version["name"], number), content):
                return number

    def remove(self, version: Version) -> None:
        """Remove a version; its number is not given again."""
        gone = sealed({"removed": True, "name": version["name"], "version": version["version"]})
        self.write(self.path_of(version["name"], version["version"]), gone)

    @staticmethod
    def path_of(name: str, number: int) -> str:
        """Where a version is."""
        return f"versions/{name}/{number:06d}.json"

    # ---- objects

    def files_of(self, reference: Reference) -> list[RemoteFile]:
        """The files of a version, to be fetched. Raises ValueError where there are none."""
        found, inner = [], reference.path
        for path, facts in sorted(self.find(reference)["files"].items()):
            if not inner or path == inner or path.startswith(f"{inner}/"):
                name = path.removeprefix(f"{inner}/") if path != inner else path.rpartition("/")[2]
                where = regular(self.root, f"{self.base}/{object_of(facts['sha256'])}")
                found.append(RemoteFile(name, where, facts["bytes"], facts["sha256"], facts["sha256"]))
        if not found:
            raise ValueError(f"{self.shown}: hub://{reference.name}: no {inner} in it")
        return found

    def put(self, file: Path) -> FileFacts:
        """Store a file's bytes; -> its facts. Bytes that are there stay, and count as new for `gc`. Raises ValueError
        where the file changes meanwhile.
        """
        facts = FileFacts(sha256=sha256_of(file), bytes=file.stat().st_size)
        where = object_of(facts["sha256"])
        if self.is_local:
            target = Path(self.base, where)
            if target.exists() and sha256_of(target) == facts["sha256"]:  # else it has been damaged since
                os.utime(target)
                return facts
            target.parent.mkdir(parents=True, exist_ok=True)
            with self.aside() as aside:
                note(f"storing {file}")
                with open(file, "rb") as source, open(aside, "wb") as copy:
                    shutil.copyfileobj(source, copy, CHUNK)
                if sha256_of(aside) != facts["sha256"]:
                    raise ValueError(f"{file}: changed while it was stored; push it again")
                sync(aside)
                os.replace(aside, target)
        elif self.age(where) is None or (self.age(where) or 0) > HOUR:
            note(f"sending {file}")
            tried(self.root, lambda: self.system.put_file(str(file), f"{self.base}/{where}"))
            if sha256_of(file) != facts["sha256"]:
                raise ValueError(f"{file}: changed while it was stored; push it again")
        return facts

    def age(self, where: str) -> float | None:
        """Seconds since an object was stored; None where it is not there."""
        self.system.invalidate_cache()
        if not tried(self.root, lambda: self.system.exists(f"{self.base}/{where}")):
            return None
        changed = tried(self.root, lambda: self.system.modified(f"{self.base}/{where}"))
        return time.time() - changed.timestamp()

    # ---- files of the store

    @property
    def shown(self) -> str:
        """The store's place, for messages."""
        return self.root if self.is_local else shown(self.root)

    def listed(self, folder: str) -> dict[str, dict[str, Any]]:
        """The files below a folder of the store, by their paths in it."""
        root = f"{self.base}/{folder}/"
        self.system.invalidate_cache()
        if self.is_local and not os.path.isdir(root):
            return {}
        found = tried(self.root, lambda: self.system.find(root, detail=True))
        return {path.removeprefix(root): info for path, info in found.items()}

    def create(self, where: str, content: bytes) -> bool:
        """Write a file that is not there; False where it is."""
        if self.is_local:
            target = Path(self.base, where)
            target.parent.mkdir(parents=True, exist_ok=True)
            with self.aside() as aside:
                aside.write_bytes(content)
                sync(aside)
                try:
                    os.link(aside, target)
                except FileExistsError:
                    return False
            sync(target.parent)
            return True
        path = f"{self.base}/{where}"
        if tried(self.root, lambda: self.pipe_new(path, content)):
            return True
        return tried(self.root, lambda: self.system.cat_file(path)) == content  # a try that seemed to fail had not

    def pipe_new(self, path: str, content: bytes) -> bool:
        """Write a file that is not there; False where it is. Raises OSError for anything else."""
        try:
            self.system.pipe_file(path, content, mode="create")
        except FileExistsError:
            return False
        except OSError as error:
            if "PreconditionFailed" in str(error) or "pre-conditions" in str(error):
                return False
            raise
        return True

    def write(self, where: str, content: bytes) -> None:
        """Write a file, whole or not at all, also in the place of an older one."""
        if self.is_local:
            write_file(Path(self.base, where), content)
        else:
            tried(self.root, lambda: self.system.pipe_file(f"{self.base}/{where}", content))

    def delete(self, where: str) -> None:
        """Remove a file."""
        tried(self.root, lambda: self.system.rm_file(f"{self.base}/{where}"))

    @contextlib.contextmanager
    def aside(self) -> Iterator[Path]:
        """A path for a file that is being written, in a local store; what is left there goes."""
        path = Path(self.base, "objects", f"{PARTIAL}{secrets.token_hex(8)}")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with naming(Path(self.root)):
                yield path
        finally:
            path.unlink(missing_ok=True)


def object_of(sha256: str) -> str:
    """Where the bytes of a hash are."""
    return f"objects/{sha256[:2]}/{sha256}"


def is_inside(path: str) -> bool:
    """Whether a path of a version stays in its folder."""
    return bool(path) and not path.startswith("/") and not {"..", ".", ""} & set(path.split("/")) and "\0" not in path
