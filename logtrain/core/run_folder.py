"""The folder of a run: whose it is, who is in it, and the config that alone reproduces it.

runs/<name>/
    config.toml       every setting, resolved
    metrics.jsonl     one object a logged step or validation
    log.txt           what was shown, with times
    checkpoints/      step-000100/, ...
    export/           the trained model in the Hugging Face layout; export.json says how it compared when read back
    .lock             held by the process that is in the run
"""

import dataclasses
import fcntl
from collections.abc import Collection
from pathlib import Path
from typing import Any, TextIO

from logtrain.core.atomic import write_file
from logtrain.core.config import dump, load


def enter_run_folder(
    folder: Path,
    config: Any,
    resume: bool,
    may_change: Collection[str],
    record: str = "metrics.jsonl",
    flag: str = "--name",
) -> TextIO:
    """Make `folder` the run's of this process: create it, or with `resume` go on in it if `config` is the one it was
    started with.

    `may_change`: keys or tables that a resumed run may set anew; `record`: what is in the folder of a run that has
    begun; `flag`: what names the folder. -> the lock; it holds until it is closed or the process ends, however it ends.
    Raises ValueError when the folder holds another run, or another process is in it.
    """
    file = folder / "config.toml"
    begun = (folder / record).exists()  # a start that was refused leaves its config alone
    if begun and not resume:
        raise ValueError(
            f"{folder}: holds a run already; --resume auto goes on with it, another {flag} starts a new one"
        )
    if folder.exists() and not file.exists() and any(path.name != ".lock" for path in folder.iterdir()):
        raise ValueError(f"{folder}: exists and is not a run (no config.toml); choose another {flag}")
    folder.mkdir(parents=True, exist_ok=True)
    lock = open(folder / ".lock", "w")  # noqa: SIM115 (open for the life of the process)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(f"{folder}: in use by another process; wait for it or choose another {flag}") from None
    if begun:
        refuse_changes(file, config, may_change, flag)
    write_file(file, dump(config).encode())
    return lock


def refuse_changes(file: Path, config: Any, may_change: Collection[str], flag: str) -> None:
    """Raises ValueError where `config` differs from that of `file` in more than it may."""
    before, now = flatten(load(type(config), [str(file)])), flatten(config)
    for key, value in now.items():
        if before[key] != value and not any(key == free or key.startswith(f"{free}.") for free in may_change):
            raise ValueError(
                f"{file.parent}: was started with {key} = {before[key]!r}, now it is {value!r}; the run would not "
                f"be one: set it back or choose another {flag}"
            )


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
