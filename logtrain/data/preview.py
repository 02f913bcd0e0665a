"""Documents as they are trained on, to read: the targets in green and the context dim on a terminal, elsewhere between
{+ and +}. Special tokens are written out, and what would steer a terminal as its escape."""

import itertools
import sys

import numpy as np
from rich.console import Console
from rich.text import Text

from logtrain.core.printable import printable
from logtrain.data.encode import Encoded
from logtrain.data.encode_chat import BAD, CASES, WHOLE, EncodedChats
from logtrain.data.shards import CONTEXT
from logtrain.text.tokenizer import Tokenizer


def print_note(line: str) -> None:
    Console(soft_wrap=True, highlight=False).print(Text(printable(line), style="yellow"))


def print_sample(where: str, encoded: Encoded | EncodedChats, tokenizer: Tokenizer) -> None:
    """`encoded`: of one row."""
    documents, note = encoded, ""
    if isinstance(encoded, EncodedChats):
        documents, (case, num_tokens, _) = encoded.documents, encoded.outcomes_C[0].tolist()
        if case == BAD:
            print_note(f"{where}: a bad row: {encoded.problems[0]}")
        elif not len(documents.lengths_D):
            print_note(f"{where}: {CASES[case]}, of {num_tokens:,} tokens")
        elif case != WHOLE:
            note = f", {CASES[case]}, of {num_tokens:,} tokens"
    ends = np.cumsum(documents.lengths_D)
    for end, length, num_targets in zip(ends, documents.lengths_D, documents.targets_D, strict=True):
        print_note(f"{where}: {length:,} tokens, {num_targets:,} of them targets{note}")
        print_tokens(documents.tokens_N[end - length : end], tokenizer)


def print_tokens(tokens_N: np.ndarray, tokenizer: Tokenizer) -> None:
    """`tokens_N`: as stored. A document's first token is no target, whatever it is: nothing stands before it."""
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
