"""Files of HTTP servers, with the methods of an fsspec file system that fetching needs."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import urllib3

POOL = urllib3.PoolManager(retries=False, timeout=urllib3.Timeout(connect=20, read=30))
MISSING, REFUSED, EMPTY = (404, 410), (401, 403), 416


class Web:
    """The files of all HTTP servers. A path is a URL."""

    def info(self, path: str) -> dict[str, Any]:
        """name, size (None where the server does not say), version, and `ranges`: whether pieces can be had. Asked for
        by a piece of one byte: some servers that sign their URLs refuse HEAD. Raises OSError.
        """
        with answer(path, {"Range": "bytes=0-0"}) as response:
            headers, ranges = response.headers, response.status == 206
            size = headers.get("Content-Range", "").rpartition("/")[2] if ranges else headers.get("Content-Length")
            if response.status == EMPTY:
                size = "0"
            version = headers.get("ETag") or headers.get("Last-Modified") or ""
            known = int(size) if size and size.isdecimal() else None
            return {"name": path, "size": known, "ETag": version, "ranges": ranges and known is not None}

    def cat_file(self, path: str, start: int, end: int) -> bytes:
        """Bytes [start, end) of a file. Raises OSError."""
        with answer(path, {"Range": f"bytes={start}-{end - 1}"}) as response:
            begins = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
            if response.status != 206 or begins != str(start):
                raise OSError(f"status {response.status} instead of bytes {start:,} to {end:,}")
            return response.read(end - start + 1)

    def pieces(self, path: str, size: int) -> Iterator[bytes]:
        """A whole file, in pieces of `size` bytes. Raises OSError."""
        with answer(path, {}) as response:
            yield from response.stream(size)


@contextmanager
def answer(path: str, headers: dict[str, str]) -> Iterator[urllib3.BaseHTTPResponse]:
    """A server's answer, of which the body is not read yet. Raises OSError for a status that is not of success, and
    FileNotFoundError and PermissionError where another try does not help.
    """
    headers = {"Accept-Encoding": "identity", **headers}
    response = POOL.request("GET", path, headers=headers, preload_content=False, redirect=True, retries=REDIRECTS)
    try:
        if response.status in MISSING:
            raise FileNotFoundError(path)
        if response.status in REFUSED:
            raise PermissionError(f"the server refuses (status {response.status})")
        if response.status not in (200, 206, EMPTY):
            raise OSError(f"status {response.status} {response.reason or ''}".strip())
        yield response
    finally:
        response.close()  # of a body that was not read whole the connection is of no use


REDIRECTS = urllib3.Retry(total=None, connect=False, read=False, status=False, other=False, redirect=10)
