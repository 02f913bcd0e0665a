"""The records of a run on the screen: a table above a progress bar on a terminal, a line for each record elsewhere."""

import os
import sys
import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

from logtrain.core.printable import printable
from logtrain.core.still import OF_STEPS
from logtrain.core.watchdog import Watchdog
from logtrain.observe.records import Record, as_line


def on_terminal() -> bool:
    """Whether stdout is a terminal that knows control codes."""
    return sys.stdout.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")


MOST_OF_STAGE = 48  # characters
OF_GPUS = ("tokens_per_second_per_gpu", "mfu")


def hours(seconds: float) -> str:
    """A time as 1:02:07."""
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


class Lines:
    """The output to a pipe or a file: a line of key=value for each record, for people and for grep."""

    def __init__(self, total_steps: int):
        self.total_steps = total_steps

    def train(self, record: Record) -> None:
        """Print a record: its step of how many, the time left as people read it, and nothing of GPUs without any."""
        told: Record = {"step": f"{record['step']}/{self.total_steps}"}
        for key, value in record.items():
            if key == "eta_seconds" and isinstance(value, int | float):
                told["left"] = hours(value)
            if key != "step" and (key not in OF_GPUS or record.get("mfu") is not None):
                told[key] = value
        self.print(as_line(told))

    valid = train

    def print(self, text: str) -> None:
        """Print text that is no record."""
        print(text, flush=True)

    def close(self) -> None:
        """End the output; there is nothing to end."""


# Heading, width and text of each column of the table. As many are shown as fit into the terminal, in this order.
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
    """The time left: what the last record predicted, less the time since."""

    def render(self, task: Task) -> Text:
        """The column's text, as rich asks for it."""
        if task.fields["ends_at"] is None:
            return Text("-:--:-- left", "cyan")
        return Text(f"{hours(task.fields['ends_at'] - time.monotonic())} left", "cyan")


class Stage(ProgressColumn):
    """What the run is at: training, or the last note of its watchdog, as of a validation, a checkpoint, an export."""

    def render(self, task: Task) -> Text:
        """The column's text, as rich asks for it."""
        doing = Watchdog.latest.doing if Watchdog.latest else ""
        is_step = not doing or doing.startswith(OF_STEPS)
        return Text("training" if is_step else printable(doing, one_line=True)[:MOST_OF_STAGE])


class Table:
    """The output to a terminal: a row for each record, above a progress bar with the time left."""

    def __init__(self, total_steps: int, step: int):
        self.headings: list[str] = []
        self.progress = Progress(
            Stage(),
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
        """Print a record of a training step, and move the bar."""
        columns = self.head_columns()
        self.print("".join(f"{text(record):>{width}}" for _, width, text in columns))
        step, eta = record["step"], record["eta_seconds"]
        assert isinstance(step, int) and isinstance(eta, int | float)
        self.progress.update(self.task, completed=step, ends_at=time.monotonic() + eta, refresh=True)

    def valid(self, record: Record) -> None:
        """Print a record of a validation: the loss in the column of losses, and the name of the set."""
        row = "".join(f"{text({**record, 'loss': record['valid_loss']}):>{width}}" for _, width, text in COLUMNS[:3])
        self.head_columns()
        change = "" if not record["step"] or record["delta"] is None else f", {record['delta']:+.4f} since the start"
        share = record.get("ends_predicted")
        ends = "" if share is None else f", {share:.1%} of answers' ends predicted"
        told = f"{record['valid_targets']:,} targets{change}{ends}"
        self.print(f"{row}  on {record['set']} ({told})", style="bold green")

    def head_columns(self) -> list[tuple[str, int, Callable[[dict], str]]]:
        """Print the headings of the columns that fit, unless they are those printed last; -> these columns."""
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
        """Print text above the bar."""
        self.progress.console.print(text, style=style, markup=False, soft_wrap=True)

    def close(self) -> None:
        """Take the bar from the screen."""
        self.progress.stop()
