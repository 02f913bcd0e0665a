"""How noisy the gradient of a step is, by which documents share a row; on a CPU, in minutes.

    python benchmarks/gradient_noise.py --model DIR --data DIR [--rows 4 8 16] [--documents 3000] [--json]

Noise is the mean squared distance of a step's gradient from that of the whole set, both divided by their targets. Three
ways to compose a step of so many rows are compared: the steps of a run, epoch after epoch, as `logtrain.data` packs and
deals them; rows of best-fit-decreasing, which other trainers use, drawn at random; and documents drawn at random until
they have as many tokens, the least noise that a step of this size can be expected to have, against which the others are
given. With rows come how full they are and the share of the variance of document length that lies between them.

Documents of a row do not see each other, so that a step's gradient is the sum of its documents', each computed once.
Memory: 4 bytes x documents x parameters, thus a small model; data: a folder that `logtrain prepare` has written.
"""

import argparse
import bisect
import itertools
import json
from collections.abc import Iterator

import numpy as np
import torch

import logtrain
from logtrain.core.batch import IGNORE, Batch
from logtrain.data.deal import deal
from logtrain.data.pack import PackedRows, pack, pieces
from logtrain.data.shards import CONTEXT
from logtrain.observe.progress import Progress

SEED, NUM_STEPS = 1309, 2000
Steps = Iterator[tuple[PackedRows, np.ndarray]]
"""Packed rows and, int64, those of them that a step takes."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a small Llama")
    parser.add_argument("--data", required=True, help="prepared folder; its training split is taken")
    parser.add_argument("--rows", type=int, nargs="+", default=[4, 8, 16], help="rows a step")
    parser.add_argument("--documents", type=int, default=3000, help="at most so many, drawn at random")
    parser.add_argument("--json", action="store_true", help="one JSON object a line instead of a table")
    args = parser.parse_args()
    for line in measure(args):
        print(json.dumps(line) if args.json else "  ".join(f"{key} {value}" for key, value in line.items()), flush=True)


def measure(args: argparse.Namespace) -> Iterator[dict[str, str | int | float]]:
    """A line for each way and number of rows."""
    split = logtrain.open_data(args.data)
    seq_len = split.manifest["settings"]["seq_len"]
    chosen_D = np.sort(np.random.default_rng(0).permutation(len(split.lengths))[: args.documents])
    cut = pieces(split.lengths[chosen_D], seq_len)
    stored = [
        split.read(int(chosen_D[document]), int(start), int(start) + int(length))
        for document, start, length in zip(*cut, strict=True)
    ]
    gram_PP, targets_P = gradient_products(logtrain.load(args.model, "cpu"), stored)
    length_P = cut.length_P.astype(np.int64)
    yield {"documents": len(chosen_D), "pieces": len(length_P), "tokens": int(length_P.sum()), "seq_len": seq_len}

    num_rows = pack(cut.length_P, seq_len, SEED, 0).num_rows
    for rows_per_step in args.rows:
        num_steps = -(-num_rows // rows_per_step)
        least = noise(gram_PP, targets_P, random_steps(length_P, length_P.sum() / num_steps))
        ways = {
            "mixed": list(dealt_steps(cut.length_P, targets_P.astype(np.int32), seq_len, num_steps, rows_per_step)),
            "decreasing": list(drawn_steps(best_fit_decreasing(length_P, seq_len), rows_per_step)),
        }
        for way, steps in ways.items():
            pieces_of_steps = (np.concatenate([rows.pieces_of(row) for row in step]) for rows, step in steps)
            ratio = noise(gram_PP, targets_P, pieces_of_steps) / least
            packings = {id(rows): rows for rows, _ in steps}.values()
            fill = float(np.mean([length_P.sum() / (rows.num_rows * seq_len) for rows in packings]))
            between = float(np.mean([share_between_rows(rows, length_P) for rows in packings]))
            yield {
                "rows_per_step": rows_per_step,
                "packing": way,
                "noise_to_random": round(ratio, 3),
                "fill": round(fill, 4),
                "length_variance_between_rows": round(between, 3),
            }


def gradient_products(model: logtrain.Model, stored: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """float64 [P, P]: products of the pieces' gradients (of their summed losses); int64 [P]: their targets."""
    parameters = list(model.llama.requires_grad_(True).parameters())
    gradients_PN = torch.empty(len(stored), sum(parameter.numel() for parameter in parameters))
    targets_P = np.empty(len(stored), np.int64)
    with Progress("gradients", len(stored), title="gradients of pieces") as progress:
        for i, tokens in enumerate(stored):
            tokens_T = torch.from_numpy((tokens & (CONTEXT - 1)).astype(np.int64))
            labels_T = torch.full_like(tokens_T, IGNORE)
            labels_T[:-1] = torch.from_numpy(np.where(tokens[1:] & CONTEXT, IGNORE, tokens_T[1:]))
            targets_P[i] = int((labels_T != IGNORE).sum())
            positions_T, cu_seqlens = torch.arange(len(tokens), dtype=torch.int32), torch.tensor([0, len(tokens)]).int()
            loss = model.llama(Batch(tokens_T, labels_T, positions_T, cu_seqlens, len(tokens)))
            torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)], out=gradients_PN[i])
            progress.update(i + 1, {"piece": f"{i + 1}/{len(stored)}"})
    return (gradients_PN @ gradients_PN.T).double().numpy(), targets_P


def noise(gram_PP: np.ndarray, targets_P: np.ndarray, steps: Iterator[np.ndarray]) -> float:
    """Mean over steps (arrays of pieces) of |step's gradient - the whole set's|^2."""
    products_P, all_targets = gram_PP.sum(1), targets_P.sum()  # of each piece's gradient with that of the whole set
    squared = []
    for step in steps:
        targets = targets_P[step].sum()
        own, mixed = gram_PP[np.ix_(step, step)].sum(), products_P[step].sum()
        squared.append(own / targets**2 - 2 * mixed / (targets * all_targets) + products_P.sum() / all_targets**2)
    return float(np.mean(squared))


def dealt_steps(length_P: np.ndarray, targets_P: np.ndarray, seq_len: int, num_steps: int, most_rows: int) -> Steps:
    """The steps of a run from the first on, each epoch packed and dealt anew."""
    for epoch in range(-(-NUM_STEPS // num_steps)):
        rows = pack(length_P, seq_len, SEED, epoch)
        rows, start_S1 = deal(rows, length_P, targets_P, num_steps, most_rows, seq_len, SEED, epoch)
        yield from ((rows, np.arange(first, end)) for first, end in itertools.pairwise(start_S1))


def drawn_steps(rows: PackedRows, rows_per_step: int) -> Steps:
    """Steps of whole rows, drawn at random."""
    random = np.random.default_rng(1)
    for _ in range(NUM_STEPS):
        yield rows, random.permutation(rows.num_rows)[:rows_per_step]


def random_steps(length_P: np.ndarray, tokens: float) -> Iterator[np.ndarray]:
    """Steps of pieces drawn at random, as many as come nearest to `tokens`."""
    random = np.random.default_rng(2)
    for _ in range(NUM_STEPS):
        order_P = random.permutation(len(length_P))
        sums_P = np.cumsum(length_P[order_P])
        yield order_P[: max(1, int(np.argmin(np.abs(sums_P - tokens))) + 1)]


def best_fit_decreasing(length_P: np.ndarray, seq_len: int) -> PackedRows:
    """The longest piece first, each into the fullest row that has room for it."""
    space_rows: list[tuple[int, int]] = []  # ascending
    pieces_of: list[list[int]] = []
    for piece in np.argsort(-length_P, kind="stable").tolist():
        at = bisect.bisect_left(space_rows, (int(length_P[piece]), -1))
        space, row = space_rows.pop(at) if at < len(space_rows) else (seq_len, len(pieces_of))
        if row == len(pieces_of):
            pieces_of.append([])
        pieces_of[row].append(piece)
        bisect.insort(space_rows, (space - int(length_P[piece]), row))
    starts = np.cumsum([0, *map(len, pieces_of)])
    return PackedRows(np.concatenate([np.array(row) for row in pieces_of]), starts)


def share_between_rows(rows: PackedRows, length_P: np.ndarray) -> float:
    """The share of the variance of document length that lies between rows: 0 where each is like all."""
    length_P = length_P[rows.piece_P].astype(np.float64)
    count_R = np.diff(rows.row_start_R1)
    mean_R = np.add.reduceat(length_P, rows.row_start_R1[:-1]) / count_R
    return float(count_R @ (mean_R - length_P.mean()) ** 2 / ((length_P - length_P.mean()) ** 2).sum())


if __name__ == "__main__":
    main()
