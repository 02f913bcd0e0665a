"""Servers that stand for what is elsewhere, on loopback, with faults: of S3, and of files by HTTP."""

import contextlib
import hashlib
import http.server
import os
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
SERVER = "import sys; from moto.server import ThreadedMotoServer as S; s = S(port=0, verbose=False); s.start(); "
SERVER += "print(s.get_host_and_port()[1], flush=True); sys.stdin.read()"

PIPES: dict = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}


@contextlib.contextmanager
def s3_server() -> Iterator[str]:
    """A server of S3 in a process of its own, with a bucket `bucket`, to which this process's environment leads."""
    pytest.importorskip("moto", reason="needs moto (the extra `test`)")
    pytest.importorskip("s3fs", reason="needs s3fs (logtrain[remote])")
    process = subprocess.Popen([sys.executable, "-c", SERVER], **PIPES)
    assert process.stdout
    url = f"http://127.0.0.1:{int(process.stdout.readline())}"
    before = dict(os.environ)
    os.environ.update(KEYS | {"AWS_ENDPOINT_URL": url})
    try:
        type(system()).clear_instance_cache()  # of other servers
        system().mkdir("bucket")
        yield url
    finally:
        os.environ.clear()
        os.environ.update(before)
        process.communicate(timeout=30)


def system():
    """The file system of S3, of fsspec, for tests to look into."""
    import fsspec

    found = fsspec.filesystem("s3", use_listings_cache=False, skip_instance_cache=True)
    found.invalidate_cache()
    return found


class Files(http.server.BaseHTTPRequestHandler):
    """Files by HTTP, with ETags and ranges, and with the server's `faults`, of which each takes one request.

    cut: half of the body, then the connection ends. 503. stall: nothing for `pause` seconds. short: a body that is
    shorter than was asked for, and says so. other: another file's bytes than a moment ago, with another ETag.
    """

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        server: Server = self.server  # type: ignore[assignment]
        file = Path(server.folder, self.path.partition("?")[0].lstrip("/"))
        server.requests.append(self.path)
        fault = server.faults.pop(0) if server.faults else ""
        if fault == "503":
            self.send_error(503)
            return
        if not file.is_file():
            self.send_error(404)
            return
        content = file.read_bytes()
        tag = hashlib.md5(content).hexdigest()
        asked = self.headers.get("Range")
        begin, end = 0, len(content)
        if asked and server.has_ranges:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            begin, end = int(first), min(len(content), int(last) + 1)
        body = content[begin:end]
        if fault == "stall":
            time.sleep(server.pause)
        if fault == "short":
            body = body[: len(body) // 2]
        self.send_response(206 if asked and server.has_ranges else 200)
        self.send_header("Content-Length", str(len(body)))
        if server.has_tags:
            self.send_header("ETag", f'"{tag}"')
        if asked and server.has_ranges:
            self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{len(content)}")
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if fault == "cut" else body)
        if fault == "cut":
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    """The server. faults: what the next requests meet. requests: the paths that were asked for."""

    daemon_threads = True

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), Files)
        self.folder, self.faults, self.requests = folder, [], []
        self.has_ranges = self.has_tags = True
        self.pause = 0.0
        self.url = f"http://127.0.0.1:{self.server_port}"


@contextlib.contextmanager
def web_server(folder: Path) -> Iterator[Server]:
    """A server of the files of a folder."""
    server = Server(folder)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
