"""An evaluation on the screen: how far the answering has come, then the scores.

On a terminal a progress bar and tables; elsewhere lines of key=value.
"""

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from logtrain.evaluation.comparison import BOLD, MULTIPLE, Cell, corpus_table, left_out, remarks, table
from logtrain.observe.records import plain

SECONDS_BETWEEN_LINES = 10.0


class AnswerProgress:
    """Of rank 0's share of the questions; the others of `ranks` have as many."""

    def __init__(self, model: str, total: int, ranks: int, enabled: bool):
        self.model, self.total, self.ranks, self.enabled = model, total, ranks, enabled
        self.answers = self.tokens = 0
        self.began = self.said = time.monotonic()
        self.bar = None
        if enabled and sys.stderr.isatty():
            whose = f"{model}, rank 0 of {ranks}" if ranks > 1 else model
            columns = (TextColumn(whose), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]} tokens/s"))
            self.bar = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True))
            self.task = self.bar.add_task("", total=total, rate="0")

    def __enter__(self) -> "AnswerProgress":
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, *_) -> None:
        if self.bar:
            self.bar.stop()

    def add(self, tokens: int) -> None:
        """An answer of so many tokens has come."""
        self.answers += 1
        self.tokens += tokens
        now = time.monotonic()
        rate = self.tokens / (now - self.began)
        if self.bar:
            self.bar.update(self.task, completed=self.answers, rate=f"{rate:,.0f}")
        elif self.enabled and now - self.said >= SECONDS_BETWEEN_LINES:
            self.said = now
            eta = (self.total - self.answers) * (now - self.began) / self.answers
            print(
                f"evaluate model={self.model} answers={self.answers} of={self.total} ranks={self.ranks} "
                f"tokens_per_second={rate:.1f} eta_seconds={eta:.0f}",
                file=sys.stderr,
                flush=True,
            )


def print_scores(result: dict) -> None:
    """`result`: what scores.json holds."""
    if not sys.stdout.isatty():
        print("\n".join(lines(result)))
        return
    console = Console(highlight=False)
    data, models, differences = result["data"], result["models"], result["differences"]
    counted = "answers" if data["rows"] == data["questions"] else "conversations"
    scores = Table("", *models, title=f"mean of {data['rows']:,} {counted}, with its 95% interval")
    for title, cells in table([model["metrics"] for model in models.values()]) + corpus_table(models):
        scores.add_row(title, *map(marked, cells))
    console.print(scores, *remarks(data), sep="\n")
    if differences:
        headings = ["{1} less {0}".format(*difference["models"]) for difference in differences]
        paired = Table("", *headings, title="paired difference, with its 95% interval")
        for title, cells in table([difference["metrics"] for difference in differences]):
            paired.add_row(title, *map(marked, cells))
        console.print(paired, BOLD, MULTIPLE, sep="\n")
    sets = {name for model in models.values() for name in model["perplexity"]}
    if sets:
        losses = Table("", *models, title="perplexity a token, and bits a byte")
        for name in sorted(sets):
            cells = (model["perplexity"][name] for model in models.values())
            losses.add_row(name, *(f"{cell['perplexity']:.3f}   {cell['bits_per_byte']:.4f}" for cell in cells))
        console.print(losses)


def marked(cell: Cell) -> str:
    text = f"{cell.value} ({cell.interval})" if cell.interval else cell.value
    return f"[bold]{text}[/bold]" if cell.bold else text


def lines(result: dict) -> list[str]:
    found = [f"left_out reason={what.replace(' ', '_')} n={n}" for what, n in left_out(result["data"]).items()]
    for name, model in result["models"].items():
        for metric, cell in model["metrics"].items():
            found.append(f"score model={name} metric={metric} {keys(cell)}")
        for metric, value in model["corpus"].items():
            found.append(f"score model={name} metric={metric} {keys({'value': value})}")
        for text, cell in model["perplexity"].items():
            found.append(f"perplexity model={name} set={text} {keys(cell)}")
    for difference in result["differences"]:
        a, b = difference["models"]
        for metric, cell in difference["metrics"].items():
            found.append(f"difference of={b} less={a} metric={metric} {keys(cell)}")
    return found


def keys(cell: dict) -> str:
    return " ".join(f"{key}={plain(value)}" for key, value in cell.items() if not key.endswith("sha256"))
