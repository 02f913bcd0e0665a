"""Answers of a server that speaks OpenAI's API (vLLM and others), for jobs that are too large for `generate.py`.

Prompts are sent as token ids to /completions, so that they are the same ids as here, or as messages to
/chat/completions, which the server writes with a template of its own. What fails for a passing reason is tried again.
"""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from itertools import islice
from typing import Literal, NamedTuple

import urllib3

from logtrain.chat_template import Turn
from logtrain.sampling import SamplingConfig

Prompts = Literal["ids", "messages"]
PASSING = (408, 409, 429, 500, 502, 503, 504)  # what a server says that is overloaded or starting
TRIES, FIRST_PAUSE = 6, 0.5  # seconds; each pause is twice the one before: 15 s in all
TIMEOUT = urllib3.Timeout(connect=10, read=600)


class RemoteRequest(NamedTuple):
    ids: Sequence[int]
    turns: Sequence[Turn]
    max_new_tokens: int
    sampling: SamplingConfig
    number: int
    stop: tuple[str, ...] = ()


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
        retries = urllib3.Retry(
            TRIES - 1,
            redirect=False,
            allowed_methods=None,
            status_forcelist=PASSING,
            backoff_factor=FIRST_PAUSE,
            raise_on_status=False,
        )
        self.pool = urllib3.PoolManager(maxsize=concurrency, retries=retries, timeout=TIMEOUT)

    def answers(self, model: str, requests: Iterable[RemoteRequest]) -> Iterator[tuple[int, RemoteAnswer]]:
        """(number in the order of `requests`, answer) as they come, at most `concurrency` under way."""
        upcoming = enumerate(requests)
        executor = ThreadPoolExecutor(self.concurrency)
        try:
            running = {}
            while True:
                for number, request in islice(upcoming, self.concurrency - len(running)):
                    running[executor.submit(self.answer, model, request)] = number
                if not running:
                    return
                for done in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(done), done.result()
        finally:
            executor.shutdown(wait=False, cancel_futures=True)

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
            # These two are vLLM's; a server that does not know them refuses them or, worse, leaves them out.
            **({"top_k": sampling.top_k} if sampling.top_k else {}),
            **({"repetition_penalty": sampling.repetition_penalty} if sampling.repetition_penalty != 1 else {}),
        }
        if self.prompts == "ids":
            url, body["prompt"] = f"{self.base_url}/completions", list(request.ids)
        else:
            url, body["messages"] = f"{self.base_url}/chat/completions", [turn._asdict() for turn in request.turns]
        try:
            response = self.pool.request("POST", url, body=json.dumps(body).encode(), headers=self.headers)
        except urllib3.exceptions.HTTPError as error:
            reason = getattr(error, "reason", None) or error
            raise ValueError(f"{url}: no answer after {TRIES} tries ({reason}); is the server running?") from None
        if response.status != 200:
            raise ValueError(f"{url}: status {response.status}: {response.data[:500].decode(errors='replace')}")
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
