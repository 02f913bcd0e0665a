"""What tests share: real inputs from outside the repository. A test whose input is absent is skipped and says why."""

import os
from pathlib import Path

import hypothesis
import pytest

# A machine may be busy with other things: how long one example takes says nothing about the code.
hypothesis.settings.register_profile("logtrain", deadline=None)
hypothesis.settings.load_profile("logtrain")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data beside the checkout."""
    folder = Path(__file__).resolve().parents[2] / "shared"
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


def _folder_from(variable: str) -> Path:
    value = os.environ.get(variable)
    if not value:
        pytest.skip(f"needs {variable} to name a model folder")
    if not Path(value).is_dir():
        pytest.fail(f"{variable} names no folder: {value}")
    return Path(value)
