"""Arrays mapped from files: their pages count as the memory of a process until it gives them back."""

import mmap
from collections.abc import Iterable

import numpy as np


def let_go(arrays: Iterable[np.ndarray]) -> None:
    """Give back the memory that those of some arrays take in this process which are mapped. They stay readable."""
    for array in arrays:
        mapping = getattr(array.base, "base", None)
        if isinstance(mapping, mmap.mmap):
            mapping.madvise(mmap.MADV_DONTNEED)
