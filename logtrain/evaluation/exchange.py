"""A request over HTTP and its whole reply, bounded in size and time whatever the server does: one that drips, one that
sends more than it may, one that packs its replies, which nobody has asked it for.
"""

import time
from collections.abc import Mapping
from typing import NamedTuple

import urllib3


class HttpReply(NamedTuple):
    """A reply, read to its end."""

    status: int
    """The HTTP status."""
    data: bytes
    """The body, as it was sent."""
    pause: float
    """Seconds that the server asks for before the next request, by Retry-After."""

    def start(self) -> str:
        """The beginning of the body, on one line."""
        return " ".join(self.data[:300].decode(errors="replace").split())


class TooLarge(ValueError):
    """A reply of more bytes than it may have."""


class Late(urllib3.exceptions.HTTPError):
    """A reply that has not come to its end in time."""


def exchange(
    pool: urllib3.PoolManager,
    method: str,
    url: str,
    headers: Mapping[str, str],
    body: bytes | None = None,
    *,
    seconds: float,
    most: int,
) -> HttpReply:
    """Send a request and read the reply, of `most` bytes, within `seconds`. Raises TooLarge, Late, and other HTTPErrors
    of urllib3.
    """
    until = time.monotonic() + seconds
    response = pool.request(
        method,
        url,
        body=body,
        headers=headers,
        redirect=False,
        preload_content=False,
        decode_content=False,
        timeout=urllib3.Timeout(connect=min(10.0, seconds), read=seconds),
    )
    is_whole, data = False, bytearray()
    try:
        while piece := response.read1(1 << 16, decode_content=False):
            data += piece
            if len(data) > most:
                raise TooLarge(f"{url}: a reply of more than {most:,} bytes")
            if time.monotonic() > until:
                raise Late(f"{url}: a reply that has no end after {seconds:g} s")
        is_whole = True
    finally:
        if is_whole:
            response.release_conn()
        else:
            response.close()
    return HttpReply(response.status, bytes(data), pause_of(response))


def pause_of(response: urllib3.BaseHTTPResponse) -> float:
    """Seconds that a reply asks for, 0 where it says none."""
    try:
        return urllib3.Retry().get_retry_after(response) or 0.0
    except (urllib3.exceptions.InvalidHeader, ValueError, OverflowError):
        return 0.0
