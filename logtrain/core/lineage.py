"""lineage.json of what a run has made: the settings that its result depends on, the commit of the program, and its
parents, which are the model and the data, each with a hash by which it is found wherever it lies later.
"""

import hashlib
import json
import os
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from logtrain.core import still
from logtrain.core.checksums import LINEAGE as LINEAGE
from logtrain.core.checksums import description, is_unverified, sha256_of
from logtrain.core.location import origin_of

STAND_FOR = ("manifest.json", "checksums.json", "checkpoint.json")  # the files that stand for the folder around them


def write_lineage(folder: Path, parents: Iterable[dict[str, str]], config: dict[str, Any]) -> None:
    """Write into `folder` what it was made from. `config`: settings by dotted key."""
    content = {"commit": commit(), "parents": list(parents), "config": config}
    (folder / LINEAGE).write_text(json.dumps(content, indent=1, default=list) + "\n", encoding="utf-8")


def parent_of(role: str, path: str | Path, note: Callable[[str], None] = still.note) -> dict[str, str]:
    """A parent: what it was for, its path or URI, and the hash of what stands for it, "" where nothing does. `note`: as
    of `standing_hash`.
    """
    return {"role": role, "path": origin_of(path), "sha256": standing_hash(Path(path), note)}


def standing_hash(path: Path, note: Callable[[str], None] = still.note) -> str:
    """The hash of the file that stands for a folder, or of the file itself; "" where there is none. A folder of ours
    without checksums has the hash of those that describe it now: the old one, if nothing has changed. `note` is told
    each file that is read for them: that of a watchdog where ranks wait meanwhile.
    """
    files = [path] if os.path.isfile(path) else [path / name for name in STAND_FOR if os.path.isfile(path / name)]
    if files:
        return sha256_of(files[0])
    return hashlib.sha256(description(path, note)).hexdigest() if is_unverified(path) else ""


def commit() -> str:
    """The commit of the program, with a + where its files have changed since; "" where it is not run from a clone."""
    here = Path(__file__).parent
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, timeout=10)
        status = ["git", "status", "--porcelain", "--untracked-files=no", "."]
        changed = subprocess.run(status, cwd=here.parent, capture_output=True, text=True, timeout=10).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return head.stdout.strip() + "+" * bool(changed.strip()) if head.returncode == 0 else ""
