"""Results on the screen: a table, or one JSON object a line."""

import json
from collections.abc import Iterable


def text(value: object) -> str:
    """A value as the table shows it."""
    if isinstance(value, float):
        return f"{value:,.3f}" if value < 100 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def show(rows: Iterable[dict], columns: dict[str, int], as_json: bool) -> None:
    """Print rows as they come. `columns`: keys and widths. JSON has every key of a row; the table gives each note once,
    below.
    """
    if as_json:
        for row in rows:
            print(json.dumps(row), flush=True)
        return
    notes = {}
    print(" ".join(f"{key:>{width}}" for key, width in columns.items()))
    for row in rows:
        print(" ".join(f"{text(row.get(key, '')):>{width}}" for key, width in columns.items()), flush=True)
        if row.get("note"):
            notes[row["op"]] = row["note"]
    for operation, note in notes.items():
        print(f"{operation}: {note}")
