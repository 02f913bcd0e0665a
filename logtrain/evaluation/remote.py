"""Answers of a server that speaks OpenAI's API (vLLM and others), for jobs that are too large for `generate.py`.

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
from typing import Literal, NamedTuple

import urllib3

from logtrain.core.printable import printable
from logtrain.generation.sampling import SamplingConfig
from logtrain.text.chat_template import Turn

Prompts = Literal["ids", "messages"]
PASSING = (408, 409, 429, 500, 502, 503, 504)  # what a server says that is overloaded, ending or starting
PATIENCE = 300.0  # seconds from a request's first failure on; vLLM takes minutes to start
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 60.0  # seconds; each is twice the one before
TIMEOUT = urllib3.Timeout(connect=10, read=600)
FIRST_TIMEOUT = urllib3.Timeout(10)
NEUTRAL = {"min_p": 0.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}  # what SamplingConfig has not


class RemoteRequest(NamedTuple):
    ids: Sequence[int]
    turns: Sequence[Turn]
    max_new_tokens: int
    sampling: SamplingConfig
    number: int
    stop: tuple[str, ...] = ()
    stop_ids: frozenset[int] = frozenset()
    """tokens that end an answer, beside those that the server knows of; sent with ids"""


class RemoteAnswer(NamedTuple):
    text: str
    finish_reason: str
    tokens: int | None
    """None if the server does not say"""


class Server:
    def __init__(self, base_url: str, prompts: Prompts, concurrency: int):
        """`base_url`: up to and with /v1. The key is taken from OPENAI_API_KEY, if there is one."""
        if not base_url.startswith(("http://", "https://")):
            raise ValueError(
                f"base_url = {base_url!r}: expected http://... or https://..., as http://localhost:8000/v1"
            )
        self.base_url, self.prompts, self.concurrency = base_url.rstrip("/"), prompts, concurrency
        key = os.environ.get("OPENAI_API_KEY")
        self.headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        self.pool = urllib3.PoolManager(maxsize=concurrency, retries=False, timeout=TIMEOUT)
        self.lock, self.answered, self.told = threading.Lock(), 0.0, 0.0  # when last, by time.monotonic

    def answers(self, model: str, requests: Iterable[RemoteRequest]) -> Iterator[tuple[int, RemoteAnswer]]:
        """(number in the order of `requests`, answer) as they come, at most `concurrency` under way.

        Raises ValueError with the first failure, once all that has been answered by then is given out. What is under
        way then, or when the caller stops, is not waited for: its threads end with the process.
        """
        self.reach()
        upcoming, under_way, failure = enumerate(requests), 0, None
        done: SimpleQueue[tuple[int, RemoteAnswer | Exception]] = SimpleQueue()

        def ask(number: int, request: RemoteRequest) -> None:
            try:
                done.put((number, self.answer(model, request)))
            except Exception as error:
                done.put((number, error))

        while not (failure and done.empty()):
            for item in islice(upcoming, 0 if failure else self.concurrency - under_way):
                threading.Thread(target=ask, args=item, daemon=True).start()
                under_way += 1
            if not under_way:
                return
            number, outcome = done.get()
            under_way -= 1
            if isinstance(outcome, Exception):
                failure = failure or outcome
            else:
                yield number, outcome
        raise failure

    def reach(self) -> None:
        """Raises ValueError, in seconds, if nobody is at the address. What is replied does not matter."""
        try:
            self.pool.request(
                "GET", f"{self.base_url}/models", headers=self.headers, redirect=False, timeout=FIRST_TIMEOUT
            )
        except urllib3.exceptions.HTTPError as error:
            raise ValueError(f"{self.base_url}: no answer ({error}); is the server running?") from None

    def answer(self, model: str, request: RemoteRequest) -> RemoteAnswer:
        """Raises ValueError with what the server, or the way to it, has to say."""
        sampling = request.sampling
        body = {
            "model": model,
            "max_tokens": request.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": (sampling.seed + request.number) % 2**31,
            **({"stop": list(request.stop)} if request.stop else {}),
        }
        if self.prompts == "ids":
            url, body["prompt"] = f"{self.base_url}/completions", list(request.ids)
            body["stop_token_ids"] = sorted(request.stop_ids)
            body["top_k"] = sampling.top_k or -1  # all tokens; SGLang refuses 0, and vLLM 0.8 did
            body |= {"repetition_penalty": sampling.repetition_penalty, **NEUTRAL}
        else:
            url, body["messages"] = f"{self.base_url}/chat/completions", [turn._asdict() for turn in request.turns]
            # OpenAI's own server refuses a field that it does not know: it is sent only where it says something.
            body |= {"top_k": sampling.top_k} if sampling.top_k else {}
            body |= {"repetition_penalty": penalty} if (penalty := sampling.repetition_penalty) != 1 else {}
        response = self.post(url, json.dumps(body).encode())
        if response.status != 200:
            raise ValueError(f"{url}: {said(response)}")
        try:
            reply = json.loads(response.data)
            choice = reply["choices"][0]
            text = choice["text"] if self.prompts == "ids" else choice["message"]["content"] or ""
            tokens = (reply.get("usage") or {}).get("completion_tokens")
            # Half a surrogate pair, which JSON can spell, is no character that a file could hold.
            return RemoteAnswer(text.encode(errors="replace").decode(), str(choice["finish_reason"]), tokens)
        except (ValueError, LookupError, TypeError, AttributeError):
            start = response.data[:200].decode(errors="replace")
            raise ValueError(f"{url}: not the reply of an OpenAI-compatible server: {start}") from None

    def post(self, url: str, body: bytes) -> urllib3.BaseHTTPResponse:
        """The reply, sent for again while the reason why there is none may pass. Raises ValueError after PATIENCE."""
        began, pause = 0.0, FIRST_PAUSE
        while True:
            try:
                response = self.pool.request("POST", url, body=body, headers=self.headers, redirect=False)
                if response.status not in PASSING:
                    self.answered = time.monotonic()
                    return response
                why, asked = said(response), urllib3.Retry().get_retry_after(response) or 0.0
            except urllib3.exceptions.HTTPError as error:
                why, asked = f"{error}; is the server running?", 0.0
            began = began or time.monotonic()
            if (seconds := time.monotonic() - began) > PATIENCE:
                raise ValueError(f"{url}: not answered after {seconds:.0f} seconds of trying: {why}")
            if pause > FIRST_PAUSE:
                self.tell(began, why)
            time.sleep(min(max(pause, asked), LONGEST_PAUSE))
            pause *= 2

    def tell(self, began: float, why: str) -> None:
        """Say that nothing has been answered since then; once until something is, however many requests fail."""
        with self.lock:
            if self.told <= self.answered < began:
                self.told = time.monotonic()
                since = time.strftime("%H:%M:%S", time.localtime(time.time() - self.told + began))
                line = f"{self.base_url}: no answer since {since} ({why}); trying for {PATIENCE / 60:.0f} minutes"
                print(printable(line), file=sys.stderr, flush=True)


def said(response: urllib3.BaseHTTPResponse) -> str:
    return f"status {response.status}: {' '.join(response.data[:500].decode(errors='replace').split())}"
