"""The split into training and validation: documents go to one side by a hash of their text, so that duplicates, and the
parts of one conversation, stay together.

Legend: N tokens and D documents of a chunk.
"""

from pathlib import Path

import numpy as np

from logtrain.data.encode import Encoded
from logtrain.data.manifest import SplitFacts
from logtrain.data.shards import ShardWriter


class SplitWriters:
    """Writes the documents of each split as they come."""

    def __init__(self, folder: Path, shard_tokens: int, valid_fraction: float):
        self.valid_fraction = valid_fraction
        self._writers = {name: ShardWriter(folder, name, shard_tokens) for name in ("train", "valid")}
        self._hashes: dict[str, list[np.ndarray]] = {name: [np.empty(0, np.uint64)] for name in self._writers}

    def add(self, records_D: np.ndarray, encoded: Encoded) -> None:
        """`records_D`: DOCUMENT, of the documents in `encoded`."""
        is_valid_D = encoded.hashes_D < np.uint64(self.valid_fraction * 2**64)
        is_valid_N = np.repeat(is_valid_D, encoded.lengths_D)
        for name, chosen_D, chosen_N in (("train", ~is_valid_D, ~is_valid_N), ("valid", is_valid_D, is_valid_N)):
            self._writers[name].add(encoded.tokens_N[chosen_N], records_D[chosen_D])
            self._hashes[name].append(encoded.hashes_D[chosen_D])

    def hashes(self) -> dict[str, np.ndarray]:
        """The hashes of the documents' texts in each split, uint64, in order."""
        return {name: np.concatenate(parts) for name, parts in self._hashes.items()}

    def refuse_empty(self) -> None:
        """Raises ValueError where there is no document at all, or none in a split that should have some."""
        hashes = self.hashes()
        num_documents = sum(map(len, hashes.values()))
        if not num_documents:
            raise ValueError("the input holds no document")
        given = f"valid_fraction {self.valid_fraction} of {num_documents:,} documents"
        if self.valid_fraction and not len(hashes["valid"]):
            enough = min(int(hashes["train"].min()) / 2**64 * 1.06, 0.99)  # 1.06: still enough, rounded to two digits
            raise ValueError(
                f"{given} leaves none for validation; "
                f"from {enough:.2g} on there is one, and 0 means no validation split"
            )
        if not len(hashes["train"]):
            raise ValueError(f"{given} leaves none for training; lower it")

    def close(self) -> dict[str, SplitFacts]:
        """Finish the shards -> the splits that have documents."""
        facts = {name: writer.close() for name, writer in self._writers.items()}
        return {name: of_split for name, of_split in facts.items() if of_split["documents"]}
