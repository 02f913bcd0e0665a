"""Answers of a server that speaks OpenAI's API (vLLM and others), for models that are too large for this machine.

Prompts are sent as token ids to /completions, so that they are the same ids as here, or as messages to
/chat/completions, which the server writes with a template of its own. With ids the server is also told all that decides
an answer, in fields that vLLM and SGLang add to the API: they would take what is left out from generation_config.json.

A server that restarts is waited for: what fails for a passing reason is sent again for five minutes.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from queue import SimpleQueue
from typing import Any, NamedTuple

import urllib3

from logtrain.core.printable import printable
from logtrain.evaluation.config import Prompts
from logtrain.generation.config import SamplingConfig
from logtrain.text.chat_template import Turn

TRANSIENT = (408, 409, 429, 500, 502, 503, 504)  # statuses of a server that is overloaded, ending or starting
PATIENCE = 300.0  # seconds from a request's first failure on; vLLM takes minutes to start
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 60.0  # seconds; each is twice the one before
TIMEOUT = urllib3.Timeout(connect=10, read=600)
FIRST_TIMEOUT = urllib3.Timeout(10)
NEUTRAL = {"min_p": 0.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}  # fields that SamplingConfig does not have


class RemoteRequest(NamedTuple):
    """A question to a server."""

    ids: Sequence[int]
    """The prompt."""
    turns: Sequence[Turn]
    """The conversation that the prompt was written from, for a server that writes it itself."""
    max_new_tokens: int
    sampling: SamplingConfig
    number: int
    """The question's: with the seed it decides the draws."""
    stop: tuple[str, ...] = ()
    stop_ids: frozenset[int] = frozenset()
    """Tokens that end an answer, beside those that the server knows of; sent with ids."""


class RemoteAnswer(NamedTuple):
    """What a server replied to one question."""

    text: str
    finish_reason: str
    tokens: int | None
    """None if the server does not say."""


class Server:
    """A server that answers in this program's place, over HTTP."""

    def __init__(self, base_url: str, prompts: Prompts, concurrency: int):
        """`base_url`: up to and with /v1. `concurrency`: requests at once. The key is taken from OPENAI_API_KEY, if
        there is one. Raises ValueError for what is no address.
        """
        if not base_url.startswith(("http://", "https://")):
            raise ValueError(
                f"base_url = {base_url!r}: expected http://... or https://..., as http://localhost:8000/v1"
            )
        self.base_url, self.concurrency = base_url.rstrip("/"), concurrency
        self.prompts: Prompts = prompts
        key = os.environ.get("OPENAI_API_KEY")
        self.headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        self.pool = urllib3.PoolManager(maxsize=concurrency, retries=False, timeout=TIMEOUT)
        self.lock = threading.Lock()
        self.last_reply = self.last_notice = 0.0  # by time.monotonic

    def answers(self, model: str, requests: Iterable[RemoteRequest]) -> Iterator[tuple[int, RemoteAnswer]]:
        """(number in the order of `requests`, answer) as they come, at most `concurrency` under way.

        Raises ValueError with the first failure, once all that has been answered by then is given out. What is under
        way then, or when the caller stops, is not waited for: its threads end with the process.
        """
        self.check_reachable()
        upcoming, num_sent, failure = enumerate(requests), 0, None
        done: SimpleQueue[tuple[int, RemoteAnswer | Exception]] = SimpleQueue()

        def send(number: int, request: RemoteRequest) -> None:
            try:
                done.put((number, self.answer(model, request)))
            except Exception as error:
                done.put((number, error))

        while failure is None or not done.empty():
            for item in islice(upcoming, 0 if failure else self.concurrency - num_sent):
                threading.Thread(target=send, args=item, daemon=True).start()
                num_sent += 1
            if not num_sent:
                return
            number, outcome = done.get()
            num_sent -= 1
            if isinstance(outcome, Exception):
                failure = failure or outcome
            else:
                yield number, outcome
        raise failure

    def check_reachable(self) -> None:
        """Raises ValueError, in seconds, if nobody is at the address. What is replied does not matter."""
        try:
            self.pool.request(
                "GET", f"{self.base_url}/models", headers=self.headers, redirect=False, timeout=FIRST_TIMEOUT
            )
        except urllib3.exceptions.HTTPError as error:
            raise ValueError(f"{self.base_url}: no answer ({error}); is the server running?") from None

    def answer(self, model: str, request: RemoteRequest) -> RemoteAnswer:
        """Raises ValueError with what the server, or the way to it, has to say."""
        url = f"{self.base_url}/{'completions' if self.prompts == 'ids' else 'chat/completions'}"
        response = self.post(url, json.dumps(request_body(model, request, self.prompts)).encode())
        if response.status != 200:
            raise ValueError(f"{url}: {status_text(response)}")
        try:
            return parse_reply(response.data, self.prompts)
        except (ValueError, LookupError, TypeError, AttributeError):
            start = response.data[:200].decode(errors="replace")
            raise ValueError(f"{url}: not the reply of an OpenAI-compatible server: {start}") from None

    def post(self, url: str, body: bytes) -> urllib3.BaseHTTPResponse:
        """The reply, sent for again while the reason why there is none may pass. Raises ValueError after PATIENCE."""
        began, pause = 0.0, FIRST_PAUSE
        while True:
            try:
                response = self.pool.request("POST", url, body=body, headers=self.headers, redirect=False)
                if response.status not in TRANSIENT:
                    self.last_reply = time.monotonic()
                    return response
                why, wanted = status_text(response), urllib3.Retry().get_retry_after(response) or 0.0
            except urllib3.exceptions.HTTPError as error:
                why, wanted = f"{error}; is the server running?", 0.0
            began = began or time.monotonic()
            if (seconds := time.monotonic() - began) > PATIENCE:
                raise ValueError(f"{url}: not answered after {seconds:.0f} seconds of trying: {why}")
            if pause > FIRST_PAUSE:
                self.notice_outage(began, why)
            time.sleep(min(max(pause, wanted), LONGEST_PAUSE))
            pause *= 2

    def notice_outage(self, began: float, why: str) -> None:
        """Say that nothing has been answered since then; once until something is, however many requests fail."""
        with self.lock:
            if self.last_notice <= self.last_reply < began:
                self.last_notice = time.monotonic()
                since = time.strftime("%H:%M:%S", time.localtime(time.time() - self.last_notice + began))
                line = f"{self.base_url}: no answer since {since} ({why}); trying for {PATIENCE / 60:.0f} minutes"
                print(printable(line), file=sys.stderr, flush=True)


def request_body(model: str, request: RemoteRequest, prompts: Prompts) -> dict[str, Any]:
    """The JSON object of a request, in the fields of OpenAI's API and, with ids, those that vLLM and SGLang add."""
    sampling = request.sampling
    body = {
        "model": model,
        "max_tokens": request.max_new_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": (sampling.seed + request.number) % 2**31,
    }
    if request.stop:
        body["stop"] = list(request.stop)
    if prompts == "ids":
        body["prompt"] = list(request.ids)
        body["stop_token_ids"] = sorted(request.stop_ids)
        body["top_k"] = sampling.top_k or -1  # all tokens; SGLang refuses 0, and vLLM 0.8 did
        body |= {"repetition_penalty": sampling.repetition_penalty, **NEUTRAL}
        return body
    body["messages"] = [turn._asdict() for turn in request.turns]
    # OpenAI's own server refuses a field that it does not know: it is sent only where it says something.
    if sampling.top_k:
        body["top_k"] = sampling.top_k
    if sampling.repetition_penalty != 1:
        body["repetition_penalty"] = sampling.repetition_penalty
    return body


def parse_reply(data: bytes, prompts: Prompts) -> RemoteAnswer:
    """Raises ValueError, LookupError, TypeError or AttributeError for what is no reply of such a server."""
    reply = json.loads(data)
    choice = reply["choices"][0]
    text = choice["text"] if prompts == "ids" else choice["message"]["content"] or ""
    tokens = (reply.get("usage") or {}).get("completion_tokens")
    # Half a surrogate pair, which JSON can spell, is no character that a file could hold.
    return RemoteAnswer(text.encode(errors="replace").decode(), str(choice["finish_reason"]), tokens)


def status_text(response: urllib3.BaseHTTPResponse) -> str:
    """A reply that is no answer, on one line."""
    return f"status {response.status}: {' '.join(response.data[:500].decode(errors='replace').split())}"
