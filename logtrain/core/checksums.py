"""What files must be, byte for byte: found again in a folder that has been published, also after it was copied.

    checksums.json      size and CRC-32 of every file beside it, under its own hash

Models and adapters that others have made have none, and are taken as they are. Where a change is meant, its author
deletes checksums.json; a folder of ours without is taken as it is, too, but whoever reads it says so.
"""

import dataclasses
import hashlib
import os
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from logtrain.core import still
from logtrain.core.printable import printable
from logtrain.core.untrusted import checked, read_sealed, sealed

FILE, LINEAGE = "checksums.json", "lineage.json"
UNVERIFIED = f"has no {FILE}, so nobody can tell whether its files are those that were published; taken as they are"
CHUNK = 1 << 24  # bytes that are read at a time


@dataclass(frozen=True)
class FileFacts:
    """What a file must be, byte for byte."""

    bytes: int
    crc32: int


def find_damage(file: Path, facts: FileFacts) -> str | None:
    """What is wrong with a file, read whole at some 2 GB/s; None where it is what it must be."""
    if not file.is_file() or file.is_symlink():
        return f"{file.name} is missing"
    if (size := file.stat().st_size) != facts.bytes:
        return f"{file.name} has {size} bytes instead of {facts.bytes}"
    return None if crc32_of(file) == facts.crc32 else f"{file.name} has another checksum"


def crc32_of(file: Path) -> int:
    """The CRC-32 of a file's bytes."""
    crc = 0
    with open(file, "rb") as stream:
        while chunk := stream.read(CHUNK):
            crc = zlib.crc32(chunk, crc)
    return crc


def write_checksums(folder: Path, note: Callable[[str], None] = still.note) -> None:
    """Describe all files of a folder in a file more. `note` is told what comes next."""
    (folder / FILE).write_bytes(description(folder, note))


def description(folder: Path, note: Callable[[str], None] = still.note) -> bytes:
    """The content of checksums.json for a folder as it is now: the same bytes for the same files."""
    facts = {}
    files = (path for path in folder.iterdir() if path.is_file() and path.name != FILE)
    for file in sorted(path for path in files if not path.name.startswith(".")):
        note(f"reading {file} for its checksum")
        facts[file.name] = FileFacts(file.stat().st_size, crc32_of(file))
    return sealed({"files": {name: dataclasses.asdict(of_file) for name, of_file in facts.items()}})


def is_unverified(folder: Path) -> bool:
    """Whether a folder is one that logtrain has published, by its lineage.json, but has no checksums any more."""
    return os.path.isfile(folder / LINEAGE) and not os.path.lexists(folder / FILE)


def described(folder: Path) -> dict[str, FileFacts]:
    """The files that a published folder's checksums describe, by name. Raises ValueError where they cannot be read."""
    return checked("files", read_sealed(folder / FILE).get("files"), dict[str, FileFacts])


def foreign(folder: Path) -> str | None:
    """The name of something in a folder that was not published with it; None where there is nothing of the kind. In a
    folder without checksums everything is.
    """
    ours = {FILE, *described(folder)} if (folder / FILE).exists() else set()
    return min((path.name for path in folder.iterdir() if path.name not in ours or path.is_dir()), default=None)


def check_file(file: Path) -> None:
    """Raises ValueError where a file is not what it was when its folder was published; without checksums it is taken
    as it is.
    """
    facts = described(file.parent).get(file.name) if (file.parent / FILE).exists() else None
    if facts and (damage := find_damage(file, facts)):
        raise ValueError(f"{file.parent}: damaged since it was published: {damage}")


def check_folder(folder: Path, note: Callable[[str], None] = still.note) -> None:
    """Raises ValueError where a file is not what it was when the folder was published. Files that have come to it since
    are nobody's business; a folder without checksums is taken as it is, and it is said on stderr if it once had some.
    """
    if is_unverified(folder) and os.environ.get("RANK", "0") == "0":  # of the ranks of a job one says so
        print(printable(f"warning: {folder}: {UNVERIFIED}", one_line=True), file=sys.stderr, flush=True)
    if not (folder / FILE).exists():
        return
    for name, facts in described(folder).items():
        note(f"verifying {folder / name}")
        if damage := find_damage(folder / Path(name).name, facts):
            raise ValueError(
                f"{folder}: damaged since it was published: {damage}; publish or copy it again, or, if the change is "
                f"meant, delete {FILE} there"
            )


def sha256_of(file: Path) -> str:
    """The SHA-256 of a file's bytes."""
    still.note(f"hashing {file}")
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
