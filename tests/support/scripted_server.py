"""A server of OpenAI's chat API whose answers a function gives, for tests."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Scripted(ThreadingHTTPServer):
    """`answer(messages)`: the text of the reply, or an HTTP status to fail with. seen: the bodies of the requests."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, answer: Callable[[list[dict]], str | int]):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer, self.seen = answer, []
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append(body)
        answer = self.server.answer(body["messages"])
        if isinstance(answer, int):
            self.send(answer, {"error": "as scripted"})
            return
        usage = {"prompt_tokens": len(str(body["messages"])), "completion_tokens": len(answer)}
        choice = {"message": {"role": "assistant", "content": answer}, "finish_reason": "stop"}
        self.send(200, {"choices": [choice], "usage": usage})

    def do_GET(self) -> None:
        self.send(200, {"data": [{"id": "m"}]})

    def send(self, status: int, reply: dict) -> None:
        content = json.dumps(reply).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def scripted(answer: Callable[[list[dict]], str | int]) -> Iterator[Scripted]:
    """The server, running during the block."""
    server = Scripted(answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
