"""The page in front of a scripted server, and a browser to look at it with."""

import contextlib
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.support.openai_server import OpenAiServer, openai_server


@contextlib.contextmanager
def page_server(can_count: bool = True) -> Iterator[tuple[str, OpenAiServer]]:
    """(address of the page, the server behind it)."""
    uvicorn = pytest.importorskip("uvicorn", reason="needs the extra `serve`")
    pytest.importorskip("starlette", reason="needs the extra `serve`")
    from logtrain.serving.proxy import page_app

    with openai_server(can_count) as fake, socket.create_server(("127.0.0.1", 0)) as bound:
        settings = uvicorn.Config(
            page_app(f"{fake.url}/v1", "127.0.0.1"), log_level="warning", ws="none", lifespan="off"
        )
        server = uvicorn.Server(settings)
        thread = threading.Thread(target=server.run, args=([bound],), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{bound.getsockname()[1]}", fake
        finally:
            server.should_exit = server.force_exit = True
            thread.join(10)


@contextlib.contextmanager
def chromium() -> Iterator:
    """A headless Chromium. Skips where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install 'logtrain[browser]'")
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if not path:
        pytest.skip("needs chromium on the PATH")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


class Visitor:
    """A person at the page. page: playwright's. problems: what the browser complained about."""

    def __init__(self, browser, url: str, width: int = 1280, height: int = 800, scheme: str = "light"):
        size = {"width": width, "height": height}
        self.context = browser.new_context(viewport=size, color_scheme=scheme, accept_downloads=True)
        self.page, self.problems = self.context.new_page(), []
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("console", lambda said: self.problems.append(said.text) if said.type == "error" else None)
        self.page.on("dialog", lambda dialog: self.problems.append(dialog.message))
        self.page.set_default_timeout(15_000)
        self.go(url)

    def go(self, url: str) -> None:
        """Open the page, or open it again."""
        self.page.goto(url)
        self.page.locator("body[data-ready]").wait_for()

    def paste(self, text: str) -> None:
        """Paste into the question."""
        self.page.evaluate(
            """(text) => {
                const clipboardData = new DataTransfer();
                clipboardData.setData("text", text);
                const event = new ClipboardEvent("paste", { clipboardData, bubbles: true, cancelable: true });
                document.querySelector("#question").dispatchEvent(event);
            }""",
            text,
        )

    def drop(self, name: str, text: str) -> None:
        """Drop a file on the page."""
        self.page.evaluate(
            """([name, text]) => {
                const dataTransfer = new DataTransfer();
                dataTransfer.items.add(new File([text], name));
                document.body.dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true }));
            }""",
            [name, text],
        )

    def attached(self, text: str = "tokens") -> str:
        """Wait until the attached log has been counted; -> what is said of it."""
        place = self.page.locator("#attached", has_text=text)
        place.wait_for()
        return place.inner_text()

    def ask(self, question: str) -> str:
        """Ask, and wait for the answer's end; -> its text."""
        before = self.page.locator(".turn.assistant").count()
        self.page.fill("#question", question)
        self.page.keyboard.press("Enter")
        self.page.locator(".turn.assistant").nth(before).wait_for()
        return self.answered()

    def answered(self) -> str:
        """Wait for the answer's end; -> its text."""
        self.page.locator("#send").wait_for()
        self.page.locator(".turn.assistant .tools").last.wait_for()
        return self.page.locator(".turn.assistant .body").last.inner_text()

    def status(self, text: str) -> str:
        """Wait for a message."""
        place = self.page.locator("#status", has_text=text)
        place.wait_for()
        return place.inner_text()

    def violations(self) -> list[SimpleNamespace]:
        """What axe-core finds wrong for people who cannot see the page, or not well."""
        axe = pytest.importorskip("axe_playwright_python", reason="needs axe: pip install 'logtrain[browser]'")
        self.page.evaluate(Path(axe.__file__).with_name("axe.min.js").read_text(encoding="utf-8"))
        found = self.page.evaluate("axe.run()")["violations"]
        return [SimpleNamespace(rule=one["id"], where=[node["html"][:120] for node in one["nodes"]]) for one in found]


def until(happened, seconds: float = 15) -> None:
    """Wait for something outside of the browser."""
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.02)
