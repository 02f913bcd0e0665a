"""How far a synthesis is, and what it has cost: what follows from the events of its journal, live and on a resume.

A job is a row that is to be: a task about a chunk. It is done with an answer that is not rejected, or with as many
rejected ones as there are attempts. One that was not answered at all is asked for again by the next resume.
"""

from collections import Counter
from dataclasses import dataclass

from logtrain.synthesis.config import SynthesiseConfig
from logtrain.synthesis.journal import Answer, Event, Sent

PER = 1_000_000  # tokens that a price is for


@dataclass
class Cost:
    """Tokens."""

    prompt: int = 0
    answer: int = 0

    def add(self, prompt: int, answer: int) -> None:
        """Add tokens of a prompt and of an answer."""
        self.prompt, self.answer = self.prompt + prompt, self.answer + answer

    @property
    def tokens(self) -> int:
        """All of them."""
        return self.prompt + self.answer


class Tally:
    """done: the jobs that need nothing more; kept: those with an answer that is not rejected, with its attempt.
    rejected: answers, by the reason; attempts: of a job those that were. failures: requests without an answer, by their
    kind. requests: all that were sent; under_way: those without an end yet, with what they may cost; lost: those of
    runs that have ended. counted: what the teacher has counted; uncertain: what requests without an answer may have
    cost, and answers that it has not counted.
    """

    def __init__(self, config: SynthesiseConfig):
        self.config = config
        self.done: set[int] = set()
        self.kept: dict[int, int] = {}
        self.attempts: Counter[int] = Counter()
        self.rejected: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self.requests = self.answers = self.lost = 0
        self.under_way: dict[int, Sent] = {}
        self.counted, self.uncertain = Cost(), Cost()

    def apply(self, event: Event) -> None:
        """Take note of an event."""
        sent = self.under_way.pop(event.job, None)
        if isinstance(event, Sent):
            if sent:  # by a run that was killed
                self.lose(sent)
            self.under_way[event.job] = event
            self.requests += 1
            return
        if isinstance(event, Answer):
            self.answers += 1
            (self.counted if event.is_counted else self.uncertain).add(event.prompt_tokens, event.tokens)
            self.judge(event)
            return
        self.failures[event.kind] += 1
        if event.may_cost and sent:
            self.uncertain.add(sent.prompt_tokens, sent.tokens)

    def judge(self, answer: Answer) -> None:
        """Whether an answer ends its job."""
        if not answer.rejected:
            self.kept[answer.job] = answer.attempt
            self.done.add(answer.job)
            return
        self.rejected[answer.rejected.partition(":")[0]] += 1
        self.attempts[answer.job] += 1
        if self.attempts[answer.job] >= self.config.attempts:
            self.done.add(answer.job)

    def resumed(self) -> None:
        """What is under way by the journal belongs to a run that has ended."""
        for sent in self.under_way.values():
            self.lose(sent)
        self.under_way.clear()

    def lose(self, sent: Sent) -> None:
        """Count a request whose run has ended before its answer came."""
        self.lost += 1
        self.uncertain.add(sent.prompt_tokens, sent.tokens)

    # ---- the budget

    def has_room(self, prompt_tokens: int, tokens: int) -> bool:
        """Whether a request may be sent, if it and all that are under way cost the most that they may."""
        prompt = self.counted.prompt + self.uncertain.prompt + prompt_tokens
        answer = self.counted.answer + self.uncertain.answer + tokens
        for sent in self.under_way.values():
            prompt, answer = prompt + sent.prompt_tokens, answer + sent.tokens
        most, dollars = self.config.budget_tokens, self.config.budget_dollars
        return not (most and prompt + answer > most) and not (dollars and self.dollars_of(prompt, answer) > dollars)

    def dollars_of(self, prompt: int, answer: int) -> float:
        """What tokens of prompts and answers cost."""
        return (prompt * self.config.price_input + answer * self.config.price_output) / PER

    @property
    def tokens(self) -> int:
        """What has been spent, at most."""
        return self.counted.tokens + self.uncertain.tokens

    @property
    def dollars(self) -> float:
        """What has been spent, at most."""
        return self.dollars_of(self.counted.prompt + self.uncertain.prompt, self.counted.answer + self.uncertain.answer)

    def facts(self) -> dict[str, object]:
        """All counts, as the report has them."""
        return {
            "requests": self.requests,
            "answers": self.answers,
            "failures": dict(sorted(self.failures.items())),
            "lost": self.lost,
            "rejected": dict(self.rejected.most_common()),
            "tokens": {"prompts": self.counted.prompt, "answers": self.counted.answer},
            "uncertain_tokens": {"prompts": self.uncertain.prompt, "answers": self.uncertain.answer},
            "dollars": round(self.dollars, 6),
        }
