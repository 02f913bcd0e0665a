"""Values are masked whatever they are, and nothing else is."""

import datetime
import ipaddress
import uuid

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from logtrain.text.masked import END, mask

TIMES = st.datetimes(datetime.datetime(1990, 1, 1), datetime.datetime(2099, 1, 1))
HEX = st.binary(min_size=2, max_size=16).map(bytes.hex)
VALUES = {
    "integer": st.integers().map(str),
    "float": st.floats(allow_nan=False, allow_infinity=False).map(str),
    "hex": HEX.map(lambda digits: f"0x{digits}"),
    "id": st.from_regex(r"[a-z]{0,3}[0-9][A-Za-z0-9]{3,20}", fullmatch=True),
    "digest": st.binary(min_size=4, max_size=20).map(bytes.hex),
    "address": st.tuples(st.ip_addresses(v=4), st.integers(1, 65535)).map(lambda pair: f"{pair[0]}:{pair[1]}"),
    "ipv6": st.ip_addresses(v=6).map(lambda address: ipaddress.IPv6Address(address).exploded),
    "mac": st.binary(min_size=6, max_size=6).map(lambda octets: octets.hex(":")),
    "uuid": st.uuids().map(str),
    "syslog": TIMES.map(lambda time: f"{time:%a %b} {time.day:2} {time:%H:%M:%S}"),
    "apache": TIMES.map(lambda time: f"{time:%d/%b/%Y:%H:%M:%S} +{time:%H%M}"),
    "iso": TIMES.map(lambda time: time.isoformat() + "Z"),
    "spoken": TIMES.map(lambda time: f"{time:%A, %B %d, %Y %I:%M %p}"),
}
WORDS = st.lists(
    st.sampled_from(
        [
            "session",
            "opened",
            "for",
            "user",
            "root",
            "by",
            "(pid",
            "in",
            "[blk_",
            "/proc/",
            "id=",
            "node-",
            "é",
            "may",
            "a",
        ]
    ),
    max_size=4,
)


def masked(*texts: str) -> list[str]:
    return [text.decode() for text in mask(texts).texts]


@given(st.data(), st.lists(st.tuples(WORDS, st.sampled_from(sorted(VALUES))), min_size=1, max_size=5))
def test_texts_that_differ_in_values_alone_are_equal(data, parts):
    def draw() -> str:
        return "".join(f"{' '.join(words)}({data.draw(VALUES[kind])}) " for words, kind in parts)

    assert masked(draw()) == masked(draw()) == ["".join(f"{' '.join(words)}(#) " for words, _ in parts)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Jul  5 10:26:58 sshd[2380]: from 10.1.1.150:49602", "# sshd[#]: from #"),
        ("vCores:-27 blk_-4980916519894289629 /proc/123/fd/4", "vCores:# blk_# /proc/#/fd/#"),
        ("a bad dead face fades, and a decade of cafe defaced", "a bad dead face fades, and a decade of cafe defaced"),
        ("You may march on. The sun sat, at 5 am", "You may march on. The sun sat, at #"),
        ("x86_64 and utf8 and log4j", "# and # and #"),
        ("job 1, 2 and 3-4: é7é ü", "job # and # ü"),
        ("well-known: a-b, std::cout", "well-known: a-b, std::cout"),
        ("# 1 # ## -", "# # # ## -"),
        ("", ""),
        ("\x01 5", "\x01 #"),
        ("0", "#"),
    ],
)
def test_what_is_a_value(text, expected):
    assert masked(text) == [expected]


@given(st.lists(st.text("ab19 -:/.\x01é#+", max_size=12), max_size=8))
def test_a_text_is_masked_alone(texts):
    together = mask(texts)
    assert together.texts == [mask([text]).texts[0] for text in texts]
    ends = [0, *together.ends_I.tolist()]
    for i, text in enumerate(texts):
        assert np.array_equal(together.words_W[ends[i] : ends[i + 1]], mask([text]).words_W)
    assert len(together.words_W) == ends[-1]


def test_words_are_told_apart_up_to_64_bytes():
    words = ["a", "aa", "b", "x" * 8, "x" * 9, "x" * 8 + "y", "x" * 63 + "y", "x" * 64, "#"]
    hashes = [mask([word]).words_W[0] for word in words[:-1]] + [mask(["17"]).words_W[0]]
    assert len(set(hashes)) == len(words)
    assert mask(["x" * 64 + "a"]).words_W[0] == mask(["x" * 64 + "b"]).words_W[0]


def test_the_beginning_of_a_long_text_stands_for_it(monkeypatch):
    monkeypatch.setattr("logtrain.text.masked.MOST_BYTES", 20)
    assert masked("é" * 9 + " a b c") == ["é" * 9 + " a"]
    assert masked(str(uuid.UUID(int=0)) + "a") == ["#"]
    assert len(END) == 3
