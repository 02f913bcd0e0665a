"""What tests of several entries share: models that answer, an evaluation that is done, tokenizers to prepare with."""

import json
from pathlib import Path

import pytest

from logtrain import prepare
from logtrain.text.chat_template import ChatTemplate
from logtrain.text.tokenizer import Tokenizer
from tests.support.chats import write_tokenizer
from tests.support.evaluation import ROWS, evaluated, flags, write_chat_model
from tests.support.preparing import Inline, write_bytes_tokenizer


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


@pytest.fixture(scope="session")
def bytes_tokenizer(tmp_path_factory) -> Path:
    """A folder: one token a byte."""
    return write_bytes_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def chat_tokenizer(tmp_path_factory) -> Path:
    """A folder: a tokenizer with a chat template."""
    return write_tokenizer(tmp_path_factory.mktemp("chat_tokenizer"))


@pytest.fixture(scope="session")
def template(chat_tokenizer) -> ChatTemplate:
    return ChatTemplate.load(Tokenizer.load(chat_tokenizer))


@pytest.fixture
def inline(monkeypatch) -> None:
    """Lets prepare tokenise in this process."""
    monkeypatch.setattr(prepare, "Pool", Inline)
