"""What a run tells: metrics.jsonl for programs, log.txt for later, a table above a progress bar for the person there.

Every value arrives as a plain Python number, so nothing here waits for the device.
"""

import json
import os
import re
import resource
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import orjson
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

Record = dict[str, float | int | str | None]

# bf16 FLOP/s of the tensor cores without sparsity, from NVIDIA's datasheets; from Hopper on these print the figure with
# sparsity, twice as much (H100 SXM: 1,979e12). An entry fits a name that has all its words; the first that fits counts.
PEAK_FLOPS = {
    "H100 PCIe": 756.5e12,
    "H100 NVL": 835.5e12,
    "H100": 989.4e12,  # SXM: "NVIDIA H100 80GB HBM3"
    "H200 NVL": 835.5e12,
    "H200": 989.4e12,
    "GH200": 989.4e12,
    "H800": 989.4e12,
    "A100": 312e12,
    "A800": 312e12,
    "GB200": 2500e12,
    "B200": 2250e12,
    "L40S": 362e12,
    "A10G": 70e12,
    "L4": 121e12,
}


class ModelShape(Protocol):
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int


def model_flops(shape: ModelShape, tokens: int, attention_pairs: int, adapters: int = 0) -> float:
    """FLOPs that training on `tokens` takes: forward and backward, nothing counted twice for activation recomputation.

    For each token, 6 for each weight of a matrix product (2 forward, 4 backward): the head is one, the embedding not.
    With LoRA, of so many parameters in `adapters`, 6 for each of these and 4 for each frozen weight: no gradient of it.
    For each pair of query and key, 12 * layers * heads * head_dim. It is PaLM's count (Chowdhery et al. 2022,
    arXiv:2204.02311, appendix B), but only of pairs that the mask lets through: a document has length (length + 1) / 2.
    """
    heads = 2 * shape.num_heads + 2 * shape.num_kv_heads  # q and out; k and v
    block = shape.hidden_size * (heads * shape.head_dim + 3 * shape.intermediate_size)
    weights = shape.num_layers * block + shape.hidden_size * shape.vocab_size
    products = 4 * weights + 6 * adapters if adapters else 6 * weights
    return tokens * products + 12 * attention_pairs * shape.num_layers * shape.num_heads * shape.head_dim


def peak_flops(device: torch.device) -> float | None:
    """Peak dense bf16 FLOP/s of one device; None where it is not known: other GPUs, a MIG slice of one, CPUs."""
    if device.type != "cuda":
        return None
    words = set(re.split(r"[\s-]", torch.cuda.get_device_name(device)))
    if "MIG" in words:
        return None
    return next((flops for entry, flops in PEAK_FLOPS.items() if words.issuperset(entry.split())), None)


def peak_memory_gib(device: torch.device) -> float:
    """Most memory held so far: by tensors on a cuda device, by the process elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 2**30


class Metrics:
    """The records of one run; rank 0 writes (`enabled`), on other ranks every method does nothing.

    A resumed run continues the series in the run directory: records after `resume_step`, the checkpoint's step, are cut
    off first, for these steps run again.
    """

    def __init__(self, run_dir: Path, *, enabled: bool, total_steps: int, resume_step: int = 0):
        self.enabled, self.total_steps = enabled, total_steps
        if not enabled:
            return
        cut = cut_after(run_dir / "metrics.jsonl", resume_step)
        self.records = open(run_dir / "metrics.jsonl", "ab")  # noqa: SIM115 (closed in close)
        self.log = open(run_dir / "log.txt", "a", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
        self.screen = Table(total_steps, resume_step) if on_terminal() else Lines()
        if cut:
            self.info(f"metrics.jsonl: removed {cut} records made after the checkpoint; their steps run again")

    def train(self, record: Record) -> None:
        """Record a training step."""
        if self.enabled:
            self._write(record)
            self.screen.train(record)

    def valid(self, record: Record) -> None:
        """Record the loss on a validation set."""
        if self.enabled:
            self._write(record)
            self.screen.valid(record)

    def info(self, text: str) -> None:
        """Tell the person something that is not a record."""
        if self.enabled:
            self._write_log(text)
            self.screen.print(text)

    def close(self) -> None:
        if self.enabled and not self.log.closed:
            self.screen.close()
            self.records.close()
            self.log.close()

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if self.enabled and kind is not None:
            self._write_log(f"stopped by {kind.__name__}: {error}")
        self.close()

    def _write(self, record: Record) -> None:
        self.records.write(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))
        self.records.flush()
        self._write_log(as_line(record))

    def _write_log(self, text: str) -> None:
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        self.log.writelines(f"{now} {line}\n" for line in text.splitlines())
        self.log.flush()


def cut_after(path: Path, step: int) -> int:
    """Removes the records after `step` (at step 0 all, for a run begins with one) and torn lines; returns how many.

    The file is replaced as a whole: a kill in here leaves the old one or the new one.
    """
    if not path.exists():
        return 0
    kept = []
    lines = path.read_bytes().splitlines(keepends=True)
    for line in lines:
        try:
            if step > 0 and line.endswith(b"\n") and orjson.loads(line)["step"] <= step:
                kept.append(line)
        except orjson.JSONDecodeError:
            continue
    aside = path.with_suffix(".jsonl.aside")
    aside.write_bytes(b"".join(kept))
    aside.replace(path)
    return len(lines) - len(kept)


def as_line(record: Record) -> str:
    return " ".join(f"{key}={plain(value)}" for key, value in record.items())


def plain(value: float | int | str | None) -> str:
    """One value of a `key=value` line: JSON, but a word needs no quotes and a float has six digits."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, str) and re.fullmatch(r"[\w./:+-]+", value):
        return value
    return json.dumps(value)


# -- the screen ---------------------------------------------------------------------------------------


def on_terminal() -> bool:
    return sys.stdout.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")


class Lines:
    """For a pipe or a file: one line a record."""

    def train(self, record: Record) -> None:
        self.print(as_line(record))

    valid = train

    def print(self, text: str) -> None:
        print(text, flush=True)

    def close(self) -> None:
        pass


# Heading, width, and text of a training record; as many as fit into the width of the terminal, in this order.
COLUMNS: tuple[tuple[str, int, Callable[[dict], str]], ...] = (
    ("step", 7, lambda r: f"{r['step']:,}"),
    ("epoch", 7, lambda r: f"{r['epoch']:.3f}"),
    ("loss", 9, lambda r: f"{r['loss']:.4f}"),
    ("grad norm", 11, lambda r: f"{r['grad_norm']:.3g}"),
    ("lr", 10, lambda r: f"{r['lr']:.2e}"),
    ("tok/s/gpu", 11, lambda r: f"{r['tokens_per_second_per_gpu']:,.0f}"),
    ("s/step", 8, lambda r: f"{r['step_seconds']:.3g}"),
    ("GiB", 6, lambda r: f"{r['peak_memory_gib']:.1f}"),
    ("MFU", 7, lambda r: "-" if r["mfu"] is None else f"{r['mfu']:.1%}"),
    ("data wait", 11, lambda r: f"{r['data_seconds'] / r['step_seconds']:.1%}"),
    ("tokens", 17, lambda r: f"{r['tokens']:,}"),
)


class Remaining(ProgressColumn):
    """Time to the end: what the last record said, less the time since."""

    def render(self, task: Task) -> Text:
        if task.fields["ends_at"] is None:
            return Text("-:--:-- left", "cyan")
        minutes, seconds = divmod(round(max(0, task.fields["ends_at"] - time.monotonic())), 60)
        return Text(f"{minutes // 60}:{minutes % 60:02}:{seconds:02} left", "cyan")


class Table:
    """For a terminal: a row a record, above a progress bar with the time left."""

    def __init__(self, total_steps: int, step: int):
        self.headings: list[str] = []
        self.progress = Progress(
            TextColumn("training"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("[progress.percentage]{task.percentage:.0f}%"),
            TimeElapsedColumn(),
            Remaining(),
            console=Console(highlight=False),
            refresh_per_second=2,  # a thread of this process draws it
            expand=True,
        )
        self.task = self.progress.add_task("", total=total_steps, completed=step, ends_at=None)
        self.progress.start()

    def train(self, record: Record) -> None:
        columns = self.columns()
        self.print("".join(f"{text(record):>{width}}" for _, width, text in columns))
        ends_at = time.monotonic() + record["eta_seconds"]
        self.progress.update(self.task, completed=record["step"], ends_at=ends_at, refresh=True)

    def valid(self, record: Record) -> None:
        """The loss, in its column, and the set it is of."""
        row = "".join(f"{text({**record, 'loss': record['valid_loss']}):>{width}}" for _, width, text in COLUMNS[:3])
        self.columns()
        self.print(f"{row}  on {record['set']} ({record['valid_targets']:,} targets)", style="bold green")

    def columns(self) -> list[tuple[str, int, Callable[[dict], str]]]:
        """The columns that fit; prints their headings whenever these are not the ones printed last."""
        width, columns = 0, []
        for column in COLUMNS:
            width += column[1]
            if width > self.progress.console.width:
                break
            columns.append(column)
        headings = [heading for heading, _, _ in columns]
        if headings != self.headings:
            self.headings = headings
            self.print("".join(f"{heading:>{width}}" for heading, width, _ in columns), style="dim")
        return columns

    def print(self, text: str, style: str | None = None) -> None:
        self.progress.console.print(text, style=style, markup=False, soft_wrap=True)

    def close(self) -> None:
        self.progress.stop()
