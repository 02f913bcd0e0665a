"""The split into training and validation. By text: a document is held out if the hash of its masked text is below
`valid_fraction`, and those of all documents that are its near-twins, or theirs, too. By group: all documents of some
groups are held out, and of the others some by text, in a split of their own (valid_seen), so that the losses on groups
that are not trained on and on those that are stand side by side.

So twins are on one side: if their masked texts are equal, by their hash; if they are nearly so, by going to training.
Twins that are more than `valid_fraction` of all documents are trained on. Where that would leave next to none to
validate on, for nearly every document has near-twins, the hash of the masked text alone decides, and where all are
twins, that of the text as it is; the report says how many held-out documents have a near-twin in training.

The first are known while documents come and the others at the end; until then the documents that may be held out, which
are few, wait in shards of their own. With these wait the 64 lowest hashes so far, so that there is always one to hold
out; what of them is not needed is trained on.

Legend: N tokens and D documents of a chunk, H documents that may be held out, U their different signatures.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from logtrain.data.encode import Encoded
from logtrain.data.manifest import SplitFacts
from logtrain.data.near_twins import NEAR, SIGNATURE, SURELY_LESS, Signatures, near_any
from logtrain.data.prepared import SPLITS
from logtrain.data.shards import ShardWriter
from logtrain.data.twins import PART_BITS

VALID, SEEN = SPLITS[1:]
RESERVE = 64
TRAINED = np.uint64(2**64 - 1)  # the key of what is never held out
LEAST_LEFT = 0.1
"""Share of the documents with low hashes: if fewer are left without near-twins in training, all are held out."""
BLOCK = 1024  # documents that are copied at a time


class HeldOut(NamedTuple):
    """What was held out, and what not though its hash was low enough."""

    documents: int
    returned: int
    """to training, where they have a near-twin"""
    near_twins: int
    """of `documents`: those that have one in training, of an estimated Jaccard index of 0.8"""
    is_least: bool
    """whether valid_fraction would have left none, and the one with the lowest hash was taken"""
    unseen: int
    """documents of groups that are held out whole; the others count those of groups that are trained on"""
    unseen_near_twins: int
    """of `unseen`: those that have one in training"""


class _Part:
    """Documents on their way to a split."""

    def __init__(self, folder: Path, name: str, shard_tokens: int):
        self.folder = folder
        self.writer = ShardWriter(folder, name, shard_tokens)
        self.hashes, self.twins = [np.empty(0, np.uint64)], [np.empty(0, np.uint64)]
        self.num_documents = 0

    def add(self, tokens_N: np.ndarray, records_D: np.ndarray, hashes_D: np.ndarray, twins_D: np.ndarray) -> None:
        """As in Encoded, with DOCUMENT records."""
        self.writer.add(tokens_N, records_D)
        self.hashes.append(hashes_D)
        self.twins.append(twins_D)
        self.num_documents += len(records_D)


class SplitWriters:
    """Writes the documents of each split as they come."""

    def __init__(self, folder: Path, shard_tokens: int, valid_fraction: float, by_group: bool = False):
        self.folder, self.valid_fraction, self.by_group = folder, valid_fraction, by_group
        self.by_text = SEEN if by_group else VALID  # the split of the documents that are held out by their text
        self._parts = {name: _Part(folder, name, shard_tokens) for name in ("train", VALID, SEEN, "held")}
        self._signatures = {name: Signatures(folder / f"{name}.signatures") for name in ("train", VALID, "held")}
        self._lowest: list[int] = []  # keys
        self._rows_2H = [np.empty((2, 0), np.int64)]  # source and row of the documents that may be held out

    def add(self, records_D: np.ndarray, encoded: Encoded, is_held_D: np.ndarray) -> None:
        """`records_D`: DOCUMENT, of the documents in `encoded`. `is_held_D`: whether their groups are held out."""
        may_be_D = ~is_held_D
        may_be_D[may_be_D] = self._may_be_held_out(keys_of(encoded.twins_D[may_be_D]))
        self._rows_2H.append(np.stack((records_D["source"], records_D["row"]))[:, may_be_D])
        for name, is_D in (("train", ~is_held_D & ~may_be_D), ("held", may_be_D), (VALID, is_held_D)):
            if not is_D.any():
                continue
            tokens_N = encoded.tokens_N[np.repeat(is_D, encoded.lengths_D)]
            self._parts[name].add(tokens_N, records_D[is_D], encoded.hashes_D[is_D], encoded.twins_D[is_D])
            if self.valid_fraction:
                self._signatures[name].add(encoded.signatures_D[is_D])

    def _may_be_held_out(self, keys_D: np.ndarray) -> np.ndarray:
        if not self.valid_fraction:
            return np.zeros(len(keys_D), bool)
        is_held_D = keys_D < self._limit
        may_be_low = range(len(keys_D))
        if len(self._lowest) == RESERVE:
            may_be_low = np.flatnonzero(keys_D <= np.uint64(self._lowest[-1])).tolist()
        for i in may_be_low:
            key = int(keys_D[i])
            place = bisect_left(self._lowest, key)
            if self._lowest[place : place + 1] != [key]:
                insort(self._lowest, key)
                del self._lowest[RESERVE:]
            is_held_D[i] |= key <= self._lowest[-1]
        return is_held_D

    @property
    def _limit(self) -> np.uint64:
        return np.uint64(self.valid_fraction * 2 ** (64 - PART_BITS))

    def finish(self) -> HeldOut:
        """Decide which documents are held out, and write these. Raises ValueError where there is no document at all, or
        none in a split that should have some.
        """
        train, held, unseen = (self._parts[name] for name in ("train", "held", VALID))
        num_documents = train.num_documents + held.num_documents
        if not num_documents + unseen.num_documents:
            raise ValueError("the input holds no document")
        keys_H = keys_of(np.concatenate(held.twins))
        _, family_H, sizes = np.unique(keys_H, return_inverse=True, return_counts=True)
        members = np.unique(np.vstack((family_H, *np.concatenate(self._rows_2H, axis=1))), axis=1)[0]
        has_twins = np.bincount(members, minlength=len(sizes)) > 1  # the parts of one row are no twins of one another
        is_large = has_twins & (sizes > max(1, self.valid_fraction * num_documents))
        keys_H[is_large[family_H]] = TRAINED
        choice = _Choice(keys_H, self._signatures["held"].read(), self._signatures["train"].read())
        is_valid_H, num_chosen = choice.below(self._limit)
        is_least = False
        if is_valid_H.sum() < LEAST_LEFT * num_chosen:
            is_valid_H = choice.keys_H < self._limit
        if self.valid_fraction and not is_valid_H.any():
            is_valid_H, is_least = self._fewest(choice, num_documents), True
        documents = int(is_valid_H.sum())
        self._refuse_empty(num_documents, documents)
        near_twins = choice.near_twins(is_valid_H) if self.valid_fraction else 0
        returned = 0 if is_least else num_chosen - documents
        unseen_near = choice.near_trained(self._signatures[VALID].read(), ~is_valid_H)
        held_out = HeldOut(documents, returned, near_twins, is_least, unseen.num_documents, int(unseen_near.sum()))
        self._move(is_valid_H)
        for signatures in self._signatures.values():
            signatures.delete()
        return held_out

    def _fewest(self, choice: "_Choice", num_documents: int) -> np.ndarray:
        """As few documents as can be, with the lowest hashes: bool [H]. If there are any, without near-twins; none if
        all documents are the same.
        """
        for key in self._lowest:
            is_valid_H, _ = choice.below(np.uint64(key + 1))
            if 0 < is_valid_H.sum() < num_documents:
                return is_valid_H
        if (choice.keys_H < TRAINED).any():
            return choice.keys_H == choice.keys_H.min()
        hashes_H = keys_of(np.concatenate(self._parts["held"].hashes))  # the parts of a conversation stay together
        wanted = min(len(hashes_H) - 1, int(self.valid_fraction * num_documents))
        is_valid_H = hashes_H <= np.sort(hashes_H)[wanted - 1 if wanted else 0]
        return is_valid_H if is_valid_H.sum() < num_documents else np.zeros(len(hashes_H), bool)

    def _refuse_empty(self, num_documents: int, num_valid: int) -> None:
        given = f"valid_fraction {self.valid_fraction} of {num_documents:,} documents"
        if num_documents == num_valid:
            raise ValueError(f"{given} leaves none for training; lower it")
        if self.valid_fraction and not num_valid and not self.by_group:
            raise ValueError(
                f"{given} leaves none for validation, for they are all the same; "
                f"0 means no validation split, and --split_by COLUMN holds out whole groups"
            )

    def _move(self, is_valid_H: np.ndarray) -> None:
        """What waited goes to its split."""
        held, start = self._parts["held"], 0
        hashes_H, twins_H = np.concatenate(held.hashes), np.concatenate(held.twins)
        for tokens_N, records_D in self._waiting():
            of = slice(start, start + len(records_D))
            start += len(records_D)
            is_valid_N = np.repeat(is_valid_H[of], records_D["length"])
            for name, is_D, is_N in (
                ("train", ~is_valid_H[of], ~is_valid_N),
                (self.by_text, is_valid_H[of], is_valid_N),
            ):
                self._parts[name].add(tokens_N[is_N], records_D[is_D], hashes_H[of][is_D], twins_H[of][is_D])

    def _waiting(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The tokens and records of the documents that wait, some at a time; their files are gone at the end."""
        for shard in self._parts["held"].writer.close()["shards"]:
            files = [self.folder / shard[kind] for kind in ("tokens", "documents")]
            tokens_N, records_D = (np.load(file, mmap_mode="r").view(np.ndarray) for file in files)
            for start in range(0, len(records_D), BLOCK):
                some_D = records_D[start : start + BLOCK]
                end = some_D["offset"][-1] + some_D["length"][-1]
                yield tokens_N[some_D["offset"][0] : end], some_D
            for file in files:
                file.unlink()

    def hashes(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """The hashes of the documents' texts in each split, as they are and masked, uint64, in order. They are given
        away: kept here, too, they would take 16 bytes more a document where prepare takes the most.
        """
        return {name: (joined(self._parts[name].hashes), joined(self._parts[name].twins)) for name in SPLITS}

    def close(self) -> dict[str, SplitFacts]:
        """Finish the shards -> the splits that have documents."""
        facts = {name: self._parts[name].writer.close() for name in SPLITS}
        return {name: of_split for name, of_split in facts.items() if of_split["documents"]}


def joined(parts: list[np.ndarray]) -> np.ndarray:
    """The arrays, of one dtype, end to end; the list is empty then."""
    whole = np.concatenate(parts)
    parts.clear()
    return whole


class _Choice:
    """Which of the documents that may be held out have near-twins elsewhere."""

    def __init__(self, keys_H: np.ndarray, signatures_H: np.ndarray, signatures_train: np.ndarray):
        whole = np.ascontiguousarray(signatures_H).view(f"V{SIGNATURE}")[:, 0]
        unique_U, self.which_H = np.unique(whole, return_inverse=True)
        self.signatures_U = unique_U.view(np.uint8).reshape(-1, SIGNATURE)
        self.keys_H, self.signatures_train = keys_H, signatures_train

    @cached_property
    def near_train_U(self) -> np.ndarray:
        """Whether a document has a near-twin among those that cannot be held out."""
        return near_any(self.signatures_U, self.signatures_train, SURELY_LESS)

    def below(self, limit: np.uint64) -> tuple[np.ndarray, int]:
        """Which documents have a key below `limit`, and no near-twin, or near-twin of one, that is trained on: bool
        [H]. Besides: how many have such a key.
        """
        is_chosen_H = self.keys_H < limit
        is_out_U = self.near_train_U.copy()
        is_out_U[self.which_H[~is_chosen_H]] = True
        newly_out = np.flatnonzero(is_out_U)
        while len(newly_out):
            others = np.flatnonzero(~is_out_U)
            near = near_any(self.signatures_U[others], self.signatures_U[newly_out], SURELY_LESS)
            newly_out = others[near]
            is_out_U[newly_out] = True
        return ~is_out_U[self.which_H], int(is_chosen_H.sum())

    def near_twins(self, is_valid_H: np.ndarray) -> int:
        """How many of the documents held out have a near-twin that is trained on."""
        valid = np.unique(self.which_H[is_valid_H])
        is_near_U = np.zeros(len(self.signatures_U), bool)
        is_near_U[valid] = self.near_trained(self.signatures_U[valid], ~is_valid_H)
        return int(is_near_U[self.which_H[is_valid_H]].sum())

    def near_trained(self, signatures_D: np.ndarray, is_trained_H: np.ndarray) -> np.ndarray:
        """Whether documents have a near-twin that is trained on: bool [D]."""
        trained = self.signatures_U[np.unique(self.which_H[is_trained_H])]
        return near_any(signatures_D, self.signatures_train, NEAR) | near_any(signatures_D, trained, NEAR)


def keys_of(twins_D: np.ndarray) -> np.ndarray:
    """What the side of a document goes by, uint64: its hash, mostly the masked one, without the number of its part."""
    return twins_D >> np.uint64(PART_BITS)
