"""A server that answers for us: what it is asked, and what happens when it fails, restarts or is not there."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

from logtrain.evaluation import remote
from logtrain.evaluation.remote import RemoteAnswer, RemoteRequest, Server
from logtrain.generation.sampling import SamplingConfig
from logtrain.text.chat_template import Turn

TURNS = (Turn("user", "why?"),)
NEUTRAL = {"min_p": 0, "presence_penalty": 0, "frequency_penalty": 0}


class Scripted(ThreadingHTTPServer):
    """Says yes; `fails`: statuses to give first, 0: the connection ends without a reply."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.fails: list[int] = []
        self.bodies: list[dict] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_) -> None:
        pass

    def do_POST(self) -> None:
        self.server.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        status = self.server.fails.pop(0) if self.server.fails else 200
        if status:
            choice = {"text": "yes", "message": {"content": "yes"}, "finish_reason": "stop"}
            content = json.dumps({"choices": [choice]}).encode() if status == 200 else b"wait\n\x1b[2J"
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Retry-After", "3600")
            self.end_headers()
            self.wfile.write(content)


@pytest.fixture
def server() -> Iterator[Scripted]:
    scripted = Scripted()
    thread = threading.Thread(target=scripted.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield scripted
    scripted.shutdown()
    scripted.server_close()


def request(number: int = 0, **sampling) -> RemoteRequest:
    return RemoteRequest([1, 2], TURNS, 9, SamplingConfig(**sampling), number, stop_ids=frozenset({7, 5}))


@pytest.mark.parametrize(
    ("prompts", "sampling", "expected"),
    [
        ("ids", {}, {"temperature": 0, "top_p": 1, "top_k": -1, "repetition_penalty": 1, **NEUTRAL}),
        (
            "ids",
            {"temperature": 0.5, "top_k": 3},
            {"temperature": 0.5, "top_p": 1, "top_k": 3, "repetition_penalty": 1},
        ),
        ("messages", {}, {"temperature": 0, "top_p": 1}),
        ("messages", {"top_k": 3}, {"temperature": 0, "top_p": 1, "top_k": 3}),
        ("messages", {"repetition_penalty": 1.1}, {"temperature": 0, "top_p": 1, "repetition_penalty": 1.1}),
    ],
)
def test_what_a_server_is_asked(server, prompts, sampling, expected):
    """With ids all that decides an answer; with messages no field that a strict server would refuse."""
    assert Server(server.url, prompts, 1).answer("a", request(**sampling)) == RemoteAnswer("yes", "stop", None)
    both = {"model": "a", "max_tokens": 9, "seed": 1309, **expected}
    if prompts == "ids":
        assert server.bodies == [{**both, "prompt": [1, 2], "stop_token_ids": [5, 7], **NEUTRAL}]
    else:
        assert server.bodies == [{**both, "messages": [{"role": "user", "content": "why?"}]}]


def test_a_server_that_restarts_is_waited_for_and_noted_once(server, monkeypatch, capsys):
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(remote, "LONGEST_PAUSE", 0.01)  # of the 3600 seconds that it asks for, too
    server.fails = [200] * 2 + [0] * 20 + [502, 503, 504, 429, 500] * 4
    found = dict(Server(server.url, "ids", 4).answers("a", map(request, range(9))))
    assert found == dict.fromkeys(range(9), RemoteAnswer("yes", "stop", None))
    assert len(server.bodies) == 9 + 40
    (note,) = capsys.readouterr().err.splitlines()
    assert note.startswith(f"{server.url}: no answer since ")
    assert note.endswith("; trying for 5 minutes")


def test_a_server_that_stays_away_is_an_error_after_five_minutes(server, monkeypatch):
    now, pauses = [1000.0], []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        now[0] += seconds

    def answer() -> None:
        with pytest.raises(ValueError, match=r"completions: not answered after 3\d\d seconds of trying: "):
            one.answer("a", request())

    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=sleep, time=time.time)
    clock.strftime, clock.localtime = time.strftime, time.localtime
    monkeypatch.setattr(remote, "time", clock)
    one, server.fails = Server(server.url, "ids", 1), [503] * 50
    answer()
    assert pauses == [60.0] * 6, "it asks for an hour"
    pauses.clear()
    server.fails = [0] * 50
    answer()
    assert pauses == [0.5, 1, 2, 4, 8, 16, 32, 60, 60, 60, 60]


def test_what_passes_not_is_told_at_once(server):
    server.fails = [404] * 9
    with pytest.raises(ValueError, match=r"/v1/completions: status 404: wait \x1b\[2J$"):
        list(Server(server.url, "ids", 2).answers("a", map(request, range(9))))
    assert len(server.bodies) <= 2


def test_an_address_where_nobody_is_is_told_in_seconds():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}/v1"
    began = time.monotonic()
    with pytest.raises(ValueError, match=rf"{url}: no answer \(.* refused\); is the server running"):
        next(Server(url, "ids", 2).answers("a", [request()]))
    assert time.monotonic() - began < 5


def test_what_has_been_answered_is_given_out_before_an_error(server, monkeypatch):
    """While the first answer is looked at the second request fails, then two are answered; one more hangs."""
    looked_at, over, answered = threading.Event(), threading.Event(), threading.Semaphore(0)

    def answer(self, model: str, one: RemoteRequest) -> RemoteAnswer:
        if one.number > 0:
            looked_at.wait(9)
        if one.number == 1:
            raise ValueError("refused")
        if one.number > 3:
            over.wait(9)
        time.sleep(0.1 * one.number)
        answered.release()
        return RemoteAnswer(str(one.number), "stop", None)

    monkeypatch.setattr(Server, "answer", answer)
    answers = Server(server.url, "ids", 4).answers("a", map(request, range(9)))
    assert next(answers)[0] == 0
    looked_at.set()
    for _ in range(3):
        assert answered.acquire(timeout=9)
    time.sleep(0.1)
    assert [next(answers)[0], next(answers)[0]] == [2, 3]
    with pytest.raises(ValueError, match="refused"):
        next(answers)
    over.set()
