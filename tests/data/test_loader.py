"""The rows of a step: which, how they are laid out, and that nothing is lost, seen twice or counted wrongly.

No token of the test's documents has the id of another, so that a token found in a row says which it is.
"""

import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from logtrain.core.batch import IGNORE, Batch
from logtrain.data.config import LoaderConfig
from logtrain.data.loader import Loader, Row, Step
from logtrain.data.pack import pack
from logtrain.data.shards import CONTEXT, DOCUMENT, ShardWriter, Split
from tests.support.synthetic import write_manifest

SEQ_LEN = 64
PAD = -1  # no token has it
LENGTHS = [*range(2, 62), 1, 63, 64, 65, 66, 127, 128, 201, 300, 1]  # up to 5 rows long


def write_split(folder: Path, lengths: list[int], context: float = 0.3) -> Split:
    """Documents of these lengths in several shards: ids 0, 1, 2, ... through all of them."""
    random, writer, first = np.random.default_rng(1309), ShardWriter(folder, "train", shard_tokens=1000), 0
    for length in lengths:
        tokens = np.arange(first, first + length, dtype=np.uint32)
        if length % 2:  # the others are targets throughout
            tokens[random.random(length) < context] |= CONTEXT
        record = np.zeros(1, DOCUMENT)
        record["length"], record["targets"] = length, np.count_nonzero(tokens[1:] < CONTEXT)
        writer.add(tokens, record)
        first += length
    write_manifest(folder, {"train": writer.close()})
    return Split.open(folder)


@pytest.fixture(scope="module")
def split(tmp_path_factory) -> Split:
    return write_split(tmp_path_factory.mktemp("data"), LENGTHS)


@pytest.fixture(params=["document", "row"])
def attention(request) -> str:
    return request.param


def loader(split: Split, *, rank: int = 0, world_size: int = 1, seed: int = 7, **config) -> Loader:
    settings = LoaderConfig(**{"seq_len": SEQ_LEN, "rows_per_step": 8, **config})
    return Loader(split, settings, seed=seed, pad_id=PAD, rank=rank, world_size=world_size)


def targets_of(split: Split) -> list[int]:
    """Ids of the tokens that are to be predicted."""
    stored = [split.read(document, 1, int(length)) for document, length in enumerate(split.lengths)]
    return [int(token) for tokens in stored for token in tokens if token < CONTEXT]


def rows_of(batch: Batch) -> list[tuple]:
    """Each row of a batch: tokens, labels, positions, where documents start in it, and its tokens' keys."""
    starts = sorted(set(batch.cu_seqlens.tolist()))
    rows = []
    for at in range(0, len(batch.tokens_T), SEQ_LEN):
        of_tokens = batch.tokens_T, batch.labels_T, batch.positions_T, batch.seeds_T
        *parts, keys = (tuple(part[at : at + SEQ_LEN].tolist()) for part in of_tokens)
        rows.append((*parts, tuple(start - at for start in starts if at <= start < at + SEQ_LEN), keys))
    return rows


def rows_of_step(split: Split, step: int, world_size: int = 1, **config) -> list[tuple]:
    """The rows that all ranks see in a step, whichever sees which."""
    ranks = [loader(split, rank=rank, world_size=world_size, **config) for rank in range(world_size)]
    return sorted(row for rank in ranks for batch in rank.at(step).batches for row in rows_of(batch))


def same(step: Step, other: Step) -> bool:
    """The same batches in the same order, and the same counts."""
    counts = [(s.tokens, s.targets, s.attention_pairs, len(s.batches)) for s in (step, other)]
    return counts[0] == counts[1] and all(
        all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(mine, theirs, strict=True))
        for mine, theirs in zip(step.batches, other.batches, strict=True)
    )


# What an epoch holds


@pytest.mark.parametrize("epoch", [0, 1])
def test_every_target_is_a_label_exactly_once_an_epoch(split, attention, epoch):
    steps = loader(split, attention=attention)
    labels, read = [], set()
    for step in range(epoch * steps.steps_per_epoch, (epoch + 1) * steps.steps_per_epoch):
        for batch in steps.at(step).batches:
            is_label = batch.labels_T != IGNORE
            labels += batch.labels_T[is_label].tolist()
            assert torch.equal(batch.labels_T[is_label], batch.tokens_T[is_label] + 1)  # the next of its document
            read |= set(batch.tokens_T.tolist())
    assert sorted(labels) == targets_of(split)  # no context token, no first token of a document
    assert read - {PAD} == set(range(sum(LENGTHS)))


def test_epochs_and_seeds_differ_in_order_and_in_company(tmp_path):
    split = write_split(tmp_path, [*range(10, 30)] * 10)

    def epoch(number: int, seed: int = 7) -> list[frozenset]:
        """The tokens of each row, in the order of the rows."""
        steps = loader(split, seed=seed, rows_per_step=1)
        numbers = range(number * steps.steps_per_epoch, (number + 1) * steps.steps_per_epoch)
        rows = [row for step in numbers for batch in steps.at(step).batches for row in rows_of(batch)]
        return [frozenset(row[0]) - {PAD} for row in rows]

    first = epoch(0)
    for other in (epoch(1), epoch(0, seed=8)):
        assert frozenset().union(*first) == frozenset().union(*other)
        assert len(set(first) & set(other)) < len(first) / 4
        beginning = [frozenset().union(*rows[: len(first) // 4]) for rows in (first, other)]
        assert len(beginning[0] & beginning[1]) < len(beginning[0]) / 2


def test_no_two_tokens_of_a_run_have_the_same_key_nor_have_those_of_another_seed(split):
    """Over two epochs; which keys a row has does not depend on what is in it."""
    found = []
    for seed in (0, 7, 8):
        steps = loader(split, seed=seed, rows_per_batch=4)
        batches = [batch for step in range(2 * steps.steps_per_epoch) for batch in steps.at(step).batches]
        found.append(torch.cat([batch.seeds_T for batch in batches]))
        assert len(found[-1]) == 2 * steps.steps_per_epoch * 8 * SEQ_LEN
    keys = torch.cat(found)
    assert len(keys.unique()) == len(keys)
    for bits in (keys & 0xFF, (keys >> 56) & 0xFF):  # 256 values, each as often as chance would have it
        expected = len(keys) / 256
        chi_square = ((bits.bincount(minlength=256) - expected) ** 2 / expected).sum().item()
        assert abs(chi_square - 255) < 4.5 * (2 * 255) ** 0.5


@pytest.mark.parametrize("number", range(20))
def test_no_step_of_an_epoch_has_much_fewer_targets_than_the_mean(tmp_path, number):
    """A step divides by its own targets: those of a step with few of them would weigh more."""
    random = np.random.default_rng(number)
    lengths = np.maximum(2, random.lognormal(np.log(SEQ_LEN / random.integers(4, 12)), 0.5, 500 + 9 * number))
    split = write_split(tmp_path, lengths.astype(int).tolist(), context=0.1 * (number % 4))
    steps = loader(split, seed=number, rows_per_step=[4, 8, 16, 32][number % 4])
    for epoch in (0, 1):
        numbers = range(epoch * steps.steps_per_epoch, (epoch + 1) * steps.steps_per_epoch)
        targets = np.array([steps.at(step).targets for step in numbers])
        assert targets.min() >= 0.9 * targets.mean()
        assert targets.sum() == split.targets.sum()  # however documents are cut


def test_steps_are_even_though_a_row_is_nearly_empty_or_missing(tmp_path):
    """32 rows of 8 documents each and one of one: of 5 steps, some would have 7 rows and some 6."""
    split = write_split(tmp_path, [8] * (32 * 8 + 1), context=0)
    steps = loader(split)
    assert (steps.num_rows, steps.steps_per_epoch) == (35, 5)  # two more rows, of pieces of others
    for epoch in (0, 1):
        targets = [steps.at(epoch * 5 + step).targets for step in range(5)]
        assert sum(targets) == 257 * 7
        assert min(targets) >= 0.95 * 257 * 7 / 5
    assert sum(len(steps.at(step).batches) for step in range(5)) <= 5 * 7  # no micro-batch is all padding


def test_a_later_epoch_of_fewer_rows_leaves_no_step_without_a_row(tmp_path):
    fewer = 0
    for seed in range(20):
        lengths = np.random.default_rng(seed).integers(2, 40, 80)
        packed = [pack(lengths, SEQ_LEN, seed, epoch).num_rows for epoch in range(8)]
        if min(packed) == packed[0]:
            continue
        fewer += 1
        (tmp_path / str(seed)).mkdir()
        steps = loader(write_split(tmp_path / str(seed), lengths.tolist()), seed=seed, rows_per_step=1)
        assert min(len(steps.rows(step)) for step in range(8 * steps.steps_per_epoch)) == 1
    assert fewer > 2  # else this test says nothing


# A pure function of (seed, step)


@pytest.mark.parametrize(("world_size", "rows_per_batch"), [(1, 2), (1, 8), (2, 1), (4, 2), (8, 1)])
def test_a_steps_rows_do_not_depend_on_ranks_or_micro_batches(split, attention, world_size, rows_per_batch):
    last = loader(split).steps_per_epoch - 1
    for step in (0, last, last + 1):
        expected = rows_of_step(split, step, attention=attention)
        found = rows_of_step(split, step, world_size, rows_per_batch=rows_per_batch, attention=attention)
        assert found == expected


def test_every_rank_runs_as_many_micro_batches_of_one_shape(split):
    for rank in range(2):
        steps = loader(split, rank=rank, world_size=2, rows_per_batch=2)
        for number in range(steps.steps_per_epoch):
            batches = steps.at(number).batches
            assert [len(batch.tokens_T) for batch in batches] == [2 * SEQ_LEN] * 2 == [2 * SEQ_LEN] * steps.accumulation
            assert all((batch.cu_seqlens.diff() > 0).all() for batch in batches), "an empty sequence costs blocks"


def test_a_steps_rows_do_not_depend_on_what_came_before(split):
    far, fresh = loader(split), loader(split)
    for step in (0, 3 * far.steps_per_epoch, 1, far.steps_per_epoch):
        far.at(step)
    assert same(far.at(2), fresh.at(2))


def test_who_is_told_how_much_an_epoch_is_packs_only_the_epochs_it_takes(split):
    fresh = loader(split)
    told = Loader(split, fresh.config, seed=7, pad_id=PAD, sizes=fresh.sizes)
    assert (told.num_rows, told.steps_per_epoch) == (fresh.num_rows, fresh.steps_per_epoch)
    step = 2 * fresh.steps_per_epoch + 1
    assert same(told.at(step), fresh.at(step))
    assert list(told.epochs.futures) == [2]
    assert 0 in fresh.epochs.futures


@pytest.mark.parametrize("stopped_after", [0, 3, 5, 6, 8])  # an epoch is 6 steps
def test_resume_from_the_step_is_exact(split, stopped_after):
    whole = loader(split)
    assert whole.steps_per_epoch == 6
    steps = [step for _, step in zip(range(11), whole, strict=False)]
    before = loader(split)
    for _ in zip(range(stopped_after), before, strict=False):
        pass
    assert before.step == stopped_after
    after = loader(split)
    after.step = before.step
    rest = [step for _, step in zip(range(11 - stopped_after), after, strict=False)]
    assert all(same(*pair) for pair in zip(rest, steps[stopped_after:], strict=True))
    assert after.step == 11


# Counts


@pytest.mark.parametrize(("world_size", "rows_per_batch"), [(1, 1), (4, 2)])
def test_counts_of_a_step_are_what_its_batches_hold_over_all_ranks(split, attention, world_size, rows_per_batch):
    ranks = [
        loader(split, rank=rank, world_size=world_size, rows_per_batch=rows_per_batch, attention=attention)
        for rank in range(world_size)
    ]
    for number in range(2 * ranks[0].steps_per_epoch):
        steps = [rank.at(number) for rank in ranks]
        tokens = targets = pairs = 0
        for batch in (batch for step in steps for batch in step.batches):
            tokens += (batch.tokens_T != PAD).sum().item()
            targets += (batch.labels_T != IGNORE).sum().item()
            for sequence in batch.tokens_T.tensor_split(batch.cu_seqlens[1:-1].tolist()):
                length = (sequence != PAD).sum().item()
                pairs += sum(range(1, length + 1))  # token t sees t + 1
        assert {(step.tokens, step.targets, step.attention_pairs) for step in steps} == {(tokens, targets, pairs)}


def test_pairs_of_long_documents_do_not_overflow(tmp_path):
    """65,536 tokens have 2,147,516,416 pairs, one int32 holds 2,147,483,647."""
    split = write_split(tmp_path, [65_536, 60_000, 5_000])
    for attention, expected in (
        ("document", [65_536 * 65_537 // 2, 60_000 * 60_001 // 2 + 5_000 * 5_001 // 2]),
        ("row", [65_536 * 65_537 // 2, 65_000 * 65_001 // 2]),
    ):
        steps = loader(split, seq_len=65_536, rows_per_step=1, attention=attention)
        assert sorted(steps.at(number).attention_pairs for number in range(2)) == sorted(expected)


# Layout


def test_documents_are_apart_with_attention_by_document(split):
    steps = loader(split, rows_per_batch=4)
    first_of_its_document = {0, *np.cumsum(LENGTHS).tolist()}
    for batch in (batch for number in range(steps.steps_per_epoch) for batch in steps.at(number).batches):
        cu_seqlens = batch.cu_seqlens.tolist()
        assert cu_seqlens[0] == 0
        assert cu_seqlens == sorted(cu_seqlens)
        assert cu_seqlens[-1] == len(batch.tokens_T)
        assert batch.max_seqlen == max(batch.cu_seqlens.diff()).item()
        assert set(range(0, len(batch.tokens_T), SEQ_LEN)) < set(cu_seqlens)  # none reaches from one row into the next
        starts = [start for start in cu_seqlens if start < len(batch.tokens_T)]
        assert len(set(starts)) == len(starts)
        for tokens, positions in zip(
            batch.tokens_T.tensor_split(starts[1:]), batch.positions_T.tensor_split(starts[1:]), strict=True
        ):
            assert positions.tolist() == list(range(len(tokens)))
            padding = tokens == PAD
            assert padding.all() or torch.equal(tokens, torch.arange(tokens[0], tokens[0] + len(tokens)))
            assert padding.all() or not first_of_its_document & set(tokens[1:].tolist())
        assert batch.cu_seqlens.dtype == batch.positions_T.dtype == torch.int32
        assert batch.tokens_T.dtype == batch.labels_T.dtype == torch.int64


def test_a_row_is_one_sequence_with_attention_by_row(split):
    steps, by_document = (loader(split, rows_per_batch=4, attention=attention) for attention in ("row", "document"))

    def contents(batches: list[Batch]) -> list[list[list[int]]]:
        """Tokens and labels of each row, in an order that the rows alone decide."""
        rows = (torch.stack([batch.tokens_T, batch.labels_T]).split(SEQ_LEN, dim=1) for batch in batches)
        return sorted(row.tolist() for of_batch in rows for row in of_batch)

    for number in range(steps.steps_per_epoch):
        batches = steps.at(number).batches
        for batch in batches:
            assert batch.cu_seqlens.tolist() == [0, SEQ_LEN, 2 * SEQ_LEN, 3 * SEQ_LEN, 4 * SEQ_LEN]
            assert batch.positions_T.tolist() == [*range(SEQ_LEN)] * 4
            assert batch.max_seqlen == SEQ_LEN
        assert contents(batches) == contents(by_document.at(number).batches)


def test_ranks_that_wait_for_one_another_have_about_as_much_attention_each(tmp_path):
    """8 ranks of 8 micro-batches: the most in a micro-batch beside its mean, and beside that of rows in any order."""
    lengths = np.random.default_rng(3).lognormal(4, 1.0, 3000).astype(int).clip(2, 512)
    split = write_split(tmp_path, lengths.tolist())
    ranks = [loader(split, rank=rank, world_size=8, seq_len=512, rows_per_step=64) for rank in range(8)]

    def over_mean(rows: list[Row]) -> float:
        pairs_BR = np.array([row.epoch.pairs_R[row.number] for row in rows[: len(rows) // 8 * 8]]).reshape(-1, 8)
        return float((pairs_BR.max(1) / pairs_BR.mean(1)).mean())

    for step in range(3):
        rows, taken = ranks[0].rows(step), ranks[0].taken(step)
        assert sorted(row.number for row in rows) == sorted(row.number for row in taken)
        assert over_mean(rows) < 1 + (over_mean(taken) - 1) / 3
        of_ranks = [rank.at(step).batches for rank in ranks]
        for number, row in enumerate(rows):
            document, start, _ = next(row.epoch.pieces_of(row.number))
            first = int(split.read(document, start, start + 1)[0]) & (CONTEXT - 1)
            assert of_ranks[number % 8][number // 8].tokens_T[0] == first


# The prefetch thread


def loader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "loader"]


def test_the_thread_ends_with_the_iterator(split):
    assert not loader_threads()
    steps = iter(loader(split))
    next(steps)
    assert len(loader_threads()) == 1
    time.sleep(0.05)  # the queue is full now, and the thread waits
    steps.close()
    assert not loader_threads()

    def train():
        for _ in loader(split):
            raise RuntimeError("training failed")

    with pytest.raises(RuntimeError, match="training failed"):
        train()
    assert not loader_threads()


def test_the_thread_is_a_few_steps_ahead_and_no_more(split, monkeypatch):
    steps, laid_out = loader(split), []
    original = steps.at
    monkeypatch.setattr(steps, "at", lambda step: laid_out.append(step) or original(step))
    iterator = iter(steps)
    for taken in (1, 2):
        next(iterator)
        deadline = time.monotonic() + 10
        while len(laid_out) < taken + 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
        assert taken + 2 <= len(laid_out) <= taken + 3  # two wait in the queue, one in the thread's hand
    iterator.close()
    assert laid_out == list(range(len(laid_out)))
    assert steps.step == 2  # where a resume goes on: what was laid out and not taken does not count


def test_an_error_in_the_thread_reaches_the_loop_at_its_step(split, monkeypatch):
    steps = loader(split)
    original = steps.at

    def at(step: int) -> Step:
        if step == 4:
            raise OSError("the disk is gone")
        return original(step)

    monkeypatch.setattr(steps, "at", at)
    taken = []
    with pytest.raises(OSError, match="the disk is gone"):
        for step in steps:
            taken.append(step)
            time.sleep(0.02)
    assert len(taken) == steps.step == 4
    assert not loader_threads()


# Settings


def test_rows_that_ranks_cannot_share_evenly_are_refused(split):
    with pytest.raises(ValueError, match=r"rows_per_step = 8 is not a multiple of 6 .*; set rows_per_step to 12"):
        loader(split, world_size=3, rows_per_batch=2)
    for name in ("seq_len", "rows_per_step", "rows_per_batch"):
        with pytest.raises(ValueError, match=f"loader.{name} = 0 must be at least 1"):
            LoaderConfig(**{name: 0})
