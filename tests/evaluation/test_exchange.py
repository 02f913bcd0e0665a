"""A server that means harm: what it sends is bounded in size, depth and time, and is one line or no answer."""

import contextlib
import gzip
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import urllib3

from logtrain.evaluation import remote
from logtrain.evaluation.exchange import Late, TooLarge, exchange
from logtrain.evaluation.remote import RemoteRequest, Server
from logtrain.generation.sampling import SamplingConfig
from logtrain.text.chat_template import Turn

Body = Callable[[BaseHTTPRequestHandler], None]
GOOD = {"choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}]}


@contextlib.contextmanager
def serving(send: Body) -> Iterator[str]:
    """The address of a server that sends what `send` writes."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_) -> None:
            pass

        def do_POST(self) -> None:
            with contextlib.suppress(OSError):
                self.rfile.read(int(self.headers["Content-Length"] or 0))
                send(self)

        do_GET = do_POST

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()
    server.server_close()


def whole(content: bytes, **headers: str) -> Body:
    def send(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    return send


def endless(pause: float, piece: bytes) -> Body:
    def send(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        while True:
            handler.wfile.write(piece)
            handler.wfile.flush()
            time.sleep(pause)

    return send


def asked(url: str, seconds: float = 5.0):
    return exchange(urllib3.PoolManager(retries=False), "GET", url, {}, seconds=seconds, most=1 << 16)


def answer(url: str):
    request = RemoteRequest([1, 2], (Turn("user", "why?"),), 9, SamplingConfig(), 0)
    return Server(url, "messages", 1).answer("m", request)


@pytest.mark.alone
def test_a_reply_is_bounded_in_size_and_time():
    with serving(whole(b"a" * (1 << 16))) as url:
        assert asked(url).data == b"a" * (1 << 16)
    with serving(endless(0, b"a" * (1 << 14))) as url, pytest.raises(TooLarge, match="more than 65,536 bytes"):
        asked(url)
    began = time.monotonic()
    with serving(endless(0.02, b"a")) as url, pytest.raises(Late, match=r"no end after 0.3 s"):
        asked(url, 0.3)
    assert time.monotonic() - began < 3


def test_what_is_packed_is_not_unpacked():
    packed = gzip.compress(gzip.compress(bytes(1 << 24)))
    with serving(whole(packed, Content_Encoding="gzip, gzip")) as url:
        assert asked(url).data == packed


@pytest.mark.parametrize(("pause", "found"), [("9" * 5000, 0.0), ("soon", 0.0), ("7", 7.0)])
def test_a_pause_that_is_none_is_none(pause, found):
    with serving(whole(b"{}", Retry_After=pause)) as url:
        assert asked(url).pause == found


@pytest.mark.parametrize(
    "content",
    [b"[]", b"{", b"[" * 100_000, b'{"choices": ' + b"[" * 500 + b"]" * 500 + b"}", b'{"choices": [{"message": 3}]}',
     b'{"choices": [], "usage": []}', b"\xff", b'{"choices": [{"message": {"content": 3}, "finish_reason": ""}]}'],
)  # fmt: skip
def test_what_is_no_reply_is_one_line(content):
    with (
        serving(whole(content)) as url,
        pytest.raises(ValueError, match="completions: not the reply") as told,
    ):
        answer(url)
    assert "\n" not in str(told.value) and len(str(told.value)) < 500


@pytest.mark.parametrize("count", ["3", 1.5, -1, 2**40, [1], True, {}])
def test_a_count_that_is_none_is_not_taken(count):
    facts = {**GOOD, "usage": {"prompt_tokens": count, "completion_tokens": count}}
    with serving(whole(json.dumps(facts).encode())) as url:
        found = answer(url)
    assert (found.text, found.tokens, found.prompt_tokens) == ("yes", None, None)


def test_an_endless_list_of_models_is_no_list(monkeypatch):
    with serving(endless(0, b"[" * 4096)) as url:
        server = Server(url, "messages", 1)
        server.check_reachable()
        assert server.models() == []
    monkeypatch.setattr(remote, "MAX_REPLY", 1 << 16)
    with serving(endless(0, b"a" * 4096)) as url, pytest.raises(ValueError, match="a reply of more than 65,536 bytes"):
        answer(url)
