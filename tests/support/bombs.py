"""Small files that unpack to much."""

import gzip
import struct
from pathlib import Path

BLOCK = 1 << 17  # bytes that a block of a zstandard frame has at most


def write_zstd(path: Path, head: bytes, letter: bytes, num_blocks: int) -> Path:
    """`head`, then one letter `num_blocks` times 128 KiB, each in 4 bytes (RFC 8878, 3.1.1.2)."""
    run = struct.pack("<I", (BLOCK << 3) | 2)[:3] + letter
    end = struct.pack("<I", 1)[:3]
    raw = struct.pack("<I", len(head) << 3)[:3] + head
    path.write_bytes(struct.pack("<I", 0xFD2FB528) + bytes([0, 11 << 3]) + raw + run * num_blocks + end)
    return path


def write_gzip(path: Path, head: bytes, letter: bytes, num_bytes: int) -> Path:
    """`head`, then one letter so often, as members of 16 MiB."""
    member = gzip.compress(letter * (1 << 24), 1)
    path.write_bytes(gzip.compress(head) + member * (num_bytes >> 24))
    return path
