"""What --input names -> files: files, patterns of names, folders with all below them, and archives."""

import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from logtrain.core.printable import printable
from logtrain.data.archive import Archive
from logtrain.data.files import InputFile, kind_of

MAX_FILES = 1 << 17
NAMED = 5  # of what is left out


class Inputs:
    """The files of some paths. files: in the order of the paths, and within each by name. left_out: those in folders
    and archives whose names say that they are no data. given_before: those that are files of before, by a pattern that
    overlaps or a link, whose rows would count twice.
    """

    def __init__(self, paths: Iterable[str], max_row_mb: int):
        """Raises ValueError for a path that is no such file, a folder or an archive without any, and too many."""
        self.files: list[InputFile] = []
        self.left_out: list[str] = []
        self.given_before: list[str] = []
        self._seen: set[tuple[int, int, str]] = set()
        self._max_row_mb = max_row_mb
        paths = list(paths)
        if "" in paths:  # of a variable that is not set; as a path it would be all that lies here
            raise ValueError("input: an empty path; . is the folder that the program runs in")
        for path in (one for given in paths for one in matching(given)):
            before = len(self.files) + len(self.given_before)
            if path.is_dir():
                for inner in below(path):
                    self._add(inner, is_named=False)
            else:
                self._add(path, is_named=True)
            if len(self.files) + len(self.given_before) == before:
                left_out = ", ".join(few(self.left_out)) or "it is empty"
                raise ValueError(f"{path}: no file in it is one to read: {left_out}")

    def told(self) -> str:
        """A line about what is left out; "" where nothing is."""
        reasons = {"their names are those of no data": self.left_out, "they were given before": self.given_before}
        parts = [f"left out, for {why}: {', '.join(few(names))}" for why, names in reasons.items() if names]
        return printable("; ".join(parts), one_line=True)

    def _add(self, path: Path, is_named: bool) -> None:
        if path.suffix.lower() == ".zip" and path.is_file():
            archive = Archive(path)
            for member in sorted(archive.members, key=lambda member: member.filename):
                name = Path(member.filename)
                if "__MACOSX" in name.parts or any(part.startswith(".") for part in name.parts):
                    continue
                if kind_of(name.name) is None:
                    self.left_out.append(str(path / name))
                    continue
                self._append(InputFile(path, self._max_row_mb, archive, member))
        elif is_named or (kind_of(path.name) and not is_of_datasets(path)):
            self._append(InputFile(path, self._max_row_mb))
        else:
            self.left_out.append(str(path))

    def _append(self, file: InputFile) -> None:
        if str(file.path).encode(errors="ignore").decode() != str(file.path):
            raise ValueError(
                f"{file.path}: a name that is not UTF-8, which the manifest could not hold; rename the file"
            )
        facts = file.on_disk.stat()
        key = facts.st_dev, facts.st_ino, "" if file.on_disk == file.path else str(file.path)
        if key in self._seen:
            self.given_before.append(str(file.path))
            return
        self._seen.add(key)
        self.files.append(file)
        if len(self.files) > MAX_FILES:
            raise ValueError(f"input: more than {MAX_FILES:,} files; put many into one")


def few(names: list[str]) -> list[str]:
    """The first names of some, and how many others there are."""
    more = len(names) - NAMED
    return names[:NAMED] + ([f"and {more:,} others"] if more > 0 else [])


def matching(given: str) -> list[Path]:
    """The path, or the files that match it as a pattern where none has that name. Raises ValueError for none."""
    if os.path.lexists(given) or not glob.has_magic(given):
        return [Path(given)]
    found = sorted(glob.glob(given, recursive=True))
    if not found:
        raise ValueError(f"{given}: no file matches")
    return [Path(path) for path in found]


def is_of_datasets(file: Path) -> bool:
    """Whether a file is one that Hugging Face's datasets write beside rows: facts of them, or a cache of what was made
    of them.
    """
    if file.name == "state.json" or file.match("cache-*.arrow"):
        return (file.parent / "dataset_info.json").exists()
    return file.name in ("dataset_info.json", "dataset_infos.json", "dataset_dict.json")


def below(folder: Path) -> Iterator[Path]:
    """The files in a folder and in those below it, by name; hidden ones and links to folders are passed over."""
    for inside, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(inside) / name for name in sorted(names) if not name.startswith("."))
