"""A model to talk to."""

from pathlib import Path

import pytest

from tests.support.conversations import write_chat_model


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    return write_chat_model(tmp_path_factory.mktemp("model"))
