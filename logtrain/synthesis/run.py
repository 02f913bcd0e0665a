"""A synthesis from its jobs to its journal: which request is sent next, what is tried again, and when it ends.

All is decided in one thread, after what is on the disk: an event is written, then counted, then acted on.
"""

import heapq
import random
import time
import zlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

from logtrain.observe.progress import Progress
from logtrain.synthesis.checking import judge
from logtrain.synthesis.chunks import Chunk
from logtrain.synthesis.config import SynthesiseConfig
from logtrain.synthesis.journal import Answer, Event, Failure, Journal, Sent
from logtrain.synthesis.prompts import Prompts, Task
from logtrain.synthesis.tally import Tally
from logtrain.synthesis.teacher import Ask, Reply, Teacher, Trouble

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 60.0  # seconds before a request is sent again; each pause is twice the one before
GIVE_UP = 8  # requests in a row, and as many as there are at once, that all have failed for good
TICK = 0.5  # seconds in which a stop is noticed


class Job(NamedTuple):
    """A row that is to be."""

    number: int
    chunk: Chunk
    task: Task
    question: str
    """what the row asks; "" where the teacher makes it"""


def make_jobs(config: SynthesiseConfig, prompts: Prompts, chunks: Sequence[Chunk]) -> list[Job]:
    """All jobs in the order in which they are asked: a random one, so that a run which ends early is a fair sample."""
    pairs = [(chunk, task) for chunk in chunks for task in prompts.tasks]
    random.Random(config.seed).shuffle(pairs)
    pairs = pairs[: config.limit or None]
    return [
        Job(number, chunk, task, prompts.question(task, chunk, f"{config.seed} {number}"))
        for number, (chunk, task) in enumerate(pairs)
    ]


class Run:
    """The work. ended: why it has ended before all was asked, "" if it has not. failure: the same where it cannot go on
    as it is.
    """

    def __init__(self, config: SynthesiseConfig, prompts: Prompts, jobs: Sequence[Job], journal: Journal, tally: Tally):
        """`tally`: after all that is in the journal."""
        self.config, self.prompts, self.jobs, self.journal, self.tally = config, prompts, jobs, journal, tally
        self.upcoming = iter([job for job in jobs if job.number not in tally.done])
        self.again: list[tuple[float, int]] = []  # (when, job)
        self.tries: dict[int, int] = {}
        self.ready: list[Job] = []
        self.in_a_row = 0
        self.ended = self.failure = ""

    def work(self, teacher: Teacher, is_stopped: Callable[[], bool]) -> None:
        """Ask for all rows, or until the budget is spent, the teacher is gone or a stop is asked for; what is under way
        is waited for.
        """
        with Progress("synthesise", len(self.jobs), title="rows") as progress:
            while True:
                if not self.ended and is_stopped():
                    self.ended = "stopped"
                if not self.ended:
                    self.send(teacher)
                if not self.tally.under_way and (self.ended or not (self.again or self.ready)):
                    break
                self.take(teacher.wait(min(TICK, self.next_in())))
                self.show(progress)

    def send(self, teacher: Teacher) -> None:
        """Send as many requests as there is room for, each after it is in the journal."""
        asks: list[Ask] = []
        events: list[Event] = []
        while len(self.tally.under_way) < teacher.concurrency and (job := self.next_job()):
            ask = self.ask(job)
            sent = Sent(job.number, ask.attempt, teacher.most_tokens(ask), self.config.max_new_tokens)
            if not self.tally.has_room(sent.prompt_tokens, sent.tokens):
                self.ready.insert(0, job)
                if not self.tally.under_way:
                    self.ended = "the budget is spent"
                break
            events.append(sent)
            self.tally.apply(sent)
            asks.append(ask)
        if events:
            self.journal.add(events)
        for ask in asks:
            teacher.submit(ask)

    def next_job(self) -> Job | None:
        """The job that is asked for next, None where there is none by now."""
        if self.ready:
            return self.ready.pop(0)
        if self.again and self.again[0][0] <= time.monotonic():
            return self.jobs[heapq.heappop(self.again)[1]]
        return next(self.upcoming, None)

    def next_in(self) -> float:
        """Seconds until a request is to be sent again."""
        return max(0.05, self.again[0][0] - time.monotonic()) if self.again else TICK

    def ask(self, job: Job) -> Ask:
        """The request for a job."""
        attempt = self.tally.attempts[job.number]
        turns = self.prompts.turns(job.task, job.chunk, job.question)
        number = zlib.crc32(f"{self.config.seed} {job.number} {attempt}".encode())
        return Ask(job.number, attempt, job.task, turns, number)

    # ---- what has come

    def take(self, come: Sequence[tuple[Ask, Reply | Trouble]]) -> None:
        """Write down what has come, and decide what follows from it."""
        events = [self.event(ask, outcome) for ask, outcome in come]
        if events:
            self.journal.add(events)
        for (ask, outcome), event in zip(come, events, strict=True):
            self.tally.apply(event)
            if isinstance(outcome, Trouble):
                self.after_trouble(ask, outcome)
                continue
            self.in_a_row = 0
            self.tries.pop(ask.job, None)
            if ask.job not in self.tally.done:
                self.ready.append(self.jobs[ask.job])

    def event(self, ask: Ask, outcome: Reply | Trouble) -> Event:
        """What the journal holds of an outcome."""
        if isinstance(outcome, Trouble):
            return Failure(ask.job, ask.attempt, outcome.kind, outcome.detail[:500], outcome.may_cost)
        job, sent = self.jobs[ask.job], self.tally.under_way[ask.job]
        verdict = judge(self.config, job.task, job.chunk, job.question, outcome.text, outcome.finish)
        is_counted = outcome.prompt_tokens is not None and outcome.tokens is not None
        prompt = sent.prompt_tokens if outcome.prompt_tokens is None else outcome.prompt_tokens
        tokens = sent.tokens if outcome.tokens is None else outcome.tokens
        return Answer(
            ask.job, ask.attempt, outcome.text, outcome.finish, prompt, tokens, is_counted, verdict.rejected[:500]
        )

    def after_trouble(self, ask: Ask, trouble: Trouble) -> None:
        """Try again later, or give up on this job, or on the teacher; the next resume asks for the job again."""
        tries = self.tries[ask.job] = self.tries.get(ask.job, 0) + 1
        if trouble.is_passing and tries < self.config.tries:
            pause = min(FIRST_PAUSE * 2 ** (tries - 1), LONGEST_PAUSE)
            heapq.heappush(self.again, (time.monotonic() + max(pause, trouble.pause), ask.job))
            return
        self.in_a_row += 1
        if trouble.is_final or self.in_a_row >= GIVE_UP + self.config.concurrency:
            where, times = (
                self.config.base_url or self.config.model,
                "" if trouble.is_final else f"{self.in_a_row} rows ",
            )
            self.failure = f"{where}: {times}not answered: {trouble.kind}: {trouble.detail}; --resume auto goes on"
            self.ended = "the teacher does not answer"

    def show(self, progress: Progress) -> None:
        """How far it is, and what it has cost."""
        tally = self.tally
        line = {
            "rows": len(tally.kept),
            "done": len(tally.done),
            "of": len(self.jobs),
            "rejected": sum(tally.rejected.values()),
            "under_way": len(tally.under_way),
            "tokens": tally.tokens,
            "dollars": round(tally.dollars, 4),
        }
        progress.update(len(tally.done), line, bar=f"{tally.tokens:,} tokens, ${tally.dollars:,.2f}")
