"""prepare beside the tokenizers library alone: the same documents, the same cores, turn by turn; and prepare's memory.

    python -m benchmarks.data [--input FILE...] [--tokenizer DIR] [--megabytes 200] [--repeats 3] [--json]
    python -m benchmarks.data --repeats 0 --formats jsonl csv.gz parquet.zst --sizes 10 500

`encode_batch_fast` is timed on texts that are in memory already, its tokenizer loaded and its threads running.
`prepare` is timed as a user sees it: from the start of its process to its end, with the reading, hashing, writing and
the report. Both in megabytes of document text a second, by the clock, and of each core's time. Memory is the highest
sum of the resident sizes of prepare and its workers, looked at 20 times a second. Without --input the rows are those of
the demo; they are repeated up to the size asked for; with --varied those of formats each time with other digits
and a word of their own, so that they do not repeat.

Of every format and packing the tokens are compared with those of the same documents as JSON lines, at each of --sizes;
memory is measured at each, the rate at the largest. The exit status is 1 where tokens differ. All 48 at 10 and 500 MB
take hours; tables take five times the size in memory while they are written.
"""

import argparse
import hashlib
import json
import os
import random
import statistics
import string
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tokenizers

from benchmarks.data_files import NAMES, Row, texts_of, write

DEMO_DATA = Path(__file__).resolve().parents[1] / "launch" / "demo" / "data.py"
RAW_BATCH = 1000  # texts in a call of encode_batch_fast; with more it is slower
RAW_MB = 30.0  # of the race beside each format


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", nargs="+", help="JSON arrays of rows (default: the demo's)")
    parser.add_argument("--tokenizer", help="folder with a tokenizer.json (default: the demo's)")
    parser.add_argument("--megabytes", type=float, default=200, help="size of the input of the race")
    parser.add_argument("--repeats", type=int, default=3, help="times that each is run; 0 for no race")
    parser.add_argument("--formats", nargs="*", default=["json"], choices=[*NAMES, "all"], help="to compare")
    parser.add_argument("--sizes", type=float, nargs="+", default=[10, 500], help="MB of each format, smallest first")
    parser.add_argument("--varied", action="store_true", help="the rows of a format do not repeat")
    parser.add_argument("--json", action="store_true", help="one JSON object a line instead of a table")
    parser.add_argument("--time_raw", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.time_raw:
        print(*time_raw(*args.time_raw))
        return 0
    differ = False
    with tempfile.TemporaryDirectory() as folder:
        for result in measure(args, Path(folder)):
            told = "  ".join(f"{name} {value}" for name, value in result.items())
            print(json.dumps(result) if args.json else told, flush=True)
            differ |= result.get("same_tokens") is False
    return int(differ)


def measure(args: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """Rates, then each format at each size: one line of the table each. `folder`: to write inputs and outputs into."""
    if not (args.input and args.tokenizer):
        subprocess.run([sys.executable, DEMO_DATA, folder / "demo"], check=True, stdout=subprocess.DEVNULL)
    inputs = args.input or [folder / "demo" / "nlplog.json"]
    tokenizer = Path(args.tokenizer or folder / "demo" / "model")
    rows: list[Row] = [row for path in inputs for row in json.loads(Path(path).read_bytes())]
    if args.repeats:
        yield from race(rows, tokenizer, folder, args.megabytes, args.repeats)
    names, some = NAMES if "all" in args.formats else args.formats, varied if args.varied else repeated
    expected: dict[tuple[bool, float], tuple[str, float]] = {}  # (text file, size): tokens of the same, MB of its text
    for name in names:
        for megabytes in args.sizes:
            kind = (name.startswith("txt"), megabytes)
            if kind not in expected:
                same = as_json_lines(folder, kind[0], some(rows, megabytes))
                expected[kind] = run_prepare(same, tokenizer, folder / "out").tokens, text_megabytes(same)
            raw = raw_rates(rows, tokenizer, folder, RAW_MB) if megabytes == args.sizes[-1] else None
            file = write(folder, name, some(rows, megabytes))
            run = run_prepare(file, tokenizer, folder / "out", look_every=0.05)
            file.unlink()
            tokens, text_mb = expected[kind]
            yield {
                "format": name,
                "input_mb": megabytes,
                "same_tokens": run.tokens == tokens,
                "peak_mib": round(run.peak / 2**20),
            } | ({} if raw is None else beside(raw, text_mb / run.seconds, text_mb / run.cpu_seconds))


def as_json_lines(folder: Path, is_text: bool, rows: Iterator[Row]) -> Path:
    """JSON lines of the documents that a format holds: of its rows, or of a text file's documents."""
    if not is_text:
        return write(folder, "jsonl", rows)
    text = write(folder, "txt", rows)
    return write(folder, "jsonl", ({"text": document} for document in texts_of(text)))


def race(rows: list[Row], tokenizer: Path, folder: Path, megabytes: float, repeats: int) -> Iterator[dict[str, Any]]:
    """Both by turns on one file: the median of each, and of how they compare in a turn."""
    file = write(folder, "json", repeated(rows, megabytes))
    text_mb = text_megabytes(file)
    rates: dict[str, list[tuple[float, float]]] = {"encode_batch_fast": [], "prepare": []}
    for _ in range(repeats):
        raw = raw_seconds(file, tokenizer)
        run = run_prepare(file, tokenizer, folder / "out")
        rates["encode_batch_fast"].append((text_mb / raw[0], text_mb / raw[1]))
        rates["prepare"].append((text_mb / run.seconds, text_mb / run.cpu_seconds))
    for name, turns in rates.items():
        by_clock, of_core = zip(*turns, strict=True)
        of_raw = [
            statistics.median(mine / raw for mine, raw in zip(one, other, strict=True))
            for one, other in zip((by_clock, of_core), zip(*rates["encode_batch_fast"], strict=True), strict=True)
        ]
        yield {
            "what": name,
            "mb_per_second": round(statistics.median(by_clock), 2),
            "lowest": round(min(by_clock), 2),
            "highest": round(max(by_clock), 2),
            "of_raw": f"{of_raw[0]:.1%}",
            "mb_per_core_second": round(statistics.median(of_core), 2),
            "of_raw_by_cpu": f"{of_raw[1]:.1%}",
            "cores": len(os.sched_getaffinity(0)),
            "text_mb": round(text_mb, 1),
        }


def beside(raw: tuple[float, float], rate: float, cpu_rate: float) -> dict[str, Any]:
    """Rates in MB/s, and of the raw ones: by the clock, and a second of a core's time, which others do not disturb."""
    return {
        "mb_per_second": round(rate, 2),
        "of_raw": f"{rate / raw[0]:.1%}",
        "of_raw_by_cpu": f"{cpu_rate / raw[1]:.1%}",
    }


def repeated(rows: list[Row], megabytes: float) -> Iterator[Row]:
    """The rows, from the first again when all are used, up to a size as JSON."""
    sizes, size = [len(json.dumps(row)) + 2 for row in rows], 0
    for row, of_row in cycle(zip(rows, sizes, strict=True)):
        if size > megabytes * 1e6:
            return
        size += of_row
        yield row


def varied(rows: list[Row], megabytes: float) -> Iterator[Row]:
    """The same, but from the second time on with other digits, and a word more in the first column."""
    draw, size = random.Random(7), 0
    for number, row in enumerate(cycle(rows)):
        if size > megabytes * 1e6:
            return
        if number >= len(rows):
            digits = str.maketrans(string.digits, "".join(draw.choices(string.digits, k=10)))
            word = "".join(draw.choices(string.ascii_lowercase, k=7))
            row = {name: str(value).translate(digits) for name, value in row.items()}
            row[next(iter(row))] += f" {word}"
        size += len(json.dumps(row)) + 2
        yield row


def text_megabytes(file: Path) -> float:
    """MB of text of a file's documents."""
    return sum(len(text.encode()) for text in texts_of(file)) / 1e6


def raw_rates(rows: list[Row], tokenizer: Path, folder: Path, megabytes: float) -> tuple[float, float]:
    """MB of text a second that the tokenizers library reaches by the clock, and of a core's time."""
    file = write(folder, "json", repeated(rows, megabytes))
    text_mb = text_megabytes(file)
    seconds, cpu_seconds = raw_seconds(file, tokenizer)
    file.unlink()
    return text_mb / seconds, text_mb / cpu_seconds


def raw_seconds(file: Path, tokenizer: Path) -> tuple[float, float]:
    """What `time_raw` finds, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.data", "--time_raw", file, tokenizer]
    seconds, cpu_seconds = map(float, subprocess.run(command, check=True, capture_output=True).stdout.split())
    return seconds, cpu_seconds


def time_raw(file: str, folder: str) -> tuple[float, float]:
    """Seconds that the tokenizers library takes for a file's texts, and of all cores' time. `folder`: of the
    tokenizer.
    """
    tokenizer = tokenizers.Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    texts = list(texts_of(Path(file)))
    tokenizer.encode_batch_fast(texts[:RAW_BATCH], add_special_tokens=False)
    start, cpu_start = time.perf_counter(), time.process_time()
    for first in range(0, len(texts), RAW_BATCH):
        tokenizer.encode_batch_fast(texts[first : first + RAW_BATCH], add_special_tokens=False)
    return time.perf_counter() - start, time.process_time() - cpu_start


class Run(NamedTuple):
    """What became of a file."""

    seconds: float
    cpu_seconds: float  # of prepare and its workers
    peak: int  # bytes of memory at most; 0 where nobody looked
    tokens: str  # hash of all tokens and the documents' lengths, split by split


def run_prepare(file: Path, tokenizer: Path, output: Path, look_every: float | None = None) -> Run:
    """Prepare a file. `look_every`: seconds between two looks at the memory; looking takes a tenth of a core, so it is
    None where the time counts.
    """
    command = [sys.executable, "-m", "logtrain.prepare", "--input", file, "--tokenizer", tokenizer, "--output", output]
    start, peak, usage = time.perf_counter(), 0, (0, 0, None)
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while not usage[0]:
            usage = os.wait4(process.pid, os.WNOHANG if look_every else 0)
            peak = max(peak, resident_bytes(process.pid) if look_every else 0)
            time.sleep(look_every or 0)
        process.returncode = os.waitstatus_to_exitcode(usage[1])
    seconds, spent = time.perf_counter() - start, usage[2]
    if process.returncode or spent is None:
        raise ValueError(f"prepare failed on {file}")
    tokens = tokens_of(output)
    for written in output.iterdir():
        written.unlink()
    output.rmdir()
    return Run(seconds, spent.ru_utime + spent.ru_stime, peak, tokens)


def tokens_of(prepared: Path) -> str:
    """A hash of the tokens and the lengths of all documents of prepared data."""
    digest = hashlib.sha256()
    for split in json.loads((prepared / "manifest.json").read_bytes())["splits"].values():
        for shard in split["shards"]:
            digest.update(np.load(prepared / shard["tokens"], mmap_mode="r"))
            digest.update(np.load(prepared / shard["documents"])["length"].tobytes())
    return digest.hexdigest()


def resident_bytes(process: int) -> int:
    """The memory of a process and all below it together, in bytes; pages that they share count in each. Workers are in
    process groups of their own.
    """
    pages, children = {}, defaultdict(list)
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended since
            continue
        pages[number := int(status.parent.name)] = int(fields[21])
        children[int(fields[1])].append(number)
    below = [process]
    for one in below:
        below += children[one]
    return sum(pages.get(one, 0) for one in below) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    sys.exit(main())
