"""The stages of a rehearsal. Each is tried on every rank; what fails is kept in a line; what needs it is left out."""

import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch.distributed as dist

from logtrain.core.entry import words_of
from logtrain.core.location import told
from logtrain.core.printable import printable
from logtrain.core.world import World

WIDTH = 22  # characters of a stage's name


@dataclass
class Stage:
    """What came of a stage."""

    name: str
    """What it tries, in words."""
    passed: bool | None = None
    """None where it was left out."""
    seconds: float = 0.0
    """How long it took on rank 0."""
    told: list[str] = field(default_factory=list)
    """What was found, in lines."""
    problems: list[str] = field(default_factory=list)
    """What failed, a line each, with what to do."""

    def lines(self) -> list[str]:
        """The stage as people read it: a line for each thing that was found."""
        word = {True: "ok", False: "FAILED", None: "left out"}[self.passed]
        texts = [*self.problems, *self.told] or [""]
        head = f"{word:8} {self.name:{WIDTH}} {self.seconds:6.1f} s  "
        return [(head if at == 0 else " " * len(head)) + text for at, text in enumerate(texts)]


class Stages:
    """The stages so far. Every rank has them, and tries the same in the same order."""

    def __init__(self, world: World, say: Callable[[str], None]):
        """`say`: what is done with a line, on rank 0."""
        self.world, self.say = world, say
        self.done: list[Stage] = []

    def attempt(self, name: str, work: Callable[[], Sequence[str]], needs: Sequence[str] = ()) -> bool:
        """Try a stage; -> whether it has passed on all ranks. `work`: returns what it found, or raises ValueError or
        OSError; it waits for no other rank. `needs`: stages without which it is left out.
        """
        stage = Stage(name)
        if missing := [need for need in needs if not self.has_passed(need)]:
            stage.told = [f"needs {' and '.join(missing)}"]
            self.keep(stage)
            return False
        self.world.note(name)
        began = time.monotonic()
        own: tuple[list[str], str] = [], ""
        try:
            own = list(work()), ""
        except (ValueError, OSError) as error:
            own = [], printable(" ".join(told(words_of(error)).split()), one_line=True)
        every = gathered(self.world, (*own, platform.node()))
        stage.seconds = time.monotonic() - began
        stage.told = every[0][0]
        for rank, (_, problem, node) in enumerate(every):
            if problem and all(problem not in known for known in stage.problems):
                stage.problems.append(f"rank {rank} on {node}: {problem}" if rank else problem)
        stage.passed = not stage.problems
        self.keep(stage)
        return stage.passed

    def keep(self, stage: Stage) -> None:
        """Remember a stage, and say what came of it."""
        self.done.append(stage)
        if self.world.is_main:
            for line in stage.lines():
                self.say(line)

    def has_passed(self, name: str) -> bool:
        """Whether a stage was tried and has passed."""
        return any(stage.name == name and stage.passed for stage in self.done)

    @property
    def problems(self) -> list[str]:
        """All that failed."""
        return [problem for stage in self.done for problem in stage.problems]

    def to_json(self) -> list[dict[str, Any]]:
        """The stages for programs."""
        return [asdict(stage) for stage in self.done]


def gathered(world: World, value: Any) -> list[Any]:
    """The values of all ranks, in their order, on every rank; from host to host."""
    found = [value] * world.size
    dist.all_gather_object(found, value, group=world.control)
    return found
