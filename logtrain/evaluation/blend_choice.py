"""The alpha of a blend, chosen by the losses on prepared sets, with the curve that shows what it was chosen from.

The loss of a set is that of its valid split, a target, with each document cut into pieces of the prepared seq_len that
do not see each other. Documents are the samples of its intervals. Chosen is the alpha with the lowest mean of the sets'
losses: of an alpha chosen among many the loss on the same sets is a little too low, so judge the result by others.

Letters in names: A alphas, D documents of a set.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import orjson
import torch
import torch.distributed as dist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from logtrain.core.batch import IGNORE
from logtrain.core.world import World, compute_dtype
from logtrain.data.pack import pieces
from logtrain.data.pairs import has_pairs
from logtrain.data.shards import CONTEXT, Split
from logtrain.evaluation.chart import INK, png_bytes
from logtrain.evaluation.intervals import Difference, paired
from logtrain.evaluation.perplexity import Piece, packed
from logtrain.model.blending import Blend, BlendedWeights
from logtrain.model.llama import Llama
from logtrain.model.weights import empty_model, fill_rows, materialize
from logtrain.training.blend_input import BlendInput
from logtrain.training.config import ParallelConfig
from logtrain.training.sharding import free_gathered, make_mesh, shard

TOKENS = 8192  # of a batch, unless a piece alone has more


@dataclass(frozen=True)
class ChoiceSet:
    """Documents by which alpha is chosen."""

    name: str
    """Its name."""
    split: Split
    """The split that they are of."""
    documents: list[int]
    """Their numbers in the split."""
    targets: int
    """Tokens of them that are predicted."""

    def batches(self) -> Iterator[list[tuple[int, Piece]]]:
        """The pieces of the documents with their places among `documents`, in batches of at most TOKENS."""
        seq_len = self.split.manifest["settings"]["seq_len"]
        cut = pieces(self.split.lengths[self.documents], seq_len)
        batch, room = [], TOKENS
        for place, start, length in zip(*(column.tolist() for column in cut), strict=True):
            if batch and length > room:
                yield batch
                batch, room = [], TOKENS
            stored = self.split.read(self.documents[place], start, start + length)
            batch.append((place, piece_of(stored)))
            room -= length
        yield batch


def piece_of(stored: np.ndarray) -> Piece:
    """A piece of a document, of its tokens as they are stored, uint32 [tokens]: context is no target."""
    ids = (stored & (CONTEXT - 1)).astype(np.int64)
    labels = np.full(len(ids), IGNORE, np.int64)
    labels[:-1] = np.where(stored[1:] & CONTEXT, IGNORE, ids[1:])
    return Piece(torch.from_numpy(ids), torch.from_numpy(labels))


class Choice(NamedTuple):
    """What was found."""

    alpha: float
    """The chosen one."""
    alphas: list[float]
    """All that were tried, ascending."""
    sets: list[ChoiceSet]
    """The sets."""
    losses: list[np.ndarray]
    """Of each set, fp64 [A, D]: every document's part of the set's loss, which is their mean."""

    def objective(self) -> np.ndarray:
        """fp64 [A]: the mean of the sets' losses."""
        return np.mean([losses_AD.mean(1) for losses_AD in self.losses], axis=0)

    def differences(self, number: int, other: float) -> list[Difference]:
        """The loss of a set at every alpha less that at another, with intervals over documents."""
        losses_AD = self.losses[number]
        return [paired(losses_D, losses_AD[self.alphas.index(other)]) for losses_D in losses_AD]

    def as_json(self) -> dict[str, Any]:
        """The content of choice.json; losses in nats a target."""
        found = {}
        for number, each in enumerate(self.sets):
            found[each.name] = {
                "data": each.split.manifest["fingerprint"],
                "documents": len(each.documents),
                "targets": each.targets,
                "loss": self.losses[number].mean(1).tolist(),
                **{
                    f"minus_alpha_{end:g}": [each._asdict() for each in self.differences(number, end)]
                    for end in (self.alphas[0], self.alphas[-1])
                },
            }
        return {"alpha": self.alpha, "alphas": self.alphas, "objective": self.objective().tolist(), "sets": found}

    def told(self) -> list[str]:
        """The choice in lines for a person: of each set the loss, and how it differs from those at both ends."""
        chosen = self.alphas.index(self.alpha)
        lines = [f"alpha = {self.alpha:g}: the lowest of {len(self.alphas)} means over the sets, in nats a target"]
        for number, each in enumerate(self.sets):
            ends = []
            for end in (self.alphas[0], self.alphas[-1]):
                found = self.differences(number, end)[chosen]
                interval = "" if found.low is None else f" ({found.low:+.4f} to {found.high:+.4f})"
                ends.append(f"{found.difference:+.4f}{interval} to alpha = {end:g}")
            loss, count = self.losses[number].mean(1)[chosen], len(each.documents)
            lines.append(f"  {each.name}: loss {loss:.4f}, {', '.join(ends)}; {count:,} documents, 95% intervals")
        return lines

    def write(self, folder: Path) -> dict[str, Any]:
        """Write choice.json and choice.png into a folder; -> the names of the sets, for card and lineage."""
        (folder / "choice.json").write_bytes(orjson.dumps(self.as_json(), option=orjson.OPT_INDENT_2))
        (folder / "choice.png").write_bytes(png_bytes(self.picture()))
        return {"chosen_by": [each.name for each in self.sets]}

    def picture(self) -> Figure:
        """The loss of each set by alpha, with 95% intervals of its difference to the first alpha."""
        with matplotlib.rc_context({"font.size": 10, "text.parse_math": False}):
            figure = Figure(figsize=(5.6, 2.4 * (1 + len(self.sets))), layout="constrained")
            FigureCanvasAgg(figure)
            axes = figure.subplots(1 + len(self.sets), 1, squeeze=False)[:, 0]
            for number, each in enumerate(self.sets):
                self.draw_set(axes[number], number, each)
            axes[-1].plot(self.alphas, self.objective(), "o-", color=INK, markersize=3)
            axes[-1].set_title(f"mean of the sets; lowest at alpha = {self.alpha:g}", fontsize=10, loc="left")
            for each in axes:
                each.axvline(self.alpha, color=INK, linewidth=1, linestyle=":")
                each.set_ylabel("nats a target")
                each.spines[["top", "right"]].set_visible(False)
            axes[-1].set_xlabel("alpha")
        return figure

    def draw_set(self, axes: Axes, number: int, of_set: ChoiceSet) -> None:
        """Draw the curve of a set."""
        loss_A = self.losses[number].mean(1)
        found = self.differences(number, self.alphas[0])
        ends = [(each.low or 0.0, each.high or 0.0) for each in found]
        low_A, high_A = (loss_A[0] + np.array(end) for end in zip(*ends, strict=True))
        axes.fill_between(self.alphas, low_A, high_A, color="#2f6fb0", alpha=0.2, linewidth=0)
        axes.plot(self.alphas, loss_A, "o-", color="#2f6fb0", markersize=3)
        counts = f"{len(of_set.documents):,} documents, {of_set.targets:,} targets"
        told = f"loss on {of_set.name[:40]}: {counts}\nband: 95% of the difference to alpha = {self.alphas[0]:g}"
        axes.set_title(told, fontsize=10, loc="left")


def open_sets(named: Sequence[str], most: int, model: BlendInput, world: World) -> list[ChoiceSet]:
    """The sets of NAME=FOLDER, of each `most` documents at most, evenly spread (0: all). Raises ValueError for a folder
    without a valid split, and for one of another tokenizer than the model's.
    """
    found = []
    for text in named:
        name, _, folder = text.partition("=")
        split = Split.open(folder, "valid", part=(world.rank, world.size), note=world.note)
        if has_pairs(split.manifest):
            raise ValueError(
                f"{folder}: pairs of answers, of which the rejected ones would count too; give text or chats"
            )
        if split.manifest["tokenizer"]["sha256"] != model.tokenizer.sha256:
            raise ValueError(f"{folder}: was prepared with another tokenizer than that of {model.name}")
        if split.manifest["settings"]["seq_len"] > model.shape.max_positions:
            raise ValueError(f"{folder}: prepared for longer rows than {model.name} knows positions")
        documents = [number for number in range(split.num_documents) if split.targets[number] > 0]
        if most and most < len(documents):
            documents = [documents[i * len(documents) // most] for i in range(most)]
        if len(documents) < 2:
            raise ValueError(
                f"{folder}: {len(documents)} documents with targets in its valid split; two or more needed"
            )
        found.append(ChoiceSet(name, split, documents, int(split.targets[documents].sum())))
    return found


def choose_alpha(
    blend: Blend, alphas: Sequence[float], inputs: Sequence[BlendInput], sets: Sequence[ChoiceSet], world: World
) -> Choice:
    """Blend for every alpha and measure; every rank calls this and gets the same. The model is sharded over the ranks.
    Raises ValueError for weights whose loss is not finite.
    """
    alphas, weights, shape = sorted(alphas), [each.weights for each in inputs], inputs[0].shape
    names = [each.name for each in inputs]
    model = empty_model(shape)
    mesh = make_mesh(world.device.type, world.size, ParallelConfig())
    shard(model, mesh, ParallelConfig(), compute_dtype(world.device))
    losses = [np.zeros((len(alphas), len(each.documents))) for each in sets]
    for number, alpha in enumerate(alphas):
        source = BlendedWeights(replace(blend, alpha=alpha), weights, shape, names)
        if number == 0:
            materialize(model, world.device, source)
        else:
            for name, parameter in model.named_parameters():
                fill_rows(parameter, name, source)
        for losses_AD, each in zip(losses, sets, strict=True):
            world.note(f"losses on {each.name} at alpha = {alpha:g}")
            losses_AD[number] = document_losses(model, each, world)
    found = Choice(alphas[0], alphas, list(sets), losses)
    return found._replace(alpha=alphas[int(found.objective().argmin())])


@torch.no_grad()
def document_losses(model: Llama, of_set: ChoiceSet, world: World) -> np.ndarray:
    """fp64 [D]: the summed loss of each document, by the mean number of targets of a document, so that their mean is
    the set's loss a target. Each rank predicts every n-th batch; one that has fewer repeats the last, without counting
    it, because a sharded model needs every rank in every forward.
    """
    sums_D = torch.zeros(len(of_set.documents), dtype=torch.float64)
    batches = list(of_set.batches())
    for first in range(0, len(batches), world.size):
        number = first + world.rank
        batch = batches[min(number, len(batches) - 1)]
        found_S = model(packed([piece for _, piece in batch]).to(world.device), of_sequences=True)
        if number < len(batches):
            places = torch.tensor([place for place, _ in batch])
            sums_D.index_add_(0, places, found_S.double().cpu())
        world.note(f"losses on {of_set.name}, {first + 1} of {len(batches)} batches")
    free_gathered(model)
    dist.all_reduce(sums_D, group=world.control)
    if not sums_D.isfinite().all():
        raise ValueError(f"{of_set.name}: a loss that is not finite; a model is damaged, or alpha too large")
    return sums_D.numpy() * len(of_set.documents) / of_set.targets
