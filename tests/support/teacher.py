"""A teacher over HTTP that answers by a script, and errs by it: what a synthesis is shown with.

with teacher() as fake: fake.script = lambda asked, count: fake.text(...)

A script is told what was asked and how often the same was asked before, and says what comes: a `Say`.
"""

import contextlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Say:
    """What the teacher does with a request."""

    text: str = ""
    finish: str = "stop"
    status: int = 200
    hang: float = 0.0
    """seconds before the answer; the client may have gone then"""
    headers: dict[str, str] = field(default_factory=dict)
    raw: bytes | None = None
    """the reply's body, instead of an answer's"""
    drip: bool = False
    """whether the body comes a byte at a time"""
    has_usage: bool = True


Script = Callable[[dict[str, Any], int], Say]


class TeacherServer(ThreadingHTTPServer):
    """said: the Says so far, each with the number of times that its prompt had been asked before. under_way, most: the
    requests at the moment, and at most. spent: tokens of prompts and answers that were begun to be answered.
    """

    daemon_threads = True

    def __init__(self, script: Script):
        super().__init__(("127.0.0.1", 0), Handler)
        self.script, self.lock = script, threading.Lock()
        self.said: list[Say] = []
        self.asked: list[dict[str, Any]] = []
        self.counts: Counter[str] = Counter()
        self.under_way = self.most = self.spent = 0
        self.delay = 0.0

    @property
    def url(self) -> str:
        """Its address, with /v1."""
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    server: TeacherServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits 40 ms for an acknowledgement

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """The models."""
        self.reply(200, json.dumps({"data": [{"id": "wise", "max_model_len": 8192}]}).encode(), Say())

    def do_POST(self) -> None:
        """What the script says."""
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        key = json.dumps(asked["messages"])
        with self.server.lock:
            say = self.server.script(asked, self.server.counts[key])
            self.server.counts[key] += 1
            self.server.said.append(say)
            self.server.asked.append(asked)
            self.server.under_way += 1
            self.server.most = max(self.server.most, self.server.under_way)
            if say.status == 200:
                self.server.spent += prompt_tokens(asked) + answer_tokens(say)
        time.sleep(say.hang or self.server.delay)
        with self.server.lock:
            self.server.under_way -= 1
        choice = {"index": 0, "message": {"role": "assistant", "content": say.text}, "finish_reason": say.finish}
        usage = {"prompt_tokens": prompt_tokens(asked), "completion_tokens": answer_tokens(say)}
        facts = {"choices": [choice], **({"usage": usage} if say.has_usage else {})}
        body = say.raw if say.raw is not None else json.dumps(facts).encode()
        with contextlib.suppress(OSError):
            self.reply(say.status, body, say)

    def reply(self, status: int, body: bytes, say: Say) -> None:
        """A whole reply."""
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, value in say.headers.items():
            self.send_header(name, value)
        self.end_headers()
        for at in range(0, len(body), 1 if say.drip else len(body)):
            self.wfile.write(body[at : at + (1 if say.drip else len(body))])
            self.wfile.flush()
            time.sleep(0.05 * say.drip)


def prompt_tokens(asked: dict[str, Any]) -> int:
    """A token for each four bytes."""
    return sum(len(turn["content"].encode()) for turn in asked["messages"]) // 4


def answer_tokens(say: Say) -> int:
    """Likewise."""
    return len(say.text) // 4


@contextlib.contextmanager
def teacher(script: Script) -> Iterator[TeacherServer]:
    """Such a server, until the end."""
    server = TeacherServer(script)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
