"""Model folders that others may have written to do harm: whatever opens them ends in one line that names the file,
within seconds, and takes less than 1 GiB for it.
"""

import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from logtrain.core.entry import words_of
from logtrain.generation.load import ModelFolder
from logtrain.model import hf, merging, peft
from logtrain.model.config import LoraConfig
from logtrain.planning.shape import read_shape
from logtrain.text.chat_template import ChatTemplate
from logtrain.text.tokenizer import Tokenizer
from tests.support.evaluation import write_chat_model
from tests.support.hostile import DAMAGES
from tests.support.lora import adapted, trained

pytestmark = pytest.mark.slow

SECONDS, BYTES = 10, 1 << 30


def chat(model: Path, _: Path) -> None:
    """What chat, evaluate and the Python interface open of a model."""
    folder = ModelFolder(model)
    folder.check_memory(torch.device("cpu"))
    assert folder.answer_ends
    assert folder.sampling
    folder.open_weights()
    folder.digest()


def chat_with_adapter(_: Path, adapter: Path) -> None:
    chat(adapter, adapter)


def merge(model: Path, adapter: Path) -> None:
    merging.merge_folders(model, adapter, model.with_name("merged"), "float32")


def train(model: Path, _: Path) -> None:
    """What cpt and sft open of a model."""
    hf.Weights(model, hf.read_config(model))
    Tokenizer.load(model)


def serve(model: Path, _: Path) -> None:
    """What evaluate opens of the folder of a server's model."""
    hf.read_positions(model)


def plan(model: Path, _: Path) -> None:
    read_shape(str(model))


def prepare(model: Path, _: Path) -> None:
    ChatTemplate.load(Tokenizer.load(model)).check_trainable()


READERS: list[Callable[[Path, Path], None]] = [chat, merge, train, serve, plan, prepare]
ADAPTER_READERS: list[Callable[[Path, Path], None]] = [chat_with_adapter, merge]


@pytest.fixture(scope="module")
def honest(tmp_path_factory) -> Path:
    """A folder with a model and an adapter of it."""
    folder = tmp_path_factory.mktemp("honest")
    write_chat_model(folder / "model", 0.3)
    config = LoraConfig(rank=2, alpha=4.0)
    model = adapted(folder / "model", config)
    peft.save(folder / "adapter", trained(model), model.config, config, str(folder / "model"))
    return folder


@pytest.fixture
def alarm() -> Iterator[None]:
    """A reader that waits for ever fails the test."""

    def fail(*_: object) -> None:
        raise AssertionError(f"took more than {SECONDS} s")

    signal.signal(signal.SIGALRM, fail)
    yield
    signal.alarm(0)


def place(folder: Path, honest: Path, file: str) -> Path:
    """A copy of the honest folders -> where `file` is in it."""
    shutil.copytree(honest, folder)
    config = folder / "adapter" / peft.CONFIG
    config.write_text(config.read_text().replace(str(honest), str(folder)))
    if file == hf.INDEX:
        (folder / "model" / hf.WHOLE).unlink()
    return folder / ("adapter" if file.startswith("adapter") else "model") / file


def memory(name: str) -> int:
    """Bytes of this process: VmRSS, what it holds; VmHWM, the most that it held."""
    return 1024 * int(re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])


@pytest.mark.parametrize("file", sorted({file for file, _ in DAMAGES}))
def test_a_hostile_file_is_one_line_that_names_it(honest, tmp_path, alarm, file: str):
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on: tests before this one had others
    before = memory("VmRSS")
    for number, (name, damage) in enumerate((name, damage) for (of, name), damage in DAMAGES.items() if of == file):
        path = place(tmp_path / str(number), honest, file)
        damage(path)
        refused = []
        for reader in ADAPTER_READERS if file.startswith("adapter") else READERS:
            signal.alarm(SECONDS)
            began = time.monotonic()
            try:
                reader(path.parents[1] / "model", path.parents[1] / "adapter")
            except (ValueError, OSError) as error:  # what an entry shows as one line
                refused.append(reader.__name__)
                said = words_of(error)
                assert "\n" not in said, (file, name, reader.__name__)
                assert len(said) < 1000, (file, name, reader.__name__)
                assert str(path.parent) in said, (file, name, reader.__name__, said)
            signal.alarm(0)
            took = time.monotonic() - began
            print(f"{took:6.2f} s {file}: {name}: {reader.__name__}")
            assert took < SECONDS
        assert refused, (file, name, "was believed")
        assert not (path.parents[1] / "merged").exists() or "merge" not in refused
        shutil.rmtree(path.parents[1])
    assert memory("VmHWM") - before < BYTES


def test_an_honest_folder_is_read_by_all(honest, tmp_path):
    path = place(tmp_path / "0", honest, "config.json")
    for reader in (*READERS, chat_with_adapter):
        reader(path.parents[1] / "model", path.parents[1] / "adapter")
