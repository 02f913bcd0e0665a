"""The servers that `benchmarks.serve` asks: a process each, and how one is asked over HTTP."""

import contextlib
import http.client
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from logtrain.text.tokenizer import Tokenizer

PEERS = ("simplest", "serve", "continuous")


class Asked(NamedTuple):
    """A request."""

    prompt: list[int]
    max_tokens: int


class Answered(NamedTuple):
    """An answer over HTTP."""

    first: float
    """Seconds to its first token."""
    tokens: int
    text: str


Answer = Callable[[Asked], Answered]


class Process:
    """A server in a process of its own."""

    def __init__(self, module: str, *flags: str, threads: int):
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        command = [sys.executable, "-m", module, *flags]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        )
        assert self.process.stdout
        lines = []
        for line in self.process.stdout:
            lines.append(line)
            if found := re.search(r"(?:at|on) http://(?:127\.0\.0\.1|localhost):(\d+)", line):
                self.port = int(found[1])
                threading.Thread(target=self.process.stdout.read, daemon=True).start()
                return
        raise ValueError(f"{module}: {''.join(lines)[-500:]}")

    def cpu_seconds(self) -> float:
        """CPU time of the process and its children so far."""
        pids, total = [self.process.pid], 0.0
        while pids:
            folder = Path(f"/proc/{pids.pop()}")
            with contextlib.suppress(OSError):
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
                for thread in (folder / "task").iterdir():
                    pids += map(int, (thread / "children").read_text().split())
        return total

    def post(self, path: str, body: object) -> Iterator[bytes]:
        """The lines of the reply to a request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            raise ValueError(f"{path}: status {response.status}: {response.read(300)!r}")
        yield from response
        connection.close()

    def streamed(self, request: Asked) -> Answered:
        """An answer of our server."""
        body = {"prompt": request.prompt, "max_tokens": request.max_tokens, "temperature": 0, "ignore_eos": True}
        return self.stream(body)

    def stream(self, body: dict[str, Any]) -> Answered:
        """An answer that comes in pieces."""
        began, first, text, tokens, line = time.perf_counter(), None, [], 0, b""
        for line in self.post("/v1/completions", {**body, "stream": True, "stream_options": {"include_usage": True}}):
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            if usage := event.get("usage"):
                tokens = usage["completion_tokens"]
            for choice in event["choices"]:
                first = first or time.perf_counter() - began
                text.append(choice["text"])
        if first is None:
            raise ValueError(f"no answer to a prompt, but {line!r}")
        return Answered(first, tokens, "".join(text))

    def whole(self, request: Asked) -> Answered:
        """Wait for an answer of the simplest server, whose text it does not tell."""
        first = json.loads(b"".join(self.post("/", request._asdict())))["first"]
        return Answered(first, request.max_tokens, "")


def free_port() -> int:
    """A port at which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def peer(name: str, model: str, threads: int, tokenizer: Tokenizer) -> tuple[Process, Answer]:
    """A server of transformers that has been started, and how it is asked."""
    if name == "simplest":
        flags = ("--model", model, "--threads", str(threads))
        process = Process("benchmarks.simplest_server", *flags, threads=threads)
        return process, process.whole
    flags = ("serve", model, "--dtype", "float32", "--device", "cpu", "--port", str(free_port()))
    batching = ["--continuous-batching"] if name == "continuous" else []
    process = Process("transformers.cli.transformers", *flags, *batching, threads=threads)

    def answer(request: Asked) -> Answered:
        text = tokenizer.decode(request.prompt)
        return process.stream({"model": model, "prompt": text, "max_tokens": request.max_tokens, "temperature": 0})

    return process, answer
