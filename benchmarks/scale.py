"""What a job of hundreds of GPUs asks of a node before its first step, found out on one machine without a GPU.

    python benchmarks/scale.py [--nodes 64] [--documents 22000000] [--turn_documents 3000000] [--json]

loaders   The ranks of one node, each a process, open a data set of random lengths (log-normal, mean 444 tokens; the
          tokens themselves are files without content, and not verified) and lay out their first step; one of them packs
          the epoch, and then the next. Memory is the sum of their proportional set sizes: what was shared, the mapped
          files included, counts once. What as many processes hold that only import the same is told apart.
turn      The longest that a training loop waits for a step while the next epoch is packed, and at the epoch's turn; and
          the longest less the time for which the loop was ready and had no CPU, for machines that do other work.
sockets   All ranks of the job, each a thread of one process (sockets.py), form a group of gloo as logtrain does and
          communicate as it does over that group; how many sockets a rank has then. Its groups have their own.
"""

import argparse
import contextlib
import json
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from logtrain.data.config import LoaderConfig
from logtrain.data.epoch import Shared
from logtrain.data.loader import Loader
from logtrain.data.manifest import Manifest
from logtrain.data.shards import DOCUMENT, TOKEN, Split

SEQ_LEN, MEAN, SIGMA = 8192, 444, 0.9
TRAINING = 0.02  # seconds of a step
SHARD_DOCUMENTS = 225_000  # 100M tokens
GROUPS = ("default", "control", "checkpoint")  # of sockets.py
PARTS = ["loaders", "turn", "sockets"]
Line = dict[str, str | int | float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=64)
    parser.add_argument("--ranks", type=int, default=8, help="of a node")
    parser.add_argument("--documents", type=int, default=22_000_000)
    parser.add_argument("--rows_per_step", type=int, default=1024, help="packed rows of a step, over all ranks")
    parser.add_argument("--turn_documents", type=int, default=3_000_000)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="all of them, unless named")
    parser.add_argument("--folder", help="where data and epochs are written and removed (default: TMPDIR)")
    parser.add_argument("--json", action="store_true", help="one JSON object a line instead of a table")
    parser.add_argument("--as_rank", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.as_rank:
        be_rank(args, Path(args.as_rank[0]), int(args.as_rank[1]))
    else:
        for line in measure(args):
            table = "".join(f"{value:>12}  {key.replace('_', ' ')}\n" for key, value in line.items())
            print(json.dumps(line) if args.json else table, flush=True)


def measure(args: argparse.Namespace) -> Iterator[Line]:
    """A line of the table each."""
    if "loaders" in args.parts:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            tokens = write_data(Path(folder), args.documents)
            yield {"part": "loaders", "documents": args.documents, "tokens": tokens, **measure_node(args, folder)}
    if "turn" in args.parts:
        yield {"part": "turn", "documents": args.turn_documents, **measure_turn(args.turn_documents)}
    if "sockets" in args.parts:
        yield {"part": "sockets", "ranks": args.nodes * args.ranks, **measure_groups(args)}


# ---- loaders


def lengths(num_documents: int) -> np.ndarray:
    """int32: tokens of each document."""
    drawn = np.random.default_rng(0).lognormal(np.log(MEAN) - SIGMA**2 / 2, SIGMA, num_documents)
    return np.maximum(2, drawn).astype(np.int32)


def write_data(folder: Path, num_documents: int) -> int:
    """Write shards as `prepare` does, the tokens as holes. -> number of tokens."""
    length_D, shards = lengths(num_documents), []
    for number, first in enumerate(range(0, num_documents, SHARD_DOCUMENTS)):
        of_shard = length_D[first : first + SHARD_DOCUMENTS]
        records = np.zeros(len(of_shard), DOCUMENT)
        records["length"], records["targets"] = of_shard, of_shard - 1
        records["offset"] = np.cumsum(of_shard, dtype=np.int64) - of_shard
        num_tokens = int(of_shard.sum())
        names = {"tokens": f"train-{number:05d}.tokens.npy", "documents": f"train-{number:05d}.documents.npy"}
        np.save(folder / names["documents"], records)
        with open(folder / names["tokens"], "wb") as stream:
            header = {"descr": np.lib.format.dtype_to_descr(TOKEN), "fortran_order": False, "shape": (num_tokens,)}
            np.lib.format.write_array_header_1_0(stream, header)
            stream.truncate(stream.tell() + num_tokens * TOKEN.itemsize)
        counts = {"num_tokens": num_tokens, "num_documents": len(records)}
        shards.append({**names, **counts, "tokens_crc32": 0, "documents_crc32": 0})
    (folder / "manifest.json").write_text(json.dumps({"settings": {}, "splits": {"train": {"shards": shards}}}))
    return int(length_D.sum())


def be_rank(args: argparse.Namespace, folder: Path, local_rank: int) -> None:
    """Be a rank of the first node, say how far it is, and end with the standard input. Without data it only imports."""
    if folder.exists():
        manifest: Manifest = json.loads((folder / "manifest.json").read_text())
        config = LoaderConfig(seq_len=SEQ_LEN, rows_per_step=args.rows_per_step)
        shared, size = Shared(folder / "node", packs=local_rank == 0), args.nodes * args.ranks
        split = Split(folder, manifest, "train", verify=False)
        loader = Loader(split, config, seed=1309, pad_id=0, rank=local_rank, world_size=size, shared=shared)
        steps = iter(loader)
        next(steps)
        print(f"first step, {time.process_time():.1f}", flush=True)
        assert len(loader.epochs[1].tokens_R)
    print("done", flush=True)
    sys.stdin.readline()


def measure_node(args: argparse.Namespace, folder: str) -> Line:
    """Seconds and memory of one node's ranks."""
    imports = Node(args, "/nowhere")
    imports.wait_for("done")
    imported = imports.memory_gib()
    imports.end()
    node = Node(args, folder)
    seconds = node.wait_for("first step")
    to_step = node.peak_gib
    node.wait_for("done")
    node.end()
    return {
        "seconds_to_first_step": round(seconds, 1),
        "cpu_seconds_of_the_rank_that_packs": round(node.cpu_seconds, 1),
        "gib_imports_alone": round(imported, 2),
        "gib_data_to_first_step": round(to_step - imported, 2),
        "gib_data_while_next_epoch_is_packed": round(node.peak_gib - imported, 2),
        "gib_to_start": f"{imported:.2f} imports + {to_step - imported:.2f} data = {to_step:.2f}",
    }


class Node:
    """The ranks of a node as processes. peak_gib: the most memory that they were seen to have. cpu_seconds: the most
    that one of them has used.
    """

    def __init__(self, args: argparse.Namespace, folder: str):
        counts = ["--nodes", str(args.nodes), "--ranks", str(args.ranks), "--rows_per_step", str(args.rows_per_step)]
        self.began, self.peak_gib, self.cpu_seconds = time.perf_counter(), 0.0, 0.0
        self.processes = [
            subprocess.Popen(
                [sys.executable, __file__, *counts, "--as_rank", folder, str(rank)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(args.ranks)
        ]
        self.said: queue.Queue[str] = queue.Queue()
        self.counts: Counter[str] = Counter()
        for process in self.processes:
            threading.Thread(target=self.listen, args=(process,), daemon=True).start()

    def listen(self, process: subprocess.Popen) -> None:
        assert process.stdout
        for line in process.stdout:
            self.said.put(line.strip())
        self.said.put("ended")

    def wait_for(self, word: str) -> float:
        """Until every process has said a word; -> seconds since they were started."""
        while self.counts[word] < len(self.processes):
            self.peak_gib = max(self.peak_gib, self.memory_gib())
            with contextlib.suppress(queue.Empty):
                said, _, cpu_seconds = self.said.get(timeout=0.2).partition(",")
                assert said != "ended", "a rank has ended before its time"
                self.counts[said] += 1  # some have said the next word before the last has said this one
                self.cpu_seconds = max(self.cpu_seconds, float(cpu_seconds or 0))
        return time.perf_counter() - self.began

    def memory_gib(self) -> float:
        """Proportional set size of all."""
        return sum(proportional_bytes(process.pid) for process in self.processes) / 2**30

    def end(self) -> None:
        for process in self.processes:
            assert process.stdin
            process.stdin.close()
            process.wait()


def proportional_bytes(pid: int) -> int:
    """What a process has in memory, its share of what others have too."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


# ---- turn


class Zeros(Split):
    """A split in memory whose documents are all zeros."""

    def __init__(self, num_documents: int):
        self.lengths = lengths(num_documents)
        self.targets = self.lengths - 1
        self.zeros = np.zeros(SEQ_LEN, np.uint32)

    def parts(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        yield self.lengths, self.targets

    def read(self, document: int, start: int, stop: int) -> np.ndarray:
        return self.zeros[: stop - start]


def measure_turn(num_documents: int) -> Line:
    """How long a training loop waits for steps."""
    loader = Loader(Zeros(num_documents), LoaderConfig(seq_len=SEQ_LEN, rows_per_step=8), seed=1309, pad_id=0)
    began, waits = time.perf_counter(), []
    steps = iter(loader)
    next(steps)  # from now on, the next epoch is packed
    loader.epochs.prepare(1)
    while not loader.epochs.futures[1].done():
        waits.append(wait_for_step(steps))
    seconds = time.perf_counter() - began
    steps.close()
    loader.step = loader.steps_per_epoch - 20
    steps = iter(loader)
    next(steps)
    waits += [wait_for_step(steps) for _ in range(40)]
    steps.close()
    return {
        "seconds_to_pack": round(seconds, 1),
        "steps": len(waits),
        "longest_wait_ms": round(max(wait for wait, _ in waits) * 1e3, 1),
        "longest_but_for_cpu_ms": round(max(wait - queued for wait, queued in waits) * 1e3, 1),
    }


def wait_for_step(steps: Iterator) -> tuple[float, float]:
    """Seconds that a step takes but for its training, and for how many of them the threads that lay it out and take it
    were ready and had no CPU.
    """
    threads = [threading.current_thread(), *(thread for thread in threading.enumerate() if thread.name == "loader")]
    before, began = [seconds_queued(thread.native_id) for thread in threads], time.perf_counter()
    time.sleep(TRAINING)  # which ends late where another thread holds Python's lock
    next(steps)
    wait = time.perf_counter() - began - TRAINING
    return wait, sum(seconds_queued(thread.native_id) - s for thread, s in zip(threads, before, strict=True))


def seconds_queued(thread: int | None) -> float:
    """How long a thread of this process has been ready to run and did not."""
    return int(Path(f"/proc/self/task/{thread}/schedstat").read_text().split()[1]) / 1e9


# ---- sockets


def measure_groups(args: argparse.Namespace) -> Line:
    """Sockets of a rank, and seconds, by the group that they belong to."""
    line, total = {}, 0.0
    command = [sys.executable, Path(__file__).with_name("sockets.py"), str(args.nodes * args.ranks)]
    for name in GROUPS:
        done = subprocess.run([*command, name], check=True, stdout=subprocess.PIPE, text=True)
        found = json.loads(done.stdout)
        line |= {f"{name}_{key}": value for key, value in found.items()}
        total += found["sockets"]
    return {**line, "sockets_a_rank": round(total, 1)}


if __name__ == "__main__":
    main()
