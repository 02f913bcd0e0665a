"""The ground on which a storm takes place: a folder with a small model, its data, runs, exports and an evaluation, made
by the commands themselves, and a copy of it that nothing touches.

An attack is made in `here`, always the same path, for files name each other by it; `reset` brings things back.
"""

import os
import random
import shutil
from pathlib import Path

from tests.storm.execution import Ended, execute
from tests.storm.stage import STAGES, Result, Stage
from tests.support.evaluation import ROWS, write_chat_model
from tests.support.preparing import dump, make_rows

HALF = "half"  # what is left of a stage that was stopped on its way: half/runs/cpt, say
STOPPED = {"cpt": ("--trainer.stop_after", "5"), "sft": ("--trainer.stop_after", "5")}


class Ground:
    def __init__(self, folder: Path):
        """Makes all of it, some 20 seconds. Raises AssertionError where a command does not do what it should."""
        self.folder, self.here, self.kept = folder, folder / "here", folder / "kept"
        self.output = folder / "output"
        self.here.mkdir(parents=True)
        os.chdir(self.here)
        write_chat_model(self.here / "model", 0.3)
        source = random.Random(5)
        chats = [
            {"instruction": f"why error {i}?", "input": "disk " * source.randrange(9), "output": f"because disk {i}."}
            for i in range(40)
        ]
        dump(self.here / "text.json", make_rows(60))
        dump(self.here / "chats.json", chats)
        dump(self.here / "test.json", ROWS[:5])
        self.results: dict[str, Result] = {}
        self.seconds: dict[str, float] = {}
        for stage in STAGES.values():
            self.make(stage)
        shutil.copytree(self.here, self.kept, symlinks=True)
        for name, flags in STOPPED.items():
            self.stop(STAGES[name], flags)

    def make(self, stage: Stage) -> None:
        """Run a stage undisturbed, and note what it gave."""
        ended = self.run(stage)
        assert ended.is_done, f"{stage.name}: {ended.said}"
        self.results[stage.name], self.seconds[stage.name] = stage.result(self.here / stage.leaves), ended.seconds

    def stop(self, stage: Stage, flags: tuple[str, ...]) -> None:
        """Keep what a training leaves that is stopped on its way."""
        self.take_away(stage)
        ended = execute(stage.entry, [*stage.flags, *flags], self.output)
        assert ended.statuses == [75], ended.said
        shutil.copytree(self.here / stage.leaves, self.kept / HALF / stage.leaves)
        self.reset([stage.leaves])

    def run(self, stage: Stage, *more: str, patience: float = 60.0) -> Ended:
        return execute(stage.entry, [*stage.flags, *more], self.output, ranks=stage.ranks, patience=patience)

    def is_equal(self, stage: Stage) -> bool:
        """Whether a stage has left what it leaves undisturbed."""
        try:
            return stage.result(self.here / stage.leaves) == self.results[stage.name]
        except (OSError, ValueError):
            return False

    def difference(self, stage: Stage) -> str:
        """What is not as it is undisturbed, in a few words."""
        try:
            found = stage.result(self.here / stage.leaves)
        except (OSError, ValueError) as error:
            return str(error)
        wanted = self.results[stage.name]
        return ", ".join(sorted(name for name in found.keys() | wanted if found.get(name) != wanted.get(name)))

    def take_away(self, stage: Stage) -> None:
        """Remove what a stage leaves, so that it can be run."""
        remove(self.here / stage.leaves)
        if stage.name == "export":
            remove(self.here / f"{stage.leaves}.json")
        for left in (self.here / stage.leaves).parent.glob(".*.partial"):
            remove(left)

    def half(self, stage: Stage) -> None:
        """Put there what the stage had left when it was stopped on its way."""
        self.take_away(stage)
        shutil.copytree(self.kept / HALF / stage.leaves, self.here / stage.leaves)

    def reset(self, things: list[str] | None = None) -> None:
        """Bring things, or all, back to what they were."""
        for name in things or [path.name for path in self.here.iterdir()]:
            remove(self.here / name)
        for name in things or [path.name for path in self.kept.iterdir() if path.name != HALF]:
            source = self.kept / name
            (self.here / name).parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, self.here / name, symlinks=True)
            elif source.exists():
                shutil.copy2(source, self.here / name)


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
