"""What the server has done, in Prometheus' text format (version 0.0.4)."""

import bisect
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

Labels = tuple[tuple[str, str], ...]
TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
PER_TOKEN = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5)


class Counter:
    """A number of things that have happened, for each set of labels."""

    kind = "counter"

    def __init__(self, name: str, help: str):
        self.name, self.help = name, help
        self.values: dict[Labels, float] = defaultdict(float)

    def add(self, amount: float = 1, **labels: str) -> None:
        """Count so many more."""
        self.values[tuple(labels.items())] += amount

    def lines(self) -> Iterator[str]:
        """The samples."""
        for labels, value in self.values.items():
            yield f"{self.name}{written(labels)} {value:.17g}"


class Histogram:
    """How long things have taken, in seconds."""

    kind = "histogram"

    def __init__(self, name: str, help: str, bounds: Sequence[float] = SECONDS):
        self.name, self.help, self.bounds = name, help, bounds
        self.counts, self.sum = [0] * (len(bounds) + 1), 0.0

    def observe(self, seconds: float) -> None:
        """Count one more."""
        self.counts[bisect.bisect_left(self.bounds, seconds)] += 1
        self.sum += seconds

    def lines(self) -> Iterator[str]:
        """The samples."""
        total = 0
        for bound, count in zip((*self.bounds, "+Inf"), self.counts, strict=True):
            total += count
            yield f'{self.name}_bucket{{le="{bound}"}} {total}'
        yield f"{self.name}_sum {self.sum:.17g}"
        yield f"{self.name}_count {total}"


def written(labels: Labels) -> str:
    """Labels in braces; the values are names of ours, which need no escapes."""
    return "{" + ",".join(f'{name}="{value}"' for name, value in labels) + "}" if labels else ""


class ServerMetrics:
    """Everything that the server counts."""

    def __init__(self):
        self.requests = Counter("logtrain_requests_total", "Requests that were answered, by endpoint and status.")
        self.prompt_tokens = Counter("logtrain_prompt_tokens_total", "Tokens of prompts.")
        self.reused_tokens = Counter("logtrain_reused_tokens_total", "Tokens of prompts that the cache had.")
        self.answer_tokens = Counter("logtrain_answer_tokens_total", "Tokens of answers.")
        self.cancelled = Counter("logtrain_cancelled_total", "Requests whose client left or whose deadline passed.")
        self.first_token = Histogram("logtrain_time_to_first_token_seconds", "From a request to its first token.")
        self.per_token = Histogram(
            "logtrain_time_per_token_seconds", "Mean time of an answer's tokens after the first.", PER_TOKEN
        )
        self.whole = Histogram("logtrain_request_seconds", "From a request to the end of its answer.")

    def text(self, now: Mapping[str, tuple[str, float]]) -> str:
        """All metrics. `now`: help and value of those that can go down, by name."""
        lines = []
        for metric in vars(self).values():
            lines += [f"# HELP {metric.name} {metric.help}", f"# TYPE {metric.name} {metric.kind}", *metric.lines()]
        for name, (help, value) in now.items():
            lines += [f"# HELP {name} {help}", f"# TYPE {name} gauge", f"{name} {value:.17g}"]
        return "\n".join(lines) + "\n"
