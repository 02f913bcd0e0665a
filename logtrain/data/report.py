"""The account of a prepared folder: where every row of the input and every token of the output went.

Rows are counted as they are read, documents and tokens from the shards as they lie on the disk. What adds up, for tests
and for whoever reads report.json:

    rows: read = bad + documents, in total and for each of `sources`
    documents, duplicates, split_over_rows, tokens, targets: a split is the sum of its domains, the total of its splits
    targets = tokens - documents: every token is predicted exactly once, but for the first of a document
    packed.tokens = tokens + packed.pieces - documents: where a document is cut, the pieces share one token

A duplicate is a document whose text stood in the input before. It is kept, and counted here.

Of chat data some of it is otherwise, for a conversation is a document only as far as it fits in a row:

    rows: read = bad + conversations; `conversations` in the report counts these by what became of them (CASES)
    conversations: read_tokens as they were, whole; tokens as they are in the shards; a total is the sum of its cases
    conversations total: documents, tokens and targets are the report's total, no document is split over rows
    targets: of the answers, without a document's first token; only `dropped` has fewer than it had in read_targets

Legend: D documents of a split.
"""

import sys
import time
from pathlib import Path

import numpy as np
import rich.progress
from rich import box
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from logtrain.data.encode import Encoded
from logtrain.data.encode_chat import BAD, CASES, TOO_LONG, EncodedChats
from logtrain.data.files import BadRow, InputFile
from logtrain.data.pack import pack, pieces
from logtrain.data.shards import Split

COUNTS = ("documents", "duplicates", "split_over_rows", "tokens", "targets")
MAX_BAD_ROWS_LISTED = 1000
MAX_BAD_ROWS_SHOWN = 10
MAX_DOMAINS_SHOWN = 30
SECONDS_BETWEEN_LINES = 10.0


class RowCount:
    """The reader's side of the account."""

    def __init__(self, paths: list[str]):
        self.paths = paths
        self.documents_of = [0] * len(paths)
        self.bad_of = [0] * len(paths)
        self.num_bad = 0
        self.bad_rows: list[dict] = []

    def bad(self, source: int, bad: BadRow) -> None:
        self.bad_of[source] += 1
        self.num_bad += 1
        if len(self.bad_rows) < MAX_BAD_ROWS_LISTED:
            self.bad_rows.append({"path": self.paths[source], "row": bad.row, "reason": str(bad)})

    def sources(self) -> list[dict]:
        return [
            {"path": path, "read": documents + bad, "bad": bad, "documents": documents}
            for path, documents, bad in zip(self.paths, self.documents_of, self.bad_of, strict=True)
        ]


class ChatCount(RowCount):
    """The account of chat data, kept as batches come back: only then it is known what became of a conversation."""

    COUNTS = ("conversations", "read_tokens", "read_targets", "documents", "tokens", "targets")

    def __init__(self, paths: list[str]):
        super().__init__(paths)
        self.chats_of, self.dropped_of = [0] * len(paths), [0] * len(paths)
        self.cases = {case: dict.fromkeys(self.COUNTS, 0) for case in CASES[:BAD]}

    def add(
        self, records: np.ndarray, bad: list[tuple[int, BadRow]], encoded: EncodedChats
    ) -> tuple[np.ndarray, Encoded]:
        """`records`: DOCUMENT, of the batch's conversations; bad: rows between them, with their source.

        Gives the records of the batch's documents, and the documents.
        """
        bad = list(bad)
        for i, (case, tokens, targets) in enumerate(encoded.outcomes_C.tolist()):
            source, row = int(records["source"][i]), int(records["row"][i])
            if case == TOO_LONG:
                raise ValueError(
                    f"{self.paths[source]} row {row}: {tokens:,} tokens, more than seq_len; give a greater --seq_len, "
                    f"or what to do with such rows: --too_long drop, split_turns or truncate_content"
                )
            if case == BAD:
                bad.append((source, BadRow(encoded.problems[i], row)))
                continue
            self.chats_of[source] += 1
            self.dropped_of[source] += CASES[case] == "dropped"
            for count, number in (("conversations", 1), ("read_tokens", tokens), ("read_targets", targets)):
                self.cases[CASES[case]][count] += number
        for source, bad_row in sorted(bad, key=lambda found: (found[0], found[1].row)):
            self.bad(source, bad_row)
        documents, case_D = encoded.documents, encoded.outcomes_C["case"][encoded.chat_D]
        for case, name in enumerate(CASES[:BAD]):
            self.cases[name]["documents"] += int((case_D == case).sum())
            self.cases[name]["tokens"] += int(documents.lengths_D[case_D == case].sum())
            self.cases[name]["targets"] += int(documents.targets_D[case_D == case].sum())
        records = records[encoded.chat_D]
        for source, number in enumerate(np.bincount(records["source"], minlength=len(self.paths)).tolist()):
            self.documents_of[source] += number
        return records, documents

    def sources(self) -> list[dict]:
        columns = zip(self.paths, self.bad_of, self.chats_of, self.dropped_of, self.documents_of, strict=True)
        return [
            {"path": path, "read": chats + bad, "bad": bad, "conversations": chats, "dropped": out, "documents": kept}
            for path, bad, chats, out, kept in columns
        ]

    def conversations(self) -> dict[str, dict[str, int]]:
        return self.cases | {"total": {count: sum(of[count] for of in self.cases.values()) for count in self.COUNTS}}


def make_report(folder: Path, manifest: dict, hashes: dict[str, np.ndarray], rows: RowCount) -> dict:
    """`manifest`: of the finished shards in `folder`. hashes: by split, uint64 [D], of the documents' texts."""
    seq_len, seed = manifest["settings"]["seq_len"], manifest["settings"]["seed"]
    splits, domains = {}, {}
    for name in manifest["splits"]:
        split = Split(folder, manifest, name, verify=False)
        _, first_seen = np.unique(hashes[name], return_index=True)
        duplicate_D = np.ones(len(split.lengths), bool)
        duplicate_D[first_seen] = False
        columns = (np.ones_like(split.lengths), duplicate_D, split.lengths > seq_len, split.lengths, split.targets)
        by_domain = {
            count: np.bincount(split.domains, weights=column_D, minlength=len(manifest["domains"])).astype(np.int64)
            for count, column_D in zip(COUNTS, columns, strict=True)
        }
        for i, domain in enumerate(manifest["domains"]):
            if by_domain["documents"][i]:
                domains.setdefault(domain, {})[name] = {count: int(by_domain[count][i]) for count in COUNTS}
        splits[name] = {count: int(column_D.sum()) for count, column_D in zip(COUNTS, columns, strict=True)}
        splits[name]["packed"] = packing(split.lengths, seq_len, seed)
    sources = rows.sources()
    report = {
        "rows": {key: sum(source[key] for source in sources) for key in sources[0] if key != "path"},
        "total": {count: sum(split[count] for split in splits.values()) for count in COUNTS},
        "splits": splits,
        "domains": domains,
        "sources": sources,
        "bad_rows": rows.bad_rows,
    }
    assert report["rows"]["documents"] == report["total"]["documents"], "a document read was not written"
    if isinstance(rows, ChatCount):
        report["conversations"] = rows.conversations()
        assert all(
            report["conversations"]["total"][c] == report["total"][c] for c in ("documents", "tokens", "targets")
        )
    return report


def packing(lengths_D: np.ndarray, seq_len: int, seed: int) -> dict:
    """What an epoch of packed rows holds (its first; another differs by a row at most now and then)."""
    length_P = pieces(lengths_D, seq_len).length_P
    num_rows = len(pack(length_P, seq_len, seed, epoch=0).row_start_R1) - 1
    tokens = int(length_P.sum(dtype=np.int64))
    fill = tokens / (num_rows * seq_len)
    return {"seq_len": seq_len, "pieces": len(length_P), "tokens": tokens, "rows": num_rows, "fill": fill}


def print_report(report: dict) -> None:
    """To stdout: a table on a terminal, aligned columns elsewhere."""
    seq_len = next(iter(report["splits"].values()))["packed"]["seq_len"]
    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    table = Table("domain", box=box.ROUNDED if sys.stdout.isatty() else None)
    for column in ("documents", "duplicates", f"over {seq_len:,} tokens", "tokens", "targets"):
        table.add_column(column, justify="right")

    def add(name: str, counts: list[dict], **style) -> None:
        table.add_row(Text(name), *(f"{sum(c[count] for c in counts):,}" for count in COUNTS), **style)

    of_domains = [(name, list(by_split.values())) for name, by_split in report["domains"].items()]
    of_domains.sort(key=lambda item: -sum(counts["tokens"] for counts in item[1]))
    for name, counts in of_domains[:MAX_DOMAINS_SHOWN]:
        add(name, counts)
    if others := of_domains[MAX_DOMAINS_SHOWN:]:
        add(f"({len(others):,} others)", [counts for _, of_one in others for counts in of_one])
    table.add_section()
    for name, counts in report["splits"].items():
        add(name, [counts])
    add("total", [report["total"]], style="bold")
    console.print(table)
    rows = report["rows"]
    what = "conversations" if "conversations" in report else "documents"
    console.print(f"rows read: {rows['read']:,}, of them {rows[what]:,} {what} and {rows['bad']:,} bad rows")
    if "conversations" in report:
        print_conversations(report["conversations"], console)
    for bad in report["bad_rows"][:MAX_BAD_ROWS_SHOWN]:
        console.print(Text(f"  {bad['path']} row {bad['row']}: {bad['reason']}"))
    for name, split in report["splits"].items():
        packed = split["packed"]
        console.print(f"{name}: {packed['rows']:,} packed rows of {seq_len:,} tokens, {packed['fill']:.2%} full")


def print_conversations(cases: dict[str, dict[str, int]], console: Console) -> None:
    table = Table("conversations", box=box.ROUNDED if sys.stdout.isatty() else None)
    for column in ("rows", "tokens read", "targets read", "documents", "tokens", "targets"):
        table.add_column(column, justify="right")
    for case, counts in cases.items():
        if case == "total":
            table.add_section()
        table.add_row(case, *(f"{counts[count]:,}" for count in ChatCount.COUNTS))
    console.print(table)


class Progress:
    """How far the reading has come: on a terminal a bar with the time left, elsewhere a line every 10 s (stderr)."""

    def __init__(self, files: list[InputFile]):
        self._files = files
        self._total = sum(file.num_bytes for file in files)
        self._documents = self._tokens = 0
        self._start = self._said = time.monotonic()
        self._bar = None
        if sys.stderr.isatty():
            columns = (BarColumn(), DownloadColumn(), TextColumn("{task.fields[tokens]} tokens"), TimeRemainingColumn())
            self._bar = rich.progress.Progress(*columns, console=Console(stderr=True))
            self._task = self._bar.add_task("", total=self._total, tokens="0")

    def __enter__(self) -> "Progress":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_) -> None:
        if self._bar:
            self._bar.stop()

    def add(self, documents: int, tokens: int) -> None:
        self._documents += documents
        self._tokens += tokens
        done = sum(file.bytes_read for file in self._files)
        if self._bar:
            self._bar.update(self._task, completed=done, tokens=f"{self._tokens:,}")
            return
        now = time.monotonic()
        if now - self._said >= SECONDS_BETWEEN_LINES:
            self._said = now
            rate = done / (now - self._start)
            print(
                f"prepare percent={100 * done / self._total:.1f} documents={self._documents} tokens={self._tokens} "
                f"mb_per_second={rate / 1e6:.2f} eta_seconds={(self._total - done) / rate:.0f}",
                file=sys.stderr,
                flush=True,
            )
