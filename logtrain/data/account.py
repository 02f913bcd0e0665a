"""The account of the rows that are read: what became of each, by file and by case. It is kept as chunks come back from
the workers, for only then it is known what became of a conversation.
"""

import sys
from typing import NamedTuple

import numpy as np

from logtrain.data.chunks import BadRowFound, RowsRead
from logtrain.data.encode import BAD, CASES, DROPPED, TOO_LONG, Encoded
from logtrain.data.lost_text import Lost
from logtrain.data.shards import DOCUMENT

MAX_BAD_ROWS_LISTED = 1000
BAD_ROWS_NAMED = 10


class RowCounts(NamedTuple):
    """How many rows there are of each sort, and how many documents they became."""

    read: int
    bad: int
    good: int
    """texts or conversations"""
    dropped: int
    """of the good ones: too long"""
    documents: int


class CaseCounts(NamedTuple):
    """The conversations of one of CASES, as they were read (whole) and as they are stored (as documents)."""

    conversations: int
    read_tokens: int
    read_targets: int
    documents: int
    tokens: int
    targets: int

    @property
    def lost(self) -> float:
        """The share of the answers' tokens that are not stored."""
        return 1 - self.targets / self.read_targets if self.read_targets else 0.0


class Account:
    """Counts rows, and lists the first bad ones."""

    def __init__(self, paths: list[str], max_lost_chars: int = 0):
        """`paths`: of the files, whose indices are the sources of rows. `max_lost_chars`: that a tokenizer may lose."""
        self.paths, self.max_lost_chars = paths, max_lost_chars
        self.lost_chars = 0
        self.num_bad = 0
        self.bad_rows: list[BadRowFound] = []
        self._bad_S, self._good_S, self._dropped_S, self._documents_S = np.zeros((4, len(paths)), np.int64)
        self._cases = np.zeros((BAD, len(CaseCounts._fields)), np.int64)

    def add(self, read: RowsRead, encoded: Encoded) -> np.ndarray:
        """Count a chunk -> DOCUMENT [D], the records of its documents. Raises ValueError for a conversation that is
        TOO_LONG, and where the tokenizer has lost more than it may.
        """
        source_I, case_I = read.records_I["source"], encoded.outcomes_I["case"]
        if TOO_LONG in case_I:
            raise self._too_long(read, encoded, i=int(np.argmax(case_I == TOO_LONG)))
        for i, lost in encoded.lost.items():
            self.lost_chars += lost.count
            if self.lost_chars > self.max_lost_chars:
                raise self._lost(f"{self.paths[source_I[i]]} row {read.records_I['row'][i]}", lost)
        refused = [
            BadRowFound(int(source_I[i]), int(read.records_I["row"][i]), reason)
            for i, reason in encoded.problems.items()
        ]
        self._add_bad_rows(sorted(read.bad_rows + refused))
        self._good_S += self._by_source(source_I[case_I != BAD])
        self._dropped_S += self._by_source(source_I[case_I == DROPPED])
        self._documents_S += self._by_source(source_I[encoded.item_D])
        case_D = case_I[encoded.item_D]
        for case in range(BAD):
            outcomes, lengths = encoded.outcomes_I[case_I == case], encoded.lengths_D[case_D == case]
            self._cases[case] += CaseCounts(
                conversations=len(outcomes),
                read_tokens=outcomes["tokens"].sum(),
                read_targets=outcomes["targets"].sum(),
                documents=len(lengths),
                tokens=lengths.sum(),
                targets=encoded.targets_D[case_D == case].sum(),
            )
        records_D = read.records_I[encoded.item_D]
        records_D["length"], records_D["targets"] = encoded.lengths_D, encoded.targets_D
        return records_D

    def where(self, read: RowsRead) -> str:
        """The rows of a chunk, for an error."""
        records_I = read.records_I if len(read.records_I) else np.zeros(1, DOCUMENT)
        first, last = records_I[0], records_I[-1]
        path, end = self.paths[first["source"]], self.paths[last["source"]]
        return f"{path} row {first['row']} to " + (f"{end} " if end != path else "") + f"row {last['row']}"

    def _too_long(self, read: RowsRead, encoded: Encoded, i: int) -> ValueError:
        where = f"{self.paths[read.records_I['source'][i]]} row {read.records_I['row'][i]}"
        return ValueError(
            f"{where}: {encoded.outcomes_I['tokens'][i]:,} tokens, more than seq_len; give a greater --seq_len, or "
            f"what to do with such rows: --too_long drop, split_turns, truncate_content or truncate_answer"
        )

    def _lost(self, where: str, lost: Lost) -> ValueError:
        which = ", ".join(f"{c!r} U+{ord(c):04X}" for c in lost.which)
        return ValueError(
            f"{where}: the tokenizer cannot represent {which}, so that {lost.count:,} of the row's characters would be "
            f"lost, {self.lost_chars:,} so far; take another tokenizer, or lose some with --max_lost_chars N"
        )

    def _add_bad_rows(self, found: list[BadRowFound]) -> None:
        self.num_bad += len(found)
        self.bad_rows += found[: MAX_BAD_ROWS_LISTED - len(self.bad_rows)]
        for bad in found:
            self._bad_S[bad.source] += 1

    def _by_source(self, source: np.ndarray) -> np.ndarray:
        return np.bincount(source, minlength=len(self.paths))

    def sources(self) -> dict[str, RowCounts]:
        """The counts of each file, by its path."""
        columns = (self._bad_S + self._good_S, self._bad_S, self._good_S, self._dropped_S, self._documents_S)
        return {path: RowCounts(*(int(column[i]) for column in columns)) for i, path in enumerate(self.paths)}

    def cases(self) -> dict[str, CaseCounts]:
        """What became of the conversations, and the total."""
        cases = {CASES[case]: CaseCounts(*counts.tolist()) for case, counts in enumerate(self._cases)}
        return cases | {"total": CaseCounts(*self._cases.sum(0).tolist())}

    def refuse_bad_rows(self, most: int, is_any_good: bool, other_format: str) -> None:
        """Raises ValueError, which names the first ones, where there are more than so many bad rows, or none but these
        though all may be left out. `other_format`: the one that the rows seem to have, "" for none.
        """
        if self.num_bad <= most and (is_any_good or most < sys.maxsize or not self.num_bad):
            return
        rows_of: dict[str, list[str]] = {}  # by reason
        for bad in self.bad_rows[:BAD_ROWS_NAMED]:
            rows_of.setdefault(bad.reason, []).append(f"{self.paths[bad.source]} row {bad.row}")
        first = "; ".join(f"{', '.join(rows)}: {reason}" for reason, rows in rows_of.items())
        more = f"; and {self.num_bad - BAD_ROWS_NAMED:,} more" if self.num_bad > BAD_ROWS_NAMED else ""
        remedy = f"Mend the input, or leave them out with --max_bad_rows {self.num_bad} or --bad_rows skip"
        if not is_any_good:
            remedy = "No row is good; mend the input, or give the names of its columns with --columns THEIRS=OURS"
            if other_format:
                remedy = f"No row is good; they look like {other_format}: give --format {other_format}"
        raise ValueError(
            f"{self.num_bad:,} bad row{'s' if self.num_bad > 1 else ''} (counting from 0): {first}{more}. {remedy}"
        )
