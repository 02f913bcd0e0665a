"""The help of a command: every flag that its config offers, with its default and what the source says below it."""

import contextlib
import io
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import NoReturn
from unittest.mock import patch

import docstring_parser  # of tyro
import tyro
from docstring_parser import Docstring

from logtrain.core.entry import program_name

ONE_COLUMN = 120  # columns of a terminal up to which tyro puts no box beside another


def print_help(cls: type) -> NoReturn:
    """Print every flag of `cls` with its default and its help, on rank 0 alone; then the program ends."""
    speaks = os.environ.get("RANK", "0") == "0"
    program = f"{program_name()} [FILE.toml ...]"
    unbroken = with_unbroken_lines(docstring_parser.parse_from_object)
    some, text = bool(getattr(cls, "offers", ())), io.TextIOWrapper(io.BytesIO(), encoding="utf-8")  # it draws boxes
    width = shutil.get_terminal_size().columns
    with (
        patch.object(docstring_parser, "parse_from_object", unbroken),
        patch.dict(os.environ, {"COLUMNS": str(min(width, ONE_COLUMN) if some else width)}),
        contextlib.redirect_stdout(text if some else sys.stdout),
        contextlib.suppress(SystemExit),
    ):
        tyro.cli(cls, args=["--help"], prog=program, use_underscores=True, console_outputs=speaks)
    text.seek(0)
    print("\n".join(offered_lines(cls, text.read().splitlines())), end="", flush=True)
    raise SystemExit(0)


def is_offered(cls: type, key: str) -> bool:
    """Whether a key is one of the flags of `cls`."""
    offers: tuple[str, ...] = getattr(cls, "offers", ())
    return not offers or key in offers or any(key.startswith(name) for name in offers if name.endswith("."))


def offered_lines(cls: type, lines: Iterable[str]) -> Iterator[str]:
    """The lines of a help text without the flags that `cls` does not offer, and without boxes that have no others."""
    box: list[str] = []
    keeps, has_flags = True, False
    for line in lines:
        if line.startswith("╭"):
            box, keeps, has_flags = [], True, False
        if flag := re.match(r"│ (?:-h, )?--([\w.]+)", line):
            keeps = flag[1] == "help" or is_offered(cls, flag[1])
            has_flags |= keeps
        if keeps or line.startswith("╰"):
            box.append(line)
        if not line.startswith(("╭", "│")):
            yield from box if has_flags or not line.startswith("╰") else ()
            box, keeps = [], True


def with_unbroken_lines(parse: Callable[[object], Docstring]) -> Callable[[object], Docstring]:
    """`parse`, with the paragraphs of every field's help on one line: tyro takes a line that begins with another
    character than a letter for a new paragraph.
    """

    def parsed(config: object) -> Docstring:
        found = parse(config)
        for field in found.params:
            field.description = re.sub(r"(?<!\n)\n(?!\n) *", " ", field.description or "")
        return found

    return parsed
