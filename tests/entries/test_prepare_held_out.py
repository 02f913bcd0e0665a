"""Twins are on one side of the split, whatever the order and the chunks that they come in."""

import hashlib
import json
import random

import numpy as np
import pytest

from logtrain import prepare
from logtrain.data import chunks, held_out
from logtrain.text.masked import mask
from tests.support.jaccard import share_with_near_twins
from tests.support.preparing import arguments, contents, dump, read_documents

LETTERS = "bcdfghijklmnopqrstuvwxyz"


def make_families(num: int, members: int, changed: int, seed: int = 0) -> list[str]:
    """Families of texts of 60 words that differ in so many words, and in a number."""
    random_, texts = random.Random(seed), []
    for _ in range(num):
        words = ["".join(random_.choices(LETTERS, k=6)) for _ in range(60)]
        for _ in range(members):
            for _ in range(changed):
                words[random_.randrange(60)] = "".join(random_.choices(LETTERS, k=6))
            texts.append(f"{random_.random()} {' '.join(words)}")
    random_.shuffle(texts)
    return texts


def sides(folder, texts: list[str]) -> dict[str, set[str]]:
    found = {name: {texts[r["row"]] for _, r in documents} for name, documents in read_documents(folder).items()}
    assert sum(map(len, found.values())) == len(texts)
    return found


@pytest.mark.parametrize("changed", [0, 2])
def test_families_stay_together(bytes_tokenizer, tmp_path, inline, monkeypatch, changed):
    texts = make_families(150, 2, changed)
    path = dump(tmp_path / "a.json", [{"text": text} for text in texts])
    prepare.main(arguments(bytes_tokenizer, tmp_path / "out", path))
    found = sides(tmp_path / "out", texts)
    valid, train = ([mask([text]).texts[0].decode() for text in found[name]] for name in ("valid", "train"))
    assert share_with_near_twins(valid, train) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["total"]["twins"] == (150 if changed == 0 else 0)
    of_split = report["held_out"]
    assert of_split["documents"] == len(found["valid"]) == report["splits"]["valid"]["documents"]
    assert (of_split["near_twins"], of_split["is_least"], of_split["groups"]) == (0, False, [])
    if changed == 0:
        assert of_split["returned"] == 0
        assert 30 <= len(found["valid"]) <= 90  # of 300, a fifth
    else:  # a family is held out where both would be
        assert of_split["returned"] > 10
        assert 4 <= len(found["valid"]) <= 30

    monkeypatch.setattr(chunks, "CHUNK_CHARS", 1000)
    monkeypatch.setattr(held_out, "BLOCK", 3)
    prepare.main(arguments(bytes_tokenizer, tmp_path / "chunks", path))
    assert contents(tmp_path / "chunks") == contents(tmp_path / "out")
    dump(path, [{"text": text} for text in reversed(texts)])
    prepare.main(arguments(bytes_tokenizer, tmp_path / "reversed", path))
    assert sides(tmp_path / "reversed", texts[::-1]) == found


def test_of_many_only_the_lowest_wait(bytes_tokenizer, tmp_path, inline, monkeypatch):
    """More documents than the reserve: the one that is held out has the lowest hash of all, as with few."""
    texts = make_families(300, 1, 0)
    path = dump(tmp_path / "a.json", [{"text": text} for text in texts])
    lowest = min(texts, key=lambda text: hash_of(mask([text]).texts[0]))
    for reserve in (1, 8, 300):
        monkeypatch.setattr(held_out, "RESERVE", reserve)
        prepare.main(arguments(bytes_tokenizer, tmp_path / str(reserve), path, valid_fraction=1e-9))
        assert sides(tmp_path / str(reserve), texts)["valid"] == {lowest}
    monkeypatch.setattr(held_out, "RESERVE", 64)
    prepare.main(arguments(bytes_tokenizer, tmp_path / "none", path, valid_fraction=0))
    assert sides(tmp_path / "none", texts).keys() == {"train"}


def hash_of(masked: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(masked, digest_size=8, key=b"1309").digest(), "little")


@pytest.mark.parametrize("valid_fraction", [0.01, 0.05])
def test_real_logs_do_not_leak(bytes_tokenizer, shared, tmp_path, inline, valid_fraction):
    path = shared / "data" / "loglm" / "loglm_instruction_2632.json"
    rows = json.loads(path.read_bytes())
    texts = [f"Human: {row['instruction']}\n{row['input']}\nAssistant: {row['output']}\n" for row in rows]
    masked = [text.decode() for text in mask(texts).texts]
    prepare.main(arguments(bytes_tokenizer, tmp_path / "out", path, valid_fraction=valid_fraction, seq_len=4096))
    found = {
        name: [masked[r["row"]] for _, r in documents] for name, documents in read_documents(tmp_path / "out").items()
    }
    assert len(found["valid"]) >= 8
    leaked = share_with_near_twins(found["valid"], found["train"])
    is_valid = np.array([hash_of(text.encode()) < valid_fraction * 2**64 for text in texts])  # as by the text as it is
    valid, train = ([masked[i] for i in np.flatnonzero(side)] for side in (is_valid, ~is_valid))
    before = share_with_near_twins(valid, train)
    print(f"{valid_fraction}: {before:.3f} of {is_valid.sum()} -> {leaked:.3f} of {len(found['valid'])}")
    assert before > 0.4
    assert leaked <= 0.02


def test_where_all_have_near_twins_the_hash_decides_and_the_report_says_so(bytes_tokenizer, tmp_path, capsys):
    """Else nothing would be left to validate on."""
    words = [f"{first}{second}" for first in "abcdefghij" for second in "klmnopqrst"]
    texts = [
        " ".join([*(words[(7 * group + i * (group + 1)) % 100] for i in range(40)), words[last]])
        for group in range(60)
        for last in range(10)
    ]
    path = dump(tmp_path / "a.json", [{"text": text} for text in texts])
    for fraction, least, most in ((0.05, 12, 60), (1e-6, 1, 10)):
        output = tmp_path / f"out-{fraction}"
        prepare.main(arguments(bytes_tokenizer, output, path, valid_fraction=fraction))
        held_out = json.loads((output / "report.json").read_text())["held_out"]
        assert least <= held_out["documents"] <= most
        assert held_out["near_twins"] > 0 or fraction < 0.05  # the fewest may be one without
        assert f"{held_out['near_twins']} of them with a near-twin in training" in " ".join(
            capsys.readouterr().out.split()
        )
