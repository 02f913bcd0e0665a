"""What has happened since the last record of a run."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from logtrain.data.loader import Step


class Interval:
    """What has happened since the last record, from which its rates are."""

    def __init__(self):
        self.steps = self.tokens = self.attention_pairs = 0
        self.data_seconds = self.excluded_seconds = 0.0
        self.began = time.perf_counter()

    def add(self, step: Step) -> None:
        self.steps += 1
        self.tokens += step.tokens
        self.attention_pairs += step.attention_pairs

    @property
    def seconds(self) -> float:
        """Of training alone: validation and the start of a save are not counted."""
        return time.perf_counter() - self.began - self.excluded_seconds

    @contextmanager
    def excluding(self) -> Iterator[None]:
        """What the block takes is no training."""
        began = time.perf_counter()
        yield
        self.excluded_seconds += time.perf_counter() - began


class SkippedSteps:
    """Steps that updated nothing, counted on the device; the host knows what it has last read."""

    def __init__(self, device: torch.device):
        self.counts = torch.zeros(3, device=device)  # in a row now, most in a row, all; since the last reading
        self.in_a_row = self.longest = self.found = 0

    def add(self, skipped: Tensor) -> None:
        """`skipped`: 1 or 0, on the device."""
        in_a_row, longest, found = self.counts
        in_a_row = (in_a_row + 1) * skipped
        self.counts = torch.stack((in_a_row, torch.maximum(longest, in_a_row), found + skipped))

    def read(self) -> int:
        """Wait for the device; -> how many there were since the last reading."""
        self.in_a_row, self.longest, self.found = map(int, self.counts.tolist())
        self.counts = torch.tensor([self.in_a_row, self.in_a_row, 0.0]).to(self.counts.device)
        return self.found
