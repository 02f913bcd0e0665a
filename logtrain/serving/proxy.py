"""The page in front of another server: its requests go on to the server, and answers come back as they come.

The browser talks to this program alone, so that the server needs no CORS and the key stays here. Nothing but the paths
in PATHS goes on, and only requests of the page itself: another site's page can neither send JSON here without asking
first, nor name a host of its own that leads here (DNS rebinding).
"""

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import urllib3
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from urllib3.exceptions import HTTPError

from logtrain.core.printable import printable
from logtrain.serving.browser import bounded_body, check_own, page_routes

PATHS = ("/v1/models", "/v1/chat/completions", "/tokenize")
LOCAL = ["localhost", "127.0.0.1", "[::1]"]
MAX_BYTES = 1 << 25  # of a request
TIMEOUT = urllib3.Timeout(connect=10, read=600)


class Upstream:
    """The server that answers."""

    def __init__(self, base_url: str):
        """`base_url`: its address up to and with /v1, or without. Raises ValueError for an address that is none."""
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError(
                f"base_url = {base_url!r}: expected http://... or https://..., as http://localhost:8000/v1"
            )
        self.root = base_url.rstrip("/").removesuffix("/v1")
        self.key = os.environ.get("OPENAI_API_KEY", "")
        self.pool = urllib3.PoolManager(maxsize=32, retries=False, timeout=TIMEOUT)

    async def forward(self, request: Request) -> Response:
        """Send a request on, and stream back what comes. A client that leaves ends the answer at the server, too."""
        try:
            check_own(request)
            body = await bounded_body(request, MAX_BYTES) if request.method == "POST" else None
        except ValueError as error:
            return refusal(400, str(error))
        headers = {"Content-Type": "application/json", "Accept": request.headers.get("accept", "*/*")}
        if key := request.headers.get("authorization") or (f"Bearer {self.key}" if self.key else ""):
            headers["Authorization"] = key
        url = f"{self.root}{request.url.path}"
        try:
            reply = await asyncio.to_thread(
                self.pool.urlopen,
                request.method,
                url,
                body=body,
                headers=headers,
                redirect=False,
                preload_content=False,
            )
        except HTTPError as error:
            return refusal(
                502, f"{self.root}: no answer ({printable(str(error), one_line=True)}); is the server running?"
            )
        kept = {name: reply.headers[name] for name in ("Content-Type", "Retry-After") if name in reply.headers}
        return StreamingResponse(pieces(reply), reply.status, headers={**kept, "X-Accel-Buffering": "no"})


async def pieces(reply: urllib3.BaseHTTPResponse) -> AsyncIterator[bytes]:
    """What comes of a reply, when it comes. An iterator that is closed before the end closes the connection."""
    is_whole = False
    try:
        while piece := await asyncio.to_thread(reply.read1, 1 << 16):
            yield piece
        is_whole = True
    except HTTPError:
        return  # the page sees an answer without an end, and says so
    finally:
        if is_whole:
            reply.release_conn()
        else:
            reply.shutdown()  # ends a read that waits in another thread
            reply.close()


def refusal(status: int, message: str) -> Response:
    """An error in the form that OpenAI's API has."""
    return JSONResponse({"error": {"message": message, "type": "invalid_request_error"}}, status_code=status)


def proxy_routes(base_url: str) -> list[Route]:
    """The paths that are the server's. Raises ValueError for an address that is none."""
    upstream = Upstream(base_url)
    return [Route(path, upstream.forward, methods=["GET" if path.endswith("models") else "POST"]) for path in PATHS]


def page_app(base_url: str, host: str) -> Starlette:
    """The page in front of a server, to listen at `host`. Raises ValueError for an address that is none."""
    names = LOCAL if host in ("127.0.0.1", "::1", "localhost") else ["*"]
    middleware = [Middleware(TrustedHostMiddleware, allowed_hosts=names)]
    return Starlette(routes=[*page_routes(), *proxy_routes(base_url)], middleware=middleware)


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket that listens there. Raises ValueError where it cannot."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        return socket.create_server(found[0][4][:2], family=found[0][0])
    except OSError as error:
        raise ValueError(f"{host}:{port}: {error.strerror or error}; choose another --port") from None
