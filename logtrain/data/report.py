"""The report of a prepared folder: where every row of the input and every token of the output went.

Rows are counted as they are read (account.py), documents and tokens from the shards as they lie on the disk. What adds
up, for tests and for whoever reads report.json:

    rows: read = bad + documents, in total and for each of `sources`
    documents, duplicates, split_over_rows, tokens, targets: a split is the sum of its domains, the total of its splits
    targets = tokens - documents: every token is predicted exactly once, but for the first of a document
    packed.tokens = tokens + packed.pieces - documents: where a document is cut, the pieces share one token

A duplicate is a document whose text stood in its split before, a twin one whose text did but for its values
(masked.py). Each is kept, and counted here. `held_out` says how the validation split came to be.

Of chat data some of it is otherwise, for a conversation is a document only as far as it fits in a row:

    rows: read = bad + conversations; `conversations` in the report counts these by what became of them (CASES)
    conversations: read_tokens as they were, whole; tokens as they are in the shards; a total is the sum of its cases
    conversations total: documents, tokens and targets are the report's total, no document is split over rows
    targets: of the answers, without a document's first token; only `dropped` and `cut` have fewer than in read_targets

Legend: D documents of a split, their lengths int32.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from logtrain.data.account import Account, CaseCounts, RowCounts
from logtrain.data.held_out import HeldOut
from logtrain.data.manifest import Manifest
from logtrain.data.pack import pack, pieces
from logtrain.data.records import Records
from logtrain.data.shards import Split


class Counts(NamedTuple):
    """The documents of a split, of a domain in it, or of several of these."""

    documents: int
    duplicates: int
    twins: int
    """with the duplicates"""
    split_over_rows: int
    """longer than a row"""
    tokens: int
    targets: int


class Packing(NamedTuple):
    """The packed rows of an epoch."""

    seq_len: int
    pieces: int
    tokens: int
    rows: int
    fill: float
    """share of the rows' tokens that are taken"""


class BadRowReport(NamedTuple):
    """A row that was left out."""

    path: str
    row: int
    reason: str


@dataclass(frozen=True)
class Report:
    """What report.json holds."""

    rows: RowCounts
    total: Counts
    splits: dict[str, Counts]
    packed: dict[str, Packing]
    """by split"""
    domains: dict[str, dict[str, Counts]]
    """by domain, then by split"""
    sources: dict[str, RowCounts]
    """by path"""
    bad_rows: list[BadRowReport]
    lost_chars: int
    """that the tokenizer has no token for"""
    conversations: dict[str, CaseCounts] | None
    """by case, and their total; None: of text"""
    held_out: HeldOut
    groups: list[str]
    """that are held out whole"""
    records: dict[str, int]
    """of text files: how many were read and left_out, and templates"""

    def as_json(self) -> dict[str, Any]:
        """The report as it is written."""
        content = {
            "rows": self._rows_as_json(self.rows),
            "total": self.total._asdict(),
            "splits": {
                name: counts._asdict() | {"packed": self.packed[name]._asdict()} for name, counts in self.splits.items()
            },
            "domains": {
                domain: {name: counts._asdict() for name, counts in by_split.items()}
                for domain, by_split in self.domains.items()
            },
            "sources": [{"path": path} | self._rows_as_json(counts) for path, counts in self.sources.items()],
            "bad_rows": [bad._asdict() for bad in self.bad_rows],
            "lost_chars": self.lost_chars,
            "held_out": self.held_out._asdict() | {"groups": self.groups},
        }
        if self.records["left_out"]:
            content["records"] = self.records
        if self.conversations is not None:
            content["conversations"] = {case: counts._asdict() for case, counts in self.conversations.items()}
        return content

    def _rows_as_json(self, counts: RowCounts) -> dict[str, int]:
        good = {} if self.conversations is None else {"conversations": counts.good, "dropped": counts.dropped}
        return {"read": counts.read, "bad": counts.bad, **good, "documents": counts.documents}


def make_report(
    folder: Path,
    manifest: Manifest,
    hashes: dict[str, tuple[np.ndarray, np.ndarray]],
    held_out: HeldOut,
    account: Account,
    records: Records,
) -> Report:
    """`manifest`: of the finished shards in `folder`. `hashes`: by split, uint64 [D] each, of the documents' texts as
    they are and masked.
    """
    seq_len, seed = manifest["settings"]["seq_len"], manifest["settings"]["seed"]
    splits: dict[str, Counts] = {}
    packed: dict[str, Packing] = {}
    domains: dict[str, dict[str, Counts]] = {}
    for name in manifest["splits"]:
        split = Split(folder, manifest, name, verify=False)
        columns_D = split_columns(split, *hashes[name], seq_len)
        splits[name] = Counts(*(int(column_D.sum()) for column_D in columns_D))
        packed[name] = packing(split.lengths, seq_len, seed)
        by_domain = [np.bincount(split.domains, weights=column_D) for column_D in columns_D]
        for i in np.unique(split.domains).tolist():
            counts = Counts(*(int(column[i]) for column in by_domain))
            domains.setdefault(manifest["domains"][i], {})[name] = counts
    sources = account.sources()
    report = Report(
        rows=RowCounts(*summed(sources.values())),
        total=Counts(*summed(splits.values())),
        splits=splits,
        packed=packed,
        domains=domains,
        sources=sources,
        bad_rows=[BadRowReport(account.paths[bad.source], bad.row, bad.reason) for bad in account.bad_rows],
        lost_chars=account.lost_chars,
        conversations=account.cases() if "chat" in manifest else None,
        held_out=held_out,
        groups=manifest.get("held_out_groups", []),
        records={
            "read": records.num_read,
            "left_out": records.num_left_out,
            "templates": records.num_templates,
        },
    )
    check(report, account)
    return report


def check(report: Report, account: Account) -> None:
    """Every row that was read has become documents that were written."""
    cases, total = account.cases()["total"], report.total
    assert report.rows.documents == total.documents, "a document read was not written"
    assert (cases.documents, cases.tokens, cases.targets) == (total.documents, total.tokens, total.targets)


def split_columns(split: Split, hash_D: np.ndarray, twin_D: np.ndarray, seq_len: int) -> list[np.ndarray]:
    """What each document adds to each of Counts: bool or int32 [D]."""
    ones_D, is_long_D = np.ones_like(split.lengths), split.lengths > seq_len
    return [ones_D, is_again(hash_D), is_again(twin_D), is_long_D, split.lengths, split.targets]


def is_again(hash_D: np.ndarray) -> np.ndarray:
    """Whether a hash stood before: bool [D]."""
    is_again_D = np.zeros(len(hash_D), bool)
    order_D = np.argsort(hash_D, kind="stable")
    sorted_D = hash_D[order_D]  # np.unique, which gives the first of each, takes twice the memory
    is_again_D[order_D[1:]] = sorted_D[1:] == sorted_D[:-1]
    return is_again_D


def summed(counts: Iterable[tuple[int, ...]]) -> list[int]:
    """The sum of several counts, field by field."""
    return [sum(column) for column in zip(*counts, strict=True)]


def packing(lengths_D: np.ndarray, seq_len: int, seed: int) -> Packing:
    """What an epoch of packed rows holds (its first; another differs by a row at most now and then)."""
    length_P = pieces(lengths_D, seq_len).length_P
    num_rows = pack(length_P, seq_len, seed, epoch=0).num_rows
    tokens = int(length_P.sum(dtype=np.int64))
    return Packing(seq_len, len(length_P), tokens, num_rows, tokens / (num_rows * seq_len))
