"""The arrays of a shard as they are found: held against the manifest, its checksums, and what must hold of their
contents, so that no damage passes unseen.

Letters in names: N tokens of a shard, D documents of it, K outcomes of a teacher's distribution. Records of
documents are of the dtype DOCUMENT, a teacher's of teacher_dtype(K) (shards.py).
"""

import zlib
from pathlib import Path

import numpy as np

from logtrain.data.manifest import Manifest, ShardFacts

BLOCK = 1 << 16  # records of a teacher that are looked at at once
MOST_PROBABILITY = 1.01  # of the K outcomes together: rounding to float16 makes that of 10 nats off by 0.5% at most


def open_array(file: Path, dtype: np.dtype, length: int, crc32: int | None) -> np.ndarray:
    """The 1-D array of a file, memory-mapped; its data is read only where there is a checksum to hold it against."""
    again = "prepare the folder again"
    try:
        # A plain ndarray over the mapping: slices of np.memmap cost microseconds each.
        array = np.load(file, mmap_mode="r", allow_pickle=False).view(np.ndarray)
    except FileNotFoundError:
        raise ValueError(f"{file}: missing, though the manifest names it; {again}") from None
    except OSError:
        raise
    except Exception:  # numpy reads the header as Python code, so damage there raises almost anything
        raise ValueError(f"{file}: cut short or damaged; {again}") from None
    if array.dtype != dtype or array.shape != (length,):
        raise ValueError(
            f"{file}: holds {array.dtype.kind}{array.dtype.itemsize} {list(array.shape)}, "
            f"the manifest says {dtype.kind}{dtype.itemsize} [{length}]; {again}"
        )
    if crc32 is not None and zlib.crc32(array.data) != crc32:
        raise ValueError(f"{file}: damaged (its checksum differs from the manifest's); {again}")
    return array


def check_records(file: Path, records_D: np.ndarray, shard: ShardFacts, manifest: Manifest) -> None:
    """Raises ValueError where the records of a shard do not fit its tokens, or name what the manifest has not."""
    length_D, target_D = records_D["length"].astype(np.int64), records_D["targets"].astype(np.int64)
    fits = np.array_equal(records_D["offset"], np.cumsum(length_D) - length_D) and length_D.min(initial=1) > 0
    fits &= (length_D.sum(), target_D.sum()) == (shard["num_tokens"], shard["num_targets"])
    fits &= bool(((target_D >= 0) & (target_D < length_D)).all())
    for name, known in (("source", manifest["sources"]), ("domain", manifest["domains"])):
        fits &= bool(((records_D[name] >= 0) & (records_D[name] < len(known))).all())
    if not fits:
        raise ValueError(f"{file}: its records do not fit the tokens, or the manifest; prepare the folder again")


def check_teacher(file: Path, records_N: np.ndarray, is_target_N: np.ndarray, vocab_size: int) -> None:
    """Raises ValueError where a record of a target is no distribution over ids of the vocabulary, the likeliest first,
    or a record of another token is one.
    """
    for start in range(0, len(records_N), BLOCK):
        records, is_target = records_N[start : start + BLOCK], is_target_N[start : start + BLOCK]
        ids_NK, log_NK = records["ids"], records["log_probabilities"].astype(np.float32)
        of_targets = log_NK[is_target]
        fits = (ids_NK < vocab_size).all() and np.isneginf(log_NK[~is_target]).all()
        fits = fits and np.isfinite(of_targets).all() and (of_targets <= 0).all() and (np.diff(of_targets) <= 0).all()
        fits = fits and np.exp(of_targets).sum(1).max(initial=0) <= MOST_PROBABILITY
        if not (fits and (np.diff(np.sort(ids_NK[is_target])) > 0).all()):
            raise ValueError(f"{file}: its records are no distributions of these tokens; prepare the folder again")
