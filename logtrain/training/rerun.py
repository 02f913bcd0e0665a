"""A run's steps made again from its checkpoints, bit for bit on the same ranks: which documents were in a step, what
each weighed, and what the run would have been without one. Of a run on pairs of answers a pair is a document, and one
target.
"""

import dataclasses
import math
from collections.abc import Collection, Iterator
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F

from logtrain.core.batch import IGNORE, Batch
from logtrain.data.loader import Loader, Step
from logtrain.data.pairs import PairLoader
from logtrain.data.shards import Split
from logtrain.training.checkpoint import Checkpoints, read_facts, step_of
from logtrain.training.forgetting import restore_shares
from logtrain.training.objective import objective_of
from logtrain.training.optim import make_optimizer
from logtrain.training.parts import new_state
from logtrain.training.preference import Preference
from logtrain.training.reference import give_references
from logtrain.training.setup import RunSetup
from logtrain.training.sharding import clip_grad_norm, last_micro_batch
from logtrain.training.step import TrainStep, validate

CHARS, TOKENS = 160, 80  # of a document's beginning


class Place(NamedTuple):
    """Where a piece of a document lies among this rank's micro-batches."""

    micro_batch: int
    start: int
    """Its first token in the micro-batch."""
    length: int
    """Its tokens."""
    split: Split
    """The split that the document is of."""
    document: int
    """Its number in the split."""
    first: int
    """The first of its tokens in the document."""
    source: int
    """Which of a mixture's sources it is of."""


class Weighed(NamedTuple):
    """A piece of a document and what it weighed in a step."""

    file: str
    """The file that it came from."""
    row: int
    """The row in that file, counted from 0."""
    document: int
    """The number of the document in its split."""
    first: int
    """The first of the piece's tokens in the document."""
    tokens: int
    """Tokens of the piece."""
    targets: int
    """Tokens of the piece that are predicted; 1 of a pair."""
    source: str
    """Name of its source in a mixture, or its domain."""
    summed_loss: float
    """Loss over its targets, in nats."""
    grad_norm: float
    """L2 norm of its gradient in the step, 0 where that was not asked for."""
    text: str
    """How it begins."""
    margin: float | None = None
    """Of a pair the reward of the chosen answer above that of the rejected one."""

    @property
    def loss(self) -> float:
        """Loss a target."""
        return self.summed_loss / max(1, self.targets)


Document = tuple[str, int]  # folder of prepared data, number in its split


def places_in(loader: Loader, step: int) -> list[Place]:
    """The pieces of step `step` (0-based) in this rank's micro-batches, as `Loader.at` lays them out."""
    rows, found = loader.rows(step), []
    group, seq_len = loader.config.rows_per_batch, loader.config.seq_len
    at_once = loader.world_size * group
    for micro_batch, first in enumerate(range(0, max(1, len(rows)), at_once)):
        slots = range(first + loader.rank, first + at_once, loader.world_size)
        for i, slot in enumerate(slots):
            if slot >= len(rows):
                continue
            row, start = rows[slot], i * seq_len
            for document, begin, length in row.epoch.pieces_of(row.number):
                found.append(Place(micro_batch, start, length, row.split, document, begin, row.source))
                start += length
    return found


def documents_in(loader: Loader, step: int) -> dict[Document, tuple[str, int]]:
    """The documents of step `step` (0-based) on all ranks, each with its file and its row there."""
    rows = [(row.split, document) for row in loader.rows(step) for document, *_ in row.epoch.pieces_of(row.number)]
    return {(str(split.folder), document): split.origin(document)[:2] for split, document in rows}


class Rerun:
    """The run of a checkpoint before a step, which goes on from there. Every rank makes one."""

    def __init__(self, run: RunSetup, step: int):
        """Go to the newest checkpoint before step `step` (counted from 1), or to the start. Raises ValueError for a
        step that the run does not have, and for data that are not those of the run.
        """
        self.run, self.world, self.train = run, run.world, run.data.train
        trainer = run.config.trainer
        total = trainer.total_steps(self.train.steps_per_epoch)
        if not 1 <= step <= total:
            raise ValueError(f"step = {step}: the run has steps 1 to {total}")
        checkpoints = Checkpoints(run.folder / "checkpoints", note=run.world.note)
        there = checkpoints.gathered(checkpoints.complete())[0]
        if there:
            facts = read_facts(there[-1])  # with the decisions that were made after `path`, too
            state = facts.state.continued_as(new_state(run), there[-1], " ".join(run.config.sources.values()))
            restore_shares(self.train, trainer.replay_source, state)
        path = max((path for path in there if step_of(path) < step), key=step_of, default=None)
        frozen = run.initial_weights() if run.config.lora.rank or path is None else None
        self.model = run.build_model(frozen)
        self.optimizer = make_optimizer(self.model, run.config.optim)
        self.step = checkpoints.load(path, self.model, self.optimizer).step if path else 0
        self.began_at = self.step
        if isinstance(self.train, PairLoader):
            give_references(run, self.model, is_new=False)
        optim, objective = run.config.optim, objective_of(run.config)
        self.train_step = TrainStep(
            self.model, self.optimizer, optim, trainer.max_grad_norm, total, run.world, objective
        )

    def advance(self, step: int, without: Collection[Document] = ()) -> Iterator[tuple[int, float, float]]:
        """Train up to and with step `step`, leaving out the targets of documents; yields (number, loss a target,
        gradient norm) of each step.
        """
        while self.step < step:
            self.world.note(f"step {self.step + 1}")
            made = self.at(self.step, without)
            result = self.train_step(made, self.step)
            self.step += 1
            loss = self.world.sum(result.summed_loss.clone()).item() / max(1, made.targets)
            yield self.step, loss, result.grad_norm.item()

    def at(self, number: int, without: Collection[Document]) -> Step:
        """Step `number` (0-based) without the targets of some documents."""
        made = self.train.at(number)
        doomed = [place for place in places_in(self.train, number) if document_of(place) in without]
        if not without:
            return made
        removed = torch.zeros((), dtype=torch.int64)
        batches = list(made.batches)
        for place in doomed:
            batches[place.micro_batch], count = without_targets(batches[place.micro_batch], place)
            removed += count
        dist.all_reduce(removed, group=self.world.control)
        return dataclasses.replace(made, batches=batches, targets=made.targets - int(removed))

    def valid_loss(self) -> float | None:
        """Loss on the first validation set, None where there is none."""
        loader = next(iter(self.run.data.valid.values()), None)
        if loader is None:
            return None
        objective = self.train_step.objective if isinstance(loader, PairLoader) else None
        return validate(self.model, loader, loader.steps_per_epoch, self.world, objective=objective).loss

    # ---- what each document weighs

    def weigh(self, with_gradients: bool) -> list[Weighed]:
        """Every piece in the step that comes next, at the weights of now, of all ranks. `with_gradients`: with the norm
        of each one's gradient, which takes a forward and backward each.
        """
        made, mine = self.train.at(self.step), places_in(self.train, self.step)
        losses = self.pair_losses(made, mine) if isinstance(self.train, PairLoader) else self.losses(made, mine)
        norms = self.norms(made, mine) if with_gradients else [0.0] * len(mine)
        found = [self.weighed(made, *each) for each in zip(mine, losses, norms, strict=True)]
        every: list[list[Weighed]] = [found] * self.world.size
        dist.all_gather_object(every, found, group=self.world.control)
        return [Weighed(*each) for of_rank in every for each in of_rank]

    @torch.no_grad()
    def losses(self, made: Step, mine: list[Place]) -> list[tuple[float, None]]:
        """The summed loss of each piece, which has no margin."""
        found: list[tuple[float, None]] = []
        for number, batch in enumerate(made.batches):
            self.world.note(f"the losses of step {self.step + 1}, {number} of {len(made.batches)} micro-batches so far")
            on_device = batch.to(self.world.device)
            assert on_device.labels_T is not None
            logits_TV = self.model(on_device._replace(labels_T=None))
            for place in (place for place in mine if place.micro_batch == number):
                span = slice(place.start, place.start + place.length)
                labels = on_device.labels_T[span]
                summed = F.cross_entropy(logits_TV[span].float(), labels, ignore_index=IGNORE, reduction="sum")
                found.append((summed.item(), None))
        return found

    @torch.no_grad()
    def pair_losses(self, made: Step, mine: list[Place]) -> list[tuple[float, float]]:
        """The loss and the margin of each pair."""
        objective, found = self.train_step.objective, {}
        assert isinstance(objective, Preference)
        for number, batch in enumerate(made.batches):
            assert batch.pairs_P3 is not None
            loss_P, margin_P = objective.of_each(self.model, batch.to(self.world.device))[:2].tolist()
            for pair, *figures in zip(batch.pairs_P3[:, 2].tolist(), loss_P, margin_P, strict=True):
                found[number, pair] = figures
        return [tuple(found[place.micro_batch, place.document]) for place in mine]

    def norms(self, made: Step, mine: list[Place]) -> list[float]:
        """The norm of each piece's gradient, as it is a part of the step's. One piece of one rank at a time: the others
        take part without targets, because a gradient is over all ranks.
        """
        counts = [0] * self.world.size
        dist.all_gather_object(counts, len(mine), group=self.world.control)
        found = []
        for rank, count in enumerate(counts):
            for at in range(count):
                self.world.note(f"the gradients of step {self.step + 1}, {len(found):,} of {len(mine):,} pieces so far")
                place = mine[at] if rank == self.world.rank else None
                norm = self.norm_of(made, place)
                if place:
                    found.append(norm)
        return found

    def norm_of(self, made: Step, place: Place | None) -> float:
        """The norm of the gradient of one piece, of this rank or, with None, of another."""
        batch = with_targets(made.batches[place.micro_batch if place else 0], place)
        last_micro_batch(self.model, last=True)
        found = self.train_step.objective(self.model, batch.to(self.world.device))
        summed = found.flatten()[0]
        (summed * (self.world.size / max(1, made.targets))).backward()
        norm = clip_grad_norm(self.model, 0.0).item()
        self.optimizer.zero_grad()
        return norm

    def weighed(self, made: Step, place: Place, loss: tuple[float, float | None], norm: float) -> Weighed:
        """A piece with its figures, and where it came from."""
        _, targets = without_targets(made.batches[place.micro_batch], place)
        file, row, domain = place.split.origin(place.document)
        stored = place.split.read(place.document, place.first, place.first + min(place.length, TOKENS))
        text = self.run.data.tokenizer.decode((stored & 0x7FFFFFFF).tolist())[:CHARS]
        source = self.train.names[place.source] if self.train.names else domain
        where, (summed, margin) = (file, row, place.document, place.first), loss
        return Weighed(*where, place.length, targets, source, summed, norm, text, margin)


def without_targets(batch: Batch, place: Place) -> tuple[Batch, int]:
    """The batch without the targets of a piece, and how many these were."""
    if batch.pairs_P3 is not None:
        is_meant_P = batch.pairs_P3[:, 2] == place.document
        return batch._replace(pairs_P3=batch.pairs_P3.masked_fill(is_meant_P[:, None], -1)), int(is_meant_P.sum())
    assert batch.labels_T is not None
    labels_T = batch.labels_T.clone()
    piece = labels_T[place.start : place.start + place.length]
    count = int((piece != IGNORE).sum())
    piece.fill_(IGNORE)
    return batch._replace(labels_T=labels_T), count


def with_targets(batch: Batch, place: Place | None) -> Batch:
    """The batch with the targets of a piece alone; with None of none."""
    if batch.pairs_P3 is not None:
        is_other_P = batch.pairs_P3[:, 2] != (place.document if place else -1)
        return batch._replace(pairs_P3=batch.pairs_P3.masked_fill(is_other_P[:, None], -1))
    assert batch.labels_T is not None
    labels_T = torch.full_like(batch.labels_T, IGNORE)
    if place:
        span = slice(place.start, place.start + place.length)
        labels_T[span] = batch.labels_T[span]
    return batch._replace(labels_T=labels_T)


def document_of(place: Place) -> Document:
    """Which document a piece is of."""
    return str(place.split.folder), place.document


def ranked(pieces: list[Weighed]) -> list[Weighed]:
    """Pieces by what they add to the step beyond others of their length: their loss above the median loss a target,
    times their targets and, where gradients were asked for, times their gradient's norm. What is not finite comes
    first.
    """
    with_targets = sorted(piece.loss for piece in pieces if piece.targets and math.isfinite(piece.loss))
    usual = with_targets[len(with_targets) // 2] if with_targets else 0.0

    def excess(piece: Weighed) -> float:
        if not math.isfinite(piece.summed_loss + piece.grad_norm):
            return math.inf
        above = piece.summed_loss - usual * piece.targets
        return above * (piece.grad_norm or 1.0) if above > 0 else above

    return sorted(pieces, key=excess, reverse=True)
