"""The paths of the HTTP server: what each reads, asks the workers, and replies."""

import contextlib
import hmac
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from logtrain.serving.answering import LEFT, Answering, JsonReply
from logtrain.serving.asking import Asking, encoded, turns_of
from logtrain.serving.body import Bodies
from logtrain.serving.browser import page_routes
from logtrain.serving.config import ServeConfig
from logtrain.serving.errors import ApiError
from logtrain.serving.metrics import TYPE, ServerMetrics
from logtrain.serving.openapi import description
from logtrain.serving.pool import WorkerPool
from logtrain.serving.replies import ChatReplies, CompletionReplies
from logtrain.serving.schema import CHAT, COMPLETION, DETOKENIZE, TOKENIZE
from logtrain.serving.served import ServedModels

OPEN = ("/", "/health", "/openapi.json")  # paths that need no key: they tell nothing of what is asked
Handler = Callable[[Request], Awaitable[Response]]


class Server:
    """What the paths need: the models' files, the workers, and what has been counted."""

    def __init__(self, config: ServeConfig, models: ServedModels, pool: WorkerPool):
        self.config, self.models, self.pool = config, models, pool
        self.metrics, self.asking = ServerMetrics(), Asking(models, config.max_new_tokens)
        self.answering = Answering(pool, self.metrics, config.deadline)
        self.bodies = Bodies(int(config.max_body * 2**20))

    def app(self) -> Starlette:
        """The application, which ends the workers when it ends."""

        @contextlib.asynccontextmanager
        async def lifespan(_: Starlette) -> AsyncIterator[None]:
            yield
            self.pool.close()

        paths: list[tuple[str, str, Handler]] = [
            ("/v1/models", "GET", self.list_models),
            ("/v1/models/{name:path}", "GET", self.show_model),
            ("/v1/chat/completions", "POST", self.chat),
            ("/v1/completions", "POST", self.complete),
            ("/tokenize", "POST", self.tokenize),
            ("/detokenize", "POST", self.detokenize),
            ("/health", "GET", self.health),
            ("/metrics", "GET", self.show_metrics),
            ("/openapi.json", "GET", self.describe),
        ]
        middleware = [Middleware(Guard, self)]
        if self.config.cors:
            cors = {"allow_origins": self.config.cors, "allow_methods": ["GET", "POST"], "allow_headers": ["*"]}
            middleware.insert(0, Middleware(CORSMiddleware, **cors))
        routes = [*page_routes()] + [Route(path, handler, methods=[method]) for path, method, handler in paths]
        handlers = {ApiError: api_error, HTTPException: http_error, 500: our_mistake}
        return Starlette(routes=routes, middleware=middleware, exception_handlers=handlers, lifespan=lifespan)

    # ---- answers

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        async with self.bodies.read(request, CHAT) as fields:
            asked = await self.asking.chat(fields)
        replies = ChatReplies(asked, self.models.tokenizer)
        answer = self.answering.streamed if asked.is_streamed else self.answering.whole
        return await answer(request, asked, replies)

    async def complete(self, request: Request) -> Response:
        """POST /v1/completions."""
        async with self.bodies.read(request, COMPLETION) as fields:
            asked = await self.asking.completion(fields)
        replies = CompletionReplies(asked, self.models.tokenizer)
        answer = self.answering.streamed if asked.is_streamed else self.answering.whole
        return await answer(request, asked, replies)

    # ---- tokens

    async def tokenize(self, request: Request) -> Response:
        """POST /tokenize: the ids of a text, or of a chat up to its answer."""
        async with self.bodies.read(request, TOKENIZE) as fields:
            model = self.models.named(fields.get("model"))
            if ("prompt" in fields) == ("messages" in fields):
                raise ApiError(400, "expected either prompt or messages", param="prompt")
            if "messages" in fields:
                ids = await self.asking.run(model.chat_template().prompt, turns_of(fields["messages"]))
            else:
                ids = await self.asking.run(encoded, fields["prompt"], self.models.tokenizer)
        return JsonReply({"tokens": ids, "count": len(ids), "max_model_len": self.models.context_size})

    async def detokenize(self, request: Request) -> Response:
        """POST /detokenize: the text of ids."""
        async with self.bodies.read(request, DETOKENIZE) as fields:
            self.models.named(fields.get("model"))
            ids = [int(id) for id in fields["tokens"]]
            if ids and max(ids) >= self.models.tokenizer.vocab_size:
                raise ApiError(400, f"token id {max(ids)}: the model has {self.models.tokenizer.vocab_size:,}")
            text = await self.asking.run(self.models.tokenizer.decode, ids, False)
        return JsonReply({"prompt": text})

    # ---- about the server

    async def list_models(self, _: Request) -> Response:
        """GET /v1/models."""
        return JsonReply({"object": "list", "data": [self.model(name) for name in self.models.models]})

    async def show_model(self, request: Request) -> Response:
        """GET /v1/models/NAME."""
        return JsonReply(self.model(self.models.named(request.path_params["name"]).name))

    def model(self, name: str) -> dict[str, object]:
        """A model as OpenAI's API shows it, with the fields that vLLM adds."""
        model, default = self.models.named(name), self.models.default
        return {
            "id": name,
            "object": "model",
            "created": self.models.created,
            "owned_by": "logtrain",
            "root": Path(model.root).name,
            "parent": default.name if model is not default else None,
            "max_model_len": self.models.context_size,
        }

    async def health(self, _: Request) -> Response:
        """GET /health: 200 if a worker is ready to answer, otherwise 503."""
        ready, workers = len(self.pool.ready), len(self.pool.workers)
        status = {"status": "ok" if ready else "no worker is ready", "workers_ready": ready, "workers": workers}
        return JsonReply(status, 200 if ready else 503)

    async def show_metrics(self, _: Request) -> Response:
        """GET /metrics."""
        return Response(self.metrics.text(self.pool.gauges()), media_type=TYPE)

    async def describe(self, _: Request) -> Response:
        """GET /openapi.json."""
        return JsonReply(description(needs_key=bool(self.config.api_key)))


class Guard:
    """Between the network and the paths: the key, and the count of requests by path and status."""

    def __init__(self, app: ASGIApp, server: Server):
        self.app, self.server = app, server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = LEFT

        async def counted(message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        request = Request(scope, receive)
        try:
            if self.is_locked(request):
                error = ApiError(
                    401, "no API key, or a wrong one; send Authorization: Bearer KEY", code="invalid_api_key"
                )
                await (await api_error(request, error))(scope, receive, counted)
            else:
                await self.app(scope, receive, counted)
        finally:
            route = scope.get("route")
            path = route.path if route else "other"
            self.server.metrics.requests.add(path=path.split("{")[0].rstrip("/") or "/", status=str(status))

    def is_locked(self, request: Request) -> bool:
        """Whether a request lacks the key."""
        key = self.server.config.api_key
        if not key or request.url.path in OPEN:
            return False
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        # In a time that does not depend on how much of the key is right.
        is_right = hmac.compare_digest(given.strip().encode("latin-1", "replace"), key.encode())
        return scheme.lower() != "bearer" or not is_right


async def api_error(_: Request, error: Exception) -> Response:
    """The reply of an error that a path has raised."""
    assert isinstance(error, ApiError)
    return JsonReply(error.body(), error.status, headers=error.headers)


async def http_error(_: Request, error: Exception) -> Response:
    """The reply for a path or method that there is none of."""
    assert isinstance(error, HTTPException)
    message = {404: "there is no such path; see /openapi.json", 405: "the path has no such method"}
    return JsonReply(
        ApiError(error.status_code, message.get(error.status_code, error.detail)).body(),
        error.status_code,
        headers=error.headers,
    )


async def our_mistake(_: Request, error: Exception) -> Response:
    """The reply for a mistake of ours, whose traceback the server prints."""
    return JsonReply(ApiError(500, f"a mistake of the server ({type(error).__name__})").body(), 500)
