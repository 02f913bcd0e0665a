"""The jinja sandbox in which a chat template is rendered, with what transformers gives to templates.

jinja2's own sandbox keeps a template from Python's insides, not from the machine: nested loops, doubling strings or
`"x" * 10**10` would run for ever or fill the memory. So all that a template does is counted (template_budget.py): each
operation of its syntax tree (template_tree.py), each filter, call and method pays for what it works on before it does.
Filters that no chat template needs are left out.
"""

import datetime
import functools
import json
import threading
from collections.abc import Callable
from typing import Any

import jinja2
from jinja2 import ext, nodes, sandbox
from jinja2.parser import Parser
from jinja2.runtime import Context

from logtrain.text.template_budget import CALL, STEP, Budget
from logtrain.text.template_tree import CountOperations

FILTERS = (
    *("abs", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float", "forceescape"),
    *("indent", "int", "items", "join", "last", "length", "list", "lower", "map", "max", "min", "reject"),
    *("rejectattr", "replace", "reverse", "round", "safe", "select", "selectattr", "sort", "string", "title", "tojson"),
    *("trim", "truncate", "unique", "upper", "wordcount"),
)
GLOBALS = ("range", "dict", "namespace", "cycler", "joiner")
REFUSED_METHODS = {"translate", "to_bytes", "from_bytes", "format_map"}
QUICK = ("length", "count", "first", "last", "default", "d", "safe", "defined", "undefined", "none", "mapping")
QUICK += ("iterable", "sequence", "number", "boolean", "true", "false", "integer", "callable")
LONGEST_DATE_FORMAT = 1000
LARGEST_EXPONENT, LARGEST_INTEGER = 64, 1 << 256


def compile_template(source: str, date: str) -> "BoundedTemplate":
    """Compiles a template; `date`, as 2024-07-26, is the day that `strftime_now` tells the time of. Raises
    jinja2.TemplateSyntaxError.
    """
    return BoundedTemplate(source, date)


class BoundedTemplate(threading.local):
    """A template of which each thread has a copy, with the budget of the rendering that it is at."""

    def __init__(self, source: str, date: str):
        """See `compile_template`."""
        self.budget = Budget(len(source))
        environment = Environment(self.budget)
        today = datetime.datetime.fromisoformat(date)
        environment.globals["strftime_now"] = lambda form: today.strftime(form[:LONGEST_DATE_FORMAT])
        try:
            self.template = environment.from_string(source)
        except (
            RecursionError,
            MemoryError,
            SyntaxError,
            OverflowError,
            ValueError,
        ):  # Python's compiler, of the result
            what = "nested too deep, or written otherwise so that it cannot be compiled"
            raise jinja2.TemplateSyntaxError(what, 1) from None

    def render(self, messages: list[dict[str, str]], **variables: object) -> str:
        """Renders a conversation. Raises what a template's expressions may raise: any Exception."""
        self.budget.start(sum(len(message["content"]) for message in messages))
        return self.template.render(messages=messages, **variables)


class Environment(sandbox.ImmutableSandboxedEnvironment):
    """A sandbox that counts. budget: what its rendering may still do; it has one at a time."""

    intercepted_binops = frozenset(["*", "**", "%"])

    def __init__(self, budget: Budget):
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlock, ext.loopcontrols], optimized=False
        )
        self.budget = budget
        self.filters = {name: self.bounded(name, self.filters[name]) for name in FILTERS if name != "tojson"} | {
            "tojson": self.bounded("tojson", to_json),
            "weighed": budget.weighed,
            "counted": budget.counted,
            "copied": budget.copied,
            "searched": budget.searched,
        }
        self.tests = {name: self.bounded(name, test) for name, test in self.tests.items()}
        self.globals = {name: self.globals[name] for name in GLOBALS} | {"raise_exception": raise_exception}

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        return super()._generate(CountOperations(self).visit(source), *args, **kwargs)

    def bounded(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Returns a filter or a test that pays for its arguments and its result."""
        budget, growth, is_quick = self.budget, GROWTH.get(name), name in QUICK

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if is_quick:
                budget.spend(STEP)
                return function(*args, **kwargs)
            if not kwargs and len(args) == 1 and type(args[0]) is str:
                return budget.weighed(function(budget.weighed(args[0])))
            spent = sum(map(budget.weigh, (*args, *kwargs.values())))
            if growth:
                budget.spend(growth(spent, args, kwargs))
            return budget.one_by_one(budget.weighed(function(*args, **kwargs)))

        return call

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Returns `left operator right`. Raises jinja2.TemplateError where the result would be too large."""
        if operator == "**" and not (is_small(left) and abs(right) <= LARGEST_EXPONENT):
            raise jinja2.TemplateError("a power of large numbers")
        if operator == "*" and (is_sized(left) or is_sized(right)):
            sized, times = (left, right) if is_sized(left) else (right, left)
            self.budget.spend(self.budget.weigh(sized) * max(0, times))
        elif operator == "%" and isinstance(left, str | bytes):
            check_format(left, "%")
            self.budget.weigh(right)
        result = super().call_binop(context, operator, left, right)
        if type(result) is int and not is_small(result):
            raise jinja2.TemplateError("an integer of more than 256 bits")
        return self.budget.weighed(result)

    def call(self, context: Context, function: Any, *args: Any, **kwargs: Any) -> Any:
        """Calls a macro, a method or a global, after its arguments have been paid for."""
        self.budget.spend(CALL)
        args = tuple(self.budget.one_by_one(self.budget.weighed(value)) for value in args)
        kwargs = {name: self.budget.weighed(value) for name, value in kwargs.items()}
        owner, name = getattr(function, "__self__", None), getattr(function, "__name__", "")
        if name in REFUSED_METHODS:
            raise jinja2.TemplateError(f"{name} is nothing that a chat template may call")
        if isinstance(owner, str | bytes):
            args = self.check_method(owner, name, args)
        return self.budget.weighed(super().call(context, function, *args, **kwargs))

    def check_method(self, owner: Any, name: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Pays for a string's method before it is called; returns its arguments."""
        self.budget.weigh(owner)
        if name == "replace" and len(args) > 1:
            self.budget.spend(owner.count(args[0]) * len(args[1]))
        if name == "join" and args:
            args = (list(args[0]), *args[1:])
            self.budget.spend(len(owner) * len(args[0]))
        if name in ("center", "ljust", "rjust", "zfill") and args:
            self.budget.spend(args[0])
        if name == "expandtabs":
            self.budget.spend(len(owner) * (args[0] if args else 8))
        return args

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Returns a string's `format` method. Raises jinja2.TemplateError for widths that would fill the memory."""
        wrapped = super().wrap_str_format(value)
        if wrapped is not None:
            check_format(value.__self__, "{")
        return wrapped


def is_sized(value: object) -> bool:
    """Tells whether a value can be repeated: whether it is a text or a list."""
    return isinstance(value, str | bytes | list | tuple)


def is_small(value: Any) -> bool:
    """Tells whether arithmetic with a number is quick: whether it has 256 bits at most."""
    return abs(value) < LARGEST_INTEGER


def check_format(text: str | bytes, sign: str) -> None:
    """Raises jinja2.TemplateError for a format with a width of thousands, or one that an argument gives."""
    shown = text.decode("latin-1") if isinstance(text, bytes) else text
    for part in shown.split(sign)[1:]:
        spec = part[:12] if sign == "%" else part.partition("}")[0]
        digits = max(map(len, "".join(c if c.isdigit() else " " for c in spec).split()), default=0)
        if digits > 3 or "*" in spec or (sign == "{" and ":" in spec and "}" not in part):
            raise jinja2.TemplateError("a format with a width of thousands, or one that an argument gives")


def growth_of_join(spent: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
    """Returns the units that the filter `join` takes: every part has a separator."""
    return spent / STEP * len(str(args[2] if len(args) > 2 else kwargs.get("d", "")))


def growth_of_replace(spent: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
    """Returns the units that the filter `replace` takes: each text that is found becomes the new one."""
    text, old, new = (*args[1:], *kwargs.values())[:3]
    return str(text).count(str(old)) * len(str(new))


def growth_of_indent(spent: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
    """Returns the units that the filters `indent` and `tojson` take: every part may be a line."""
    width = args[1] if len(args) > 1 else kwargs.get("width", kwargs.get("indent")) or 0
    return spent * (len(width) if isinstance(width, str) else abs(width))


def growth_of_round(spent: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
    """Returns the units that the filter `round` takes, which computes a power of ten."""
    return 10.0 ** min(300, abs(args[1] if len(args) > 1 else kwargs.get("precision", 0)) / 10)


Growth = Callable[[int, tuple[Any, ...], dict[str, Any]], float]
GROWTH: dict[str, Growth] = {
    "join": growth_of_join,
    "replace": growth_of_replace,
    "indent": growth_of_indent,
    "tojson": growth_of_indent,
    "round": growth_of_round,
}


class GenerationBlock(ext.Extension):
    """{% generation %} ... {% endgeneration %}, by which some templates mark their answers: its content is rendered.
    What is set in it is not known behind it.
    """

    tags = {"generation"}  # noqa: RUF012 (jinja2 reads it of the class)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def raise_exception(message: str) -> None:
    """Raises jinja2.TemplateError: a template calls it for turns that it refuses."""
    raise jinja2.TemplateError(message)


def to_json(value: object, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    """The filter `tojson` of transformers; jinja2's own would escape < and > for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
