"""Damage to any file that a command has left: a flipped bit, bytes lost at the end, in the middle or added, two files
or two blocks exchanged, a file gone. Whoever reads it must refuse it in one line, or do as if nothing had happened.
"""

import os
from pathlib import Path
from random import Random

from tests.storm.ground import Ground
from tests.storm.outcome import Outcome, verdict_of
from tests.storm.stages import STAGES

KIND, PATIENCE = "corruption", 40.0
IN_PARTS = {
    "store": ("/here/store: ", "hub://logs")
}  # whose files have names of ours: the version and its file are told
READERS = (  # what is damaged, the stage that reads it, and whether that goes on from what is left of it half-way
    *[("data", "cpt", False), ("chats", "sft", False), ("pairs", "dpo", False), ("replayed", "budget", False)],
    *[("runs/cpt", "cpt", True), ("runs/sft", "sft", True), ("runs/budget", "budget", True)] * 2,
    *[("runs/dpo", "dpo", True), ("replayed.samples", "replay", True), ("synthesised", "synthesise", True)] * 2,
    *[("evaluation/judge", "judge", True), ("evaluation", "judge", False), ("synthesised", "synthesise", False)],
    *[("runs/cpt", "export", False), ("runs/cpt", "blend", False), ("runs/sft/adapter", "merge", False)],
    *[("runs/cpt", "report", False), ("runs/cpt", "status", False), ("runs/cpt", "trace", False)],
    *[("runs/cpt/export", "evaluate", False), ("runs/sft/adapter", "evaluate", False)],
    *[("evaluation", "evaluate", False), ("benchmark", "benchmark", False), ("merged", "lineage", False)],
    *[("store", "hub pull", False), ("store", "lineage", False), ("reviewed.json.reviews.jsonl", "review", False)],
)


def attack(ground: Ground, random: Random) -> Outcome:
    """Damage one file, and run what reads it."""
    thing, name, is_half = random.choice(READERS)
    stage = STAGES[name]
    if is_half:
        ground.half(stage)
    elif thing != stage.leaves:
        ground.take_away(stage)
    place = ground.here / thing
    files = sorted(path for path in [place, *place.rglob("*")] if path.is_file() and path.name != ".lock")
    file = random.choice(files)
    how = random.choice(HOWS)
    done = how(file, random, [*alike(file, files), *alike(file, sorted((ground.kept / "runs").rglob(file.name)))])
    what = f"{'half ' * is_half}{file.relative_to(ground.here)}: {done}; {name}"
    ended = ground.run(stage, *(stage.resumes if is_half or thing == stage.leaves else ()), patience=PATIENCE)
    named = [file.name, str(file.relative_to(ground.here).parent), *IN_PARTS.get(thing, ())]
    named += [path.rpartition("/")[2] for path in done.split("exchanged with ")[1:]]
    verdict, detail = verdict_of(ground, stage, ended, PATIENCE, named)
    ground.restore(stage, thing)
    return Outcome(KIND, what, verdict, detail)


def alike(file: Path, files: list[Path]) -> list[Path]:
    """The other files of its kind."""
    return [path for path in files if path.suffix == file.suffix and path != file]


def flip(file: Path, random: Random, _others: list[Path]) -> str:
    content = bytearray(file.read_bytes())
    if not content:
        return append(file, random, [])
    at, bit = random.randrange(len(content)), random.randrange(8)
    content[at] ^= 1 << bit
    file.write_bytes(content)
    return f"bit {bit} of byte {at} of {len(content)} flipped"


def digit(file: Path, random: Random, _others: list[Path]) -> str:
    """Another digit in place of one: what is text stays well formed."""
    content = bytearray(file.read_bytes())
    digits = [at for at, byte in enumerate(content) if chr(byte).isdigit()]
    if not digits or len(content) > 1 << 20:
        return flip(file, random, [])
    at = random.choice(digits)
    old = content[at]
    content[at] = random.choice([ord(c) for c in "0123456789" if ord(c) != old])
    file.write_bytes(content)
    return f"{chr(old)} -> {chr(content[at])} at byte {at}"


def cut(file: Path, random: Random, _others: list[Path]) -> str:
    size = file.stat().st_size
    left = random.choice([0, max(0, size - 1), random.randrange(size + 1)])
    os.truncate(file, left)
    return f"cut to {left} of {size} bytes"


def append(file: Path, random: Random, _others: list[Path]) -> str:
    more = random.choice([b"\0", b"\n", b"{}", random.randbytes(100)])
    with open(file, "ab") as stream:
        stream.write(more)
    return f"{len(more)} bytes added"


def zero(file: Path, random: Random, _others: list[Path]) -> str:
    """A page that never reached the disk."""
    content = bytearray(file.read_bytes())
    at = random.randrange(len(content) + 1)
    size = min(len(content) - at, 512)
    content[at : at + size] = bytes(size)
    file.write_bytes(content)
    return f"{size} bytes from {at} on are zero"


def exchange_blocks(file: Path, random: Random, _others: list[Path]) -> str:
    content = file.read_bytes()
    half = len(content) // 2
    size = random.randrange(half + 1)
    at = random.randrange(half - size + 1)
    other = half + random.randrange(len(content) - half - size + 1)
    a, b = content[at : at + size], content[other : other + size]
    file.write_bytes(content[:at] + b + content[at + size : other] + a + content[other + size :])
    return f"{size} bytes at {at} and at {other} exchanged"


def exchange_files(file: Path, random: Random, others: list[Path]) -> str:
    """With another of its run; or that of another run, which stays as it is, in its place."""
    if not others:
        return exchange_blocks(file, random, [])
    other, content = random.choice(others), file.read_bytes()
    file.write_bytes(other.read_bytes())
    if "kept" not in other.parts:
        other.write_bytes(content)
    return f"exchanged with {other.parent.name}/{other.name}"


def delete(file: Path, _random: Random, _others: list[Path]) -> str:
    file.unlink()
    return "deleted"


HOWS = (flip, flip, digit, digit, cut, append, zero, exchange_blocks, exchange_files, delete)
