"""A disk that is full at some moment: a tmpfs that is smaller than what a command leaves. The command must say so in
one line that names a file or folder, and, given room and the same command again, end as it does undisturbed.
"""

import dataclasses
import subprocess
from pathlib import Path
from random import Random

from tests.storm.ground import Ground
from tests.storm.outcome import Outcome, ended_well, last_line
from tests.storm.stage import Stage
from tests.storm.stages import STAGES

KIND, PATIENCE, DISK = "full disk", 40.0, "disk"
IN_PLACE = ("runs", "evaluation/judge")  # where the small disk lies over what is there, and hides it meanwhile
PAGE = 4096


def attack(ground: Ground, random: Random) -> Outcome:
    """Run a stage whose output lies on a small disk, make room, and run it again."""
    stage = on_disk(random.choice([stage for stage in STAGES.values() if place_of(stage) in (*stage.flags, *IN_PLACE)]))
    disk = ground.here / disk_of(stage)
    need = sum(-(-path.stat().st_size // PAGE) * PAGE for path in (ground.kept / STAGES[stage.name].leaves).rglob("*"))
    size = max(PAGE, int(need * random.uniform(0, 1.2)) // PAGE * PAGE)
    if disk.name != DISK:
        ground.take_away(stage)
    disk.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "storm", disk], check=True)
    try:
        return filled(ground, stage, size, need)
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
        if disk.name == DISK:
            disk.rmdir()
        else:
            ground.restore(stage)


def filled(ground: Ground, stage: Stage, size: int, need: int) -> Outcome:
    what = f"{stage.name}: {size:,} bytes of some {need:,}"
    ended = ground.run(stage, patience=PATIENCE)
    if wrong := ended_well(ended, PATIENCE):
        return Outcome(KIND, what, wrong, last_line(ended))
    if not ended.is_done:
        first = ended.errors[0] if ended.errors else ""
        if ended.statuses[0] != 2 or len(ended.errors) > len(ended.statuses):
            return Outcome(KIND, what, "status", f"{ended.statuses} {last_line(ended)}")
        if f"{disk_of(stage)}/" not in first or "0.0 " in first:
            return Outcome(KIND, what, "no path", first)
        subprocess.run(["mount", "-o", f"remount,size={64 << 20}", ground.here / disk_of(stage)], check=True)
        ended = ground.run(stage, *stage.resumes, patience=PATIENCE)
        what += f"; {first.replace(str(ground.here), '')}"
    if not ended.is_done:
        return Outcome(KIND, what, "not resumed", last_line(ended))
    equal = ground.is_equal(stage)
    return Outcome(KIND, what, "equal" if equal else "changed", "" if equal else ground.difference(stage))


def on_disk(stage: Stage) -> Stage:
    """The same stage, but for the place of what it leaves. Runs stay where they are, for an adapter has the way from
    there to its base.
    """
    place = place_of(stage)
    if place in IN_PLACE:
        return stage
    flags = tuple(f"{DISK}/{place}" if flag == place else flag for flag in stage.flags)
    return dataclasses.replace(stage, flags=flags, leaves=f"{DISK}/{stage.leaves}")


def place_of(stage: Stage) -> str:
    """What of a stage's flags says where it writes, or one of IN_PLACE."""
    return next((place for place in IN_PLACE if f"{stage.leaves}/".startswith(f"{place}/")), stage.leaves)


def disk_of(stage: Stage) -> str:
    """The folder of the ground that is a small disk while the stage, as `on_disk` gives it, runs."""
    return place_of(stage) if place_of(stage) in IN_PLACE else DISK


def is_possible(folder: Path) -> bool:
    """Whether this process may mount a tmpfs."""
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4096", "storm", folder], capture_output=True)
    return done.returncode == 0 and subprocess.run(["umount", folder]).returncode == 0
