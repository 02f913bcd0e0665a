"""What tests share: real inputs from outside the repository. A test whose input is absent is skipped and says why."""

import ctypes
import os
import shutil
import signal
import subprocess

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported: within `interpreted()` its kernels run on the CPU

from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import hypothesis
import pytest

from benchmarks.kernels.interpreter import patch_once_a_launch
from tests.support import ROOT
from tests.support.alone import in_turn
from tests.support.precision import triton_kernels
from tests.support.ranks import Ranks

# A machine may be busy with other things: how long one example takes says nothing about the code. The same code gets
# the same examples, so that a commit passes or fails for what it is; `--hypothesis-profile search` looks for new ones.
hypothesis.settings.register_profile("search", deadline=None)
hypothesis.settings.register_profile("logtrain", deadline=None, derandomize=True)
hypothesis.settings.load_profile("logtrain")

# A shell starts what is in the background with Ctrl-C ignored, and the programs that tests stop would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

patch_once_a_launch()

torch.set_num_threads(1)  # the tensors of tests are small: on busy cores a second thread made them 17 times slower


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order files by how long they take, the longest first: workers take a file each, and none waits at the end for
    another that has just begun a long one.
    """
    seconds = Counter()
    for item in items:
        slow = item.get_closest_marker("slow")
        seconds[item.path] += (slow.args[0] if slow.args else 8.0) if slow else 0.1
    items.sort(key=lambda item: (-seconds[item.path], str(item.path)))  # within a file as they were


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """A test that is marked alone runs with nothing beside it, not even what other tests prepare."""
    with in_turn(item.get_closest_marker("alone") is not None):
        return (yield)


@pytest.fixture(scope="module", autouse=True)
def own_process_group() -> Iterator[None]:
    """A process group does not outlive the tests of its file."""
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.fixture(params=["reference", "triton"])
def way(request) -> Iterator[str]:
    """How the operations run: as their references, and as the Triton kernels."""
    with triton_kernels() if request.param == "triton" else nullcontext():
        yield request.param


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data beside the checkout."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"needs the folder of real data at {folder}")
    return folder


@pytest.fixture(scope="session")
def llama3_tokenizer() -> Path:
    """The folder of the genuine Llama-3.1 tokenizer."""
    return _folder_from("LOGTRAIN_LLAMA3_TOKENIZER")


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The folder of SmolLM2-135M, a real Llama small enough for a CPU."""
    return _folder_from("LOGTRAIN_SMOLLM2")


@pytest.fixture(scope="session")
def ranks() -> Iterator[Ranks]:
    """Four processes that form worlds of up to four ranks."""
    pool = Ranks(4)
    yield pool
    pool.close()


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory) -> Path:
    """A stand-in of NVML's C library with three GPUs (support/nvml.c)."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    path = tmp_path_factory.mktemp("nvml") / "libnvidia-ml.so.1"
    source = ROOT / "tests" / "support" / "nvml.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", path, source], check=True)
    return path


@pytest.fixture
def three_gpus(nvml_library: Path, monkeypatch) -> None:
    """The GPUs of the stand-in: one is well, one is throttled and has memory errors, one is lost."""
    pynvml = pytest.importorskip("pynvml", reason="needs nvidia-ml-py")
    monkeypatch.setattr(pynvml, "nvmlLib", ctypes.CDLL(str(nvml_library)))
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})


def _folder_from(variable: str) -> Path:
    value = os.environ.get(variable)
    if not value:
        pytest.skip(f"needs {variable} to name a model folder")
    if not Path(value).is_dir():
        pytest.fail(f"{variable} names no folder: {value}")
    return Path(value)
