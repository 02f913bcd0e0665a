"""Pairs of answers as they are loaded: a pair is two sequences, which share a row and do not see each other.

Prepared data of pairs (format dpo) holds two documents of each, one behind the other, the one with the chosen answer
first. What a loader counts as documents and as targets are pairs, so that a step's loss is the mean over its pairs.

Letters in names: D pairs of a split, P those of a micro-batch.
"""

import dataclasses
from collections.abc import Iterator
from functools import cached_property

import numpy as np
import torch

from logtrain.core.batch import Batch
from logtrain.data.layout import Layout, token_seeds
from logtrain.data.loader import Loader, Row, Step
from logtrain.data.manifest import Manifest
from logtrain.data.shards import Split


def has_pairs(manifest: Manifest) -> bool:
    """Whether a folder was prepared with pairs of answers."""
    return manifest["settings"].get("format") == "dpo"


class PairSplit(Split):
    """A split of pairs: its documents are pairs, of which the tokens of both sequences stand one behind the other."""

    def __init__(self, split: Split):
        """`split`: of the documents. Raises ValueError where these are no pairs."""
        self.folder, self.manifest, self.name, self.of_documents = split.folder, split.manifest, split.name, split
        self.teacher_top_k = 0
        self._documents, self._tokens, self._first_document = split._documents, split._tokens, split._first_document
        self.mapped = split.mapped
        if split.num_documents % 2:
            raise ValueError(
                f"{self.folder}: {split.num_documents} documents in {self.name}, no pairs; prepare it again"
            )
        for key in ("row", "source"):
            of_pair = np.concatenate([records[key] for records in self._documents]).reshape(-1, 2)
            if not (of_pair[:, 0] == of_pair[:, 1]).all():
                raise ValueError(
                    f"{self.folder}: its documents are not one behind the other in pairs; prepare it again"
                )

    @property
    def num_documents(self) -> int:
        """D."""
        return self.of_documents.num_documents // 2

    @cached_property
    def lengths_D2(self) -> np.ndarray:
        """int32: tokens of both sequences of each pair."""
        return self.of_documents.lengths.reshape(-1, 2)

    @cached_property
    def lengths(self) -> np.ndarray:
        return self.lengths_D2.sum(1, dtype=np.int32)

    @cached_property
    def targets(self) -> np.ndarray:
        return np.ones(self.num_documents, np.int32)

    @cached_property
    def domains(self) -> np.ndarray:
        return self.of_documents.domains[::2]

    def parts(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        yield self.lengths, self.targets

    def halves(self, document: int) -> tuple[np.ndarray, np.ndarray]:
        """The tokens of the chosen and of the rejected sequence of a pair, as they are stored."""
        first, second = self.lengths_D2[document].tolist()
        return self.of_documents.read(2 * document, 0, first), self.of_documents.read(2 * document + 1, 0, second)

    def read(self, document: int, start: int, stop: int) -> np.ndarray:
        """Tokens [start, stop) of a pair, as they are stored."""
        return np.concatenate(self.halves(document))[start:stop]

    def origin(self, document: int) -> tuple[str, int, str]:
        """(file, row counted from 0, domain) that a pair came from."""
        return self.of_documents.origin(2 * document)


class PairLoader(Loader):
    """A loader of pairs. reference_D2: fp32, what the reference model finds of both answers of each pair; zeros until
    somebody sets it.
    """

    def __init__(self, split: PairSplit, *args, **of_rank):
        """Raises ValueError as `Loader` does, and for a pair that is longer than a row."""
        self.reference_D2 = np.zeros((split.num_documents, 2), np.float32)
        super().__init__(split, *args, **of_rank)
        if self.config.attention != "document":
            raise ValueError(
                "loader.attention = row: an answer would see the other one of its pair; set it to document"
            )
        if split.lengths.max(initial=0) > self.config.seq_len:
            raise ValueError(
                f"{split.folder}: a pair of {split.lengths.max()} tokens, more than a row; prepare it again"
            )

    def batch(self, rows: list[Row | None], numbers: range) -> Batch:
        """Rows of pairs as one micro-batch; the arguments are those of `Loader.batch`."""
        seq_len = self.config.seq_len
        layout, pairs = Layout(len(rows) * seq_len, self.pad_id), []
        for i, row in enumerate(rows):
            start, end = i * seq_len, (i + 1) * seq_len
            for document, *_ in row.epoch.pieces_of(row.number) if row else ():
                assert row is not None and isinstance(row.split, PairSplit)
                pairs.append((len(layout.starts), len(layout.starts) + 1, document))
                for half in row.split.halves(document):
                    layout.add_piece(start, half)
                    layout.add_sequence(start, len(half))
                    start += len(half)
            if start < end:
                layout.add_sequence(start, end - start)
        pairs_P3 = np.array(pairs or [(-1, -1, -1)], np.int64)
        reference_P2 = np.where(pairs_P3[:, 2:] < 0, np.float32(0), self.reference_D2[pairs_P3[:, 2]])
        batch = layout.batch(token_seeds(self.seed, 0, numbers, seq_len))
        batch = batch._replace(pairs_P3=torch.from_numpy(pairs_P3), reference_P2=torch.from_numpy(reference_P2))
        return batch.pin() if self.pin_memory else batch

    def at(self, step: int) -> Step:
        """Step `step`, with the attention of both sequences of a pair counted apart."""
        found, attended = super().at(step), 0
        for row in self.rows(step):
            assert isinstance(row.split, PairSplit)
            documents = [document for document, _, _ in row.epoch.pieces_of(row.number)]
            lengths = row.split.lengths_D2[documents].astype(np.int64)
            attended += int((lengths * (lengths + 1) // 2).sum())
        return dataclasses.replace(found, attention_pairs=attended)
