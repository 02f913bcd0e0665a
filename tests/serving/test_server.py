"""The server under load and faults: full queues, clients that leave, workers that die, stops, keys, hostile bytes."""

import json
import os
import re
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest

from tests.support.serving import QUESTION, serving

LONG = {"messages": QUESTION, "max_tokens": 3000, "ignore_eos": True}
SHORT = {"messages": QUESTION, "max_tokens": 2}


def open_stream(served, body: dict) -> socket.socket:
    """A connection on which an answer is being streamed."""
    host, port = served.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=30)
    content = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
    return connection


def worker_of(served) -> int:
    """The process id of the server's one worker."""
    (server,) = served.program.processes
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
    for thread in Path(f"/proc/{server.pid}/task").iterdir():
        children += (thread / "children").read_text().split()
    (pid,) = {pid for pid in children if "core import worker" in Path(f"/proc/{pid}/cmdline").read_text()}
    return int(pid)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_place(server, stream):
    before = server.metric("logtrain_cancelled_total")
    connection = open_stream(server, {**LONG, "stream": stream})
    if stream:
        assert b"200 OK" in connection.recv(100)
    server.until(lambda: server.metric("logtrain_answers_running") == 1)
    connection.close()
    server.until(lambda: server.metric("logtrain_answers_running") == 0, seconds=3)
    assert server.metric("logtrain_answers_under_way") == 0 and server.metric("logtrain_cache_tokens_used") == 0
    assert server.metric("logtrain_cancelled_total") == before + 1


@pytest.fixture(scope="module")
def strict(models, tmp_path_factory):
    """A server with a key, one place and a queue of one."""
    flags = [*models.flags, "--max_sequences", "1", "--max_queue", "1", "--name", "m", "--deadline", "5"]
    flags += ["--api_key", "s3cret", "--cors", "https://a.example", "--max_new_tokens", "7", "--memory", "0.02"]
    with serving(flags, tmp_path_factory.mktemp("strict") / "output", key="s3cret") as served:
        yield served


KEY = {"Authorization": "Bearer s3cret"}


def test_a_full_queue_says_when_to_come_again(strict):
    def under_way() -> str:
        return strict.get("/metrics", **KEY)[1]

    with ThreadPoolExecutor(2) as threads:
        streams = [threads.submit(strict.client.chat.completions.create, model="m", stream=True, **arguments(LONG))]
        strict.until(lambda: "logtrain_answers_under_way 1" in under_way())
        streams.append(threads.submit(strict.client.chat.completions.create, model="m", stream=True, **arguments(LONG)))
        strict.until(lambda: "logtrain_answers_under_way 2" in under_way())
        with pytest.raises(openai.RateLimitError, match="there is room for 2") as error:
            strict.client.chat.completions.create(model="m", **arguments(SHORT))
        assert 1 <= int(error.value.response.headers["retry-after"]) <= 60
        with pytest.raises(openai.APIError, match="3 answers in one request; 2 is the most"):
            strict.client.chat.completions.create(model="m", n=3, **arguments(SHORT))
        for stream in streams:
            stream.result().close()
    strict.until(lambda: "logtrain_answers_under_way 0" in under_way())


def arguments(body: dict) -> dict:
    """A body in the words of OpenAI's client, which knows no other fields."""
    own = {key: value for key, value in body.items() if key in ("messages", "max_tokens")}
    return {**own, "extra_body": {key: value for key, value in body.items() if key not in own}}


@pytest.mark.slow
def test_a_deadline_ends_an_answer_whole_or_streamed(strict):
    began = time.monotonic()
    slow = {**LONG, "max_tokens": 4000, "logprobs": True, "top_logprobs": 20}
    outcomes = []
    for stream in (False, True):
        try:
            found = strict.client.chat.completions.create(model="m", stream=stream, **arguments(slow))
            outcomes.append(len(list(found)) if stream else found.usage.completion_tokens)
        except openai.APIError as error:
            outcomes.append(error)
    for outcome in outcomes:  # a fast machine may be done before
        if isinstance(outcome, openai.APIError):
            assert "not complete after 5 seconds" in str(outcome)
    assert time.monotonic() - began < 25
    strict.until(lambda: "logtrain_answers_under_way 0" in strict.get("/metrics", **KEY)[1])


def test_the_key_is_asked_for(strict):
    for headers in (
        {},
        {"Authorization": "Bearer s3cre"},
        {"Authorization": "s3cret"},
        {"Authorization": "Basic s3cret"},
    ):
        for path in ("/v1/models", "/metrics", "/v1/nothing"):
            status, text = strict.get(path, **headers)
            assert status == 401 and json.loads(text)["error"]["code"] == "invalid_api_key"
        assert strict.post("/v1/chat/completions", SHORT, **headers)[0] == 401
        assert strict.post("/tokenize", {"prompt": "a"}, **headers)[0] == 401
    assert strict.get("/health")[0] == strict.get("/openapi.json")[0] == 200
    assert [model.id for model in strict.client.models.list()] == ["m", "a1", "a2"]
    reply = strict.client.chat.completions.create(model="m", messages=QUESTION)
    assert reply.usage.completion_tokens <= 7, "--max_new_tokens where the request does not say"


def test_pages_of_named_origins_alone_may_ask(strict, server):
    def allowed(served, origin: str) -> str | None:
        headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        response = served.pool.request("OPTIONS", f"{served.url}/v1/chat/completions", headers=headers)
        return response.headers.get("access-control-allow-origin")

    assert allowed(strict, "https://a.example") == "https://a.example"
    assert allowed(strict, "https://b.example") is None and allowed(server, "https://a.example") is None


@pytest.mark.slow
def test_a_worker_that_dies_is_replaced_and_its_requests_are_told(models, tmp_path):
    with serving([*models.flags, "--memory", "0.05"], tmp_path / "output") as served, ThreadPoolExecutor(2) as threads:
        whole = threads.submit(served.post, "/v1/chat/completions", LONG)
        stream = served.client.chat.completions.create(model="tiny", stream=True, **arguments(LONG))
        next(iter(stream))
        served.until(lambda: served.metric("logtrain_answers_running") == 2)
        os.kill(worker_of(served), signal.SIGKILL)
        status, reply = whole.result()
        assert status == 503 and "the process that was answering has died" in reply["error"]["message"]
        with pytest.raises(openai.APIError, match="the process that was answering has died"):
            list(stream)
        status, _ = served.post("/v1/chat/completions", SHORT)
        assert status in (200, 503)
        served.until(lambda: served.get("/health")[0] == 200, seconds=60)
        assert served.post("/v1/chat/completions", SHORT)[0] == 200
        assert served.metric("logtrain_worker_restarts") == 1
        assert "a worker was killed" in served.output.read_text()


@pytest.mark.slow
def test_a_stop_lets_running_answers_end(models, tmp_path):
    with serving([*models.flags, "--memory", "0.05"], tmp_path / "output") as served:
        stream = served.client.chat.completions.create(
            model="tiny", stream=True, **arguments({**LONG, "max_tokens": 400})
        )
        next(iter(stream))
        served.program.send(signal.SIGTERM)
        served.until(lambda: refused(served.url), seconds=10)
        pieces = list(stream)
        assert pieces[-1].choices[0].finish_reason == "length"
        assert served.program.wait() == [0]
        assert served.output.read_text().endswith("all answers are complete; ended\n")


def refused(url: str) -> bool:
    """Whether nobody listens there."""
    host, port = url.removeprefix("http://").split(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except OSError:
        return True
    return False


HOSTILE = [
    (b"", 400),
    (b"{", 400),
    (b"[]", 400),
    (b"null", 400),
    (b'{"messages": NaN}', 400),
    (b'{"messages": ' + b"[" * 50_000, 400),
    (b'{"a": ' * 200 + b"1" + b"}" * 200, 400),
    (b'{"messages": "\xff"}', 400),
    (b'{"max_tokens": ' + b"9" * 100_000 + b"}", 400),
    (b'{"messages": [{"role": "user", "content": "' + b"a" * (1 << 20) + b'"}]}', 413),
    (b'{"x": [' + b"{}," * 300_000 + b"{}]}", 400),
]


@pytest.mark.parametrize(("content", "status"), HOSTILE)
def test_hostile_bodies_are_refused(server, content, status):
    assert server.post("/v1/chat/completions", content)[0] == status
    assert server.get("/health")[0] == 200


def test_other_types_paths_and_methods_are_refused(server):
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    assert server.post("/v1/chat/completions", json.dumps(SHORT).encode(), **form)[0] == 415
    assert server.get("/v1/chat/completions")[0] == 405
    for path in ("/nothing", "/etc/passwd", "/v1/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/v1/models/../x"):
        status, text = server.get(path)
        assert status == 404 and "error" in json.loads(text)


def test_the_api_describes_itself(server):
    description = json.loads(server.get("/openapi.json")[1])
    assert description["openapi"].startswith("3.1") and len(description["paths"]) == 9
    schema = description["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"][
        "schema"
    ]
    assert schema["properties"]["temperature"]["maximum"] == 2 and schema["required"] == ["messages"]


def test_metrics_count_what_is_asked(server):
    def count() -> list[float]:
        names = ("prompt_tokens_total", "answer_tokens_total", "time_to_first_token_seconds_count")
        return [server.metric(f"logtrain_{name}") for name in names]

    before, usage = count(), server.chat(max_tokens=4).usage
    after = count()
    assert [b - a for a, b in zip(before, after, strict=True)] == [usage.prompt_tokens, usage.completion_tokens, 1]
    text = server.get("/metrics")[1]
    for line in text.splitlines():
        assert re.fullmatch(r"# (HELP|TYPE) \w+ .+|\w+(\{[^}]*\})? [-+.\de]+", line), line
    assert 'logtrain_requests_total{path="/v1/chat/completions",status="200"}' in text


def test_many_at_once_are_answered_or_told_to_come_later(server):
    def ask(i: int) -> int:
        return server.post("/v1/chat/completions", {**SHORT, "stream": False, "seed": i})[0]

    with ThreadPoolExecutor(40) as threads:
        statuses = list(threads.map(ask, range(120)))
    assert statuses.count(200) >= 100 and set(statuses) <= {200, 429}
