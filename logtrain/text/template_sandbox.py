"""The jinja sandbox in which a chat template is rendered, with all that transformers gives to templates."""

import datetime
import json

import jinja2
from jinja2 import ext, sandbox
from jinja2.nodes import Node
from jinja2.parser import Parser


def compile_template(source: str, date: str) -> jinja2.Template:
    """Template text -> what renders it; `date`, as 2024-07-26, is the day that `strftime_now` tells the time of. Raises
    jinja2.TemplateSyntaxError.
    """
    environment = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlock, ext.loopcontrols]
    )
    environment.filters["tojson"] = to_json
    today = datetime.datetime.fromisoformat(date)
    environment.globals |= {"raise_exception": raise_exception, "strftime_now": today.strftime}
    return environment.from_string(source)


class GenerationBlock(ext.Extension):
    """{% generation %} ... {% endgeneration %}, by which some templates mark their answers: its content is rendered."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 reads it of the class)

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def raise_exception(message: str) -> None:
    """What a template calls for turns that it refuses."""
    raise jinja2.TemplateError(message)


def to_json(value: object, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    """The filter `tojson` of transformers; jinja2's own would escape < and > for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
