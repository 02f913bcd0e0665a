"""Calls of what does not end: each ends in time, within memory, with one line; the next call is served as before."""

import json
import os
import re
import time
import tracemalloc

import pytest

from logtrain.core.bounded import Bounded


def doubled(text: str) -> str:
    """Without end."""
    while True:
        text += text


def refuse(text: str) -> None:
    raise ValueError(f"{text} is refused")


@pytest.fixture
def call():
    call = Bounded("a.jinja: the chat template", seconds=10, memory=300_000_000)
    yield call
    call.close()


def test_values_and_mistakes_are_those_of_the_function(call):
    assert call(json.loads, '{"a": [1, 2.5, null]}') == {"a": [1, 2.5, None]}
    first = call(os.getpid)
    assert first != os.getpid() == call(os.getppid)
    with pytest.raises(ValueError, match=r"^x is refused$"):
        call(refuse, "x")
    with pytest.raises(RuntimeError, match="ZeroDivisionError: integer division"):
        call(divmod, 1, 0)
    assert call(os.getpid) == first


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (re.search, ("(a+)+$", "a" * 40 + "b"), "did not end within 1 seconds"),
        (time.sleep, (60,), "did not end within 1 seconds"),
        (doubled, ("ab",), "more than 300 MB of memory were needed"),
        (os._exit, (3,), "a worker died with exit code 3; what it said stands above"),
    ],
)
def test_what_does_not_end_is_ended(call, function, arguments, message):
    tracemalloc.start()
    call.seconds = 60 if function is doubled else 1
    began = time.monotonic()
    with pytest.raises(ValueError, match=re.escape(f"a.jinja: the chat template: {message}")):
        call(function, *arguments)
    assert time.monotonic() - began < 30
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()
    call.seconds = 60
    assert call(divmod, 7, 2) == (3, 1)
