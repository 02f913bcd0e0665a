"""The page in the browser, as one file: page/ holds its parts, which are put together here without a build step.

It takes nothing from outside, and no text of a model or a log becomes HTML: the policy that it is sent with allows the
one script and the one style that are in it, by their hashes, and requests to where it came from.

The page asks for /v1/models, /v1/chat/completions, /tokenize (where there is one) and /fold below its own address.
"""

import asyncio
import base64
import hashlib
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from logtrain.conversation.folding import Folded, fold
from logtrain.conversation.notable import Notable
from logtrain.conversation.tasks import TASKS
from logtrain.core.printable import printable
from logtrain.core.untrusted import DECODER, from_json
from logtrain.text.entities import RULES

PARTS = Path(__file__).with_name("page")
# In the order in which one needs another. Each is a module by itself, as node runs it, and a function in the whole.
CHAT = (
    "page",
    (
        *("markdown", "entities", "annotate", "conversation", "settings", "log", "attachment", "api", "turns"),
        *("meter", "listen", "app"),
    ),
)
REVIEW = ("review", ("markdown", "entities", "annotate", "conversation", "rows", "review"))
TABS = {"page": ("./", "Chat"), "review": ("review", "Review")}
IMPORT = re.compile(r'^import (\{[^}]*\}) from "\./(\w+)\.js";$', re.MULTILINE)
EXPORT = re.compile(r"^export (?=(?:async )?(?:class|const|function) (\w+))", re.MULTILINE)
MAX_FOLDED_BYTES = 1 << 26  # of a request to fold a log
MAX_SHOWN = 10_000  # ranges of lines
MOST_FOLDING = 2  # requests at once: a log of 30 MB takes 3 s and some 500 MB
PATIENCE = 30.0  # seconds in which a request to fold must have come


class Page(NamedTuple):
    """The page as it is sent."""

    body: bytes
    headers: dict[str, str]


@dataclass(frozen=True)
class FoldRequest:
    """What the page asks to fold."""

    text: str
    max_tokens: int
    chars_per_token: float
    show: list[list[int]]
    """[first, last] of lines that are to be whole"""


def build_page(which: tuple[str, tuple[str, ...]] = CHAT, has_tabs: bool = False) -> Page:
    """Put a page together: CHAT, or REVIEW, which has the other's style and more. `has_tabs`: whether it leads to the
    other.
    """
    name, scripts = which
    known = {"RULES": RULES, "TASKS": {name: task.prompt for name, task in TASKS.items()}}
    constants = [f"const {key} = {_as_script(value)};\n" for key, value in known.items()]
    script = "".join([*constants, *map(_as_function, scripts)])
    styles = ["style", *([name] if which == REVIEW else []), *(["tabs"] if has_tabs else [])]
    style = "".join((PARTS / f"{one}.css").read_text(encoding="utf-8") for one in styles)
    html = (PARTS / f"{name}.html").read_text(encoding="utf-8")
    html = html.replace("<!--tabs-->", _tabs(name) if has_tabs else "")
    policy = {
        "default-src": "'none'",
        "script-src": _hash(script),
        "style-src": _hash(style),
        "style-src-attr": "'unsafe-inline'",  # heights and places of rows; set by the script alone
        "connect-src": "'self'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    headers = {
        "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cache-Control": "no-cache",
    }
    return Page(html.replace("/*style*/", style).replace("/*script*/", script).encode(), headers)


def page_routes(has_tabs: bool = False) -> list[Route]:
    """The paths that the page needs beside those of OpenAI's API: / and /fold. `has_tabs`: as in `build_page`."""
    page = build_page(CHAT, has_tabs)

    async def show(_: Request) -> Response:
        return Response(page.body, media_type="text/html; charset=utf-8", headers=page.headers)

    return [Route("/", show, methods=["GET"]), Route("/fold", Folding().answer, methods=["POST"])]


class Folding:
    """Folds logs for the page, MOST_FOLDING at once; further requests wait before they are read."""

    def __init__(self):
        self.places = asyncio.Semaphore(MOST_FOLDING)
        self.last: tuple[str, Notable] | None = None  # a log is mostly folded more than once

    async def answer(self, request: Request) -> Response:
        """POST /fold: {text, max_tokens, chars_per_token, show} -> the log folded, as `Folded` has it, with `group_of`
        for each line. Status 400 for a request that is wrong, and where there is no room for the log.
        """
        try:
            check_own(request)
            async with self.places:
                async with asyncio.timeout(PATIENCE):
                    body = await bounded_body(request, MAX_FOLDED_BYTES)
                facts = await asyncio.to_thread(self.fold, body)
        except ValueError as error:
            return JSONResponse({"error": {"message": str(error), "type": "invalid_request_error"}}, status_code=400)
        except TimeoutError:
            return JSONResponse({"error": {"message": "the request took too long to come"}}, status_code=408)
        return JSONResponse(facts)

    def fold(self, body: bytes) -> dict[str, Any]:
        """The reply to a request. Raises ValueError for one that is wrong, and where there is no room for the log."""
        asked = read_fold_request(body)
        last = self.last
        folded = fold_text(asked, last[1] if last and last[0] == asked.text else None)
        self.last = (asked.text, folded.seen)
        return as_json(folded)


def check_own(request: Request) -> None:
    """Raises ValueError for a request that another site's page has sent."""
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
        raise ValueError(f"a request of {printable(origin, one_line=True)}, and not of this page")
    if request.method == "POST" and not request.headers.get("content-type", "").startswith("application/json"):
        raise ValueError("expected Content-Type: application/json")


async def bounded_body(request: Request, most: int) -> bytes:
    """The body of a request. Raises ValueError for one of more bytes."""
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > most:
            raise ValueError(f"a request of more than {most >> 20} MiB")
    return bytes(body)


def read_fold_request(body: bytes) -> FoldRequest:
    """What a request to fold holds. Raises ValueError."""
    try:
        facts = DECODER.decode(body.decode())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({error})") from None
    asked = from_json(FoldRequest, facts)
    if not asked.text.strip():
        raise ValueError("text: nothing but blanks in it")
    if not 0 < asked.max_tokens < 1 << 31:
        raise ValueError("max_tokens: expected a number above 0")
    if not 0 < asked.chars_per_token < 1000:
        raise ValueError("chars_per_token: expected a number above 0")
    if len(asked.show) > MAX_SHOWN or any(len(pair) != 2 for pair in asked.show):
        raise ValueError(f"show: expected [[first, last], ...], numbers of lines, {MAX_SHOWN:,} at most")
    return asked


def fold_text(asked: FoldRequest, seen: Notable | None) -> Folded:
    """Fold the log of a request; `seen`: what is known of its lines. Raises ValueError if there is no room for it."""
    lines = asked.text.removesuffix("\n").split("\n")
    show = [(first, last) for first, last in asked.show]

    def count(text: str) -> int:
        return math.ceil(len(text) / asked.chars_per_token)

    return fold(lines, asked.max_tokens, count, show=show, seen=seen)


def as_json(folded: Folded) -> dict[str, Any]:
    """A folded log as the page reads it; it has the lines."""
    groups = [
        {"name": group.name, "text": group.text, "count": group.template.count, "severity": group.template.severity}
        for group in folded.groups
    ]
    return {
        "text": folded.text,
        "tokens": folded.num_tokens,
        "tokens_before": folded.tokens_before,
        "shown": folded.shown,
        "gaps": folded.gaps,
        "groups": groups,
        "group_of": folded.group_L.tolist(),
    }


def _tabs(shown: str) -> str:
    """Links to the pages, of which one is shown."""
    links = (
        f'<a href="{path}"{" aria-current=page" if name == shown else ""}>{title}</a>'
        for name, (path, title) in TABS.items()
    )
    return f'<nav class="tabs" aria-label="Pages">{"".join(links)}</nav>'


def _as_function(name: str) -> str:
    """A module as a function that gives what it exports: const m_name = (() => {...})();"""
    text = (PARTS / f"{name}.js").read_text(encoding="utf-8")
    given = ", ".join(EXPORT.findall(text))
    text = EXPORT.sub("", IMPORT.sub(r"const \1 = m_\2;", text))
    return f"const m_{name} = (() => {{\n{text}return {{ {given} }};\n}})();\n"


def _as_script(value: object) -> str:
    """A value as JSON that may stand in a script: none of it can end the script's element."""
    return json.dumps(value).replace("<", "\\u003c")


def _hash(text: str) -> str:
    """The source of a policy that allows this text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
