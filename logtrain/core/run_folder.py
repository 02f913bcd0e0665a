"""The folder of a run: the run that owns it, the process that works in it, and the config that reproduces the run.

    config.toml       every setting, resolved, below a SHA-256 of the text that follows (the seal) and the identity of
                      the run, which its records name
    .lock             a file that the process which works in the run holds a lock on; without flock .lock.lease too
    ...               the run's results: metrics.jsonl, checkpoints/, export/; of an evaluation answers/, scores.json

A run has begun once its folder holds anything beside config.toml and .lock. No separate mark says so, which could get
lost while the results stay.
"""

import contextlib
import dataclasses
import hashlib
import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, TypeVar

from logtrain.core.atomic import aside_of, write_file
from logtrain.core.config import dump, load
from logtrain.core.lock import Held, Lock
from logtrain.core.untrusted import read_bytes

T = TypeVar("T")
CONFIG, LOCK = "config.toml", ".lock"
SEAL = "# sha256 of what follows: "  # the beginning of the first line of config.toml
IDENTITY = re.compile(rb"^# run ([0-9a-f]{12})$", re.MULTILINE)  # its second line


def enter_run_folder(
    folder: Path, config: Any, resume: bool, may_change: Collection[str], flag: str = "--name"
) -> "Entered":
    """Make `folder` the run of this process: create it or, with `resume`, go on with the run in it, if that was started
    with the same `config`. -> what holds it until it is closed or the process ends, however it ends.

    `may_change`: the keys and tables that a resumed run may set anew. `flag`: the flag that names the folder, for
    errors. Raises ValueError where the folder holds another run, its config has been changed or damaged, or another
    process works in it.
    """
    begun = check_begun(folder, resume, flag)
    made = tuple(path for path in (folder, *folder.parents) if not path.exists())
    entered = Entered(folder, made, hold(folder, f" or choose another {flag}"))
    try:
        if begun:
            refuse_changes(folder, config, may_change, flag)
        text = f"# run {identity(folder, config, may_change, begun)}\n{dump(config)}"
        write_file(folder / CONFIG, f"{SEAL}{hashlib.sha256(text.encode()).hexdigest()}\n{text}".encode())
    except BaseException as error:
        entered.__exit__(type(error))
        raise
    return entered


@dataclasses.dataclass(frozen=True)
class Entered:
    """A run's folder that this process works in until it is closed; as a context manager, until the block ends. A block
    that fails before the run has begun leaves nothing of it.
    """

    folder: Path
    """The folder of the run."""
    made: tuple[Path, ...]
    """What was made for it: the folder itself and those around it, from the inside to the outside."""
    lock: Lock
    """Held by this process."""

    def close(self) -> None:
        """Give the folder back; whatever is in it stays."""
        self.lock.close()

    def __enter__(self) -> "Entered":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        is_nothing = kind is not None and self.folder.is_dir() and not has_begun(self.folder)
        if is_nothing:
            for path in self.folder.iterdir():
                with contextlib.suppress(OSError):  # what is wrong is another error, which is on its way
                    path.rmdir() if path.is_dir() else path.unlink()
        self.close()
        for path in self.made if is_nothing else ():
            with contextlib.suppress(OSError):  # others may have written there meanwhile
                path.rmdir()


def hold(folder: Path, otherwise: str = "") -> Lock:
    """The lock of a folder, which is made where it is missing. `otherwise`: what else can be done than to wait. Raises
    ValueError where another process works in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = Lock(folder / LOCK)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock.stream.fileno()), os.stat(folder / LOCK)):
                return lock
        lock.close()
        other = "another process, which has just left it"  # and has taken the lock's file along
    except Held as held:
        other = str(held)
    raise ValueError(f"{folder}: in use by {other}; wait for it{otherwise}")


def check_begun(folder: Path, resume: bool, flag: str = "--name") -> bool:
    """Whether a run has begun in `folder`: a start that was killed leaves nothing but its config. Raises ValueError
    where something else is there, or a run that is not to be resumed.
    """
    begun = has_begun(folder)
    if begun and not (folder / CONFIG).exists():
        raise ValueError(f"{folder}: exists and is not a run (no {CONFIG}); choose another {flag}")
    if begun and not resume:
        raise ValueError(
            f"{folder}: holds a run already; --resume auto goes on with it, another {flag} starts a new one"
        )
    return begun


def has_begun(folder: Path) -> bool:
    """Whether there is anything in the folder besides a config."""
    if not folder.is_dir():
        return folder.exists()
    own = CONFIG, LOCK, f"{LOCK}.lease", aside_of(Path(CONFIG)).name
    entries = (path for path in folder.iterdir() if path.name not in own)
    return any(not path.is_dir() or any(path.iterdir()) for path in entries)


def read_run_config(folder: Path, cls: type[T]) -> T:
    """The config that a run was started with. Raises ValueError where there is none, or it has changed since."""
    file = folder / CONFIG
    if not file.exists():
        raise ValueError(f"{folder}: not a run (no {CONFIG})")
    check_config(file)
    return load(cls, [str(file)], writes=False)


def check_config(file: Path) -> str:
    """The text of a run's config. Raises ValueError where it has changed since."""
    seal, _, text = read_bytes(file).decode(errors="replace").partition("\n")
    if seal != SEAL + hashlib.sha256(text.encode()).hexdigest():
        raise ValueError(f"{file}: has changed since the run was started; restore it, or start a new run with it")
    return text


def refuse_changes(folder: Path, config: Any, may_change: Collection[str], flag: str) -> None:
    """Raises ValueError where `config` differs from that of the run in more than it may."""
    before, now = flatten(read_run_config(folder, type(config))), flatten(config)
    for key, value in now.items():
        if before[key] != value and not is_free(key, may_change):
            raise ValueError(
                f"{folder}: was started with {key} = {before[key]!r}, now it is {value!r}, which would change "
                f"the result; set it back or choose another {flag}"
            )


def identity(folder: Path, config: Any, may_change: Collection[str], begun: bool) -> str:
    """By what the records of a run are known as its own: what it was given when it began, kept wherever the folder goes
    later. It follows from place and settings, so that a run that was interrupted leaves the bytes of one that was not.
    """
    if begun and (given := identity_in(read_bytes(folder / CONFIG))):
        return given
    settings = {key: value for key, value in flatten(config).items() if not is_free(key, may_change)}
    return hashlib.sha256(f"{folder.absolute()} {settings}".encode()).hexdigest()[:12]


def identity_in(text: bytes) -> str:
    """The identity of a run in its config.toml; "" in one of an older version, which gave none."""
    found = IDENTITY.search(text)
    return found[1].decode() if found else ""


def is_free(key: str, may_change: Collection[str]) -> bool:
    """Whether a resumed run may set this dotted key anew."""
    return any(key == free or key.startswith(f"{free}.") for free in may_change)


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """A config as {dotted key: value}."""
    flat = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        flat |= (
            flatten(value, f"{prefix}{field.name}.")
            if dataclasses.is_dataclass(value)
            else {prefix + field.name: value}
        )
    return flat
