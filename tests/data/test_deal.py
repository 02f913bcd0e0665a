"""An epoch's rows dealt to steps: every piece once, no row too long, steps even, a pure function of (seed, epoch)."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logtrain.data.deal import deal, deal_rows
from logtrain.data.pack import PackedRows, pack

SEQ_LEN = 64


@st.composite
def epochs(draw) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Lengths and targets of pieces, rows a step, and a seed."""
    seed, rows_per_step = draw(st.integers(0, 1000)), draw(st.integers(1, 9))
    random, longest = np.random.default_rng(seed), draw(st.integers(1, SEQ_LEN))
    length_P = random.integers(1, longest + 1, draw(st.integers(1, 400))).astype(np.int32)
    context = draw(st.sampled_from([0.0, 0.3, 1.0]))
    targets_P = random.binomial(length_P - 1, 1 - context).astype(np.int32)
    return length_P, targets_P, rows_per_step, seed


def dealt(length_P, targets_P, rows_per_step, seed, epoch=0) -> tuple[PackedRows, PackedRows, np.ndarray]:
    """Rows as packed, as dealt, and where steps begin."""
    rows = pack(length_P, SEQ_LEN, seed, epoch)
    num_steps = -(-rows.num_rows // rows_per_step)
    return rows, *deal(rows, length_P, targets_P, num_steps, rows_per_step, SEQ_LEN, seed, epoch)


def of_rows(rows: PackedRows, values_P: np.ndarray) -> list[int]:
    return [int(values_P[rows.pieces_of(row)].sum()) for row in range(rows.num_rows)]


def of_steps(rows: PackedRows, step_start_S1: np.ndarray, values_P: np.ndarray) -> np.ndarray:
    sums = of_rows(rows, values_P)
    return np.array([sum(sums[a:b]) for a, b in pairwise(step_start_S1)])


@settings(max_examples=150, deadline=None)
@given(epochs())
def test_every_piece_is_in_one_row_and_every_row_in_one_step(drawn):
    packed, rows, step_start_S1 = dealt(*drawn)
    length_P, targets_P, rows_per_step, _ = drawn
    assert sorted(rows.piece_P.tolist()) == list(range(len(length_P)))
    assert rows.row_start_R1[0] == 0
    assert rows.row_start_R1[-1] == len(length_P)
    assert (np.diff(rows.row_start_R1) > 0).all()
    assert max(of_rows(rows, length_P)) <= SEQ_LEN
    assert (step_start_S1[0], step_start_S1[-1]) == (0, rows.num_rows)
    counts = np.diff(step_start_S1)
    assert len(counts) == -(-packed.num_rows // rows_per_step)
    assert max(counts) <= rows_per_step
    assert max(counts) - min(counts) <= 1
    targets_R = np.array(of_rows(packed, targets_P))
    whole_S = np.bincount(deal_rows(targets_R, len(counts)), weights=targets_R, minlength=len(counts))
    found_S = of_steps(rows, step_start_S1, targets_P)
    assert found_S.min() >= min(whole_S.min(), 0.95 * found_S.mean())  # pieces that move make no step lack


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    documents_per_row=st.integers(4, 12),
    rows_per_step=st.integers(4, 32),
    steps=st.integers(1, 40),
    context=st.sampled_from([0.0, 0.2, 0.4]),
)
def test_no_step_has_fewer_than_nine_tenths_of_the_mean_targets(seed, documents_per_row, rows_per_step, steps, context):
    """Of rows of four documents and more, four and more of them a step, whether or not they come out even."""
    random = np.random.default_rng(seed)
    num_rows = rows_per_step * steps + int(random.integers(0, rows_per_step))
    drawn = random.lognormal(np.log(512 / documents_per_row) - 0.08, 0.4, num_rows * documents_per_row)
    length_P = np.clip(drawn, 2, 512).astype(np.int32)
    targets_P = random.binomial(length_P - 1, 1 - context).astype(np.int32)
    rows = pack(length_P, 512, seed, 0)
    num_steps = -(-rows.num_rows // rows_per_step)
    rows, step_start_S1 = deal(rows, length_P, targets_P, num_steps, rows_per_step, 512, seed, 0)
    targets_S = of_steps(rows, step_start_S1, targets_P)
    assert targets_S.min() >= 0.9 * targets_S.mean()


def test_it_is_a_pure_function_of_seed_and_epoch():
    length_P = np.random.default_rng(1).integers(2, 20, 2000).astype(np.int32)

    def once(seed: int, epoch: int) -> tuple[list[int], list[int], list[int]]:
        _, rows, starts = dealt(length_P, length_P - 1, 4, seed, epoch)
        return rows.piece_P.tolist(), rows.row_start_R1.tolist(), starts.tolist()

    assert once(3, 1) == once(3, 1)
    for other in (once(4, 1), once(3, 2)):
        assert other[0] != once(3, 1)[0]


def test_where_steps_of_fewer_rows_and_emptier_rows_stand_is_chance():
    """Neither do steps of a row less come last, nor a step's emptier rows."""
    alone, full = np.full(61, 33, np.int32), np.full(8 * 61, 8, np.int32)  # a row each; eight of them a row
    steps_of_three, emptier_rows = [], []
    for epoch in range(100):
        _, rows, starts = dealt(alone, alone - 1, 4, 7, epoch)  # of 16 steps, 13 have 4 rows and 3 have 3
        steps_of_three += np.flatnonzero(np.diff(starts) == 3).tolist()
        _, rows, starts = dealt(full, full - 1, 4, 7, epoch)
        count_R = np.diff(rows.row_start_R1)
        emptier_rows += [place for a, b in pairwise(starts) for place in np.flatnonzero(count_R[a:b] < 8).tolist()]
    assert len(steps_of_three) == 300
    assert len(emptier_rows) > 300
    for places, size in ((steps_of_three, 16), (emptier_rows, 4)):
        assert abs(np.mean(places) - (size - 1) / 2) < 4 * size / (12 * len(places)) ** 0.5


@pytest.mark.parametrize(("num_rows", "num_steps"), [(12, 4), (13, 4), (3, 4), (1, 1)])
def test_rows_with_most_targets_go_to_the_steps_with_fewest(num_rows, num_steps):
    targets_R = np.random.default_rng(num_rows).integers(10, 100, num_rows)
    step_R = deal_rows(targets_R, num_steps)
    targets_S = np.bincount(step_R, weights=targets_R, minlength=num_steps)
    assert sorted(np.bincount(step_R, minlength=num_steps)) == sorted(
        num_rows // num_steps + (step < num_rows % num_steps) for step in range(num_steps)
    )
    assert targets_S.max() - targets_S.min() <= targets_R.max()


def test_rows_of_a_step_each_stay_as_they_are_where_nothing_can_be_gained():
    """A row a step, all full, many of few targets: giving them more would break the capacity."""
    length_P = np.full(8 * 30, 8, np.int32)
    targets_P = np.where(np.arange(len(length_P)) % 3, 7, 0).astype(np.int32)
    packed, rows, _ = dealt(length_P, targets_P, 1, 5)
    assert {frozenset(rows.pieces_of(row).tolist()) for row in range(30)} == {
        frozenset(packed.pieces_of(row).tolist()) for row in range(30)
    }
