"""The scores of an evaluation on the screen: tables on a terminal, lines of key=value elsewhere."""

import sys
from collections.abc import Mapping

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from logtrain.evaluation.results import Result
from logtrain.evaluation.score_table import (
    BOLD,
    MULTIPLE,
    Cell,
    TableRow,
    beyond_metrics,
    corpus_rows,
    difference_rows,
    difference_title,
    flip_lines,
    left_out,
    mean_rows,
    remarks,
)
from logtrain.observe.records import plain


def print_scores(result: Result) -> None:
    """Print the scores of an evaluation to stdout."""
    if not sys.stdout.isatty():
        print("\n".join(lines(result)))
        return
    console = Console(highlight=False, emoji=False)
    data, models, differences = result["data"], list(result["models"].values()), result["differences"]
    counted = "answers" if data["rows"] == data["questions"] else "conversations"
    means = mean_rows([model["metrics"] for model in models]) + corpus_rows(models)
    title = f"mean of {data['rows']:,} {counted}, with its 95% interval"
    console.print(table(title, list(result["models"]), means), *map(escape, remarks(result)), sep="\n")
    for group in models[0]["groups"]:
        console.print(table(f"{group} groups", list(result["models"]), mean_rows([m["groups"][group] for m in models])))
    if differences:
        paired = difference_rows([difference["metrics"] for difference in differences])
        headings = [difference_title(difference) for difference in differences]
        console.print(table("paired difference, with its 95% interval", headings, paired), BOLD, MULTIPLE, sep="\n")
        console.print(*map(escape, flip_lines(differences)), sep="\n")
    if texts := sorted({name for model in models for name in model["perplexity"]}):
        losses = Table("", *map(escape, result["models"]), title="perplexity a token, and bits a byte")
        for name in texts:
            measured = (model["perplexity"][name] for model in models)
            losses.add_row(escape(name), *(f"{of['perplexity']:.3f}   {of['bits_per_byte']:.4f}" for of in measured))
        console.print(losses)


def table(title: str, headings: list[str], rows: list[TableRow]) -> Table:
    """A table of these rows for a terminal, with a heading for each column of cells."""
    shown = Table("", *map(escape, headings), title=title)
    for row in rows:
        shown.add_row(escape(row.title), *map(marked_up, row.cells))
    return shown


def marked_up(cell: Cell) -> str:
    """The text of a cell in rich's markup."""
    text = escape(f"{cell.value} ({cell.interval})" if cell.interval else cell.value)
    return f"[bold]{text}[/bold]" if cell.bold else text


def lines(result: Result) -> list[str]:
    """A line of key=value for each score, difference and perplexity, for programs."""
    found = [f"left_out reason={why.replace(' ', '_')} n={n}" for why, n in left_out(result["data"]).items()]
    found += [f"no_score metric={metric} n={number}" for metric, number in beyond_metrics(result).items()]
    for name, model in result["models"].items():
        for metric, score in model["metrics"].items():
            found.append(f"score model={name} metric={metric} {figures(score)}")
        for group, metrics in model["groups"].items():
            found += [f"score model={name} group={group} metric={m} {figures(score)}" for m, score in metrics.items()]
        for metric, value in model["corpus"].items():
            found.append(f"score model={name} metric={metric} {figures({'value': value})}")
        for text, measured in model["perplexity"].items():
            found.append(f"perplexity model={name} set={text} {figures(measured)}")
    for difference in result["differences"]:
        a, b = difference["models"]
        for metric, score in difference["metrics"].items():
            found.append(f"difference of={b} less={a} metric={metric} {figures(score)}")
        for group, metrics in difference["groups"].items():
            told = (f"metric={metric} {figures(score)}" for metric, score in metrics.items())
            found += [f"difference of={b} less={a} group={group} {each}" for each in told]
        for task, flips in difference["flips"].items():
            found.append(f"flips of={b} less={a} task={task} lost={len(flips['lost'])} gained={len(flips['gained'])}")
    return found


def figures(values: Mapping[str, object]) -> str:
    """Numbers as key=value; texts, such as hashes, are left out."""
    return " ".join(
        f"{key}={plain(value)}" for key, value in values.items() if value is None or isinstance(value, float | int)
    )
