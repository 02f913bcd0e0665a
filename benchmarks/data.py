"""prepare beside the tokenizers library alone: the same documents, the same cores, turn by turn; and prepare's memory.

    python benchmarks/data.py [--input FILE...] [--tokenizer DIR] [--megabytes 200] [--repeats 3] [--json]

`encode_batch_fast` is timed on texts that are in memory already, its tokenizer loaded and its threads running.
`prepare` is timed as a user sees it: from the start of its process to its end, with the reading, hashing, writing and
the report. Both in megabytes of document text a second. Memory is the highest sum of the resident sizes of prepare and
its workers, looked at 20 times a second. Without --input the rows are those of the demo; they are repeated up to the
size asked for.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tokenizers

from logtrain.data.documents import Document, documents
from logtrain.data.files import InputFile

DEMO_DATA = Path(__file__).resolve().parents[1] / "launch" / "demo" / "data.py"
RAW_BATCH = 1000  # texts in a call of encode_batch_fast; with more it is slower


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", nargs="+", help="JSON arrays of rows (default: the demo's)")
    parser.add_argument("--tokenizer", help="folder with a tokenizer.json (default: the demo's)")
    parser.add_argument("--megabytes", type=float, default=200, help="size of the input of the race")
    parser.add_argument("--repeats", type=int, default=3, help="times that each is run")
    parser.add_argument("--memory", type=float, nargs="*", default=[10, 500], help="sizes in MB to measure memory at")
    parser.add_argument("--json", action="store_true", help="one JSON object a line instead of a table")
    parser.add_argument("--time_raw", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.time_raw:
        print(time_raw(*args.time_raw))
        return
    with tempfile.TemporaryDirectory() as folder:
        for result in measure(args, Path(folder)):
            if args.json:
                print(json.dumps(result), flush=True)
            else:
                print("  ".join(f"{name} {value}" for name, value in result.items()), flush=True)


def measure(args: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """Rates and memory, one line of the table each. `folder`: to write inputs and outputs into."""
    if not (args.input and args.tokenizer):
        subprocess.run([sys.executable, DEMO_DATA, folder / "demo"], check=True, stdout=subprocess.DEVNULL)
    inputs = args.input or [folder / "demo" / "nlplog.json"]
    tokenizer = args.tokenizer or folder / "demo" / "model"
    rows = [json.dumps(row) for path in inputs for row in json.loads(Path(path).read_bytes())]

    file = write_array(folder / "race.json", rows, args.megabytes)
    text_mb = sum(len(text.encode()) for text in texts_of(file)) / 1e6
    rates = {"encode_batch_fast": [], "prepare": []}
    for _ in range(args.repeats):
        raw = [sys.executable, __file__, "--time_raw", file, tokenizer]
        rates["encode_batch_fast"].append(text_mb / float(subprocess.run(raw, check=True, capture_output=True).stdout))
        rates["prepare"].append(text_mb / run_prepare(file, tokenizer, folder / "out")[0])
    median = {name: statistics.median(values) for name, values in rates.items()}
    for name, values in rates.items():
        yield {
            "what": name,
            "mb_per_second": round(median[name], 2),
            "lowest": round(min(values), 2),
            "highest": round(max(values), 2),
            "of_raw": f"{median[name] / median['encode_batch_fast']:.1%}",
            "cores": len(os.sched_getaffinity(0)),
            "text_mb": round(text_mb, 1),
        }
    for megabytes in args.memory:
        file = write_array(folder / "memory.json", rows, megabytes)
        peak = run_prepare(file, tokenizer, folder / "out", look_every=0.05)[1]
        yield {"what": "memory", "input_mb": megabytes, "peak_mib": round(peak / 2**20)}


def write_array(file: Path, rows: list[str], megabytes: float) -> Path:
    """A JSON array of the rows, from the first again when all are used, of the given size."""
    size = 0
    with open(file, "w", encoding="utf-8") as stream:
        for before, row in zip(itertools.chain("[", itertools.repeat(",\n")), itertools.cycle(rows), strict=False):
            if size > megabytes * 1e6:
                break
            size += stream.write(before + row)
        stream.write("]")
    return file


def texts_of(file: Path) -> Iterator[str]:
    """The texts of the documents that prepare makes of a file. Raises ValueError for a bad row."""
    for document in documents(InputFile(file), "auto", text_chars=1):
        if not isinstance(document, Document):
            raise ValueError(f"{file} row {document.row}: {document}")
        yield document.text


def time_raw(file: str, folder: str) -> float:
    """Seconds that the tokenizers library takes for a file's texts. `folder`: of the tokenizer."""
    tokenizer = tokenizers.Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    texts = list(texts_of(Path(file)))
    tokenizer.encode_batch_fast(texts[:RAW_BATCH], add_special_tokens=False)
    start = time.perf_counter()
    for first in range(0, len(texts), RAW_BATCH):
        tokenizer.encode_batch_fast(texts[first : first + RAW_BATCH], add_special_tokens=False)
    return time.perf_counter() - start


def run_prepare(file: Path, tokenizer: Path, output: Path, look_every: float | None = None) -> tuple[float, int]:
    """Seconds that prepare takes, and the most memory seen, in bytes. `look_every`: seconds between two looks at the
    memory; looking takes a tenth of a core, so it is None where the time counts.
    """
    command = [sys.executable, "-m", "logtrain.prepare", "--input", file, "--tokenizer", tokenizer, "--output", output]
    start, peak = time.perf_counter(), 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, process_group=0) as process:
        while look_every and process.poll() is None:
            peak = max(peak, resident_bytes(process.pid))
            time.sleep(look_every)
        process.wait()
    seconds = time.perf_counter() - start
    if process.returncode:
        raise ValueError(f"prepare failed on {file}")
    for written in output.iterdir():
        written.unlink()
    output.rmdir()
    return seconds, peak


def resident_bytes(process_group: int) -> int:
    """The memory of all processes of a group together, in bytes; pages that they share count in each."""
    pages = 0
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended since
            continue
        if int(fields[2]) == process_group:
            pages += int(fields[21])
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
