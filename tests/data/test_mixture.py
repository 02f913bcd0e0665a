"""Steps of several sources: shares, the same on any number of ranks and after a resume, nothing lost of any source."""

import numpy as np
import pytest
import torch

from logtrain.data.config import LoaderConfig
from logtrain.data.mixture import CYCLE, MixtureLoader, Shares
from logtrain.data.shards import Split
from tests.data.test_loader import PAD, SEQ_LEN, rows_of, write_split

MEAN_LENGTHS = {"logs": 20, "general": 11, "chat": 40}
SHARES = {"logs": 0.7, "general": 0.05, "chat": 0.25}


@pytest.fixture(scope="module")
def splits(tmp_path_factory) -> dict[str, Split]:
    random, found = np.random.default_rng(4), {}
    for name, mean in MEAN_LENGTHS.items():
        lengths = np.maximum(2, random.lognormal(np.log(mean), 0.5, 300)).astype(int).tolist()
        found[name] = write_split(tmp_path_factory.mktemp(name), lengths, context=0)
    return found


def mixture(splits: dict[str, Split], *, rank: int = 0, world_size: int = 1, sizes=(), **shares) -> MixtureLoader:
    config = LoaderConfig(seq_len=SEQ_LEN, rows_per_step=8)
    of_rank = {"seed": 7, "pad_id": PAD, "rank": rank, "world_size": world_size, "sizes": dict(sizes)}
    return MixtureLoader(splits, shares or SHARES, config, **of_rank)


def test_over_200_steps_every_source_has_its_share_of_the_tokens_within_a_hundredth(splits):
    loader = mixture(splits)
    tokens_K = np.sum([loader.at(step).tokens_K for step in range(200)], axis=0)
    assert tokens_K / tokens_K.sum() == pytest.approx(list(SHARES.values()), abs=0.01)


@pytest.mark.parametrize("shares", [[0.5, 0.5], [0.9, 0.05, 0.05], [0.01, 0.98, 0.01], [1 / 3, 1 / 3, 1 / 3], [1.0]])
@pytest.mark.parametrize("rows_per_step", [1, 3, 8, 128])
def test_every_step_has_each_share_within_a_row(shares, rows_per_step):
    found = Shares(np.array(shares), rows_per_step)
    taken = np.zeros(len(shares), np.int64)
    for step in [*range(300), *range(CYCLE - 2, CYCLE + 3), 7 * CYCLE + 11]:
        rows = [found.rows(step, source) for source in range(len(shares))]
        counts = np.array([len(of) for of in rows])
        assert counts.sum() == rows_per_step
        assert (np.abs(counts - rows_per_step * np.array(shares)) < 1 + 1e-9).all()
        if step < 300:
            assert [of.start for of in rows] == taken.tolist()  # on from where the step before has ended
            taken += counts
    share = found.cycle_K / found.cycle_K.sum()
    assert share == pytest.approx(shares, abs=1 / CYCLE)


def test_a_share_of_less_than_a_row_a_step_comes_evenly():
    found = Shares(np.array([0.99, 0.01]), 4)  # a row of the second every 25 steps
    at = [step for step in range(400) if len(found.rows(step, 1))]
    assert 14 <= len(at) <= 18
    assert np.diff(at).max() <= 64


def test_the_fewest_steps_for_so_many_rows():
    found = Shares(np.array([0.7, 0.3]), 3)
    for rows in (1, 2, 5, 100, int(found.cycle_K[0]), int(found.cycle_K[0]) + 1):
        steps = found.steps_for(rows, 0)
        assert found.rows(steps, 0).start >= rows > found.rows(steps - 1, 0).start


def test_a_pass_over_a_source_has_each_of_its_targets_once(splits):
    """In the rows that the run takes of it, in whichever steps they are."""
    loader = mixture(splits)
    for number, source in enumerate(loader.sources):
        labels, wanted = [], []
        last = loader.shares.steps_for(source.num_rows, number)
        for step in range(last):
            for row in loader.rows(step):
                if row.source == number and row.epoch is source.epochs[0]:
                    labels += [
                        token
                        for document, start, length in row.epoch.pieces_of(row.number)
                        for token in row.split.read(document, start + 1, start + length).tolist()
                    ]
        for document, length in enumerate(source.split.lengths.tolist()):
            wanted += source.split.read(document, 1, length).tolist()
        assert sorted(labels) == sorted(wanted)


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_steps_do_not_depend_on_ranks_and_resume_anywhere(splits, world_size):
    alone = mixture(splits)
    ranks = [mixture(splits, rank=rank, world_size=world_size) for rank in range(world_size)]
    for step in (0, 1, 57, 3, 200, alone.steps_per_epoch):
        expected = sorted(row for batch in alone.at(step).batches for row in rows_of(batch))
        found = [rank.at(step) for rank in ranks]
        assert sorted(row for one in found for batch in one.batches for row in rows_of(batch)) == expected
        assert {(one.tokens, tuple(one.targets_K)) for one in found} == {
            (alone.at(step).tokens, tuple(alone.at(step).targets_K))
        }
    for step in np.random.default_rng(world_size).integers(0, 3 * alone.steps_per_epoch, 5).tolist():
        resumed = mixture(splits)
        resumed.step = step
        for found, expected in zip(next(iter(resumed)).batches, alone.at(step).batches, strict=True):
            assert torch.equal(found.tokens_T, expected.tokens_T)
            assert torch.equal(found.labels_T, expected.labels_T)


def test_who_is_told_how_much_the_epochs_are_packs_only_those_it_takes(splits):
    fresh = mixture(splits)
    told = mixture(splits, sizes=fresh.sizes)
    assert told.steps_per_epoch == fresh.steps_per_epoch
    step = 3 * fresh.steps_per_epoch
    assert torch.equal(told.at(step).batches[0].tokens_T, fresh.at(step).batches[0].tokens_T)
    begun = [0 in source.epochs.futures for source in told.sources]
    assert begun == [passes < 1 for passes in told.passes(step)] != [True] * 3


def test_a_micro_batch_is_of_the_source_that_it_says(splits):
    loader = mixture(splits)
    for step in range(20):
        found = loader.at(step)
        targets_K = [0, 0, 0]
        for batch, source in zip(found.batches, found.source_of_batch, strict=True):
            targets_K[source] += int((batch.labels_T >= 0).sum())
        assert targets_K == list(found.targets_K)
        assert sum(targets_K) == found.targets


def test_epochs_of_sources_go_on_apart(splits):
    loader = mixture(splits, logs=0.1, general=0.8, chat=0.1)
    steps = 3 * loader.steps_per_epoch
    assert loader.passes(steps)[1] > 2 * loader.passes(steps)[0]
    again = {row.epoch.row_start_R1.tobytes() for step in range(steps) for row in loader.rows(step) if row.source == 1}
    assert len(again) > 3  # packed anew each time


def test_micro_batches_of_several_rows_are_refused(splits):
    config = LoaderConfig(seq_len=SEQ_LEN, rows_per_step=8, rows_per_batch=2)
    with pytest.raises(ValueError, match="with several sources a micro-batch is one row"):
        MixtureLoader(splits, SHARES, config, seed=7, pad_id=PAD)


def test_an_epoch_with_a_row_more_than_the_first_keeps_steps_as_large(tmp_path):
    """Rows of chats differ in their targets, and pieces must not spread over rows of their own because of that."""
    random, splits = np.random.default_rng(0), {}
    for name in ("chat", "logs"):
        (tmp_path / name).mkdir()
        lengths = np.clip(random.lognormal(np.log(20), 0.6, 1500), 2, 200).astype(int).tolist()
        splits[name] = write_split(tmp_path / name, lengths, context=0.7)
    loader = mixture(splits, chat=0.7, logs=0.3)
    counts = [len(loader.rows(step)) for step in range(4 * loader.steps_per_epoch)]
    assert min(counts) >= 6 and max(counts) <= 10
    assert np.mean(counts) == pytest.approx(8, rel=0.02)


def test_a_share_that_never_gets_a_row_is_refused():
    with pytest.raises(ValueError, match=r"mix: a share of 1e-05 is less than a row in 4,096 steps of 8"):
        Shares(np.array([1 - 1e-5, 1e-5]), 8)


def changed(splits, changes: dict[int, float], **of_rank) -> MixtureLoader:
    loader = mixture(splits, **of_rank)
    for first, share in changes.items():
        loader.change(first, loader.with_share("general", share))
    return loader


def test_a_changed_share_takes_every_source_on_from_where_it_was(splits):
    plain, loader = mixture(splits), changed(splits, {10: 0.3, 37: 0.02})
    taken = np.zeros(3, np.int64)
    for step in range(90):
        rows = [loader.slots(step, source) for source in range(3)]
        assert [of.start for of in rows] == taken.tolist()
        taken += [len(of) for of in rows]
        assert sum(map(len, rows)) == 8
        if step < 10:
            assert rows == [plain.slots(step, source) for source in range(3)]
    for steps, share in ((range(10, 37), 0.3), (range(37, 90), 0.02)):
        tokens_K = np.sum([loader.at(step).tokens_K for step in steps], axis=0)
        assert tokens_K[1] / tokens_K.sum() == pytest.approx(share, abs=0.03)
        assert tokens_K[0] / tokens_K[2] == pytest.approx(0.7 / 0.25, rel=0.15)  # the others keep their proportion
    with pytest.raises(ValueError, match="less than a row"):
        loader.change(200, loader.with_share("general", 1e-9))


def test_a_change_while_steps_are_laid_out_is_that_of_a_fresh_loader(splits):
    """In the first step that no thread has begun, on any number of ranks; so a resumed run has the same steps."""
    loader, changes, found = mixture(splits), {}, []
    loader.end = 30
    for step in loader:
        found.append(step.tokens_K)
        if loader.step in (5, 6, 20):
            changes[loader.next_free(loader.step)] = 0.4 / loader.step
            loader.change(loader.next_free(loader.step), loader.with_share("general", 0.4 / loader.step))
    fresh = changed(splits, changes)
    assert found == [fresh.at(step).tokens_K for step in range(30)]
    assert found != [mixture(splits).at(step).tokens_K for step in range(30)]
    ranks = [changed(splits, changes, rank=rank, world_size=2) for rank in range(2)]
    for step in (7, 8, 9, 25):
        whole = [batch.tokens_T.tolist() for batch in fresh.at(step).batches]
        parts = [[batch.tokens_T.tolist() for batch in of.at(step).batches] for of in ranks]
        dealt = [part for pair in zip(*parts, strict=True) for part in pair]
        assert whole == dealt[: len(whole)]  # behind them an empty row where they do not come out even
