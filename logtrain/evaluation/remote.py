"""Gets answers from a server that speaks OpenAI's API (vLLM and others), for models too large for this machine.

Prompts are sent as token ids to /completions, so that they are the same ids as here, or as messages to
/chat/completions, for which the server uses a template of its own. With ids the request also has every setting that
decides an answer, in fields that vLLM and SGLang add to the API; they would take missing ones from
generation_config.json.

A request that fails for a passing reason, such as a server that restarts, is repeated for five minutes.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from queue import SimpleQueue
from typing import Any, NamedTuple

import urllib3

from logtrain.core.printable import printable
from logtrain.core.untrusted import DECODER, check_depth
from logtrain.evaluation.config import Prompts
from logtrain.evaluation.exchange import HttpReply, TooLarge, exchange
from logtrain.generation.config import SamplingConfig
from logtrain.text.chat_template import Turn
from logtrain.text.tokenizer import Tokenizer

TRANSIENT = (408, 409, 429, 500, 502, 503, 504)  # HTTP statuses of a server that is overloaded, ending or starting
PATIENCE = 300.0  # seconds for which a request that fails is repeated; vLLM takes minutes to start
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 60.0  # seconds between attempts; each pause is twice the one before
SECONDS, FIRST_SECONDS = 600.0, 10.0  # of a reply to its end; of one that needs no model
PENALTIES = ("presence_penalty", "frequency_penalty")  # of OpenAI's API
ADDED = ("top_k", "min_p", "repetition_penalty")  # fields that OpenAI's own server refuses
MAX_REPLY, MAX_LISTING = 1 << 24, 1 << 20  # bytes; of the list of models
PROBE = "sshd[24499]: Failed password for root from 10.0.0.1 port 22 (caf\u00e9)"
REMEDY = "name the folder that the server has loaded, or take it as it is with --no_check_server"
NEUTRAL = SamplingConfig()


class RemoteRequest(NamedTuple):
    """A question to a server."""

    ids: Sequence[int]
    """Token ids of the prompt."""
    turns: Sequence[Turn]
    """The conversation that the prompt was written from, for a server that writes prompts itself."""
    max_new_tokens: int
    """The most tokens of the answer."""
    sampling: SamplingConfig
    """How tokens are drawn."""
    number: int
    """Number of the question, which with the seed decides the draws."""
    stop: tuple[str, ...] = ()
    """Strings that end the answer."""
    stop_ids: frozenset[int] = frozenset()
    """Tokens that end the answer beside those that the server knows; they are sent with ids alone."""


class RemoteAnswer(NamedTuple):
    """A server's answer to one question."""

    text: str
    """Text of the answer."""
    finish_reason: str
    """Why the answer ended, in the server's word: stop or length."""
    tokens: int | None
    """Tokens of the answer, without a token that ended it; None if the server does not say."""
    prompt_tokens: int | None = None
    """Tokens of the prompt, as the server counts them; None if it does not say."""


class Server:
    """A server that answers in place of this program, over HTTP."""

    def __init__(self, base_url: str, prompts: Prompts, concurrency: int, is_checked: bool = True):
        """`base_url`: the address up to and with /v1. `prompts`: whether ids or messages are sent. `concurrency`: the
        most requests at once. `is_checked`: whether another tokenizer or template there is refused. The key is taken
        from OPENAI_API_KEY, if that is set. Raises ValueError for an address that is none.
        """
        if not base_url.startswith(("http://", "https://")):
            raise ValueError(
                f"base_url = {base_url!r}: expected http://... or https://..., as http://localhost:8000/v1"
            )
        self.base_url, self.concurrency = base_url.rstrip("/"), concurrency
        self.prompts: Prompts = prompts
        self.is_checked = is_checked
        key = os.environ.get("OPENAI_API_KEY")
        self.headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        self.pool = urllib3.PoolManager(maxsize=concurrency, retries=False)
        self.lock = threading.Lock()
        self.last_reply = self.last_notice = 0.0  # by time.monotonic

    def answers(self, model: str, requests: Iterable[RemoteRequest]) -> Iterator[tuple[int, RemoteAnswer]]:
        """(index in `requests`, answer) of each request, as they come; at most `concurrency` are under way.

        Raises the ValueError of the first failure once all answers that have come by then are given out. Requests that
        are under way then, or when the caller stops, are not waited for; their threads end with the process.
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
        """Raises ValueError, within seconds, if no server is at the address; any reply will do."""
        try:
            self.get("models")
        except TooLarge:
            return
        except urllib3.exceptions.HTTPError as error:
            raise ValueError(f"{self.base_url}: no answer ({error}); is the server running?") from None

    def get(self, path: str) -> HttpReply:
        """The reply to a GET below base_url. Raises as `exchange` does."""
        url = f"{self.base_url}/{path}"
        return exchange(self.pool, "GET", url, self.headers, seconds=FIRST_SECONDS, most=MAX_LISTING)

    def answer(self, model: str, request: RemoteRequest) -> RemoteAnswer:
        """The answer to one request. Raises ValueError with the server's error, or that of the connection."""
        url = f"{self.base_url}/{'completions' if self.prompts == 'ids' else 'chat/completions'}"
        response = self.post(url, json.dumps(request_body(model, request, self.prompts)).encode())
        if response.status != 200:
            raise ValueError(f"{url}: {status_text(response)}")
        try:
            answer = parse_reply(response.data, self.prompts)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise ValueError(f"{url}: not the reply of an OpenAI-compatible server: {response.start()}") from None
        if self.is_checked and answer.prompt_tokens not in (None, len(request.ids)):
            raise ValueError(
                f"{url}: the server makes {answer.prompt_tokens:,} tokens of a prompt that has {len(request.ids):,} by "
                f"the folder of {model}: it has another tokenizer or chat template, or gives the template another "
                f"date; {REMEDY}"
            )
        return answer

    def check_tokenizer(self, model: str, tokenizer: Tokenizer) -> None:
        """Raises ValueError if the server's tokenizer makes another text of ids than `tokenizer`, which the prompts are
        from. A server that does not tell texts of ids (vLLM does, by /detokenize or "echo") is not checked, and that is
        said.
        """
        if self.prompts != "ids" or not self.is_checked:
            return
        ids = tokenizer.encode(PROBE)
        ours, theirs = tokenizer.decode(ids).strip(), self.detokenized(model, ids)
        if theirs is None:
            line = f"{self.base_url}: does not say which text ids are, so that its tokenizer could not be checked"
            print(printable(line), file=sys.stderr, flush=True)
        elif not theirs.strip().startswith(ours):
            raise ValueError(
                f"{self.base_url}: the ids of {ours!r} are {printable(theirs[:80])!r} to the server: it has another "
                f"tokenizer than the folder of {model}; {REMEDY}"
            )

    def detokenized(self, model: str, ids: Sequence[int]) -> str | None:
        """The text of ids by the server's tokenizer, more text behind it; None if the server does not tell it."""
        asked: list[tuple[str, dict[str, Any], Callable[[Any], Any]]] = [
            (f"{self.base_url.removesuffix('/v1')}/detokenize", {"tokens": ids}, lambda reply: reply["prompt"]),
            (
                f"{self.base_url}/completions",
                {"prompt": ids, "echo": True, "max_tokens": 1, "temperature": 0},
                lambda reply: reply["choices"][0]["text"],
            ),
        ]
        for url, body, text_of in asked:
            try:
                content = json.dumps({"model": model, **body}).encode()
                response = exchange(
                    self.pool, "POST", url, self.headers, content, seconds=FIRST_SECONDS, most=MAX_LISTING
                )
                text = text_of(DECODER.decode(response.data.decode())) if response.status == 200 else None
            except (urllib3.exceptions.HTTPError, ValueError, LookupError, TypeError, RecursionError):
                continue
            if isinstance(text, str) and (len(text) > len(PROBE) // 2):
                return text
        return None

    def models(self) -> list[dict[str, Any]]:
        """What the server says of its models, [] if it says nothing."""
        try:
            listed = DECODER.decode(self.get("models").data.decode())["data"]
        except (urllib3.exceptions.HTTPError, ValueError, LookupError, TypeError, RecursionError):
            return []
        return [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []

    def post(self, url: str, body: bytes) -> HttpReply:
        """The reply to a request, which is repeated while its failure may pass. Raises ValueError after PATIENCE, and
        for a reply that is too large.
        """
        began, pause = 0.0, FIRST_PAUSE
        while True:
            try:
                response = exchange(self.pool, "POST", url, self.headers, body, seconds=SECONDS, most=MAX_REPLY)
                if response.status not in TRANSIENT:
                    self.last_reply = time.monotonic()
                    return response
                why, wanted = status_text(response), response.pause
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
        """Report that nothing was answered since `began`, once until something is, however many requests fail."""
        with self.lock:
            if self.last_notice <= self.last_reply < began:
                self.last_notice = time.monotonic()
                since = time.strftime("%H:%M:%S", time.localtime(time.time() - self.last_notice + began))
                line = f"{self.base_url}: no answer since {since} ({why}); trying for {PATIENCE / 60:.0f} minutes"
                print(printable(line), file=sys.stderr, flush=True)


def request_body(model: str, request: RemoteRequest, prompts: Prompts) -> dict[str, Any]:
    """The JSON object of a request, in the fields of OpenAI's API and, with ids, in those that vLLM and SGLang add."""
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
        body |= {name: getattr(sampling, name) for name in (*PENALTIES, "repetition_penalty", "min_p")}
        return body
    body["messages"] = [turn._asdict() for turn in request.turns]
    # Only where they say something: OpenAI's own server refuses a field that it does not know.
    said = (name for name in (*PENALTIES, *ADDED) if getattr(sampling, name) != getattr(NEUTRAL, name))
    return body | {name: getattr(sampling, name) for name in said}


def parse_reply(data: bytes, prompts: Prompts) -> RemoteAnswer:
    """The answer in a reply. Raises ValueError, LookupError, TypeError or AttributeError for any other data."""
    reply = DECODER.decode(data.decode())
    check_depth("reply", reply, "a reply")
    choice = reply["choices"][0]
    text = choice["text"] if prompts == "ids" else choice["message"]["content"] or ""
    usage = reply.get("usage") or {}
    tokens, prompt_tokens = counted(usage, "completion_tokens"), counted(usage, "prompt_tokens")
    # vLLM and SGLang count the token that ended the answer and say what it was, a text where a stop string did it.
    ended_by = next((key for key in ("stop_reason", "matched_stop") if key in choice), None)
    if tokens and ended_by and choice["finish_reason"] == "stop" and type(choice[ended_by]) is not str:
        tokens -= 1
    # Half a surrogate pair, which JSON can spell, is no character that a file could hold.
    text = text.encode(errors="replace").decode()
    finish = str(choice["finish_reason"])[:40]
    return RemoteAnswer(text, finish, tokens, prompt_tokens if prompts == "messages" else None)


def counted(usage: dict[str, Any], name: str) -> int | None:
    """A number of tokens as a server counts them; None where it says none that can be."""
    count = usage.get(name)
    return count if type(count) is int and 0 <= count < 1 << 31 else None


def status_text(response: HttpReply) -> str:
    """The status and the text of a reply that is no answer, on one line."""
    return f"status {response.status}: {response.start()}"
