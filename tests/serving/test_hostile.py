"""Requests that mean harm, and thousands that do not: the server stays up, says no, and keeps no memory of them."""

import asyncio
import json
import random
from pathlib import Path

import pytest

from tests.support.serving import QUESTION, Served, serving

HOSTILE = 1000
AT_ONCE = 500
MANY = 5000
BODY = {"messages": QUESTION, "max_tokens": 3, "temperature": 0}
ODD = [
    None,
    True,
    -1,
    0,
    1e308,
    2**63,
    "",
    "\u202e\x1b[2J\x00",
    "a" * 5000,
    [],
    {},
    [[]],
    {"": {}},
    "\ufeff",
    "\U0001f600" * 99,
]
CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"


@pytest.fixture(scope="module")
def served(models, tmp_path_factory):
    flags = [*models.flags, "--max_body", "1", "--max_sequences", "8", "--memory", "0.05", "--max_new_tokens", "5"]
    with serving(flags, tmp_path_factory.mktemp("hostile") / "output") as found:
        yield found


def request(path: str, content: bytes, length: int | None = None, kind: str = "application/json") -> bytes:
    """The bytes of a request. `length`: what is said of the content's."""
    head = f"POST {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Type: {kind}\r\n"
    return f"{head}Content-Length: {len(content) if length is None else length}\r\n\r\n".encode() + content


def hostile(random_: random.Random) -> tuple[bytes, str]:
    """The bytes that a client sends, and what it does then: reads all, leaves at once, or reads a little and leaves."""
    path = random_.choice([CHAT, COMPLETION, "/tokenize", "/detokenize"])
    body = {**BODY, "prompt": "why", "tokens": [5], "stream": random_.random() < 0.5}
    for _ in range(random_.randint(1, 3)):
        body[
            random_.choice([*body, "n", "stop", "top_p", "logit_bias", "logprobs", "seed", "echo", "response_format"])
        ] = random_.choice(ODD)
    content = json.dumps(body).encode()
    kind = random_.randrange(12)
    if kind == 0:
        return random_.randbytes(random_.randint(1, 3000)), "read"
    if kind == 1:
        return request(path, random_.randbytes(random_.randint(0, 3000))), "read"
    if kind == 2:
        return request(path, content[: len(content) // 2], len(content)), "leave"
    if kind == 3:
        return request(path, content, random_.choice([-1, 0, 10**18])), "read"
    if kind == 4:
        return request(path, b"[" * random_.randint(1, 200_000)), "read"
    if kind == 5:
        return request(path, b'{"messages": "' + b"a" * (2 << 20) + b'"}'), "read"
    if kind == 6:
        return b"GET / HTTP/1.1\r\n" + b"A: " + b"b" * random_.randint(1, 200_000) + b"\r\n\r\n", "read"
    if kind == 7:
        return f"POST {path} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nfffffff\r\nab".encode(), "leave"
    if kind == 8:  # a reader of a stream that breaks off
        return request(
            CHAT, json.dumps({**BODY, "stream": True, "max_tokens": 4000, "ignore_eos": True}).encode()
        ), "a bit"
    if kind == 9:
        return request(path.replace("/", random_.choice(["/../", "//", "/%00/", "/\\"])), content), "read"
    return request(path, content, kind=random_.choice(["application/json"] * 9 + ["text/plain"])), "read"


async def send(served: Served, content: bytes, then: str, pause: float = 0.0) -> int:
    """Send bytes on a connection of their own; -> the status of the reply, 0 if there is none."""
    host, port = served.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        for at in range(0, len(content), 1 << 16):
            writer.write(content[at : at + (1 << 16)])
            await writer.drain()
        await asyncio.sleep(pause)
        if then == "leave":
            return 0
        head = await asyncio.wait_for(reader.read(300), 60)
        while then == "read" and await asyncio.wait_for(reader.read(1 << 16), 60):
            pass
        return int(head.split()[1]) if head.startswith(b"HTTP/1.1 ") else 0
    except (ConnectionError, TimeoutError):
        return 0
    finally:
        writer.close()


async def all_of(served: Served, cases: list[tuple[bytes, str]], at_once: int) -> list[int]:
    """The statuses of many requests."""
    places = asyncio.Semaphore(at_once)

    async def one(content: bytes, then: str) -> int:
        async with places:
            return await send(served, content, then)

    return await asyncio.gather(*(one(*case) for case in cases))


def resident(served: Served) -> int:
    """Bytes of memory of the server and of its worker."""
    (server,) = served.program.processes
    total = 0
    for pid in (server.pid, *children_of(server.pid)):
        total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096
    return total


def children_of(pid: int) -> list[int]:
    """The processes that a process has started."""
    return [int(c) for t in Path(f"/proc/{pid}/task").iterdir() for c in (t / "children").read_text().split()]


@pytest.mark.slow
def test_hostile_requests_and_hundreds_at_once(served):
    random_ = random.Random(1309)
    cases = [hostile(random_) for _ in range(HOSTILE)]
    before, workers = resident(served), children_of(served.program.processes[0].pid)
    statuses = asyncio.run(all_of(served, cases[: HOSTILE - AT_ONCE], 20))
    statuses += asyncio.run(all_of(served, cases[HOSTILE - AT_ONCE :], AT_ONCE))
    assert 500 not in statuses and set(statuses) <= {0, 200, 400, 404, 405, 408, 413, 415, 429, 431, 503}, set(statuses)
    assert statuses.count(200) > 50 and statuses.count(400) > 200
    served.until(lambda: served.metric("logtrain_answers_under_way") == 0, seconds=60)
    assert children_of(served.program.processes[0].pid) == workers, "no worker has died"
    assert resident(served) - before < 200 << 20, "8 bodies of 1 MiB at once, and what becomes of one of them"
    assert "Traceback" not in served.output.read_text()
    assert served.chat(max_tokens=3).usage.completion_tokens == 3


@pytest.mark.slow
def test_slow_clients_do_not_keep_others_waiting(served):
    async def slow() -> None:
        host, port = served.url.removeprefix("http://").split(":")
        held = [await asyncio.open_connection(host, int(port)) for _ in range(200)]
        for i, (_, writer) in enumerate(held):
            writer.write(request(CHAT, b'{"messages": [', 10_000)[: 30 + i])  # never the rest
        status = await send(served, request(CHAT, json.dumps(BODY).encode()), "read")
        assert status == 200
        for _, writer in held:
            writer.close()

    asyncio.run(slow())
    served.until(lambda: served.metric("logtrain_answers_under_way") == 0)


def test_connections_that_are_closed_leave_nothing(served):
    """Each had a timer of 30 seconds, by which 7 KiB of it were kept until then: 14 MiB here."""

    def own() -> float:
        return served.metric("logtrain_resident_bytes")

    head = b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    asyncio.run(all_of(served, [(head, "read")] * 200, 20))
    before = own()
    assert set(asyncio.run(all_of(served, [(head, "read")] * 2000, 20))) == {200}
    assert own() - before < 5 << 20


@pytest.mark.trial(f"{MANY:,} answers, for a slope of memory, after as many that fill what is kept")
@pytest.mark.slow
def test_memory_is_flat_over_thousands_of_requests(served):
    def ask(count: int) -> None:
        cases = []
        for i in range(count):
            body = {
                **BODY,
                "stream": i % 2 == 0,
                "max_tokens": 1 + i % 3,
                "messages": [{"role": "user", "content": f"why {i}"}],
            }
            cases.append((request(CHAT, json.dumps(body).encode()), "read"))
        statuses = asyncio.run(all_of(served, cases, 16))
        assert set(statuses) == {200}

    ask(MANY // 5)  # what grows at first: the cache of prefixes, programs of oneDNN, arenas of the allocator
    for most in (16, 8):  # MiB
        before = resident(served)
        ask(MANY)
        grown = resident(served) - before
        print(f"after {MANY:,} requests {grown / 2**20:+.1f} MiB of {before / 2**20:.0f}")
        assert grown < most << 20
