"""The last figures of a run for Prometheus, at http://127.0.0.1:PORT/metrics."""

import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from logtrain.observe.trackers import Figures


class Prometheus:
    """The endpoint of one run, on this machine alone. Port 0: none."""

    def __init__(self, port: int, run: str):
        """`run`: the label that every figure has. Raises ValueError for a port that is taken."""
        self.figures: Figures = {}
        self.run, self.server = run, None
        if not port:
            return
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                content = endpoint.text().encode()
                self.send_response(200 if self.path == "/metrics" else 404)
                self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
                self.end_headers()
                self.wfile.write(content if self.path == "/metrics" else b"/metrics\n")

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing of requests."""

        try:
            self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        except (OSError, OverflowError) as error:
            what = getattr(error, "strerror", None) or error
            raise ValueError(f"prometheus = {port}: 127.0.0.1:{port}: {what}; choose another port") from None
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, name="prometheus", daemon=True).start()

    def update(self, figures: Figures) -> None:
        """Remember the last figures."""
        self.figures = self.figures | figures  # a new dictionary: a request may be reading the old one

    def text(self) -> str:
        """All figures in Prometheus's text format."""
        label = self.run.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
        lines = []
        for key, value in sorted(self.figures.items()):
            name = "logtrain_" + re.sub(r"[^a-zA-Z0-9_]", "_", key)
            lines.append(f'{name}{{run="{label}"}} {value!r}')
        return "\n".join(lines) + "\n"

    def close(self) -> None:
        """End the endpoint."""
        if self.server is not None:
            self.server.shutdown()
            self.server.server_close()
