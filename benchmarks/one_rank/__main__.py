"""The step of rank 0 of a recipe's ranks, for real, on one GPU (or, at a small shape, on a CPU):

    python -m benchmarks.one_rank launch/recipes/cpt_8xh100.toml --links 0 370e9 --trace trace.json.gz
    python -m benchmarks.one_rank launch/recipes/cpt_8xh100.toml --library liger --recompute none --rows 1 2 4 8

Compute, memory, streams, prefetch and overlap are those of the job on all of them; NCCL's use of processors, and the
reduction of gradients over replicas, are not. The rows are packed as the loader packs them, from random documents of
NLPLog's lengths; the weights are random. Every figure is a line of JSON, told as soon as it is there.
"""

import time

import torch

from benchmarks.gpu_check.figures import tell
from benchmarks.one_rank.categories import seconds_by_category
from benchmarks.one_rank.rank import OneRankConfig, Rank
from logtrain.core import entry
from logtrain.core.config import load
from logtrain.data.config import LoaderConfig
from logtrain.data.loader import Step
from logtrain.planning.trace import pretended_world


def main(argv: list[str]) -> int:
    config = load(OneRankConfig, argv)
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    if config.rows and config.trace:
        raise ValueError("rows and trace: a profile is of the recipe's own step; leave one of them out")
    with pretended_world(config.ranks):
        rank = Rank(config, device)
        if config.rows:
            until_memory_ends(rank)
        else:
            measure_recipe(rank)
    return 0


def label_of(config: OneRankConfig) -> str:
    """What the names of the figures begin with."""
    return config.label or config.library


def measure_recipe(rank: Rank) -> None:
    """The recipe's own step with each speed of the links, and its profile with the last."""
    config = rank.config
    tell(f"{label_of(config)}: share of the parameters held", rank.held_parameters(), "")
    steps = rank.steps(config.loader, 1 + config.steps)
    run(rank, steps[0], 0)
    for bandwidth in config.links:
        rank.links.bandwidth = bandwidth
        measure(rank, steps[1:], f"{label_of(config)}, links {bandwidth:g}")
    if config.trace:
        profile(rank, steps[0], f"{label_of(config)}, links {rank.links.bandwidth:g}")


def until_memory_ends(rank: Rank) -> None:
    """Steps of one micro-batch with more and more rows, until one does not fit into the device's memory."""
    config = rank.config
    rank.links.bandwidth = config.links[0]
    for rows in config.rows:
        loader = LoaderConfig(
            seq_len=config.loader.seq_len, rows_per_step=rows * config.ranks, rows_per_batch=rows, attention="document"
        )
        name = f"{label_of(config)}, {rows} rows, recompute {config.recompute}"
        try:
            steps = rank.steps(loader, 1 + config.steps)
            run(rank, steps[0], 0)
            measure(rank, steps[1:], name)
        except torch.OutOfMemoryError:
            print(f"{name}: does not fit")
            return


def run(rank: Rank, step: Step, number: int) -> float:
    """A step; -> its loss for a target of this rank's, in nats. Waits for the device."""
    summed_loss = rank.train_step(step, number).summed_loss
    rank.wait()
    targets = sum(int((batch.labels_T >= 0).sum()) for batch in step.batches if batch.labels_T is not None)
    return summed_loss.item() / targets


def measure(rank: Rank, steps: list[Step], name: str) -> None:
    """Time steps and tell what they took."""
    if rank.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for kind in rank.links.calls:
        rank.links.calls[kind] = rank.links.bytes[kind] = 0
    seconds, loss = [], 0.0
    for number, step in enumerate(steps, 1):
        began = time.perf_counter()
        loss = run(rank, step, number)
        seconds.append(time.perf_counter() - began)
    median = sorted(seconds)[len(seconds) // 2]
    tell(f"{name}: step", median, "s")
    tell(f"{name}: tokens/s/GPU", sum(s.tokens for s in steps) / rank.config.ranks / sum(seconds), "1/s")
    tell(f"{name}: loss", loss, "nats")
    for kind, calls in rank.links.calls.items():
        tell(f"{name}: {kind} calls", calls / len(steps), "")
        tell(f"{name}: {kind} bytes", rank.links.bytes[kind] / len(steps), "B")
    if rank.device.type == "cuda":
        tell(f"{name}: memory", torch.cuda.max_memory_allocated() / 2**30, "GiB")
        tell(f"{name}: memory reserved", torch.cuda.max_memory_reserved() / 2**30, "GiB")


def profile(rank: Rank, step: Step, name: str) -> None:
    """A step under the profiler: its trace in a file, and where its time goes."""
    with torch.profiler.profile(record_shapes=True) as profiler:
        run(rank, step, rank.config.steps + 1)
    profiler.export_chrome_trace(rank.config.trace)
    for category, seconds in seconds_by_category(rank.config.trace, rank.shape.vocab_size).items():
        tell(f"{name}: {category}", seconds, "s")


if __name__ == "__main__":
    entry.run(main)
