"""The teacher: a server that speaks OpenAI's API, or a model of a folder (local_teacher.py). Both take requests while
there is room, and give what has come of them. Neither tries anything again: the run decides that, and counts it.

What a server sends is bounded in size and time, whatever it does: a reply of more than MAX_REPLY bytes, one that drips,
or one that is no reply is a failure like any other.
"""

import json
import math
import threading
from collections.abc import Sequence
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple, Protocol

import urllib3

from logtrain.core.printable import printable
from logtrain.core.untrusted import DECODER, check_depth
from logtrain.evaluation.exchange import HttpReply, Late, TooLarge, exchange
from logtrain.evaluation.remote import TRANSIENT, RemoteRequest, Server, counted, request_body
from logtrain.synthesis.config import SynthesiseConfig
from logtrain.synthesis.prompts import Task
from logtrain.text.chat_template import Turn

MAX_REPLY = 1 << 22  # bytes
MAX_TEXT = 1 << 18  # characters of an answer
LONGEST_PAUSE = 120.0  # seconds that a server may ask for by Retry-After
TOLD = ("id", "root", "parent", "owned_by", "max_model_len")  # of a server's model
NO_LUCK = (401, 403, 404)  # statuses that every request will get


class Ask(NamedTuple):
    """A request to the teacher."""

    job: int
    attempt: int
    task: Task
    turns: Sequence[Turn]
    number: int
    """decides the draws, with the seed"""


class Reply(NamedTuple):
    """What the teacher said. Tokens are None where it does not count them."""

    text: str
    finish: str
    prompt_tokens: int | None
    tokens: int | None


class Trouble(NamedTuple):
    """Why there is no reply."""

    kind: str
    detail: str
    is_passing: bool
    may_cost: bool
    pause: float = 0.0
    """seconds that the server asks for"""
    is_final: bool = False
    """whether every other request will fail likewise"""


class Teacher(Protocol):
    """concurrency: the most requests at once."""

    concurrency: int

    def facts(self) -> dict[str, Any]:
        """Who it is, for the manifest."""
        ...

    def most_tokens(self, ask: Ask) -> int:
        """The most tokens that a prompt may have."""
        ...

    def submit(self, ask: Ask) -> None:
        """Send a request."""
        ...

    def wait(self, seconds: float) -> list[tuple[Ask, Reply | Trouble]]:
        """What has come, after at most so many seconds."""
        ...


class RemoteTeacher:
    """A server."""

    def __init__(self, config: SynthesiseConfig):
        """Raises ValueError for an address that is none, and where no server is at it."""
        self.config, self.concurrency = config, config.concurrency
        self.server = Server(config.base_url, "messages", config.concurrency)
        self.server.check_reachable()
        self.url = f"{self.server.base_url}/chat/completions"
        self.come: SimpleQueue[tuple[Ask, Reply | Trouble]] = SimpleQueue()
        self.tokens_per_byte = 0.0  # the most of any prompt so far

    def facts(self) -> dict[str, Any]:
        """The server's address, and what it tells of the model."""
        told = next((one for one in self.server.models() if one.get("id") == self.config.teacher), {})
        told = {key: told[key] for key in TOLD if isinstance(told.get(key), str | int)}
        return {"kind": "server", "name": self.config.teacher, "base_url": self.config.base_url, "told": told}

    def most_tokens(self, ask: Ask) -> int:
        """A token has a byte at least; once the server has counted some prompts, the most of these and a tenth more."""
        size = sum(len(turn.content.encode()) for turn in ask.turns)
        return math.ceil(size * min(1.0, 1.1 * self.tokens_per_byte or 1.0)) + 50

    def submit(self, ask: Ask) -> None:
        """Send a request, in a thread of its own, which ends with the process."""
        threading.Thread(target=lambda: self.come.put((ask, self.reply(ask))), daemon=True).start()

    def wait(self, seconds: float) -> list[tuple[Ask, Reply | Trouble]]:
        """What has come, after at most so many seconds."""
        found = []
        try:
            found.append(self.come.get(timeout=seconds))
            while True:
                found.append(self.come.get_nowait())
        except Empty:
            pass
        for ask, reply in found:
            if isinstance(reply, Reply) and reply.prompt_tokens:
                size = sum(len(turn.content.encode()) for turn in ask.turns)
                self.tokens_per_byte = max(self.tokens_per_byte, reply.prompt_tokens / size)
        return found

    def body(self, ask: Ask) -> bytes:
        """A request as JSON."""
        config = self.config
        asked = RemoteRequest([], ask.turns, config.max_new_tokens, config.sampling, ask.number)
        body = request_body(config.teacher, asked, "messages")
        if ask.task.schema and config.json_mode == "object":
            body["response_format"] = {"type": "json_object"}
        elif ask.task.schema and config.json_mode == "schema":
            schema = {"name": ask.task.name, "schema": ask.task.schema}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        return json.dumps(body).encode()

    def reply(self, ask: Ask) -> Reply | Trouble:
        """The end of one request, whatever it is."""
        try:
            return self.asked(ask)
        except Late:
            return Trouble("timeout", f"no answer in {self.config.timeout:g} s", True, True)
        except TooLarge:
            return Trouble("reply", f"more than {MAX_REPLY:,} bytes", True, True)
        except urllib3.exceptions.NewConnectionError as error:
            return Trouble("connection", printable(str(error), one_line=True), True, False)
        except urllib3.exceptions.TimeoutError as error:
            kind = "connection" if isinstance(error, urllib3.exceptions.ConnectTimeoutError) else "timeout"
            return Trouble(kind, printable(str(error), one_line=True), True, kind == "timeout")
        except (urllib3.exceptions.HTTPError, OSError) as error:
            return Trouble("connection", printable(str(error), one_line=True), True, True)
        except Exception as error:  # a mistake of ours must not leave the run waiting for ever
            return Trouble("reply", f"{type(error).__name__}: {printable(str(error)[:200], one_line=True)}", True, True)

    def asked(self, ask: Ask) -> Reply | Trouble:
        """Send a request and read what comes. Raises as `exchange` does."""
        reply = exchange(
            self.server.pool,
            "POST",
            self.url,
            self.server.headers,
            self.body(ask),
            seconds=self.config.timeout,
            most=MAX_REPLY,
        )
        return read_status(reply) or read_reply(reply.data)


def read_status(reply: HttpReply) -> Trouble | None:
    """What a status says of a request that was not answered."""
    status = reply.status
    if status == 200:
        return None
    pause = min(reply.pause, LONGEST_PAUSE) if status in TRANSIENT else 0.0
    return Trouble(
        str(status), printable(reply.start(), one_line=True), status in TRANSIENT, False, pause, status in NO_LUCK
    )


def read_reply(data: bytes) -> Reply | Trouble:
    """What a reply says; a Trouble for anything that is no reply."""
    try:
        facts = DECODER.decode(data.decode())
        check_depth("reply", facts, "a reply")
        choice, usage = facts["choices"][0], facts.get("usage") or {}
        text = choice["message"]["content"] or ""
        text = text.encode(errors="replace").decode()  # half a surrogate pair, which JSON can spell
        prompt, answer = counted(usage, "prompt_tokens"), counted(usage, "completion_tokens")
        return Reply(text[:MAX_TEXT], str(choice.get("finish_reason"))[:40], prompt, answer)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        start = printable(data[:200].decode(errors="replace"), one_line=True)
        return Trouble("reply", f"not the reply of an OpenAI-compatible server: {start}", True, True)
