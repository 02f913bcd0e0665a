"""Files and folders that come to be whole or not at all, and stay where a machine loses power.

Everything is written aside, brought to the disk, given its name by one rename, and then the folder that holds the name
is brought to the disk too. Until the rename an older file or folder of that name is untouched.

    write_file(path, content)            a small file, in the place of an older one
    with new_folder(path) as aside:      a folder: the block writes into `aside`
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

MARK = ".logtrain-partial"  # in every folder that is being written, and locked by who writes it
OLD = ".logtrain-old"  # in a folder aside: the older folder, while none has the name, where names cannot be exchanged
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # fcntl.h and linux/fs.h


def write_file(file: Path, content: bytes) -> None:
    """Put `content` into `file`, whole or not at all, in the place of an older one. Raises OSError."""
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
    sync_folder(file.parent)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """An OSError of the block names a file, `path` where the system names none: a full disk is met at an open one."""
    try:
        yield
    except OSError as error:
        if error.errno and not error.filename:
            error.filename = str(path)
        raise


@contextlib.contextmanager
def new_folder(folder: Path, *, replace: bool = False) -> Iterator[Path]:
    """What the block writes into the folder that it is given appears as `folder` when the block has ended.

    If the block fails, nothing of it stays; if the process is killed, the next writer clears what is left. Only one
    process writes at a time: it holds a lock that dies with it. `replace`: a folder of this name gives way, at the end;
    without it `folder` may exist only if it is empty. Raises ValueError where another process is writing `folder`, or
    where its place is taken by what is not ours to remove, and OSError.
    """
    aside = aside_of(folder)
    with held_aside(aside, folder):
        try:
            if os.path.lexists(folder) and (not folder.is_dir() or (any(folder.iterdir()) and not replace)):
                raise ValueError(f"{folder}: not empty; empty it, or choose another name")
            yield aside
            sync_tree(aside)
            put_in_place(aside, folder)
        except BaseException:
            discard(aside)
            raise
        sync_folder(folder)
        sync_folder(folder.parent)


def aside_of(path: Path) -> Path:
    """Where a file or folder is while it is being written."""
    return path.with_name(f".{path.name}.partial")


@contextlib.contextmanager
def held_aside(aside: Path, folder: Path) -> Iterator[None]:
    """An empty folder `aside` that no other process writes into until the block ends. `folder`: its name to be."""
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
    """Whether nothing is there but what a writer has left: a folder with a mark, or without the time to set one."""
    try:
        mode = os.lstat(aside).st_mode
    except FileNotFoundError:
        return True
    if not stat.S_ISDIR(mode):
        return False
    names = os.listdir(aside)
    return MARK in names or not names


def put_in_place(aside: Path, folder: Path) -> None:
    """Give `aside` the name `folder`; an older folder of that name is there until the new one is, and then removed."""
    try:
        if not os.path.lexists(folder) or (not folder.is_symlink() and not any(folder.iterdir())):
            os.rename(aside, folder)
        else:
            put_in_place_of_older(aside, folder)
    finally:
        (folder / MARK).unlink(missing_ok=True)  # after the rename: whoever opens it before still finds it held


def put_in_place_of_older(aside: Path, folder: Path) -> None:
    """Give `aside` the name of a folder that is there, in one step where names can be exchanged."""
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
    """Swap two names in one step; False where the kernel or the file system cannot."""
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
    """Delete what lies aside, its mark last: as long as anything is left, others find it held. What cannot be deleted
    is left to the next writer.
    """
    with contextlib.suppress(OSError):
        if not aside.is_symlink():
            clear(aside)
            (aside / MARK).unlink(missing_ok=True)
            aside.rmdir()
        else:
            aside.unlink()


def clear(aside: Path) -> None:
    """Delete all in a folder but its mark."""
    for left in aside.iterdir():
        if left.name != MARK:
            remove(left)


def remove(path: Path) -> None:
    """Delete a file, a link (not what it points to) or a folder with all in it; nothing where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync_tree(folder: Path) -> None:
    """Bring every file below a folder, and every name in it, to the disk."""
    for parent, _, names in os.walk(folder):
        for name in names:
            with naming(Path(parent, name)), open(Path(parent, name), "rb") as stream:
                os.fsync(stream.fileno())
        sync_folder(Path(parent))


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
