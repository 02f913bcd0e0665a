"""The ground on which a storm takes place: a folder with a small model, its data, runs, exports and an evaluation, made
by the commands themselves, and a copy of it that nothing touches.

An attack is made in `here`, always the same path, for files name each other by it; `reset` brings things back.
"""

import os
import shutil
import signal
import time
from pathlib import Path

from tests.storm.execution import Ended, Execution
from tests.storm.inputs import write_inputs
from tests.storm.server import serving
from tests.storm.stage import Result, Stage
from tests.storm.stages import STAGES

HALF = "half"  # what is left of a stage that was stopped on its way: half/runs/cpt, say
STOP = ("--trainer.stop_after", "5")
STOPPED = {"cpt": STOP, "sft": STOP, "budget": STOP, "dpo": STOP}
KILLED = {"replay": "replayed.samples/00000.jsonl", "judge": "evaluation/judge/verdicts.jsonl"}
KILLED["synthesise"] = "synthesised/answers.jsonl"  # stage -> the file that it adds to


class Ground:
    def __init__(self, folder: Path):
        """Makes all of it, in a minute. Raises AssertionError where a command does not do what it should."""
        self.folder, self.here, self.kept = folder, folder / "here", folder / "kept"
        self.output = folder / "output"
        self.here.mkdir(parents=True)
        os.chdir(self.here)
        self.server = serving()
        write_inputs(self.here)
        self.results: dict[str, Result] = {}
        self.seconds: dict[str, float] = {}
        for stage in STAGES.values():
            self.make(stage)
        shutil.copytree(self.here, self.kept, symlinks=True)
        for name, flags in STOPPED.items():
            self.stop(STAGES[name], flags)
        for name, file in KILLED.items():
            self.kill(STAGES[name], self.here / file)

    def make(self, stage: Stage) -> None:
        """Run a stage undisturbed, and note what it gave."""
        ended = self.run(stage)
        assert ended.is_done, f"{stage.name}: {ended.said}"
        self.results[stage.name], self.seconds[stage.name] = stage.result(self.here / stage.leaves), ended.seconds

    def stop(self, stage: Stage, flags: tuple[str, ...]) -> None:
        """Keep what a training leaves that is stopped on its way."""
        self.take_away(stage)
        ended = self.run(stage, *flags)
        assert ended.statuses == [75], ended.said
        self.keep(stage)

    def kill(self, stage: Stage, file: Path) -> None:
        """Keep what a stage leaves that is killed once it has added some lines to a file."""
        self.take_away(stage)
        self.server.delay = 0.05
        under_way = self.start(stage)
        while under_way.is_running and not (file.exists() and file.read_bytes().count(b"\n") > 8):
            time.sleep(0.001)
        under_way.send(signal.SIGKILL)
        under_way.end()
        self.server.delay = 0.0
        self.keep(stage)

    def keep(self, stage: Stage) -> None:
        """Keep what is there of a stage as its half."""
        half = stage.half or stage.leaves
        shutil.copytree(self.here / half, self.kept / HALF / half)
        for path in beside(stage, self.here):
            (self.kept / HALF / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(self.here / path, self.kept / HALF / path)
        self.restore(stage)

    def start(self, stage: Stage, *more: str) -> Execution:
        flags = [flag.format(server=self.server.url) for flag in (*stage.flags, *more)]
        return Execution(stage.entry, flags, self.output, ranks=stage.ranks)

    def run(self, stage: Stage, *more: str, patience: float = 60.0) -> Ended:
        return self.start(stage, *more).end(patience)

    def is_equal(self, stage: Stage) -> bool:
        """Whether a stage has left what it leaves undisturbed."""
        try:
            return stage.result(self.here / stage.leaves) == self.results[stage.name]
        except (OSError, ValueError, LookupError, TypeError):
            return False

    def difference(self, stage: Stage) -> str:
        """What is not as it is undisturbed, in a few words."""
        try:
            found = stage.result(self.here / stage.leaves)
        except (OSError, ValueError, LookupError, TypeError) as error:
            return repr(error)
        wanted = self.results[stage.name]
        return ", ".join(sorted(name for name in found.keys() | wanted if found.get(name) != wanted.get(name)))

    def take_away(self, stage: Stage) -> None:
        """Remove what a stage leaves, so that it can be run."""
        remove(self.here / stage.leaves)
        for pattern in stage.beside:
            for path in self.here.glob(pattern):
                remove(path)
        for left in (self.here / stage.leaves).parent.glob(".*.partial"):
            remove(left)

    def half(self, stage: Stage) -> None:
        """Put there what the stage had left when it was stopped on its way."""
        self.take_away(stage)
        half = stage.half or stage.leaves
        shutil.copytree(self.kept / HALF / half, self.here / half)
        for path in beside(stage, self.kept / HALF):
            shutil.copy2(self.kept / HALF / path, self.here / path)

    def restore(self, stage: Stage, *things: str) -> None:
        """Bring back what a stage leaves, and these things, after an attack."""
        self.take_away(stage)
        beside = [str(path.relative_to(self.kept)) for pattern in stage.beside for path in self.kept.glob(pattern)]
        self.reset(sorted({*things, stage.leaves, *beside}))

    def reset(self, things: list[str] | None = None) -> None:
        """Bring things, or all, back to what they were."""
        for name in things or [path.name for path in self.here.iterdir()]:
            remove(self.here / name)
        for name in things or [path.name for path in self.kept.iterdir() if path.name != HALF]:
            source = self.kept / name
            (self.here / name).parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, self.here / name, symlinks=True, dirs_exist_ok=True)
            elif source.exists():
                shutil.copy2(source, self.here / name)


def beside(stage: Stage, place: Path) -> list[Path]:
    """The files that a stage has written elsewhere, from there: a run on pairs needs the numbers of its reference."""
    found = (path for pattern in stage.beside for path in place.glob(pattern))
    return [path.relative_to(place) for path in found if path.is_file()]


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
