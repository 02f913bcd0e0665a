"""What the tests of several entries share: models that answer, and an evaluation that is done."""

import json
from pathlib import Path

import pytest

from tests.support.evaluation import ROWS, evaluated, flags, write_chat_model


@pytest.fixture(scope="session")
def chat_models(tmp_path_factory) -> dict[str, Path]:
    return {name: write_chat_model(tmp_path_factory.mktemp(name), size) for name, size in (("a", 0.3), ("b", 0.5))}


@pytest.fixture(scope="session")
def question_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "test.json"
    path.write_text(json.dumps(ROWS))
    return path


@pytest.fixture(scope="session")
def finished(chat_models, question_file, tmp_path_factory) -> Path:
    """The folder of an evaluation of both models; to be copied, not changed."""
    run = tmp_path_factory.mktemp("finished") / "run"
    assert evaluated(flags(chat_models, question_file, run)) == 0
    return run
