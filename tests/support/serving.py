"""The server as a real process, asked over HTTP."""

import contextlib
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import urllib3

from tests.support.program import Program

QUESTION = [{"role": "user", "content": "why error 10.0.0.1?"}]


class Served:
    """A server that runs. url: its address. client: OpenAI's own client of it."""

    def __init__(self, flags: list[str], output: Path, seconds: float = 120, key: str = ""):
        self.program = Program([*flags, "--port", "0"], output, entry="logtrain.serve")
        end = time.monotonic() + seconds
        while not (found := re.search(r"at (http://127.0.0.1:\d+)/v1\n", output.read_text())):
            assert time.monotonic() < end, output.read_text()
            assert self.program.processes[0].exitcode is None, output.read_text()
            time.sleep(0.02)
        self.url, self.output = found[1], output
        self.client = openai.OpenAI(base_url=f"{self.url}/v1", api_key=key or "none", max_retries=0, timeout=60)
        self.pool = urllib3.PoolManager(retries=False, timeout=60)

    def post(self, path: str, body: Any, **headers: str) -> tuple[int, Any]:
        """Status and reply of a JSON request; bytes are sent as they are."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", **headers}
        response = self.pool.request("POST", self.url + path, body=content, headers=headers)
        return response.status, response.json()

    def get(self, path: str, **headers: str) -> tuple[int, str]:
        """Status and text of a path."""
        response = self.pool.request("GET", self.url + path, headers=headers)
        return response.status, response.data.decode()

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        found = re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", self.get("/metrics")[1], re.M)
        return sum(map(float, found))

    def until(self, happened: Any, seconds: float = 30) -> None:
        """Wait for a state of the server."""
        end = time.monotonic() + seconds
        while not happened():
            assert time.monotonic() < end, self.get("/metrics")[1]
            time.sleep(0.01)

    def chat(self, **settings: Any) -> Any:
        """A greedy answer of the client; `settings`: fields of the request."""
        settings = {"model": "tiny", "messages": QUESTION, "temperature": 0, "max_tokens": 20, **settings}
        return self.client.chat.completions.create(**settings)


@contextlib.contextmanager
def serving(flags: list[str], output: Path, **options: Any) -> Iterator[Served]:
    """A server for a block, which is killed at its end."""
    served = Served(flags, output, **options)
    try:
        yield served
    finally:
        for process in served.program.processes:
            process.kill()
            process.join()
