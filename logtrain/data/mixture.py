"""Steps of rows of several sources in shares: a pure function of (seed, step, shares so far), as for a single source.

Every source has epochs of its own, each packed anew. How many rows of each a step takes is systematic sampling (Madow &
Madow 1944): the sources lie end to end on a line of `rows_per_step`, each as long as its share, and rows are cut from
the line at every whole number plus an offset. Whatever the offset, a source gets its share within one row; and as the
offsets go through CYCLE evenly spread values in a cycle of steps, its sum is right over time. Where the shares change,
every source goes on with the row after the last one that was taken of it.

Letters in names: K sources (K1 = K + 1 edges), J steps of a cycle.
"""

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple, Unpack

import numpy as np

from logtrain.data.config import LoaderConfig
from logtrain.data.epoch import Epochs, pack_epoch
from logtrain.data.loader import AHEAD, Loader, OfRank, Row
from logtrain.data.shards import Split

CYCLE = 4096  # steps; a power of 2


class Shares:
    """How many rows of each source every step takes."""

    def __init__(self, row_share_K: np.ndarray, rows_per_step: int):
        """`row_share_K`: float64, with the sum 1."""
        edges_K1 = np.concatenate([np.zeros(1), np.cumsum(row_share_K) * rows_per_step])
        edges_K1[-1] = rows_per_step
        offsets_J = (bit_reversed(CYCLE) + 0.5) / CYCLE
        self.rows_JK = np.diff(np.floor(edges_K1 + offsets_J[:, None]).astype(np.int64))
        self.before_JK = np.cumsum(self.rows_JK, axis=0) - self.rows_JK
        self.cycle_K = self.rows_JK.sum(axis=0)
        if not self.cycle_K.all():
            raise ValueError(
                f"mix: a share of {row_share_K.min():.2g} is less than a row in {CYCLE:,} steps of {rows_per_step}; "
                f"raise it, or loader.rows_per_step"
            )

    def rows(self, step: int, source: int) -> range:
        """Which rows of a source step `step` (0-based) takes, counted over all that the run takes of it."""
        cycle, in_cycle = divmod(step, CYCLE)
        first = cycle * int(self.cycle_K[source]) + int(self.before_JK[in_cycle, source])
        return range(first, first + int(self.rows_JK[in_cycle, source]))

    def steps_for(self, rows: int, source: int) -> int:
        """The fewest steps that take so many rows of a source."""
        cycles, rest = divmod(rows, int(self.cycle_K[source]))
        ends_J = self.before_JK[:, source] + self.rows_JK[:, source]
        return cycles * CYCLE + (int(np.searchsorted(ends_J, rest)) + 1 if rest else 0)


def bit_reversed(size: int) -> np.ndarray:
    """int64 [size]: 0 to size - 1, a power of 2, every beginning of which is spread evenly (van der Corput 1935)."""
    order = np.zeros(1, np.int64)
    while len(order) < size:
        order = np.concatenate([2 * order, 2 * order + 1])
    return order


class Phase(NamedTuple):
    """Steps with the same shares."""

    first: int
    """the first of them"""
    shares: Shares
    shift_K: np.ndarray
    """int64: rows of each source that were taken before `first`, less those that these shares would have taken"""


class Source(NamedTuple):
    """One of the prepared folders of a mixture."""

    split: Split
    epochs: Epochs
    num_rows: int
    """that an epoch is dealt to: a row each, but for a few where an epoch has more or fewer"""


class MixtureLoader(Loader):
    """A loader of several sources. An epoch of it is a pass over the first one."""

    def __init__(
        self,
        splits: dict[str, Split],
        token_shares: dict[str, float],
        config: LoaderConfig,
        **of_rank: Unpack[OfRank],
    ):
        """`splits`, `token_shares`: by the source's name, in one order; the shares have the sum 1. Raises ValueError as
        `Loader` does, and for micro-batches of more than a row, which could hold several sources.
        """
        if config.rows_per_batch > 1:
            raise ValueError(
                f"loader.rows_per_batch = {config.rows_per_batch}: with several sources a micro-batch is one row, so "
                f"that each source's loss is known; set it to 1"
            )
        self.set_up(config, **of_rank)
        self.names = list(splits)
        self.sources = [self.open(name, split) for name, split in splits.items()]
        self.token_shares, self.shares = token_shares, self.shares_of(token_shares)
        self.phases = [Phase(0, self.shares, np.zeros(len(self.names), np.int64))]
        self.split, self.num_rows = self.sources[0].split, self.sources[0].num_rows
        self.steps_per_epoch = self.shares.steps_for(self.num_rows, 0)

    def shares_of(self, token_shares: dict[str, float]) -> Shares:
        """Rows of each source by its share of the tokens. Raises ValueError for a share that is too small."""
        tokens_per_row_K = np.array([self.sizes[name].tokens / self.sizes[name].rows for name in self.names])
        row_share_K = np.array([token_shares[name] for name in self.names]) / tokens_per_row_K
        return Shares(row_share_K / row_share_K.sum(), self.config.rows_per_step)

    def with_share(self, name: str, share: float) -> dict[str, float]:
        """The shares of all sources where this one has another; the rest keep theirs in proportion."""
        rest = (1 - share) / (1 - self.token_shares[name])
        return {other: share if other == name else rest * of for other, of in self.token_shares.items()}

    def check_bounds(self, name: str, bounds: Sequence[float]) -> None:
        """Raise ValueError where some source's share would be too small at a bound of the share of this one."""
        for bound in bounds:
            try:
                self.shares_of(self.with_share(name, bound))
            except ValueError as error:
                raise ValueError(f"trainer.replay_bounds: at a share of {bound:g} for {name}: {error}") from None

    def next_free(self, step: int) -> int:
        """The first step (0-based) that nobody has laid out when `step` steps have been trained on."""
        return step + AHEAD + 1

    def change(self, first: int, token_shares: dict[str, float]) -> None:
        """Take these shares from step `first` on, which nobody has laid out, and which is after all changes so far.
        Raises ValueError for a share that is too small.
        """
        shares, sources = self.shares_of(token_shares), range(len(self.names))
        shift_K = np.array([self.slots(first, k).start - shares.rows(first, k).start for k in sources])
        self.phases.append(Phase(first, shares, shift_K))

    def slots(self, step: int, source: int) -> range:
        """Which rows of a source step `step` takes, counted over all that the run takes of it."""
        _, shares, shift_K = self.phases[bisect_right(self.phases, step, key=lambda phase: phase.first) - 1]
        rows, shift = shares.rows(step, source), int(shift_K[source])
        return range(rows.start + shift, rows.stop + shift)

    def open(self, name: str, split: Split) -> Source:
        """A source, whose epochs are dealt to as many slots of a row each as the first has rows."""
        one_row = self.config.with_rows_per_step(1)
        epochs = Epochs(
            lambda number: pack_epoch(
                split, one_row, self.seed, number, self.sizes[name].slots if number else 0, even=False
            ),
            self.shared and self.shared._replace(folder=self.shared.folder / name),
        )
        return Source(split, epochs, self.size_of(name, epochs).slots)

    def taken(self, step: int) -> list[Row]:
        """The rows of step `step` (0-based), source by source."""
        rows = []
        for number, source in enumerate(self.sources):
            for taken in self.slots(step, number):
                epoch_number, slot = divmod(taken, source.num_rows)
                epoch = source.epochs[epoch_number]
                first, end = epoch.slot_start_S1[slot : slot + 2].tolist()
                rows += [Row(source.split, epoch, row, number) for row in range(first, end)]
        return rows

    def prepare_after(self, step: int) -> None:
        """Begin to compute the epochs that come after those of step `step`, if the run gets that far."""
        for number, source in enumerate(self.sources):
            after = self.slots(step, number).stop // source.num_rows + 1
            if not self.end or self.slots(self.end, number).start > after * source.num_rows:
                source.epochs.prepare(after)

    def passes(self, step: int) -> list[float]:
        """How often the first `step` steps have gone through each source."""
        return [self.slots(step, k).start / source.num_rows for k, source in enumerate(self.sources)]
