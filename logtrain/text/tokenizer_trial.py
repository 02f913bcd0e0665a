"""A tokenizer.json of others is tried before it is used: what it does to text may take as long as it likes.

Its regular expressions may try every way to split a line before they give up, and its replacements may make a million
characters of one. Those that are known to be good are in KNOWN; a tokenizer with any other encodes hard lines in a
process of its own first, within bounds of time and memory. Lines that a regular expression is slow for are made of
what it is made of: many of a character or a word of it, then one that does not fit.
"""

import json
import os
import re
import resource
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import tokenizers

from logtrain.core.worker import Worker

SECONDS, BYTES = 20, 2 << 30  # for all lines; of address space
LINE, MAX_PIECES = 400, 60
MOST_IDS = 50  # a character; a byte-level tokenizer makes 4 at most
KNOWN = {  # of Llama 3 and GPT-4, Qwen 2 and 3, GPT-2, and parts of others
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"\p{N}{1,3}",
    r"\p{N}",
    r"\s",
}
KNOWN_REPLACEMENTS = ((" ", "\u2581"), ("\u2581", " "))


def try_out(file: Path, tokenizer: tokenizers.Tokenizer) -> None:
    """Raises ValueError for a tokenizer, read from `file`, that takes too long or too much memory for a line."""
    if not patterns_to_try(tokenizer):
        return
    worker = Worker("logtrain.text.tokenizer_trial", str(file))
    try:
        if not wait([worker.fileno()], SECONDS):
            wrong = f"took more than {SECONDS} s"
        else:
            wrong = worker.receive()
    except ValueError:  # it died
        wrong = f"took more than {SECONDS} s or {BYTES >> 30} GiB"
    finally:
        worker.stop()
    if wrong:
        raise ValueError(
            f"{file}: not a tokenizer to use: lines of {LINE} characters {wrong}; its regular expressions or "
            f"replacements do not end"
        )


def patterns_to_try(tokenizer: tokenizers.Tokenizer) -> list[str]:
    """Returns the patterns that a tokenizer looks for in texts and that are not known to be found quickly."""
    parts = (tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.decoder)
    return [one for part in parts if part is not None for one in patterns_of(json.loads(part.__getstate__()))]


def patterns_of(part: Any) -> Iterator[str]:
    """Yields the patterns of `patterns_to_try` in a part of a tokenizer, which is given as JSON."""
    if isinstance(part, list):
        for one in part:
            yield from patterns_of(one)
    if not isinstance(part, dict):
        return
    pattern = part.get("pattern")
    text = next(iter(pattern.values())) if isinstance(pattern, dict) and pattern else pattern
    is_replacement = part.get("type") == "Replace" and (text, part.get("content")) not in KNOWN_REPLACEMENTS
    if isinstance(text, str) and text not in KNOWN and (is_replacement or part.get("type") != "Replace"):
        yield text
    if part.get("type") in ("Precompiled", "Prepend") and len(str(part.get("prepend", "long"))) > 1:
        yield "a"
    for one in part.values():
        if isinstance(one, list | dict):
            yield from patterns_of(one)


def hard_lines(patterns: list[str]) -> Iterator[str]:
    """Yields lines that are slow for such patterns, if any are. At the end of some stands all that the patterns name,
    for what the library does not find in a line at all it does not try.
    """
    pieces = dict.fromkeys(" aA0\n'!_\t\xe9\u4e2d")
    for pattern in patterns:
        plain = re.sub(r"\\(?:x|u)\{?([0-9A-Fa-f]{2,4})\}?", lambda code: chr(int(code[1], 16)), pattern[:2000])
        words = re.findall(r"[^\W_]{2,20}", re.sub(r"\\.", " ", plain))
        pieces |= dict.fromkeys([*words, *plain])
    few = list(pieces)[:MAX_PIECES]
    for piece in few:
        run = (piece * LINE)[:LINE]
        yield from (run, f"{run}!", f"{run}\x00", f"{run} a", f"a{run}\n", f"{run}!{''.join(few)}")


def work(connection: Connection, file: str) -> None:
    """Runs in the process that tries: sends what was wrong, or "" if nothing was."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # where the library tells of its own failures
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    tokenizer = tokenizers.Tokenizer.from_file(file)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    try:
        for line in hard_lines(patterns_to_try(tokenizer)):
            ids = tokenizer.encode(line, add_special_tokens=False).ids
            if len(ids) > MOST_IDS * len(line):
                connection.send(f"become {len(ids):,} tokens")
                return
            tokenizer.decode(ids)
    except BaseException as error:  # the library's panics are no Exceptions
        connection.send(f"are too much for it ({' '.join(str(error)[:200].split())})")
        return
    connection.send("")
