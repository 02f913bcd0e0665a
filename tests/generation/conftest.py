"""A random model, and prompts for it."""

from pathlib import Path

import pytest

from logtrain.generation.load import LoadedModel, ModelFolder
from tests.support.generation import CPU, LENGTHS
from tests.support.llama import random_documents
from tests.support.synthetic import write_model


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """Heads share keys, rope is scaled, and the weights are large enough for answers that do not repeat one token."""
    return write_model(tmp_path_factory.mktemp("model"), initializer_range=0.3)


@pytest.fixture(scope="session")
def loaded(folder) -> LoadedModel:
    return ModelFolder(folder).load(CPU)


@pytest.fixture(scope="session")
def prompts(loaded) -> list[list[int]]:
    return [document.tolist() for document in random_documents(list(LENGTHS), loaded.model.config.vocab_size)]
