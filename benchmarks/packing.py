"""How well and how fast documents are packed into rows and dealt to steps; on a CPU, in a minute.

    python benchmarks/packing.py [--data DIR ...] [--seq_len 2048] [--documents 10000000] [--json]

rows    Of random lengths, and of the training split of prepared folders: how full the rows are, and the share of the
        variance of the documents' lengths that lies between rows (0: each row is a sample of all).
steps   Of random data sets: the fewest targets of a step, as a share of the mean of its epoch.
speed   Seconds to pack an epoch of random lengths, and those of the one core that it had.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import logtrain
from logtrain.data.deal import deal, row_sums
from logtrain.data.pack import PackedRows, pack, pieces

SEED, NUM_SETS = 1309, 20
LOGNORMAL = {  # mean, sigma of the logarithm, seq_len
    "documents": (444, 0.4, 8192),
    "documents of many lengths": (444, 0.8, 8192),
    "chats": (600, 0.9, 4096),
    "long chats": (5000, 0.5, 8192),
}
Line = dict[str, str | int | float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="*", default=[], help="prepared folders")
    parser.add_argument("--seq_len", type=int, help="of their rows (default: what they were prepared for)")
    parser.add_argument("--documents", type=int, default=10_000_000, help="that are packed for the time")
    parser.add_argument("--json", action="store_true", help="one JSON object a line instead of a table")
    args = parser.parse_args()
    for line in measure(args):
        print(json.dumps(line) if args.json else "  ".join(f"{key} {value}" for key, value in line.items()), flush=True)


def measure(args: argparse.Namespace) -> Iterator[Line]:
    """A line for each set of lengths, one for the steps of many, and one for the time."""
    for name, (mean, sigma, seq_len) in LOGNORMAL.items():
        yield {"rows": name, **measure_rows(lognormal_lengths(mean, sigma, 30_000), seq_len)}
    for folder in args.data:
        split = logtrain.open_data(folder)
        seq_len = args.seq_len or split.manifest["settings"]["seq_len"]
        yield {"rows": Path(folder).name, **measure_rows(split.lengths, seq_len)}
    yield {"steps": f"of {NUM_SETS} data sets", "fewest_targets": round(min(map(fewest_targets, range(NUM_SETS))), 4)}
    length_P = pieces(lognormal_lengths(444, 0.9, args.documents), 8192).length_P
    began, cpu_began = time.perf_counter(), time.process_time()
    pack(length_P, 8192, SEED, 0)
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
    yield {"speed": f"{args.documents:,} documents", "seconds": round(seconds, 2), "cpu_seconds": round(cpu_seconds, 2)}


def lognormal_lengths(mean: float, sigma: float, num_documents: int) -> np.ndarray:
    """int64: tokens of each document."""
    drawn = np.random.default_rng(3).lognormal(np.log(mean) - sigma**2 / 2, sigma, num_documents)
    return np.maximum(2, drawn).astype(np.int64)


def measure_rows(length_D: np.ndarray, seq_len: int) -> Line:
    """Of two epochs the worse."""
    length_P = pieces(length_D, seq_len).length_P
    epochs = [pack(length_P, seq_len, SEED, epoch) for epoch in (0, 1)]
    return {
        "mean": round(float(length_D.mean()), 1),
        "seq_len": seq_len,
        "fill": round(min(fill(rows, length_P, seq_len) for rows in epochs), 5),
        "between": round(max(share_between_rows(rows, length_P) for rows in epochs), 4),
    }


def fill(rows: PackedRows, length_P: np.ndarray, seq_len: int) -> float:
    """The share of the rows' room that tokens take."""
    return float(length_P.sum(dtype=np.int64)) / (rows.num_rows * seq_len)


def share_between_rows(rows: PackedRows, length_P: np.ndarray) -> float:
    """The share of the variance of the pieces' lengths that lies between rows."""
    count_R, mean = np.diff(rows.row_start_R1), length_P.mean()
    mean_R = row_sums(rows, length_P) / count_R
    return float(count_R @ (mean_R - mean) ** 2 / ((length_P - mean) ** 2).sum())


def fewest_targets(seed: int) -> float:
    """The fewest targets of a step of a random data set, as a share of the mean: of rows of four documents and more,
    four and more of them a step, whether or not they come out even.
    """
    random = np.random.default_rng(seed)
    rows_per_step, seq_len = int(random.integers(4, 65)), int(random.choice([2048, 8192]))
    drawn = random.lognormal(np.log(444), random.uniform(0.3, 0.6), int(random.integers(2_000, 50_000)))
    length_P = np.clip(drawn, 2, seq_len).astype(np.int32)
    targets_P = random.binomial(length_P - 1, random.uniform(0.6, 1)).astype(np.int32)
    rows = pack(length_P, seq_len, seed, 0)
    num_steps = -(-rows.num_rows // rows_per_step)
    rows, step_start_S1 = deal(rows, length_P, targets_P, num_steps, rows_per_step, seq_len, seed, 0)
    targets_S = np.add.reduceat(row_sums(rows, targets_P), step_start_S1[:-1])
    return float(targets_S.min() / targets_S.mean())


if __name__ == "__main__":
    main()
