"""A server of OpenAI's API that says what a test lays down, token by token: what the page is shown with.

with openai_server() as fake: fake.answers.append("The log shows L2."); fake.url
"""

import contextlib
import json
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = re.compile(r"\s?\w{1,4}|\s?[^\w\s]|\s", re.UNICODE)
CONTEXT = 4096


class OpenAiServer(ThreadingHTTPServer):
    """answers: what it says next, in turn, and then "yes". asked: the requests for answers. held: whether an answer
    waits after its first five tokens until `release`. delay: seconds before its first token. left: how many clients
    went before their answer's end.
    """

    daemon_threads = True

    def __init__(self, can_count: bool):
        super().__init__(("127.0.0.1", 0), Handler)
        self.can_count = can_count
        self.answers: list[str] = []
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.held, self.left, self.delay = False, 0, 0.0
        self.gate = threading.Event()

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def release(self) -> None:
        """Let the answers that are held go on."""
        self.held = False
        self.gate.set()


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    server: OpenAiServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """The models."""
        models = [{"id": name, "object": "model", "max_model_len": CONTEXT} for name in ("base", "hdfs-adapter")]
        self.reply(200, {"object": "list", "data": models})

    def do_POST(self) -> None:
        """An answer, or a count of tokens."""
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/tokenize" and self.server.can_count:
            texts = [asked["prompt"]] if "prompt" in asked else [turn["content"] + "    " for turn in asked["messages"]]
            self.reply(200, {"count": sum(len(TOKEN.findall(text)) for text in texts), "max_model_len": CONTEXT})
        elif self.path == "/v1/chat/completions":
            self.server.asked.append(asked)
            self.server.keys.append(self.headers.get("Authorization", ""))
            self.stream(self.server.answers.pop(0) if self.server.answers else "yes")
        else:
            self.reply(404, {"error": {"message": "no such path"}})

    def reply(self, status: int, facts: dict[str, Any]) -> None:
        """A whole reply."""
        body = json.dumps(facts).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def stream(self, answer: str) -> None:
        """The tokens of an answer as events."""
        if answer.startswith("status "):
            self.reply(int(answer.split()[1]), {"error": {"message": answer}})
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        tokens = TOKEN.findall(answer)
        time.sleep(self.server.delay)
        try:
            for number, token in enumerate(tokens):
                while self.server.held and number == 5 and not self.server.gate.wait(0.05):
                    self.event({"choices": [{"index": 0, "delta": {}, "finish_reason": None}]})
                self.event({"choices": [{"index": 0, "delta": {"content": token}, "finish_reason": None}]})
            self.event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
            self.event({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": len(tokens)}})
            self.wfile.write(b"data: [DONE]\n\n")
        except OSError:
            self.server.left += 1
        self.close_connection = True

    def event(self, facts: dict[str, Any]) -> None:
        """One event."""
        self.wfile.write(f"data: {json.dumps(facts)}\n\n".encode())
        self.wfile.flush()


@contextlib.contextmanager
def openai_server(can_count: bool = True) -> Iterator[OpenAiServer]:
    """Such a server, until the end. `can_count`: whether it has /tokenize."""
    server = OpenAiServer(can_count)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.gate.set()
        server.shutdown()
        server.server_close()
