"""Signals to a command at any moment, also while it writes something aside. Given again, as often as it takes, it must
end with the bytes that it gives undisturbed.
"""

import re
import signal
import time
from pathlib import Path
from random import Random

from tests.storm.execution import Ended, Execution
from tests.storm.ground import Ground
from tests.storm.outcome import Outcome, ended_well, last_line
from tests.storm.stage import Stage
from tests.storm.stages import STAGES

KIND, PATIENCE, MOST = "kill", 60.0, 4
THERE = re.compile("exists already|not empty")  # a command that was killed when its output had just got its name


def attack(ground: Ground, random: Random) -> Outcome:
    """Up to MOST signals to a stage on its way, then its end."""
    stage = random.choice(list(STAGES.values()))
    ground.take_away(stage)
    sent, told = 0, []
    for _ in range(random.randint(1, MOST)):
        number = random.choice([signal.SIGKILL] * 3 + [signal.SIGTERM, signal.SIGSTOP])
        ended, moment, rank = hit(ground, stage, number, random, *(stage.resumes if sent else ()))
        if moment:
            sent += 1
            told.append(f"{number.name} {moment}")
        if (wrong := wrong_with(stage, number, rank, ended)) and not THERE.search(ended.said):
            return outcome(ground, stage, told, sent, wrong, f"{ended.statuses} {last_line(ended)}")
        if ended.is_done or THERE.search(ended.said):
            break
    else:
        ended = ground.run(stage, *stage.resumes, patience=PATIENCE)
    is_there = THERE.search(ended.said) and ground.is_equal(stage)
    if not ended.is_done and not is_there:
        wrong = "traceback" if "Traceback" in ended.said else "not resumed"
        return outcome(ground, stage, told, sent, wrong, f"{ended.statuses} {last_line(ended)}")
    equal = ground.is_equal(stage)
    return outcome(
        ground, stage, told, sent, "equal" if equal else "changed", "" if equal else ground.difference(stage)
    )


def outcome(ground: Ground, stage: Stage, told: list[str], sent: int, verdict: str, detail: str) -> Outcome:
    for left in (ground.here / stage.leaves).parent.glob(".*.partial"):
        detail += f" left: {left.name}" if verdict == "equal" and stage.name != "export" else ""
    ground.restore(stage)
    return Outcome(KIND, f"{stage.name}: {', '.join(told) or 'none'}", verdict, detail, sent)


def hit(
    ground: Ground, stage: Stage, number: signal.Signals, random: Random, *more: str
) -> tuple[Ended, str, int | None]:
    """Start the stage and send it a signal -> how it ended, when it was hit, "" where it had ended before, and which of
    its ranks alone, if it was one.
    """
    waits_for_aside, share = random.random() < 0.4, random.random()
    rank = random.randrange(stage.ranks) if stage.ranks > 1 and random.random() < 0.7 else None
    under_way = ground.start(stage, *more)
    leaves = ground.here / stage.leaves
    while under_way.is_running:
        if waits_for_aside and aside(leaves):
            time.sleep(share * 0.02)
            break
        if time.monotonic() - under_way.began > share * ground.seconds[stage.name] * (3 if waits_for_aside else 1):
            break
        time.sleep(0.001)
    if not under_way.is_running:
        return under_way.end(PATIENCE), "", None
    moment = f"after {time.monotonic() - under_way.began:.2f} s{' while writing aside' if aside(leaves) else ''}"
    if number == signal.SIGSTOP:
        return stopped(under_way, stage, rank, random), f"{moment} to rank {rank}", rank
    under_way.send(number, rank)
    return under_way.end(PATIENCE), moment, rank


def stopped(under_way: Execution, stage: Stage, rank: int | None, random: Random) -> Ended:
    """The whole program for a moment; or one of its ranks for good, which the others must find."""
    under_way.send(signal.SIGSTOP, rank)
    if rank is None:
        time.sleep(random.random())
        under_way.send(signal.SIGCONT)
        return under_way.end(PATIENCE)
    others = [process for i, process in enumerate(under_way.program.processes) if i != rank]
    while any(process.exitcode is None for process in others) and under_way.seconds < PATIENCE:
        under_way.look()
        time.sleep(0.005)
    under_way.send(signal.SIGKILL, rank)
    return under_way.end(PATIENCE)


def wrong_with(stage: Stage, number: signal.Signals, rank: int | None, ended: Ended) -> str:
    """What is wrong with the way in which a stage ended that was hit; "" where nothing is."""
    if wrong := ended_well(ended, PATIENCE):
        return wrong
    fine = {0, 3, 75, -number, -signal.SIGKILL, -signal.SIGTERM}  # 3: a rank did not answer
    # A rank that was stopped alone before it had met the others: each of these refuses, and tells in a line that it has
    # not come, or, where it is the first rank, which all ask for the others, that there is no way to it.
    missed = rank is not None and f"(rank {rank} of .* has not come{'|no way to .*' if rank == 0 else ''}) within"
    others = [status for at, status in enumerate(ended.statuses) if at != rank]
    if missed and set(others) == {2} and len(re.findall(missed, ended.said)) == len(ended.errors) == len(others):
        return ""
    return "" if set(ended.statuses) <= fine else "status"


def aside(leaves: Path) -> bool:
    """Whether something is being written aside there."""
    places = (leaves.parent, leaves, leaves / "checkpoints")
    return any(next(place.glob(".*.partial"), None) for place in places if place.is_dir())
