"""Which groups of rows are held out, where the split goes by a column: decided before anything is written, by reading
the rows once more.
"""

import hashlib
from collections import Counter

from logtrain.core.printable import printable
from logtrain.data.chunks import records_of, rows_of
from logtrain.data.config import PrepareConfig
from logtrain.data.files import InputFile
from logtrain.data.lines import BadRow

MAX_GROUPS = 1 << 16  # more are no kinds of rows, but single ones


def held_groups(config: PrepareConfig, files: list[InputFile]) -> list[str]:
    """The values of the column `config.split_by` whose rows are held out; none where the split goes by the text.

    In the order of a keyed hash each group is taken that brings their rows nearer to `valid_fraction`: at least the
    smallest, never all. Raises ValueError for a single group, for too many, and for a file that cannot be read.
    """
    if not config.split_by:
        return []
    rows_in: Counter[str] = Counter()
    num_bad, records = 0, records_of(config)
    for file in files:
        for row in rows_of(config, file.again(), records):
            if isinstance(row, BadRow):
                num_bad += 1
            else:
                rows_in[row.group] += 1
                if len(rows_in) > MAX_GROUPS:
                    raise ValueError(
                        f"split_by = {config.split_by}: more than {MAX_GROUPS:,} values; take a column of kinds"
                    )
    if num_bad > config.most_bad_rows:
        return []  # the run will end for these
    if len(rows_in) == 1:
        ((only, count),) = rows_in.items()
        raise ValueError(
            f"split_by = {config.split_by}: all {count:,} rows have the value {printable(only[:80], one_line=True)!r}; "
            f"take a column with two values or more"
        )
    return choose(rows_in, config.valid_fraction, str(config.seed).encode())


def choose(rows_in: dict[str, int], share: float, key: bytes) -> list[str]:
    """Groups that hold about `share` of the rows. `rows_in`: how many each has."""
    order = sorted(rows_in, key=lambda group: hashlib.blake2b(group.encode(), key=key).digest())
    wanted, taken = share * sum(rows_in.values()), []
    for group in order:
        if rows_in[group] <= 2 * wanted and len(taken) < len(order) - 1:
            taken.append(group)
            wanted -= rows_in[group]
    return sorted(taken or [min(order, key=lambda group: rows_in[group])] if order else [])
