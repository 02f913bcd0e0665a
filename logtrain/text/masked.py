"""Texts with their values masked, so that two log lines that differ only in them are equal, and the words of these.

    Sun Nov  9 21:01:53 sshd[2380]: from 10.1.1.150:49602 id=a3f09c2e      # sshd[#]: from # id=#

A run of letters and digits is a value where it has a digit, where it is 8 or more hexadecimal digits, where it is part
of three or more groups of hexadecimal digits joined by ":" or "-" (MAC and IPv6 addresses, UUIDs), and where it names a
month or a weekday, AM or PM, beside another value. Values with at most two of `JOINING` between them are one.

All texts of a chunk are worked on at once, as bytes: a regular expression takes ten times as long, and Python's lock.

Legend: I texts, B bytes of all of them, W words: runs of letters and digits, and one at the end of each text, V values,
E borders between what is kept and what is dropped.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

MOST_BYTES = 1 << 20  # of a text: its beginning stands for the rest, so that memory is bounded
END = b" \x01 "  # after each text: a word of its own, which is next to no other
JOINING = b" \t-+.:/,_%"
MOST_WORD_BYTES = 64
LEAST_HEX = 8  # of letters alone; no English word of so many has only a to f
OTHER, DIGIT, HEX, LETTER = (np.uint8(bits) for bits in (0, 1, 2, 4))
KIND = np.full(256, OTHER, np.uint8)
KIND[[*range(128, 256), *b"\x01", *range(ord("A"), ord("Z") + 1), *range(ord("a"), ord("z") + 1)]] = LETTER
KIND[list(b"abcdefABCDEF")] = HEX
KIND[list(b"0123456789")] = DIGIT
IS_JOINING = np.isin(np.arange(256), list(JOINING))
EACH_BYTE = np.uint64(0x0101010101010101)
LOW_BYTES = np.array([(1 << 8 * count) - 1 for count in range(9)], np.uint64)
DATES = [
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
    "monday",
    "tuesday",
    "wednesday",
    "thursday",
    "friday",
    "saturday",
    "sunday",
]
DATES += [name[:3] for name in DATES] + ["am", "pm"]


class Masked(NamedTuple):
    """Texts with their values masked."""

    texts: list[bytes]
    """UTF-8, with # for a value"""
    words_W: np.ndarray
    """uint64: a hash of each word, that of # for a value"""
    ends_I: np.ndarray
    """int64: the number of words up to the end of each text, the one that marks the end included"""


def hashes_of_words(bytes_B: np.ndarray, start_W: np.ndarray, stop_W: np.ndarray) -> np.ndarray:
    """A hash of each word, of its first `MOST_WORD_BYTES` and its length: uint64 [W]. 7 bytes stand after the last."""
    eights_B = np.ndarray(len(bytes_B) - 7, "<u8", bytes_B, strides=(1,))
    left_W = stop_W - start_W
    hash_W = mixed(eights_B[start_W] & LOW_BYTES[np.minimum(left_W, 8)])
    hash_W += left_W.astype(np.uint64)
    for begin in range(8, MOST_WORD_BYTES, 8):
        long = np.flatnonzero(left_W > begin)
        more = eights_B[start_W[long] + begin] & LOW_BYTES[np.minimum(left_W[long] - begin, 8)]
        hash_W[long] = mixed(hash_W[long] ^ more)
    return hash_W


def mixed(hash_W: np.ndarray) -> np.ndarray:
    """uint64 -> uint64, one to one, with every bit of the result depending on all."""
    hash_W = hash_W ^ (hash_W >> np.uint64(32))
    for _ in range(2):
        hash_W *= np.uint64(0xD6E8FEB86659FD93)
        hash_W ^= hash_W >> np.uint64(32)
    return hash_W


def mask(texts: Sequence[str]) -> Masked:
    """Mask the values of texts."""
    if not texts:
        return Masked([], np.empty(0, np.uint64), np.empty(0, np.int64))
    data, end_I = joined(texts)
    bytes_B = np.frombuffer(data, np.uint8)
    kind_B = np.frombuffer(data.translate(KIND.tobytes()), np.uint8)  # a third of the time that KIND[bytes_B] takes
    is_word_B = kind_B > OTHER
    borders = np.flatnonzero(is_word_B[1:] != is_word_B[:-1]) + 1
    if is_word_B[0]:
        borders = np.append(0, borders)
    start_W, stop_W = borders[::2], borders[1::2]
    hash_W = hashes_of_words(bytes_B, start_W, stop_W)
    is_near_W = near_the_one_before(bytes_B, start_W, stop_W)
    is_value_W = values(kind_B, bytes_B, start_W, stop_W, hash_W, is_near_W)
    joins_W = is_near_W & is_value_W
    joins_W[1:] &= is_value_W[:-1]

    # Of each value "#" stays, in the place of its first byte; all others, and a sign before it, are dropped.
    ends_W = is_value_W.copy()
    ends_W[:-1] &= ~joins_W[1:]
    first_V, end_V = start_W[is_value_W & ~joins_W], stop_W[ends_W]
    start_V = first_V - is_signed(bytes_B, is_word_B, first_V)
    bytes_B[start_V] = ord("#")
    border_E = np.append(np.stack([start_V + 1, end_V], 1).ravel(), len(bytes_B))
    kept_B = np.repeat(np.arange(len(border_E)) % 2 == 0, np.diff(border_E, prepend=0))
    kept = bytes_B[kept_B].tobytes()
    dropped_V1 = np.append(0, np.cumsum(end_V - start_V - 1))
    kept_end_I = (end_I - dropped_V1[np.searchsorted(end_V, end_I)]).tolist()
    hash_W[is_value_W] = VALUE
    last_I = np.searchsorted(start_W, end_I) - 1
    return Masked(
        texts=[kept[a : b - len(END)] for a, b in itertools.pairwise([0, *kept_end_I])],
        words_W=hash_W[~joins_W],
        ends_I=np.cumsum(~joins_W)[last_I],
    )


def is_signed(bytes_B: np.ndarray, is_word_B: np.ndarray, first_V: np.ndarray) -> np.ndarray:
    """Whether "+" or "-", but not after a letter or a digit, stands right before a value: bool [V]."""
    before_V = np.maximum(first_V - 1, 0)
    is_sign_V = (first_V > 0) & ((bytes_B[before_V] == ord("+")) | (bytes_B[before_V] == ord("-")))
    return is_sign_V & ~is_word_B[np.maximum(first_V - 2, 0)]


def joined(texts: Sequence[str]) -> tuple[bytearray, np.ndarray]:
    """The beginnings of texts in UTF-8, END behind each of them and 7 bytes behind all; int64 [I]: where each ends."""
    encoded = beginnings(texts)
    data = bytearray(END).join([*encoded, bytes(7)])
    return data, np.cumsum(np.fromiter(map(len, encoded), np.int64, len(encoded)) + len(END))


def beginnings(texts: Sequence[str]) -> list[bytes]:
    """At most the first MOST_BYTES of each text, in UTF-8."""
    return [text[:MOST_BYTES].encode("utf-8", "surrogatepass")[:MOST_BYTES] for text in texts]


def near_the_one_before(bytes_B: np.ndarray, start_W: np.ndarray, stop_W: np.ndarray) -> np.ndarray:
    """Whether nothing but one or two of JOINING are between a word and the one before it: bool [W]."""
    is_near_W = np.zeros(len(start_W), bool)
    gap_W = start_W[1:] - stop_W[:-1]
    is_near_W[1:] = (gap_W <= 2) & IS_JOINING[bytes_B[stop_W[:-1]]] & IS_JOINING[bytes_B[start_W[1:] - 1]]
    return is_near_W


def kinds_of_words(kind_B: np.ndarray, start_W: np.ndarray, length_W: np.ndarray) -> np.ndarray:
    """The kinds of all bytes of each word: uint64 [W], a kind in each of its bytes. 7 bytes stand after the last.

    A third of the time that np.bitwise_or.reduceat takes, for most words have no more than 8 bytes.
    """
    eights_B = np.ndarray(len(kind_B) - 7, "<u8", kind_B, strides=(1,))
    kinds_W = eights_B[start_W] & LOW_BYTES[np.minimum(length_W, 8)]
    long = np.flatnonzero(length_W > 8)
    begin = 8
    while len(long) and begin < MOST_WORD_BYTES:
        kinds_W[long] |= eights_B[start_W[long] + begin] & LOW_BYTES[np.minimum(length_W[long] - begin, 8)]
        begin += 8
        long = long[length_W[long] > begin]
    if len(long):
        kinds_W[long] |= np.bitwise_or.reduceat(
            kind_B, np.stack([start_W[long], start_W[long] + length_W[long]], 1).ravel()
        )[::2]
    return kinds_W


def values(
    kind_B: np.ndarray,
    bytes_B: np.ndarray,
    start_W: np.ndarray,
    stop_W: np.ndarray,
    hash_W: np.ndarray,
    is_near_W: np.ndarray,
) -> np.ndarray:
    """Which words are values: bool [W]."""
    length_W = stop_W - start_W
    kinds_W = kinds_of_words(kind_B, start_W, length_W)
    is_hex_W = kinds_W & EACH_BYTE * LETTER == 0
    is_value_W = (kinds_W & EACH_BYTE * DIGIT > 0) | (is_hex_W & (length_W >= LEAST_HEX))

    # Groups of hexadecimal digits: what goes on after ":", "::" or "-".
    after_B, before_B = bytes_B[stop_W[:-1]], bytes_B[start_W[1:] - 1]
    goes_on_W = is_near_W & is_hex_W
    goes_on_W[1:] &= is_hex_W[:-1] & ((after_B == ord(":")) | (after_B == ord("-"))) & (before_B == after_B)
    are_three_W = goes_on_W[2:] & goes_on_W[1:-1]  # from this word on
    for nth in range(3):
        is_value_W[nth : nth + len(are_three_W)] |= are_three_W

    for _ in range(2):  # "Nov" is beside "9", and "Sun" beside "Nov 9"
        beside_W = is_near_W & np.append(False, is_value_W[:-1])
        beside_W[:-1] |= is_near_W[1:] & is_value_W[1:]
        maybe = np.flatnonzero(beside_W & ~is_value_W & (length_W < 10))
        is_value_W[
            maybe[DATE_HASHES[np.searchsorted(DATE_HASHES[1:], hash_W[maybe], side="right")] == hash_W[maybe]]
        ] = True
    return is_value_W


def _hashes_of(words: Sequence[str]) -> np.ndarray:
    encoded = [word.encode() for word in words]
    stops = np.cumsum([len(word) for word in encoded])
    return hashes_of_words(np.frombuffer(b"".join(encoded) + bytes(7), np.uint8), np.append(0, stops[:-1]), stops)


VALUE = _hashes_of("#")[0]
DATE_HASHES = np.unique(_hashes_of([spelled for date in DATES for spelled in (date, date.title(), date.upper())]))
