"""A small model with two adapters, and one server of them for all tests that do not change it; a browser before a
scripted server."""

from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from logtrain.generation.load import LoadedModel, ModelFolder
from logtrain.model import peft
from logtrain.model.config import LoraConfig
from tests.support.conversations import write_chat_model
from tests.support.generation import CPU
from tests.support.lora import adapted, trained
from tests.support.page_server import Visitor, chromium, page_server
from tests.support.serving import Served, serving


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> SimpleNamespace:
    """The folders of a model and two adapters, and the flags to serve them."""
    folder = tmp_path_factory.mktemp("served")
    write_chat_model(folder / "tiny")
    for number in (1, 2):
        config = LoraConfig(rank=2 + number, alpha=4.0 * number)
        model = adapted(folder / "tiny", config)
        tensors = {name: tensor * (1 + number) for name, tensor in trained(model).items()}
        peft.save(folder / f"adapter{number}", tensors, model.config, config, str(folder / "tiny"))
    flags = ["--model", str(folder / "tiny"), "--adapters", *(f"a{n}={folder}/adapter{n}" for n in (1, 2))]
    return SimpleNamespace(folder=folder, flags=flags)


@pytest.fixture(scope="session")
def server(models, tmp_path_factory) -> Iterator[Served]:
    flags = [*models.flags, "--max_body", "1", "--max_sequences", "8", "--memory", "0.05"]
    with serving(flags, tmp_path_factory.mktemp("server") / "output") as served:
        yield served


@pytest.fixture(scope="session")
def loaded(models) -> LoadedModel:
    """The same model in this process."""
    return ModelFolder(models.folder / "tiny").load(CPU)


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with chromium() as one:
        yield one


@pytest.fixture
def served() -> Iterator:
    with page_server() as one:
        yield one


@pytest.fixture
def visitor(browser, served) -> Iterator[Visitor]:
    one = Visitor(browser, served[0])
    yield one
    assert one.problems == []
    one.context.close()
