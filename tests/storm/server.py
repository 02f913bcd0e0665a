"""The server of a storm: a teacher and a judge, whose answers follow from the prompt alone."""

import threading
import zlib
from typing import Any

from tests.support.synthesising import good
from tests.support.teacher import Say, TeacherServer


def serving() -> TeacherServer:
    """Such a server, which ends with the process."""
    server = TeacherServer(say)
    server.handle_error = lambda *_: None  # a client that was killed
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def say(asked: dict[str, Any], _count: int) -> Say:
    """A verdict, or a teacher's answer, of which one of eight is rejected."""
    text = asked["messages"][-1]["content"]
    draw = zlib.crc32(text.encode())
    if "<answer_1>" in text:
        return Say(f"Because.\nVerdict: {(1, 2, 'tie')[draw % 3]}")
    return good(asked) if draw % 8 else Say("")
