"""What a run's folder tells of it, from its files alone: whole, torn, damaged or not there yet.

The files may come from others, and a run may be writing them now: what cannot be read is left out, and named in
`problems`.
"""

import itertools
import math
import time
import tomllib
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

from logtrain.core.origin import RUN, check_origin, origin, read_sealed_in, strange
from logtrain.core.printable import printable
from logtrain.core.run_folder import CONFIG, check_config
from logtrain.core.sealed_lines import own_object_of
from logtrain.core.untrusted import HASH, read_bytes, read_own
from logtrain.observe.goodput import COUNTED, Attempt, read_attempts

MOST_BYTES = 256 << 20  # of a file of records: that of a million steps
MOST_LINES = 2_000_000
FROM_THE_START = ("metrics.jsonl", "events.jsonl", "system.jsonl", "goodput.json")
SEEN = 60.0  # seconds after which every machine sees what another has added to a file (NFS: 30)
NEEDS = {"export": "exported_loss", "forgetting": "sets"}  # what is in such a file of ours and in no other
T = TypeVar("T")
Line = dict[str, Any]


@dataclass
class RunFiles:
    """A run as its files tell it."""

    folder: Path
    """The folder of the run."""
    name: str
    """Its name: that of the folder."""
    config: dict[str, Any] = field(default_factory=dict)
    """Its settings by dotted key."""
    steps: list[Line] = field(default_factory=list)
    """Its records of training, in order."""
    validations: dict[str, list[Line]] = field(default_factory=dict)
    """Its records of each validation set."""
    events: list[Line] = field(default_factory=list)
    """Its events, in order of time."""
    system: dict[str, list[Line]] = field(default_factory=dict)
    """Samples of each machine, by its name."""
    attempts: list[Attempt] = field(default_factory=list)
    """Its starts."""
    export: Line = field(default_factory=dict)
    """The proof of its export."""
    forgetting: Line = field(default_factory=dict)
    """Its validation sets before and after (forgetting.json)."""
    plan: Line = field(default_factory=dict)
    """The plan that was put beside it, as `logtrain plan --json` prints it."""
    problems: list[str] = field(default_factory=list)
    """What could not be read."""

    @property
    def last(self) -> Line:
        """The last record of training; {} before the first."""
        return self.steps[-1] if self.steps else {}

    @property
    def total_steps(self) -> int:
        """Steps of the whole run, 0 where that is not known."""
        return self.attempts[-1].total_steps if self.attempts else 0

    def lines(self, file: Path, kind: str) -> list[Line]:
        """The objects of a file of JSON lines, [] where there is none; lines that are not as they were written, or not
        of this file, are left out, and counted in `problems`, but for one at the end of a run that has not ended: a
        kill has torn it, or it is being written now. `kind`: what lines of the file say that it is.
        """
        last, problems = self.attempts[-1] if self.attempts else None, len(self.problems)
        known = last.lines.get(file.name, 0) if last and (last.ended or time.time() - last.last > SEEN) else 0
        content = self.attempt(lambda: read_bytes(file, MOST_BYTES) if file.exists() else b"", b"")
        is_read = file.exists() and len(self.problems) == problems
        if is_read and (lost := known - content.count(b"\n")) > 0:
            self.problems.append(f"{file}: {lost:,} lines are lost of which goodput.json knows")
        lines = content.split(b"\n")[: MOST_LINES + 1]
        found = [own_object_of(line) for line in lines]
        has_ended = bool(last and last.ended and lines[-1])
        told = found if has_ended else found[:-1]
        if damaged := [number for number, record in enumerate(told, 1) if record is None]:
            which = f"the first is line {damaged[0]:,}; left out"
            self.problems.append(f"{file}: {len(damaged):,} lines are not as they were written, {which}")
        wanted = origin(self.folder, kind)
        records = [(record, strange(record, wanted)) for record in found if record is not None]
        if others := [other for _, other in records if other]:
            self.problems.append(f"{file}: {len(others):,} lines are those of another file: {others[0]}; left out")
        return [record for record, other in records if not other]

    def attempt(self, what: Callable[[], T], otherwise: T) -> T:
        """What a reading gives, or `otherwise`, with the problem noted, where the file is damaged."""
        try:
            return what()
        except (ValueError, OSError) as error:
            self.problems.append(" ".join(str(error).split())[:300])
            return otherwise


def read_run(folder: Path) -> RunFiles:
    """What is in the folder of a run. Raises ValueError where that is no run."""
    if not (folder / CONFIG).is_file():
        raise ValueError(f"{folder}: not a run (no {CONFIG})")
    run = RunFiles(folder, printable(folder.absolute().name, one_line=True))
    run.config = run.attempt(lambda: settings_in(folder / CONFIG), {})
    run.attempts = run.attempt(lambda: read_attempts(folder), [])
    for record in run.lines(folder / "metrics.jsonl", "metrics"):
        if type(record.get("step")) is not int:
            continue
        if "set" in record:
            run.validations.setdefault(str(record.get("set"))[:100], []).append(record)
        elif "loss" in record:
            run.steps.append(record)
    for file in sorted(folder.glob("events*.jsonl")):
        run.events += run.lines(file, "events")
    run.events.sort(key=lambda event: event["time"] if is_number(event.get("time")) else 0)
    for file in sorted(folder.glob("system*.jsonl")):
        for sample in run.lines(file, "system"):
            run.system.setdefault(str(sample.get("node", ""))[:100], []).append(sample)
    for fact, name in (("export", "adapter"), ("export", "export"), ("forgetting", "forgetting"), ("plan", "plan")):
        if (folder / f"{name}.json").is_file():
            file, key = folder / f"{name}.json", NEEDS.get(fact)
            setattr(run, fact, run.attempt(lambda file=file, key=key: facts_with(key, file), {}))
    run.attempt(lambda: check_records(run), None)
    run.problems += missing(run)
    return run


def facts_with(key: str | None, file: Path) -> Line:
    """What a file of ours holds. Raises ValueError where it has changed since, or has no such key: it is another's."""
    facts = read_sealed_in(file, file.stem)
    if key and key not in facts:
        raise ValueError(f"{file}: has no {key}: another file lies in its place")
    return facts


def settings_in(file: Path) -> Line:
    """The settings of a run by dotted key. Raises ValueError where they have changed since."""
    text = read_bytes(file).decode(errors="replace")
    if HASH.search(text.partition("\n")[0]):
        check_config(file)
    if not (settings := flat(tomllib.loads(text))):
        raise ValueError(f"{file}: holds no setting; restore it from where the run was written")
    return settings


def check_records(run: RunFiles) -> None:
    """Raises ValueError where a finished run has lost records that its last checkpoint knows: a whole line that is gone
    from the end looks like a run that was killed before it wrote it.
    """
    saved = max(run.folder.glob("checkpoints/step-*/checkpoint.json"), default=None, key=lambda file: file.parent.name)
    if saved is None or not run.attempts or run.attempts[-1].ended != "finished":
        return
    state = as_table(check_origin(saved, read_own(saved), origin(run.folder, "checkpoint")).get("state"))
    file, known = run.folder / "metrics.jsonl", state.get("records_crc32")
    lines = read_bytes(file, MOST_BYTES).splitlines(keepends=True)
    if known and known not in itertools.accumulate(lines, lambda crc, line: zlib.crc32(line, crc), initial=0):
        raise ValueError(f"{file}: records up to step {state.get('step')} are lost, or not as its checkpoint knows")


def missing(run: RunFiles) -> Iterator[str]:
    """What a run has left and is gone, a line each. A start that was killed has left nothing, and an older version,
    which gave runs no identity, left less.
    """
    if RUN not in origin(run.folder, ""):
        return
    due = {name for name in COUNTED if any(name in each.lines for each in run.attempts)}
    is_trained = bool(run.steps or run.validations) or next(run.folder.glob("checkpoints/step-*"), None) is not None
    due.update(FROM_THE_START if is_trained and not run.attempts else ())
    due.update(f"{name}.json" for name in ("export", "adapter") if (run.folder / name).is_dir())
    for name in sorted(name for name in due if not (run.folder / name).exists()):
        yield f"{run.folder / name}: is missing, and with it what it told; the run has written one"


def as_table(value: object) -> Line:
    """A JSON value if it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value can be drawn."""
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A tree of tables as {dotted key: value}."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def differing(runs: list[RunFiles]) -> dict[str, list[Any]]:
    """The settings in which runs differ, each with the values of all runs."""
    keys = dict.fromkeys(key for run in runs for key in run.config)
    found = {key: [run.config.get(key) for run in runs] for key in keys if key != "name"}
    return {key: values for key, values in found.items() if any(value != values[0] for value in values)}
