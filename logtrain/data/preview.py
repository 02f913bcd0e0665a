"""Documents as they would be trained on, to read: the targets in green and the context dim on a terminal, elsewhere
between {+ and +}. Special tokens are written out, and what would steer a terminal as its escape.
"""

import itertools
import sys

import numpy as np
from rich.console import Console
from rich.text import Text

from logtrain.core.printable import printable
from logtrain.data.chunks import content, records_of, rows_of
from logtrain.data.config import PrepareConfig
from logtrain.data.encode import BAD, CASES, WHOLE, Encoded, encode
from logtrain.data.files import InputFile
from logtrain.data.lines import BadRow
from logtrain.data.manifest import read_origin
from logtrain.data.preparation import encoder_of
from logtrain.data.shards import CONTEXT
from logtrain.text.tokenizer import Tokenizer


def print_preview(config: PrepareConfig, files: list[InputFile]) -> None:
    """Print the first `config.show` documents of the input, and the bad rows among them."""
    tokenizer, encoder = Tokenizer.load(config.tokenizer), encoder_of(config, read_origin(config, files))
    records = records_of(config)
    rows = ((f"{file.path} row {row.row}", row) for file in files for row in rows_of(config, file, records))
    left = config.show
    for where, row in rows:
        if isinstance(row, BadRow):
            print_note(f"{where}: a bad row: {row}")
            continue
        print_item(where, encode(encoder, [content(row)[0]], tokenizer), tokenizer)
        left -= 1
        if not left:
            return


def print_note(line: str) -> None:
    """Print a line of ours."""
    Console(soft_wrap=True, highlight=False).print(Text(printable(line, one_line=True), style="yellow"))


def print_item(where: str, encoded: Encoded, tokenizer: Tokenizer) -> None:
    """Print what became of a text or a conversation. `encoded`: of that alone."""
    case, num_tokens, _ = encoded.outcomes_I[0].tolist()
    note = "" if case == WHOLE else f"{CASES[case]}, of {num_tokens:,} tokens"
    if case == BAD:
        print_note(f"{where}: a bad row: {encoded.problems[0]}")
    for lost in encoded.lost.values():
        print_note(f"{where}: the tokenizer loses {lost.count:,} characters, as {lost.which!r}")
    if not len(encoded.lengths_D) and case != BAD:
        print_note(f"{where}: {note}")
    ends = np.cumsum(encoded.lengths_D)
    for end, length, num_targets in zip(ends, encoded.lengths_D, encoded.targets_D, strict=True):
        print_note(f"{where}: {length:,} tokens, {num_targets:,} of them targets{note and f', {note}'}")
        print_tokens(encoded.tokens_N[end - length : end], tokenizer)


def print_tokens(tokens_N: np.ndarray, tokenizer: Tokenizer) -> None:
    """Print a document. `tokens_N`: uint32, as stored. Its first token is no target, whatever it is: nothing stands
    before it.
    """
    is_target_N = tokens_N < CONTEXT
    is_target_N[:1] = False
    borders = [0, *(np.flatnonzero(np.diff(is_target_N)) + 1).tolist(), len(tokens_N)]
    shown = Text()
    for start, end in itertools.pairwise(borders):
        text = printable(tokenizer.decode((tokens_N[start:end] & ~np.uint32(CONTEXT)).tolist(), skip_special=False))
        if not is_target_N[start]:
            shown.append(text, style="dim")
        elif sys.stdout.isatty():
            shown.append(text, style="bold green")
        else:
            shown.append(f"{{+{text}+}}")
    Console(soft_wrap=True, highlight=False).print(shown)
