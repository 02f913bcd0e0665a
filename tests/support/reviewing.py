"""Rows to review, and the page in front of them."""

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

LOG = "Dec 10 06:55:46 LabSZ sshd[24200]: Failed password for root from 10.0.0.5 port 22"


def chat(number: int, answer: str = "") -> dict[str, Any]:
    """A row."""
    said = answer or f"Root was refused from 10.0.0.5, as row {number} shows; 10.9.9.9 was not."
    turns = [{"role": "user", "content": f"What is it?\n{LOG}"}, {"role": "assistant", "content": said}]
    return {"messages": turns, "domain": "OpenSSH", "job": number}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """A file of rows."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def saved(path: Path) -> list[dict[str, Any]]:
    """The decisions beside a file."""
    return [json.loads(line) for line in path.with_name(f"{path.name}.reviews.jsonl").read_text().splitlines()]


@contextlib.contextmanager
def review_server(path: Path, reviewer: str = "ann", base_url: str = "") -> Iterator[str]:
    """The address of the page."""
    uvicorn = pytest.importorskip("uvicorn", reason="needs the extra `serve`")
    pytest.importorskip("starlette", reason="needs the extra `serve`")
    from logtrain.serving.reviewing import review_app

    with socket.create_server(("127.0.0.1", 0)) as bound:
        app = review_app(path, reviewer, base_url)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", ws="none", lifespan="off"))
        thread = threading.Thread(target=server.run, args=([bound],), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{bound.getsockname()[1]}"
        finally:
            server.should_exit = server.force_exit = True
            thread.join(10)
