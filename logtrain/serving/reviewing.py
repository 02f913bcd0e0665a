"""The page on which a person reviews rows, and its paths: it shows one row at a time, and saves each decision at once.

    GET  /review             the page (page/review.html)
    GET  /review/rows        the file, and the verdict of each row
    GET  /review/rows/7      the parts of a row, and what was decided about it
    POST /review/rows/7      {verdict, edits, note}: decide

A reviewer sees no decisions of others. With a server behind it, the page to talk to its model is the other tab.
"""

import asyncio
from dataclasses import dataclass
from pathlib import Path

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from logtrain.core.entry import words_of
from logtrain.core.untrusted import DECODER, from_json
from logtrain.serving.browser import REVIEW, bounded_body, build_page, check_own, page_routes
from logtrain.serving.decisions import VERDICTS, Decision, Decisions
from logtrain.serving.proxy import LOCAL, proxy_routes
from logtrain.serving.reviewed_file import ReviewedFile

MAX_BYTES = 1 << 24  # of a decision
MAX_NOTE = 4000  # characters


@dataclass(frozen=True)
class Decided:
    """What the page sends."""

    verdict: str
    edits: dict[str, str]
    note: str


class Reviewing:
    """One reviewer at one file."""

    def __init__(self, rows: ReviewedFile, decisions: Decisions, reviewer: str):
        self.rows, self.decisions, self.reviewer = rows, decisions, reviewer

    @property
    def mine(self) -> dict[int, Decision]:
        """This reviewer's decisions, by row."""
        return self.decisions.by.get(self.reviewer, {})

    async def listed(self, request: Request) -> Response:
        """GET /review/rows."""
        verdicts = [self.mine[row].verdict if row in self.mine else "open" for row in range(len(self.rows.rows))]
        return JSONResponse({"file": self.rows.path.name, "reviewer": self.reviewer, "verdicts": verdicts})

    async def show(self, request: Request) -> Response:
        """GET /review/rows/N."""
        row = int(request.path_params["row"])
        if row >= len(self.rows.rows):
            return refused(f"row {row}: there are {len(self.rows.rows):,}", 404)
        one = self.mine.get(row) or Decision(row, "", self.reviewer, "open")
        parts = [part._asdict() for part in self.rows.parts(row)]
        return JSONResponse({"row": row, "parts": parts, "verdict": one.verdict, "edits": one.edits, "note": one.note})

    async def decide(self, request: Request) -> Response:
        """POST /review/rows/N: save a decision; the reply comes when it is on the disk."""
        row = int(request.path_params["row"])
        try:
            check_own(request)
            decision = self.read(row, await bounded_body(request, MAX_BYTES))
            await asyncio.to_thread(self.decisions.add, decision)
        except ValueError as error:
            return refused(str(error), 400)
        except OSError as error:
            return refused(f"not saved: {words_of(error)}", 507)
        return JSONResponse({"row": row, "verdict": decision.verdict})

    def read(self, row: int, body: bytes) -> Decision:
        """The decision in a request. Raises ValueError for one that is wrong."""
        try:
            facts = DECODER.decode(body.decode())
        except (ValueError, RecursionError) as error:
            raise ValueError(f"not JSON ({error})") from None
        decided = from_json(Decided, facts)
        if row >= len(self.rows.rows):
            raise ValueError(f"row {row}: there are {len(self.rows.rows):,}")
        if decided.verdict not in VERDICTS:
            raise ValueError(f"verdict = {decided.verdict!r}: expected one of {', '.join(VERDICTS)}")
        if len(decided.note) > MAX_NOTE:
            raise ValueError(f"note: more than {MAX_NOTE:,} characters")
        for text in (decided.note, *decided.edits.values()):
            text.encode()  # half a surrogate pair could not be written
        if (decided.verdict == "edit") != (self.rows.edited(row, decided.edits) != self.rows.rows[row]):
            raise ValueError("edits: a row is edited by texts that differ, and by nothing else")
        return Decision(row, self.rows.hashes[row], self.reviewer, decided.verdict, decided.edits, decided.note)


def refused(message: str, status: int) -> Response:
    """An error in the form that the page reads."""
    return JSONResponse({"error": {"message": message}}, status_code=status)


def review_app(file: Path, reviewer: str, base_url: str = "") -> Starlette:
    """The application, for this machine alone. `base_url`: of a server to talk to on the other tab; "" for none. Raises
    ValueError for a file that has no rows, and for an address that is none.
    """
    rows = ReviewedFile(file)
    reviewing = Reviewing(rows, Decisions(file, rows.hashes), reviewer)
    page = build_page(REVIEW, has_tabs=bool(base_url))

    async def show(_: Request) -> Response:
        return Response(page.body, media_type="text/html; charset=utf-8", headers=page.headers)

    async def first(_: Request) -> Response:
        return RedirectResponse("/review")

    other: list[BaseRoute] = [*page_routes(has_tabs=True), *proxy_routes(base_url)] if base_url else [Route("/", first)]
    routes = [
        Route("/review", show),
        Route("/review/rows", reviewing.listed),
        Route("/review/rows/{row:int}", reviewing.show, methods=["GET"]),
        Route("/review/rows/{row:int}", reviewing.decide, methods=["POST"]),
        *other,
    ]
    return Starlette(routes=routes, middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=LOCAL)])
