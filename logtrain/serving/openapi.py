"""The description of the server's API that /openapi.json gives (OpenAPI 3.1)."""

from typing import Any

from logtrain.serving.schema import CHAT, COMPLETION, DETOKENIZE, TOKENIZE, Schema

TITLE = "logtrain serve"
ERROR: Schema = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
            "required": ["message", "type", "param", "code"],
        }
    },
    "required": ["error"],
}
USAGE: Schema = {
    "type": "object",
    "properties": {name: {"type": "integer"} for name in ("prompt_tokens", "completion_tokens", "total_tokens")},
    "required": ["prompt_tokens", "completion_tokens", "total_tokens"],
}
MODEL: Schema = {
    "type": "object",
    "properties": {
        "id": {"type": "string"},
        "object": {"const": "model"},
        "created": {"type": "integer"},
        "owned_by": {"type": "string"},
        "max_model_len": {"type": "integer"},
    },
    "required": ["id", "object", "created", "owned_by"],
}
ERRORS = {
    400: "The request is wrong",
    401: "No key, or a wrong one",
    404: "No such model",
    405: "No such method",
    408: "The request came too slowly",
    413: "The request is too large",
    415: "The request is not JSON",
    429: "The queue is full; Retry-After says when another try is worth it",
    503: "No worker can answer now; Retry-After says when another try is worth it",
    504: "The answer was not complete in time",
}


def fields(**properties: Schema) -> Schema:
    """An object with these fields, all of which are there."""
    return {"type": "object", "properties": properties, "required": list(properties)}


def answers(kind: str) -> Schema:
    """The reply of an endpoint that answers."""
    choices = {"type": "array", "items": {"type": "object"}}
    text, whole = {"type": "string"}, {"type": "integer"}
    return fields(id=text, object={"const": kind}, created=whole, model=text, choices=choices, usage=USAGE)


def description(needs_key: bool) -> dict[str, Any]:
    """The whole description."""
    count = {"type": "integer"}
    tokens = fields(tokens={"type": "array", "items": count}, count=count, max_model_len=count)
    status = fields(status={"type": "string"}, workers_ready=count, workers=count)
    models = fields(object={"const": "list"}, data={"type": "array", "items": MODEL})
    name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
    paths = {
        "/v1/chat/completions": post("Answer a conversation", CHAT, answers("chat.completion"), streams=True),
        "/v1/completions": post("Continue a text", COMPLETION, answers("text_completion"), streams=True),
        "/tokenize": post("The tokens of a text or a conversation", TOKENIZE, tokens),
        "/detokenize": post("The text of tokens", DETOKENIZE, fields(prompt={"type": "string"})),
        "/v1/models": get("The models that requests may name", models),
        "/v1/models/{name}": {"get": {**get("One of them", MODEL)["get"], "parameters": [name]}},
        "/health": get("Whether the server can answer", status, also={503: status}),
        "/metrics": get("What the server has done, for Prometheus", None),
        "/openapi.json": get("This description", {"type": "object"}),
    }
    found = {"openapi": "3.1.0", "info": {"title": TITLE, "version": "1"}, "paths": paths}
    if needs_key:
        found["components"] = {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}}
        found["security"] = [{"key": []}]
    return found


def reply(what: str, schema: Schema | None, streams: bool = False) -> dict[str, Any]:
    """A reply; one without a schema is plain text."""
    content: dict[str, Any] = {"application/json": {"schema": schema}} if schema else {"text/plain": {}}
    if streams:
        content["text/event-stream"] = {}
    return {"description": what, "content": content}


def get(what: str, schema: Schema | None, also: dict[int, Schema] | None = None) -> dict[str, Any]:
    """A path that is read."""
    replies = {"200": reply(what, schema)}
    replies |= {str(status): reply(ERRORS[status], ERROR) for status in (401, 404, 405)}
    replies |= {str(status): reply(ERRORS[status], schema) for status, schema in (also or {}).items()}
    return {"get": {"summary": what, "responses": replies}}


def post(what: str, body: Schema, schema: Schema, streams: bool = False) -> dict[str, Any]:
    """A path that is asked."""
    replies = {"200": reply(what, schema, streams)}
    replies |= {str(status): reply(text, ERROR) for status, text in ERRORS.items()}
    content = {"required": True, "content": {"application/json": {"schema": body}}}
    return {"post": {"summary": what, "requestBody": content, "responses": replies}}
