"""What the tests of prepare share."""

from pathlib import Path

import pytest

from logtrain import prepare
from logtrain.text.chat_template import ChatTemplate
from logtrain.text.tokenizer import Tokenizer
from tests.support.chats import write_tokenizer
from tests.support.preparing import Inline, write_bytes_tokenizer


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
