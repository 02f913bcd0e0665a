"""Which rows a step takes: an epoch's rows are dealt to its steps so that every step has nearly the same targets.

A step divides by its own targets, so those of a step with few of them would weigh more. Three things keep steps even:

    deal_rows      the rows with most targets first, each to the step that has fewest so far: no two steps differ by
                   more than a row
    even_out       where the rows do not come out even, some steps have a row less, or one that is nearly empty: they
                   get pieces of the others' rows
    shuffle        chance decides the order of the steps, and of the rows in each

Letters in names: P pieces, R rows, S steps; S1 and R1 are boundaries, one more. Numbers of rows and steps are int64,
targets of pieces int32.
"""

import heapq
from collections.abc import Callable, Iterator

import numpy as np

from logtrain.data.pack import PackedRows, blocks, numbers

BLOCK = 1 << 12  # rows of which something is computed at once
LACK = 0.05
"""A step with so much less than the mean of all steps' targets gets pieces of others."""


def deal(
    rows: PackedRows,
    length_P: np.ndarray,
    targets_P: np.ndarray,
    num_steps: int,
    most_rows: int,
    seq_len: int,
    seed: int,
    epoch: int,
) -> tuple[PackedRows, np.ndarray]:
    """The rows in the order in which the steps take them, and int64 [S1]: where each step's begin. A pure function.

    length_P, targets_P: tokens and targets of each piece. most_rows: how many rows a step should have at most; 0: rows
    are dealt as they are.
    """
    step_R = deal_rows(row_sums(rows, targets_P), num_steps)
    if most_rows:
        rows, step_R = fill_empty_steps(rows, step_R, num_steps)
        open_rows = OpenRows(rows, step_R, length_P, num_steps, most_rows, seq_len)
        rows, step_R = even_out(open_rows, targets_P, num_steps)
    bits = np.random.PCG64(np.random.SeedSequence([seed, epoch, 1]))  # other bits than those that packed
    place_S = np.argsort(np.argsort(bits.random_raw(num_steps), kind="stable"), kind="stable")
    step_R = place_S[step_R]
    order_R = np.lexsort((bits.random_raw(len(step_R)), step_R))
    step_start_S1 = np.zeros(num_steps + 1, np.int64)
    np.cumsum(np.bincount(step_R, minlength=num_steps), out=step_start_S1[1:])
    return in_order(rows, order_R), step_start_S1


def row_sums(
    rows: PackedRows, values_P: np.ndarray, function: Callable[[np.ndarray], np.ndarray] = lambda values: values
) -> np.ndarray:
    """int64 [R]: the sum over each row's pieces, of a function of their values."""
    sums = np.zeros(rows.num_rows, np.int64)
    for block in blocks(rows.num_rows, BLOCK):
        first, end = rows.row_start_R1[[block.start, block.stop]].tolist()
        values = function(values_P[rows.piece_P[first:end]])
        np.add.reduceat(values, rows.row_start_R1[block] - first, dtype=np.int64, out=sums[block])
    return sums


def in_order(rows: PackedRows, order_R: np.ndarray) -> PackedRows:
    """The same rows, the row order_R[0] first."""
    count_R = np.diff(rows.row_start_R1)[order_R]
    row_start_R1 = np.zeros(len(order_R) + 1, np.int64)
    np.cumsum(count_R, out=row_start_R1[1:])
    piece_P = np.empty_like(rows.piece_P)
    for block in blocks(len(order_R), BLOCK):
        first, end = row_start_R1[[block.start, block.stop]].tolist()
        source = (rows.row_start_R1[order_R[block]] - row_start_R1[block])[numbers(count_R[block])]
        source += np.arange(first, end)
        piece_P[first:end] = rows.piece_P[source]
    return PackedRows(piece_P, row_start_R1)


def deal_rows(targets_R: np.ndarray, num_steps: int) -> np.ndarray:
    """int64 [R]: the step of each row. In rounds of a row a step, the last of them perhaps not to all."""
    by_targets_R = np.argsort(-targets_R, kind="stable")
    step_R, targets_S = np.empty(len(targets_R), np.int64), np.zeros(num_steps, np.int64)
    for first in range(0, len(targets_R), num_steps):
        taken = by_targets_R[first : first + num_steps]
        steps = np.argsort(targets_S, kind="stable")[: len(taken)]
        step_R[taken] = steps
        targets_S[steps] += targets_R[taken]
    return step_R


def fill_empty_steps(rows: PackedRows, step_R: np.ndarray, num_steps: int) -> tuple[PackedRows, np.ndarray]:
    """Rows and the step of each, after every step without a row has got one of a piece of a row that has several. An
    epoch may have fewer rows than the first, after which the number of steps is.
    """
    empty = np.flatnonzero(np.bincount(step_R, minlength=num_steps) == 0)
    by_count_R = np.argsort(-np.diff(rows.row_start_R1), kind="stable")[: len(empty)]
    last = rows.row_start_R1[by_count_R + 1] - 1
    last = last[last > rows.row_start_R1[by_count_R]]
    moved = {int(place): rows.num_rows + i for i, place in enumerate(last)}
    return with_moved(rows, moved, len(moved)), np.concatenate([step_R, empty[: len(moved)]])


def with_moved(rows: PackedRows, moved: dict[int, int], num_new: int) -> PackedRows:
    """The rows, and `num_new` behind them, after the pieces at some places of rows.piece_P went to other rows, where
    they stand before or behind those that were there, as their places do.
    """
    if not moved:
        return rows
    num_rows = rows.num_rows + num_new
    row_N, place_N = np.array(sorted((row, place) for place, row in moved.items()), np.int64).T
    start_R1 = np.concatenate([rows.row_start_R1, np.full(num_new, len(rows.piece_P))])
    at_N = start_R1[np.where(place_N < start_R1[row_N], row_N, row_N + 1)]
    at_N -= np.searchsorted(np.sort(place_N), at_N)
    piece_P = np.insert(np.delete(rows.piece_P, place_N), at_N, rows.piece_P[place_N])
    left_N = np.searchsorted(rows.row_start_R1, place_N, side="right") - 1
    count_R = np.diff(start_R1)
    count_R += np.bincount(row_N, minlength=num_rows) - np.bincount(left_N, minlength=num_rows)
    row_start_R1 = np.concatenate([np.zeros(1, np.int64), np.cumsum(count_R)])
    return PackedRows(piece_P, row_start_R1)


def even_out(open_rows: "OpenRows", targets_P: np.ndarray, num_steps: int) -> tuple[PackedRows, np.ndarray]:
    """Rows and the step of each, after the steps that lack over LACK of the mean have got pieces of the others' rows.

    A step gives as long as it keeps the mean, or, where that was not enough, what is not lacking; the step with fewest
    targets gets, into a row of its own where it has fewer rows than it may, else into its emptiest. One without the
    room for what it lacks gets nothing: its rows are full, of tokens that are no targets.
    """
    rows, step_R = open_rows.rows, open_rows.step_R
    targets_S = np.bincount(step_R, weights=row_sums(rows, targets_P), minlength=num_steps).astype(np.int64)
    mean = targets_S.sum() / num_steps
    least = (1 - LACK) * mean
    lacking = np.flatnonzero(targets_S < least)
    if not len(lacking):
        return rows, step_R
    lacking = lacking[open_rows.room_S[lacking] >= least - targets_S[lacking]]
    heap = list(zip(targets_S[lacking].tolist(), lacking.tolist(), strict=True))
    heapq.heapify(heap)
    givers = np.argsort(-targets_S, kind="stable")
    for floor, enough in ((mean, mean), (least, least)):
        for giver, place, given in open_rows.offers(givers, targets_P, targets_S - floor):
            if not heap or heap[0][0] >= enough:
                break
            targets, getter = heap[0]
            if targets_S[giver] - given < floor:
                continue
            if open_rows.move(place, getter):
                targets_S[giver] -= given
                heapq.heapreplace(heap, (targets + given, getter))
            elif open_rows.room_S[getter] < (least if targets < least else enough) - targets:
                heapq.heappop(heap)
    return open_rows.result()


class OpenRows:
    """Rows while pieces go from one to another. A place is where a piece stands in `rows.piece_P`."""

    def __init__(
        self,
        rows: PackedRows,
        step_R: np.ndarray,
        length_P: np.ndarray,
        num_steps: int,
        most_rows: int,
        seq_len: int,
    ):
        self.rows, self.step_R, self.length_P, self.seq_len = rows, step_R, length_P, seq_len
        self.tokens_R, count_R = row_sums(rows, length_P), np.diff(rows.row_start_R1)
        self.count_S = np.bincount(step_R, minlength=num_steps)
        self.most_rows = most_rows
        first_S = np.cumsum(self.count_S) - self.count_S
        has_rows = self.count_S > 0
        self.giving_S, self.emptiest_S = np.full(num_steps, -1), np.full(num_steps, -1)
        self.giving_S[has_rows] = np.lexsort((-count_R, step_R))[first_S[has_rows]]  # the row of most pieces
        self.emptiest_S[has_rows] = np.lexsort((self.tokens_R, step_R))[first_S[has_rows]]
        is_full_S = self.count_S >= self.most_rows  # the others get a row
        self.room_S = seq_len - np.where(is_full_S, self.tokens_R[self.emptiest_S], 0)  # of the row that gets pieces
        self.moved: dict[int, int] = {}  # place -> row
        self.new_rows: dict[int, int] = {}  # step -> row

    def offers(self, givers: np.ndarray, targets_P: np.ndarray, spare_S: np.ndarray) -> Iterator[tuple[int, int, int]]:
        """The pieces that steps may give: those of a step's row with most pieces, less the first, that have no more
        targets than it can spare. -> (step, place, targets), in the order of `givers`.

        In blocks, and chosen by numpy: a loop over all in Python slows down the threads that train.
        """
        givers = givers[(self.giving_S[givers] >= 0) & (spare_S[givers] >= 0)]
        for first in range(0, len(givers), 1024):
            of_block = givers[first : first + 1024]
            start_N, end_N = (self.rows.row_start_R1[self.giving_S[of_block] + i] for i in (0, 1))
            count_N = end_N - start_N
            number_C = numbers(count_N)
            place_C = np.arange(len(number_C)) + (start_N - np.cumsum(count_N) + count_N)[number_C]
            given_C, step_C = targets_P[self.rows.piece_P[place_C]], of_block[number_C]
            may_go_C = (given_C <= spare_S[step_C]) & (place_C > start_N[number_C])
            columns = (column[may_go_C].tolist() for column in (step_C, place_C, given_C))
            yield from (offer for offer in zip(*columns, strict=True) if offer[1] not in self.moved)

    def move(self, place: int, step: int) -> bool:
        """Put a piece into the open row of a step; -> whether it had room."""
        length = int(self.length_P[self.rows.piece_P[place]])
        if length > self.room_S[step]:
            return False
        if self.count_S[step] < self.most_rows:
            self.moved[place] = self.new_rows.setdefault(step, len(self.step_R) + len(self.new_rows))
        else:
            self.moved[place] = int(self.emptiest_S[step])
        self.room_S[step] -= length
        return True

    def result(self) -> tuple[PackedRows, np.ndarray]:
        """The rows with the pieces where they went, and the step of each."""
        rows = with_moved(self.rows, self.moved, len(self.new_rows))
        return rows, np.concatenate([self.step_R, list(self.new_rows)]).astype(np.int64)
