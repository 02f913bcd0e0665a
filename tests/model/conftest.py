"""What the tests of models share."""

import functools
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.synthetic import write_model


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory) -> Callable[[str], Path]:
    """Models with fewer key-value heads than query heads, whose matrices are all of different shapes."""
    return functools.cache(
        lambda kind: write_model(
            tmp_path_factory.mktemp(kind), head_dim=6, tie_word_embeddings=kind == "tied", initializer_range=0.1
        )
    )
