"""An evaluation on the screen: how far the answering has come, then the scores.

On a terminal a progress bar and tables; elsewhere lines of key=value.
"""

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from logtrain.comparison import TITLES
from logtrain.metrics import plain
from logtrain.scoring import CORPUS_METRICS

SECONDS_BETWEEN_LINES = 10.0


class AnswerProgress:
    """Of this rank's share of the questions; others have as many."""

    def __init__(self, model: str, total: int, enabled: bool):
        self.model, self.total, self.enabled = model, total, enabled
        self.answers = self.tokens = 0
        self.began = self.said = time.monotonic()
        self.bar = None
        if enabled and sys.stderr.isatty():
            columns = (TextColumn(model), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]} tokens/s"))
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
                f"evaluate model={self.model} answers={self.answers} of={self.total} tokens_per_second={rate:.1f} "
                f"eta_seconds={eta:.0f}",
                file=sys.stderr,
                flush=True,
            )


def print_scores(result: dict) -> None:
    """`result`: what scores.json holds."""
    if not sys.stdout.isatty():
        print("\n".join(lines(result)))
        return
    console = Console(highlight=False)
    models, differences = result["models"], result["differences"]
    table = Table("", *models, title=f"mean of {result['data']['questions']:,} answers, with its 95% interval")
    for name, title in TITLES.items():
        if any(name in model["metrics"] for model in models.values()):
            table.add_row(title, *(interval(model["metrics"].get(name), "mean") for model in models.values()))
    for name, title in CORPUS_METRICS.items():
        table.add_row(title, *(f"{model['corpus'][name]:.4f}" for model in models.values()))
    console.print(table)
    if differences:
        headings = ["{1} less {0}".format(*difference["models"]) for difference in differences]
        table = Table("", *headings, title="paired difference, with its 95% interval; bold: without 0")
        for name, title in TITLES.items():
            cells = [difference["metrics"].get(name) for difference in differences]
            if any(cells):
                table.add_row(title, *(interval(cell, "difference") for cell in cells))
        console.print(table)
    sets = {text for model in models.values() for text in model["perplexity"]}
    if sets:
        table = Table("", *models, title="perplexity a token, and bits a byte")
        for text in sorted(sets):
            cells = (model["perplexity"][text] for model in models.values())
            table.add_row(text, *(f"{cell['perplexity']:.3f}   {cell['bits_per_byte']:.4f}" for cell in cells))
        console.print(table)


def interval(cell: dict | None, key: str) -> str:
    if cell is None:
        return ""
    sign = "+" if key == "difference" else ""
    ends = "" if cell["low"] is None else f" [{cell['low']:{sign}.4f}, {cell['high']:{sign}.4f}]".replace("[", r"\[")
    text = f"{cell[key]:{sign}.4f}{ends}"
    return f"[bold]{text}[/bold]" if cell.get("significant") else text


def lines(result: dict) -> list[str]:
    found = []
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
    return " ".join(f"{key}={plain(value)}" for key, value in cell.items() if key != "sha256")
