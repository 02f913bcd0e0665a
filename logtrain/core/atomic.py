"""Files and folders that are written whole or not at all, and that survive a loss of power.

Everything is written under another name, synchronised to the disk (fsync), and renamed; then the folder that holds the
name is synchronised too. Until the rename an older file or folder of that name is untouched.

    write_file(path, content)            writes a small file, and replaces an older one
    with new_folder(path) as aside:      makes a folder of what the block writes into `aside`
"""

import contextlib
import ctypes
import errno
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from logtrain.core.lock import Held, Lock, flock

MARK = ".logtrain-partial"  # a file in every folder that is being written, locked by the process that writes
OLD = ".logtrain-old"  # the older folder, kept within the new one until that has the name
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # fcntl.h and linux/fs.h


def write_file(file: Path, content: bytes) -> None:
    """Write `content` to `file`, whole or not at all; an older file is replaced. Raises OSError."""
    aside = aside_of(file)
    aside.unlink(missing_ok=True)  # what a killed process left; a link would lead elsewhere
    try:
        with naming(file):
            with open(aside, "xb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(aside, file)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    sync(file.parent)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an OSError of the block name `path` where the system names no file, as for a full disk on an open file."""
    try:
        yield
    except OSError as error:
        if error.errno and not error.filename:
            error.filename = str(path)
        raise


@contextlib.contextmanager
def new_folder(folder: Path, *, replace: bool = False) -> Iterator[Path]:
    """Give the block an empty folder to write into, which gets the name `folder` when the block has ended.

    If the block fails, nothing of it stays; if the process is killed, the next writer removes the remains. A lock,
    which ends with its process, lets only one process write at a time. `replace`: whether an older `folder` is replaced
    at the end; otherwise `folder` may exist only if it is empty. Raises OSError, and ValueError where another process
    writes `folder`, or where something in its place was not written by logtrain.
    """
    aside = aside_of(folder)
    with held_aside(aside, folder):
        try:
            refuse_taken(folder, replace=replace)
            with naming(folder):
                yield aside
            sync_tree(aside)
            put_in_place(aside, folder)
        except BaseException:
            discard(aside)
            raise
        sync(folder)
        sync(folder.parent)


def refuse_taken(folder: Path, *, replace: bool = False) -> None:
    """Raise ValueError where `new_folder` would not write: for whom writing begins long after the start."""
    if os.path.lexists(folder) and (not folder.is_dir() or (any(folder.iterdir()) and not replace)):
        raise ValueError(f"{folder}: not empty; empty it, or choose another name")


def aside_of(path: Path) -> Path:
    """The path of a file or folder while it is being written."""
    return path.with_name(f".{path.name}.partial")


@contextlib.contextmanager
def held_aside(aside: Path, folder: Path) -> Iterator[None]:
    """Keep an empty folder `aside`, which no other process writes into, until the block ends. `folder`: the name that
    it will get, for errors. Raises ValueError as `new_folder` does.
    """
    with contextlib.ExitStack() as stack:
        try:
            if not is_free(aside):
                raise ValueError(f"{aside}: in the way, and not left by logtrain; move it elsewhere")
            aside.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(Lock(aside / MARK, aside.with_name(f"{aside.name}.lease")))
            other = "" if os.path.samestat(os.fstat(lock.stream.fileno()), os.stat(aside / MARK)) else "another process"
        except Held as held:
            other = str(held)
        except (FileNotFoundError, FileExistsError):  # renamed along with its folder before we came to hold it
            other = "another process"
        if other:
            raise ValueError(f"{folder}: {other} is writing it; wait for that one, or choose another name")
        if (aside / OLD).exists() and not os.path.lexists(folder):  # its process was killed between two renames
            os.rename(aside / OLD, folder)
            (folder / MARK).unlink(missing_ok=True)
        clear(aside)
        yield


def is_free(aside: Path) -> bool:
    """Whether a writer may use this path: nothing is there, or a folder that a writer left, marked or empty."""
    try:
        mode = os.lstat(aside).st_mode
    except FileNotFoundError:
        return True
    if not stat.S_ISDIR(mode):
        return False
    names = os.listdir(aside)
    return not names or (MARK in names and stat.S_ISREG(os.lstat(aside / MARK).st_mode))


def put_in_place(aside: Path, folder: Path) -> None:
    """Rename `aside` to `folder`; an older folder of that name stays until then, and is removed afterwards."""
    try:
        if not os.path.lexists(folder) or (not folder.is_symlink() and not any(folder.iterdir())):
            os.rename(aside, folder)
        else:
            put_in_place_of_older(aside, folder)
    finally:
        (folder / MARK).unlink(missing_ok=True)  # after the rename: whoever opens it before still finds it held


def put_in_place_of_older(aside: Path, folder: Path) -> None:
    """Rename `aside` to the name of an existing folder, in one step where the system can exchange names."""
    with contextlib.nullcontext() if folder.is_symlink() else open(folder / MARK, "ab") as mark:
        if mark:
            flock(mark, wait=True)  # so that the older folder, too, is held by us while it lies aside
        if exchange(aside, folder):
            discard(aside)
            return
        os.rename(folder, aside / OLD)
        try:
            os.rename(aside, folder)
        except BaseException:
            os.rename(aside / OLD, folder)
            raise
        with contextlib.suppress(OSError):
            remove(folder / OLD)


def exchange(a: Path, b: Path) -> bool:
    """Swap two names in one step; -> False where the kernel or the file system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if rename(AT_FDCWD, os.fsencode(a), AT_FDCWD, os.fsencode(b), RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), str(b))


def discard(aside: Path) -> None:
    """Delete a folder that was being written, its mark last, so that others find it held as long as anything is left.
    What cannot be deleted is left to the next writer.
    """
    with contextlib.suppress(OSError):
        if not aside.is_symlink():
            clear(aside)
            (aside / MARK).unlink(missing_ok=True)
            aside.rmdir()
        else:
            aside.unlink()


def clear(aside: Path) -> None:
    """Delete everything in a folder but its mark."""
    for left in aside.iterdir():
        if left.name != MARK:
            remove(left)


def remove(path: Path) -> None:
    """Delete a file, a link (not its target) or a folder with everything in it; a path without any is no error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync_tree(folder: Path) -> None:
    """Synchronise every file below a folder, and every name, to the disk."""
    for parent, _, names in os.walk(folder):
        for name in names:
            with naming(Path(parent, name)):
                sync(Path(parent, name))
        sync(Path(parent))


def sync(path: Path) -> None:
    """Synchronise a file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
