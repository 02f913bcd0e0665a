"""From a request to its reply, whole or as a stream of server-sent events, with all that may end it early: a client
that leaves, a deadline, a worker that dies. Each of these is a message among those of the worker.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from logtrain.serving.asking import Asked
from logtrain.serving.errors import ApiError
from logtrain.serving.metrics import ServerMetrics
from logtrain.serving.pool import Message, Ticket, WorkerPool
from logtrain.serving.replies import Replies

STATUS_IN_TIME = 10.0  # seconds for which a stream waits with its status for the first token, or an error
ALIVE = 15.0  # seconds without a token after which a stream says that it goes on
LEFT = 499  # status, in our metrics alone, of a request whose client has left (nginx's)
SLOW_READER = 30.0  # seconds for which one piece of a stream may wait for its client


class JsonReply(Response):
    """A JSON object as a reply."""

    media_type = "application/json"

    def render(self, content: object) -> bytes:
        """The bytes of the reply."""
        return orjson.dumps(content)


class Answering:
    """Lets the workers answer."""

    def __init__(self, pool: WorkerPool, metrics: ServerMetrics, deadline: float):
        """`deadline`: seconds in which an answer must be complete."""
        self.pool, self.metrics, self.deadline = pool, metrics, deadline

    @contextlib.asynccontextmanager
    async def attended(self, request: Request, asked: Asked) -> AsyncIterator[Ticket]:
        """The ticket of a request, whose messages tell of its client and its deadline, too. At the end of the block
        what is not answered is cancelled. Raises ApiError as `WorkerPool.submit` does.
        """
        ticket = self.pool.submit(asked.requests)
        message = f"the answer was not complete after {self.deadline:g} seconds, which is --deadline of the server"
        timer = self.pool.loop.call_later(
            self.deadline, ticket.messages.put_nowait, ApiError(504, message, code="deadline")
        )
        watcher = asyncio.create_task(watch(request, ticket))
        try:
            yield ticket
        finally:
            timer.cancel()
            watcher.cancel()
            if ticket.load:
                self.metrics.cancelled.add()
                self.pool.cancel(ticket)

    async def whole(self, request: Request, asked: Asked, replies: Replies) -> Response:
        """The reply to a request that is not streamed. Raises ApiError."""
        clock = Clock(self.metrics)
        async with self.attended(request, asked) as ticket:
            while ticket.load or not ticket.messages.empty():
                grow(await ticket.messages.get(), replies, clock)
        clock.end(replies)
        return JsonReply(replies.whole())

    async def streamed(self, request: Request, asked: Asked, replies: Replies) -> Response:
        """The reply to a request that is streamed. Raises ApiError for what goes wrong in time for a status."""
        stack, clock = contextlib.AsyncExitStack(), Clock(self.metrics)
        ticket = await stack.enter_async_context(self.attended(request, asked))
        try:
            first = await next_messages(ticket, STATUS_IN_TIME)
            if error := next((message for message in first if isinstance(message, ApiError)), None):
                raise error
        except BaseException:
            await stack.aclose()
            raise
        return Stream(stack, ticket, first, replies, clock)


class Stream(Response):
    """A reply of server-sent events."""

    media_type = "text/event-stream"

    def __init__(
        self,
        stack: contextlib.AsyncExitStack,
        ticket: Ticket,
        first: list[Message],
        replies: Replies,
        clock: "Clock",
    ):
        """`stack`: what ends with the stream. `first`: messages that have come already."""
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self.stack, self.ticket, self.first, self.replies, self.clock = stack, ticket, first, replies, clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all pieces."""

        async def write(data: bytes, more: bool = True) -> None:
            async with asyncio.timeout(SLOW_READER):
                await send({"type": "http.response.body", "body": data, "more_body": more})

        async with self.stack:
            with contextlib.suppress(TimeoutError):  # it does not read; nobody is there to be told
                await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                await write(b"".join(map(event, self.replies.first())))
                try:
                    await self.pieces(write)
                    self.clock.end(self.replies)
                    await write(b"".join(map(event, self.replies.last())))
                except ApiError as error:
                    if error.status == LEFT:
                        return
                    await write(event(error.body()))
                await write(b"data: [DONE]\n\n", more=False)

    async def pieces(self, write) -> None:
        """Send the pieces of the answers as they come, those that have come together as one. Raises ApiError."""
        messages = self.first
        while True:
            indices = dict.fromkeys(message[0] for message in messages if not isinstance(message, ApiError))
            marks = {index: self.replies.answers[index].mark for index in indices}
            for message in messages:
                grow(message, self.replies, self.clock)
            data = b""
            for index, since in marks.items():
                answer = self.replies.answers[index]
                if answer.finish_reason or answer.mark != since:
                    data += event(self.replies.piece(index, since))
            if data:
                await write(data)
            if not self.ticket.load and self.ticket.messages.empty():
                return
            while not (messages := await next_messages(self.ticket, ALIVE)):
                await write(b": still at work\n\n")


class Clock:
    """The times of a request."""

    def __init__(self, metrics: ServerMetrics):
        self.metrics, self.began = metrics, time.perf_counter()
        self.first = self.last = 0.0

    def tick(self) -> None:
        """A token has come."""
        self.last = time.perf_counter()
        if not self.first:
            self.first = self.last
            self.metrics.first_token.observe(self.first - self.began)

    def end(self, replies: Replies) -> None:
        """All answers are complete."""
        usage, metrics, model = replies.usage(), self.metrics, replies.asked.model.name
        metrics.prompt_tokens.add(usage["prompt_tokens"], model=model)
        metrics.answer_tokens.add(usage["completion_tokens"], model=model)
        metrics.reused_tokens.add(usage["prompt_tokens_details"]["cached_tokens"], model=model)
        metrics.whole.observe(time.perf_counter() - self.began)
        if (most := max(answer.num_tokens for answer in replies.answers)) > 1:
            metrics.per_token.observe((self.last - self.first) / (most - 1))


def event(value: object) -> bytes:
    """A server-sent event with a JSON object."""
    return b"data: %s\n\n" % orjson.dumps(value)


def grow(message: Message, replies: Replies, clock: Clock) -> None:
    """Let an answer grow by a message. Raises it if it is an error."""
    if isinstance(message, ApiError):
        raise message
    clock.tick()
    replies.answers[message[0]].add(message[1])


async def next_messages(ticket: Ticket, seconds: float) -> list[Message]:
    """All messages that have come, after waiting for one; none after so many seconds."""
    try:
        async with asyncio.timeout(seconds):
            messages = [await ticket.messages.get()]
    except TimeoutError:
        return []
    while not ticket.messages.empty():
        messages.append(ticket.messages.get_nowait())
    return messages


async def watch(request: Request, ticket: Ticket) -> None:
    """Wait until the client leaves, and say so to who answers it."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    ticket.messages.put_nowait(ApiError(LEFT, "the client left"))
