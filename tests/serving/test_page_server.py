"""What the page's server sends, folds and passes on, by HTTP alone."""

import base64
import hashlib
import json
import re
import socket
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import urllib3

from logtrain.conversation.tasks import TASKS
from tests.support.page_server import page_server, until

JSON = {"Content-Type": "application/json"}
LINES = [f"INFO worker {n} read block {n * 7} from 10.0.0.{n % 9}" for n in range(2000)]
ASKED = {"text": "\n".join(LINES), "max_tokens": 600, "chars_per_token": 2.5, "show": [[7, 8]]}


@pytest.fixture(scope="module")
def served() -> Iterator[SimpleNamespace]:
    with page_server() as (url, fake):
        yield SimpleNamespace(url=url, fake=fake, pool=urllib3.PoolManager(retries=False, timeout=30))


def post(served, path: str, body, **headers: str):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return served.pool.request("POST", served.url + path, body=content, headers={**JSON, **headers})


def test_the_page_is_one_file_that_allows_its_own_script_and_style_alone(served):
    reply = served.pool.request("GET", f"{served.url}/")
    html, policy = reply.data.decode(), reply.headers["Content-Security-Policy"]
    for name, pattern in (("script", r"<script type=\"module\">(.*)</script>"), ("style", r"<style>(.*?)</style>")):
        content = re.search(pattern, html, re.S)[1]
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{name}-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy and "connect-src 'self'" in policy and "script-src 'unsafe" not in policy
    assert html.count("<script") == 1 and " src=" not in html
    assert "import " not in re.sub(r"import\(", "", html).replace("important", "")
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", html)
    assert all(json.dumps(task.prompt)[1:40] in html for task in TASKS.values())


def test_a_log_is_folded(served):
    facts = post(served, "/fold", ASKED).json()
    assert facts["tokens"] <= 600
    assert {f"L7 {LINES[6]}", f"L8 {LINES[7]}"} <= set(facts["text"].splitlines())
    hidden = [n for first, last in facts["gaps"] for n in range(first, last + 1)]
    assert sorted([*hidden, *(at + 1 for at in facts["shown"])]) == list(range(1, 2001))
    assert facts["groups"][facts["group_of"][5]]["name"] == "T1"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"\xff", "not JSON"),
        (b"[]", "expected text, max_tokens, chars_per_token, show, found an array"),
        ({"text": " \n"}, "text: nothing but blanks in it"),
        ({"text": 3}, "text = 3: expected a string"),
        ({"max_tokens": 0}, "max_tokens: expected"),
        ({"max_tokens": True}, "max_tokens = true: expected an integer"),
        ({"max_tokens": 10**30}, "max_tokens: expected"),
        ({"max_tokens": 20}, "the lines to show take more than the 20 tokens"),
        ({"max_tokens": 20, "show": []}, "a folded log takes more than the 20 tokens"),
        ({"chars_per_token": 0}, "chars_per_token: expected"),
        ({"chars_per_token": "1"}, 'chars_per_token = "1": expected a number'),
        ({"show": [[1, 2, 3]]}, "show: expected"),
        ({"show": [[1, 2001]]}, "lines 1-2001: the log has lines 1-2000"),
        ({"show": [[5, 2]]}, "lines 5-2: the log has"),
        ({"show": None}, "show = null: expected an array"),
        ({"more": 1}, "expected text, max_tokens"),
    ],
)
def test_what_cannot_be_folded_is_one_line(served, change, message):
    reply = post(served, "/fold", {**ASKED, **change} if isinstance(change, dict) else change)
    assert reply.status == 400
    said = reply.json()["error"]["message"]
    assert message in said and "\n" not in said


def test_requests_go_on_and_come_back(served):
    served.fake.answers += ["Grüße", "status 429"]
    asked = {"model": "base", "messages": [{"role": "user", "content": "x"}], "stream": True}
    reply = post(served, "/v1/chat/completions", asked, Authorization="Bearer mine")
    assert reply.headers["Content-Type"] == "text/event-stream"
    pieces = [json.loads(line[6:]) for line in reply.data.decode().splitlines() if line.startswith("data: {")]
    assert "".join(piece["choices"][0]["delta"].get("content", "") for piece in pieces if piece["choices"]) == "Grüße"
    assert served.fake.asked[-1] == asked
    assert served.fake.keys[-1] == "Bearer mine"
    assert post(served, "/v1/chat/completions", asked).status == 429
    assert post(served, "/v1/embeddings", asked).status == 404
    assert post(served, "/tokenize", {"model": "base", "prompt": "a b"}).json()["max_model_len"] == 4096


def test_a_client_that_leaves_ends_the_answer_at_the_server(served):
    served.fake.held = True
    served.fake.answers.append("one two three four five six seven eight")
    host, port = served.url.removeprefix("http://").split(":")
    body = json.dumps({"messages": [], "stream": True})
    left = served.fake.left
    with socket.create_connection((host, int(port))) as client:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
        client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        assert b"data:" in client.recv(1 << 16) + client.recv(1 << 16)
    until(lambda: served.fake.left == left + 1)
    served.fake.release()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://evil.example"}, 400),
        ({"Origin": "null"}, 400),
        ({"Content-Type": "text/plain"}, 400),
        ({"Host": "evil.example"}, 400),
        ({}, 200),
    ],
)
def test_another_sites_page_cannot_ask(served, headers, status):
    count = len(served.fake.asked)
    for path in ("/v1/chat/completions", "/fold"):
        reply = post(served, path, {"messages": []} if path[1] == "v" else ASKED, **headers)
        assert reply.status == status, path
    assert len(served.fake.asked) == count + (status == 200)


def test_a_server_that_is_not_there_is_told():
    from starlette.testclient import TestClient

    from logtrain.serving.proxy import page_app

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    client = TestClient(page_app(f"http://127.0.0.1:{port}/v1", "127.0.0.1"), base_url="http://localhost")
    reply = client.get("/v1/models")
    assert reply.status_code == 502
    assert "no answer" in reply.json()["error"]["message"] and "is the server running?" in reply.text


def test_the_server_of_a_model_has_the_page_too(server):
    assert "<title>logtrain</title>" in server.get("/")[1]
    status, facts = server.post("/fold", ASKED)
    assert status == 200 and facts["tokens"] <= 600
