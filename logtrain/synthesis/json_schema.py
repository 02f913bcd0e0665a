"""JSON that a teacher returns, read and held to a schema.

The schema is the part of JSON Schema (2020-12) that answers about logs need: type, properties, required, items, enum,
minItems, maxItems, minLength, maxLength, minimum, maximum, description. Keys that `properties` does not have are
refused, as OpenAI's strict mode does. There is no `pattern`, by which a text from outside could keep a regular
expression busy for ever, and no `$ref`, so that a schema is read top to bottom; a library would bring both.
"""

import json
import math
from typing import Any

from logtrain.core.untrusted import check_depth, json_type
from logtrain.data.json_value import RowDecoder
from logtrain.data.lines import BadRow

MAX_DEPTH = 12
KINDS: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}
SIZES = ("minItems", "maxItems", "minLength", "maxLength", "minimum", "maximum")
KEYWORDS = {"type", "properties", "required", "items", "enum", "description", *SIZES}


def check_schema(schema: Any, at: str = "schema", depth: int = 0) -> None:
    """Raises ValueError for a schema that is none, or that says what is not read here."""
    if not isinstance(schema, dict) or depth > MAX_DEPTH:
        raise ValueError(f"{at}: expected a table, at most {MAX_DEPTH} within each other")
    if schema.get("type") not in KINDS:
        raise ValueError(f"{at}.type: expected one of {', '.join(KINDS)}")
    if unknown := sorted(schema.keys() - KEYWORDS):
        raise ValueError(f"{at}.{unknown[0]}: not supported; there are {', '.join(sorted(KEYWORDS))}")
    for name in SIZES:
        if name in schema and (isinstance(schema[name], bool) or not isinstance(schema[name], int | float)):
            raise ValueError(f"{at}.{name}: expected a number")
    properties = schema.get("properties", {})
    if not isinstance(properties, dict) or not set(schema.get("required", ())) <= properties.keys():
        raise ValueError(f"{at}: required names what properties does not have")
    if schema["type"] == "object" and not properties:
        raise ValueError(f"{at}.properties: missing")
    for name, inner in properties.items():
        check_schema(inner, f"{at}.properties.{name}", depth + 1)
    if schema["type"] == "array":
        check_schema(schema.get("items"), f"{at}.items", depth + 1)


def mismatch(value: Any, schema: dict[str, Any], at: str = "$") -> str:
    """Where and how a JSON value differs from a schema that has been checked; "" where it does not."""
    kind = schema["type"]
    if not is_of(value, kind):
        return f"{at}: expected {kind}, found {json_type(value)}"
    if "enum" in schema and value not in schema["enum"]:
        return f"{at}: none of {', '.join(map(str, schema['enum']))}"
    least, most = {"string": ("minLength", "maxLength"), "array": ("minItems", "maxItems")}.get(kind, SIZES[4:])
    if least in schema or most in schema:
        size = len(value) if kind in ("string", "array") else value
        if not schema.get(least, -math.inf) <= size <= schema.get(most, math.inf):
            return f"{at}: {size} is outside {schema.get(least, '')}..{schema.get(most, '')}"
    if kind == "array":
        return next(filter(None, (mismatch(item, schema["items"], f"{at}[{i}]") for i, item in enumerate(value))), "")
    return mismatch_of_object(value, schema, at) if kind == "object" else ""


def is_of(value: Any, kind: str) -> bool:
    """Whether a JSON value is of a schema's type; true and false are no numbers, and neither is NaN."""
    if isinstance(value, bool):
        return kind == "boolean"
    return isinstance(value, KINDS[kind]) and not (isinstance(value, float) and not math.isfinite(value))


def mismatch_of_object(value: dict[str, Any], schema: dict[str, Any], at: str) -> str:
    """The same, of an object."""
    properties = schema["properties"]
    for name in schema.get("required", ()):
        if name not in value:
            return f"{at}.{name}: missing"
    if value.keys() - properties.keys():
        return f"{at}: a key that the schema does not have"
    return next(filter(None, (mismatch(inner, properties[name], f"{at}.{name}") for name, inner in value.items())), "")


def read_answer(text: str) -> Any:
    """The JSON object that an answer holds, alone, between ``` or with words around it: from the first brace on.
    Raises ValueError for none, for one that is not whole or too deep, and for a key that stands twice.
    """
    start = text.find("{")
    if start < 0:
        raise ValueError("no object in it")
    try:
        value, _ = RowDecoder().value_at(text, start)
    except RecursionError:
        raise ValueError("objects within each other too deep") from None
    if isinstance(value, BadRow):
        raise ValueError(str(value))
    check_depth("answer", value, "an answer")
    return value


def strings_of(value: Any) -> list[str]:
    """All texts and numbers in a JSON value, in their order, without the keys."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [text for item in value for text in strings_of(item)]
    return [] if value is None or isinstance(value, bool) else [str(value)]


def spelled(value: Any) -> str:
    """A JSON value on one line."""
    return json.dumps(value, ensure_ascii=False)
