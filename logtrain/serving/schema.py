"""What a request may hold, as JSON Schema: the requests are checked by it, and /openapi.json shows it.

Fields that are not here are ignored, as vLLM's server does; those that would change an answer in a way that this one
cannot are refused by name.
"""

import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from logtrain.core.untrusted import json_type, shown
from logtrain.serving.errors import ApiError

Schema = Mapping[str, Any]
MOST_TEXT = 1 << 24  # characters; --max_body is the bound that is met first
MOST_ITEMS = 1 << 20
I63 = 1 << 63


def number(least: float, most: float, help: str) -> Schema:
    """A number within bounds, or null."""
    return {"type": ["number", "null"], "minimum": least, "maximum": most, "description": help}


def integer(least: int, most: int, help: str) -> Schema:
    """An integer within bounds, or null."""
    return {"type": ["integer", "null"], "minimum": least, "maximum": most, "description": help}


def switch(help: str) -> Schema:
    """True, false or null."""
    return {"type": ["boolean", "null"], "description": help}


TEXT = {"type": "string", "maxLength": MOST_TEXT}
IDS = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": I63 - 1}, "maxItems": MOST_ITEMS}
TEXT_PART = {
    "type": "object",
    "properties": {"type": {"type": "string", "enum": ["text"]}, "text": TEXT},
    "required": ["type", "text"],
}
MESSAGE = {
    "type": "object",
    "properties": {
        "role": {"type": "string", "enum": ["system", "developer", "user", "assistant"]},
        "content": {
            "anyOf": [TEXT, {"type": "array", "items": TEXT_PART, "maxItems": 1024}],
            "description": "Text, or parts of type text.",
        },
    },
    "required": ["role", "content"],
}
MODEL = {"type": ["string", "null"], "maxLength": 1000, "description": "A name that /v1/models lists."}
STOP = {
    "anyOf": [
        {"type": "null"},
        {"type": "string", "minLength": 1, "maxLength": 1000},
        {"type": "array", "items": {"type": "string", "minLength": 1, "maxLength": 1000}, "maxItems": 16},
    ],
    "description": "Strings that end the answer, of which they are no part.",
}
LONGEST_ANSWER = 1 << 24
BOTH: dict[str, Schema] = {
    "model": MODEL,
    "max_tokens": integer(0, LONGEST_ANSWER, "The most tokens of an answer."),
    "temperature": number(0, 2, "Divisor of the logits; 0 takes the likeliest token."),
    "top_p": number(0, 1, "Tokens are drawn among the likeliest whose probabilities have this sum."),
    "top_k": integer(-1, I63 - 1, "Tokens are drawn among so many of the likeliest; -1 or 0: among all."),
    "min_p": number(0, 1, "Tokens less likely than this part of the likeliest one's probability are not drawn."),
    "repetition_penalty": number(0.01, 100, "Divisor of the logits of tokens that prompt or answer has already."),
    "presence_penalty": number(-2, 2, "What is taken from the logits of tokens that the answer has already."),
    "frequency_penalty": number(-2, 2, "The same for each time that the answer has the token."),
    "logit_bias": {
        "type": ["object", "null"],
        "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
        "maxProperties": 1024,
        "description": "What is added to logits, by token id.",
    },
    "seed": integer(-I63, I63 - 1, "The same request with the same seed gets the same answer."),
    "n": integer(1, 128, "How many answers are wanted."),
    "stop": STOP,
    "stop_token_ids": {
        "type": ["array", "null"],
        "items": {"type": "integer", "minimum": 0, "maximum": I63 - 1},
        "maxItems": 1024,
        "description": "Tokens that end the answer beside those of the model.",
    },
    "ignore_eos": switch("Whether the answer goes on after a token that ends it."),
    "stream": switch("Whether the answer comes in pieces, as server-sent events."),
    "stream_options": {
        "type": ["object", "null"],
        "properties": {"include_usage": switch("Whether a last piece says how many tokens there were.")},
    },
    "response_format": {
        "type": ["object", "null"],
        "properties": {"type": {"type": "string", "enum": ["text", "json_object"]}},
        "required": ["type"],
        "description": "json_object: the answer is a JSON object, whatever the model would say.",
    },
}
CHAT: Schema = {
    "type": "object",
    "properties": {
        "messages": {"type": "array", "items": MESSAGE, "minItems": 1, "maxItems": 10_000},
        **BOTH,
        "max_completion_tokens": integer(1, LONGEST_ANSWER, "The same as max_tokens, by its newer name."),
        "logprobs": switch("Whether log-probabilities of the answer's tokens are told."),
        "top_logprobs": integer(0, 20, "How many of the likeliest tokens are told at each."),
    },
    "required": ["messages"],
}
COMPLETION: Schema = {
    "type": "object",
    "properties": {
        "prompt": {
            "anyOf": [
                TEXT,
                {"type": "array", "items": TEXT, "minItems": 1, "maxItems": 2048},
                {**IDS, "minItems": 1},
                {"type": "array", "items": {**IDS, "minItems": 1}, "minItems": 1, "maxItems": 2048},
            ],
            "description": "A text, a list of token ids, or a list of either. In a text special tokens are recognised.",
        },
        **BOTH,
        "echo": switch("Whether the prompt stands before the answer."),
        "logprobs": integer(0, 20, "How many of the likeliest tokens are told at each, with their log-probabilities."),
    },
    "required": ["prompt"],
}
TOKENIZE: Schema = {
    "type": "object",
    "properties": {
        "model": MODEL,
        "prompt": {**TEXT, "description": "A text; or, instead, messages as a chat has them."},
        "messages": {"type": "array", "items": MESSAGE, "minItems": 1, "maxItems": 10_000},
    },
}
DETOKENIZE: Schema = {"type": "object", "properties": {"model": MODEL, "tokens": IDS}, "required": ["tokens"]}

REFUSED: dict[str, tuple[Any, ...]] = {  # fields with the values, beside null, that say nothing
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "audio": (),
    "modalities": (["text"],),
    "suffix": ("",),
    "best_of": (1,),
    "use_beam_search": (False,),
    "min_tokens": (0,),
    "prompt_logprobs": (0,),
    "prompt_embeds": (),
    "truncate_prompt_tokens": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "structured_outputs": (),
    "continue_final_message": (False,),
    "add_generation_prompt": (True,),
    "chat_template": (),
    "documents": ([],),
    "logits_processors": ([],),
}


def check_request(body: Any, schema: Schema) -> dict[str, Any]:
    """A request's object without the fields that are null. Raises ApiError for one that is not as its schema says."""
    if not isinstance(body, dict):
        raise ApiError(400, f"the request is {json_type(body)}; expected a JSON object")
    for name, neutral in REFUSED.items():
        if body.get(name) is not None and body[name] not in neutral and name not in schema["properties"]:
            message = f"{name} = {shown(body[name])}: this server does not support it; leave it out"
            raise ApiError(400, message, param=name, code="unsupported_parameter")
    if wrong := mistake(body, schema, ""):
        raise ApiError(400, wrong.message, param=wrong.where or None)
    known = schema["properties"]
    found = {name: value for name, value in body.items() if value is not None and name in known}
    is_whole = {name: known[name].get("type") == ["integer", "null"] for name in found}
    return {name: int(value) if is_whole[name] else value for name, value in found.items()}  # of 1.0, too


class Mistake(NamedTuple):
    """What is not as a schema says."""

    where: str
    """The field, as messages[0].content."""
    message: str
    is_type: bool = False
    """Whether the value is of another type than all that are allowed."""


def mistake(value: Any, schema: Schema, where: str) -> Mistake | None:
    """The first mistake in a value, None if all is as a schema says."""
    if "anyOf" in schema:
        found = [mistake(value, option, where) for option in schema["anyOf"]]
        if None in found:
            return None
        near = [wrong for wrong in found if wrong and not wrong.is_type]
        kinds = dict.fromkeys(" or ".join(words(option)) for option in schema["anyOf"])
        expected = schema["description"] if len(kinds) < len(found) else f"expected {' or '.join(kinds)}"
        return near[0] if near else Mistake(where, f"{where} = {shown(value)}: {expected}", True)
    if not has_type(value, schema):
        return Mistake(where, f"{where} = {shown(value)}: expected {' or '.join(words(schema))}", True)
    if reason := out_of_bounds(value, schema):
        return Mistake(where, f"{where} = {shown(value)}: {reason}")
    if isinstance(value, list):
        items = schema["items"]
        if items.get("type") == "integer" and fast_integers(value, items):
            return None
        return next((w for i, item in enumerate(value) if (w := mistake(item, items, f"{where}[{i}]"))), None)
    return of_object(value, schema, where) if isinstance(value, dict) else None


def of_object(value: dict[str, Any], schema: Schema, where: str) -> Mistake | None:
    """`mistake`, of an object's fields."""
    start = f"{where}." if where else ""
    properties, others = schema.get("properties", {}), schema.get("additionalProperties")
    for name, item in value.items():
        inner = properties.get(name, others)
        if inner is not None and (wrong := mistake(item, inner, f"{start}{name[:50]}")):
            return wrong
    missing = next((name for name in schema.get("required", ()) if name not in value), None)
    return Mistake(f"{start}{missing}", f"{start}{missing}: missing") if missing else None


def fast_integers(values: list[Any], schema: Schema) -> bool:
    """Whether all are integers within bounds: a prompt may have 100,000."""
    return all(type(value) is int for value in values) and (
        not values or (min(values) >= schema["minimum"] and max(values) <= schema["maximum"])
    )


def types(schema: Schema) -> list[str]:
    """The names of a schema's types."""
    return [schema["type"]] if isinstance(schema["type"], str) else schema["type"]


def words(schema: Schema) -> list[str]:
    """Its types in words, without null."""
    named = {"integer": "an integer", "number": "a number", "boolean": "true or false", "string": "a string"}
    named |= {"array": "an array", "object": "an object", "null": "null"}
    return [named[name] for name in types(schema) if name != "null"] or ["null"]


def has_type(value: Any, schema: Schema) -> bool:
    """Whether a value has one of a schema's types. 1.0 is an integer, as JSON Schema has it."""
    kinds = types(schema)
    if value is None or isinstance(value, bool):
        return ("null" if value is None else "boolean") in kinds
    if isinstance(value, int):
        return "number" in kinds or "integer" in kinds
    if isinstance(value, float):
        return "number" in kinds or ("integer" in kinds and value.is_integer())
    return {str: "string", list: "array", dict: "object"}[type(value)] in kinds


def out_of_bounds(value: Any, schema: Schema) -> str:
    """What of a schema's bounds a value breaks, in words; empty if none."""
    if isinstance(value, bool) or value is None:
        return ""
    if isinstance(value, int | float):
        least, most = schema.get("minimum", -math.inf), schema.get("maximum", math.inf)
        return "" if least <= value <= most else f"expected {least} to {most}"
    if isinstance(value, str):
        if "enum" in schema and value not in schema["enum"]:
            return f"expected one of {', '.join(map(json.dumps, schema['enum']))}"
        least, most, what = schema.get("minLength", 0), schema.get("maxLength", math.inf), "characters"
        if not value.isascii() and value.encode(errors="replace").decode() != value:
            return "half of a surrogate pair is no text"
    elif isinstance(value, list):
        least, most, what = schema.get("minItems", 0), schema.get("maxItems", math.inf), "items"
    else:
        least, most, what = 0, schema.get("maxProperties", math.inf), "fields"
    return "" if least <= len(value) <= most else f"{len(value):,} {what}; expected {least:,} to {most:,}"
