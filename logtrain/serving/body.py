"""The body of a request: JSON of someone else's, bounded in size, time, depth and types."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import ClientDisconnect, Request

from logtrain.core.untrusted import DECODER, check_depth
from logtrain.serving.errors import ApiError
from logtrain.serving.schema import Schema, check_request

READING = 30.0  # seconds in which a client must have sent its request
ALL_BODIES = 8  # the most requests of the greatest size that are held at once; smaller ones in proportion
SMALL = 1 << 16  # bytes that are read in less than a millisecond


class Bodies:
    """Reads the bodies of all requests within one budget of memory."""

    def __init__(self, max_bytes: int):
        """`max_bytes`: of a request."""
        self.max_bytes, self.room = max_bytes, ALL_BODIES * max_bytes
        self.parsing = asyncio.Semaphore(1)  # values such as [{},{},... take 25 times the bytes of their text

    @contextlib.asynccontextmanager
    async def read(self, request: Request, schema: Schema) -> AsyncIterator[dict[str, Any]]:
        """The fields of a request that are not null, for a block in which their bytes count. Raises ApiError for a
        body that is too large, too slow, too much beside the others', no JSON, or not as its schema says.
        """
        kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
        if (
            kind != "application/json"
        ):  # a form, which a page of another site may send without asking, is of other types
            raise ApiError(415, f"Content-Type is {kind[:100]!r}; expected application/json")
        if int(request.headers.get("content-length", 0)) > self.max_bytes:  # the server's parser has checked the number
            raise self.too_large()
        taken, pieces = 0, []
        try:
            try:
                async with asyncio.timeout(READING):
                    async for piece in request.stream():
                        taken += len(piece)
                        self.room -= len(piece)
                        if taken > self.max_bytes:
                            raise self.too_large()
                        if self.room < 0:
                            raise ApiError(429, "too many large requests at once", code="queue_full", retry_after=2)
                        pieces.append(piece)
            except TimeoutError:
                raise ApiError(408, f"the request was not complete after {READING:.0f} seconds") from None
            except ClientDisconnect:
                raise ApiError(400, "the client left before its request was complete") from None
            content = b"".join(pieces)
            pieces.clear()
            if len(content) < SMALL:
                fields = check_request(parse(content), schema)
            else:
                async with self.parsing:
                    fields = await asyncio.to_thread(lambda: check_request(parse(content), schema))
            yield fields
        finally:
            self.room += taken

    def too_large(self) -> ApiError:
        """The error of a request that is too large."""
        return ApiError(413, f"the request has more than {self.max_bytes:,} bytes, which is --max_body of the server")


def parse(content: bytes) -> Any:
    """The value of a JSON text. Raises ApiError for any other."""
    try:
        value = DECODER.decode(content.decode())
    except ValueError as error:
        raise ApiError(400, f"the request is not JSON: {error}") from None
    except RecursionError:
        raise ApiError(400, "arrays and objects within each other too deep to be a request") from None
    try:
        check_depth("the request", value, "one")
    except ValueError as error:
        raise ApiError(400, str(error)) from None
    return value
