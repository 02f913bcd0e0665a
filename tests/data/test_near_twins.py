"""MinHash against the exact Jaccard index."""

import random
from pathlib import Path

import numpy as np
import pytest

from logtrain.data import near_twins
from logtrain.data.mapped import let_go
from logtrain.data.near_twins import SIGNATURE, Signatures, near_any, signatures
from logtrain.text.masked import mask
from tests.support.jaccard import jaccard, sets_of

LETTERS = "bcdfghijklmnopqrstuvwxyz"


def text_of(random_: random.Random, num_words: int) -> list[str]:
    return ["".join(random_.choices(LETTERS, k=6)) for _ in range(num_words)]


def pairs(num: int, changed: int) -> list[tuple[str, str]]:
    """Texts of 80 words, and the same with so many of them replaced."""
    random_, made = random.Random(changed), []
    for _ in range(num):
        words = text_of(random_, 80)
        other = list(words)
        for i in random_.sample(range(80), changed):
            other[i] = text_of(random_, 1)[0]
        made.append((" ".join(words), " ".join(other)))
    return made


@pytest.mark.parametrize("changed", [1, 2, 4, 10, 30])
def test_the_estimate_is_the_jaccard_index(changed):
    found = pairs(200, changed)
    first, second = (signatures(mask(texts)) for texts in zip(*found, strict=True))
    estimates = ((first == second).mean(1) - 1 / 256) / (1 - 1 / 256)
    exact = np.array([jaccard(sets_of(a), sets_of(b)) for a, b in found])
    assert abs((estimates - exact).mean()) < 0.015
    assert (estimates - exact).std() < 0.07


def test_near_twins_are_found_and_others_are_not():
    for changed, least, most in ((0, 1, 1), (2, 0.97, 1), (30, 0, 0), (80, 0, 0)):
        found = pairs(300, changed)
        held, others = (signatures(mask(texts)) for texts in zip(*found, strict=True))
        assert least <= near_any(held, others, least=0.7).mean() <= most, changed
        assert not near_any(held[:150], others[150:], least=0.7).any()


def test_blocks_and_crowded_bands(monkeypatch):
    held, others = (signatures(mask(texts)) for texts in zip(*pairs(100, 3), strict=True))
    expected = near_any(held, others, 0.7)
    assert 50 < expected.sum() <= 100
    monkeypatch.setattr(near_twins, "BLOCK", 7)
    assert np.array_equal(near_any(held, others, 0.7), expected)
    for nothing in (held[:0], others[:0]):
        assert not near_any(nothing, others, 0.7).any()
        assert near_any(held, nothing, 0.7).sum() == 0
    monkeypatch.setattr(near_twins, "MOST_COMPARED", 2)
    assert near_any(np.unique(np.repeat(held, 9, axis=0), axis=0), others, 0.7).sum() == expected.sum()


def test_signatures_in_a_file(tmp_path):
    file = Signatures(tmp_path / "a")
    held = signatures(mask(["a b c", "", "!", "a b c 5"]))
    assert held.shape == (4, SIGNATURE)
    assert np.array_equal(held[1], held[2])
    for part in (held[:1], held[:0], held[1:]):
        file.add(part)
    assert np.array_equal(file.read(), held)
    file.delete()
    assert not list(tmp_path.iterdir())
    empty = Signatures(tmp_path / "b")
    assert empty.read().shape == (0, SIGNATURE)


def test_signatures_on_the_disk_do_not_come_to_be_in_memory(tmp_path):
    """12 MiB of 200,000 documents, of which a block of 1 MiB is looked at a time."""
    written = Signatures(tmp_path / "a")
    written.add(np.random.default_rng(0).integers(0, 256, (200_000, SIGNATURE), np.uint8))
    others = written.read()
    held = np.ascontiguousarray(others[-100:])
    let_go([others])
    before = mapped_mib()
    assert near_any(held[:50], others, 0.7).all()
    assert mapped_mib() - before < 4
    assert others.sum() and mapped_mib() - before > 8, "this is how they would show"


def mapped_mib() -> float:
    """What of mapped files is in the memory of this process."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssFile:")[2].split()[0]) / 1024
