"""Counts and times between two records of a run."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from logtrain.data.loader import Step
from logtrain.training.step import StepResult


class Interval:
    """The counts and times since the last record, from which the next one takes its rates."""

    def __init__(self):
        self.steps = self.tokens = self.attention_pairs = 0
        self.targets_K: list[int] = []  # by source
        self.summed_loss_K: Tensor | float = 0.0  # on the device, in nats: over this rank's targets, by source
        self.measures_M: Tensor | float = 0.0  # on the device: of this rank, as of StepResult; 0 where there are none
        self.data_seconds = self.excluded_seconds = 0.0
        self.began = time.perf_counter()
        self.ended: float | None = None

    def end(self) -> "Interval":
        """Count no more time; -> the interval."""
        self.ended = time.perf_counter()
        return self

    def add(self, step: Step, result: StepResult) -> None:
        """Count a step; what it gave stays on the device."""
        self.steps += 1
        self.tokens += step.tokens
        self.attention_pairs += step.attention_pairs
        if len(step.targets_K) > 1:
            self.targets_K = [
                sum(both) for both in zip(self.targets_K or [0] * len(step.targets_K), step.targets_K, strict=True)
            ]
            self.summed_loss_K = self.summed_loss_K + result.summed_loss_K
        if result.measures_M is not None:
            self.measures_M = self.measures_M + result.measures_M

    @property
    def seconds(self) -> float:
        """Seconds of training alone, without validations and without the beginnings of saves."""
        return (self.ended or time.perf_counter()) - self.began - self.excluded_seconds

    @contextmanager
    def excluding(self) -> Iterator[None]:
        """Do not count the seconds that the block takes as training."""
        began = time.perf_counter()
        yield
        self.excluded_seconds += time.perf_counter() - began


class SkippedSteps:
    """Counts of the steps that updated nothing, kept on the device. The host has the counts of the last `read`:
    in_a_row, the skipped steps at the end; longest, the most in a row; found, all since the `read` before.
    """

    def __init__(self, device: torch.device):
        self.counts = torch.zeros(3, device=device)  # in_a_row, longest, found
        self.in_a_row = self.longest = self.found = 0

    def add(self, skipped: Tensor) -> None:
        """Count a step. `skipped`: a scalar on the device, 1 where the step was skipped, else 0."""
        in_a_row, longest, found = self.counts
        in_a_row = (in_a_row + 1) * skipped
        self.counts = torch.stack((in_a_row, torch.maximum(longest, in_a_row), found + skipped))

    def read(self) -> int:
        """Wait for the device, and begin to count anew; -> the skipped steps since the last `read`."""
        self.in_a_row, self.longest, self.found = map(int, self.counts.tolist())
        self.counts = torch.tensor([self.in_a_row, self.in_a_row, 0.0]).to(self.counts.device)
        return self.found
