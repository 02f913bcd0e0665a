"""Folding of long logs: real ones repeated with other values, each with one rare error planted in it.

    python benchmarks/folding.py --loghub DIR --tokenizer DIR

For each system 25 logs of 100,000 lines are folded into 6,000 tokens. Prints seconds of one core, tokens before and
after, how many of the 25 errors are whole in the folded log, and whether all lines could be had again.
"""

import argparse
import random
import re
import time
from pathlib import Path

from logtrain.conversation.folding import fold
from logtrain.text.tokenizer import Tokenizer

SYSTEMS = ("HDFS", "BGL", "OpenSSH", "Linux")
ERRORS = (
    "{head} kernel: EXT3-fs error (device sd{letter}): bad entry in directory {number}",
    "{head} INFO Scanner: Verification failed for block {number}",
    "{head} java.lang.OutOfMemoryError: Java heap space",
    "{head} sshd[{number}]: fatal: buffer_get_string: bad string length {number}",
    "{head} nmi watchdog: BUG: soft lockup - CPU#{digit} stuck for {number}s!",
)
DIGITS = re.compile(r"\d+")


def varied(lines: list[str], count: int, draw: random.Random) -> list[str]:
    """So many lines, repeated, with other digits in them."""
    return [
        DIGITS.sub(lambda found: "".join(draw.choices("0123456789", k=len(found[0]))), lines[at % len(lines)])
        for at in range(count)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loghub", type=Path, required=True, help="folder with HDFS/HDFS_2k.log and others")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder of a tokenizer")
    parser.add_argument("--lines", type=int, default=100_000)
    parser.add_argument("--tokens", type=int, default=6000)
    parser.add_argument("--plants", type=int, default=25, help="logs of each system")
    options = parser.parse_args()
    tokenizer, draw = Tokenizer.load(options.tokenizer), random.Random(1309)
    for system in SYSTEMS:
        text = (options.loghub / system / f"{system}_2k.log").read_text(encoding="utf-8", errors="replace")
        lines = varied(text.splitlines(), options.lines, draw)
        seconds, kept, exact, folded = 0.0, 0, 0, None
        for number in range(options.plants):
            at = draw.randrange(len(lines))
            error = ERRORS[number % len(ERRORS)].format(
                head=lines[at][:15], letter=draw.choice("abc"), digit=draw.randrange(9), number=draw.randrange(10**5)
            )
            log = [*lines[:at], error, *lines[at + 1 :]]
            began = time.process_time()
            folded = fold(log, options.tokens, lambda text: len(tokenizer.encode(text)))
            seconds = max(seconds, time.process_time() - began)
            kept += f"L{at + 1} {error}" in folded.text.splitlines()
            exact += folded.unfolded() == log
        assert folded
        print(
            f"{system:<8} {seconds:.2f} s at most, about {folded.tokens_before:,} tokens -> {folded.num_tokens:,}, "
            f"errors kept {kept} of {options.plants}, unfolded exactly {exact} of {options.plants}",
            flush=True,
        )


if __name__ == "__main__":
    main()
