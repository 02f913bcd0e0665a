"""Chat templates that are written to do harm: none gets at Python, and none works for more than a moment."""

import resource
import time

import pytest

from logtrain.text.chat_template import ChatTemplate, Turn
from logtrain.text.tokenizer import Tokenizer
from tests.support.chats import TRIMMING, write_tokenizer

SECONDS, BYTES = 5, 600 << 20

GADGETS = [
    "''.__class__.__mro__[1].__subclasses__()",
    "''['__class__']",
    "'' | attr('__class__')",
    "messages.__class__",
    "messages[0].__init__.__globals__",
    "cycler.__init__.__globals__.os.popen('id').read()",
    "joiner.__init__.__globals__['os']",
    "namespace.__init__.__globals__",
    "lipsum.__globals__.os",
    "self.__init__.__globals__",
    "self._TemplateReference__context",
    "raise_exception.__globals__",
    "raise_exception.__code__",
    "strftime_now.__globals__",
    "strftime_now.__self__.__class__",
    "strftime_now.__closure__",
    "range.__class__",
    "dict.__base__",
    "dict.fromkeys.__self__.__base__",
    "'{0.__class__}'.format('x')",
    "'{0.__class__}' | format('x')",
    "'{x.__class__.__mro__}'.format_map({'x': 1})",
    "('{0.__cl' ~ 'ass__}').format(messages)",
    "'%s' | format(messages.__class__)",
    "messages | map(attribute='__class__') | list",
    "messages | selectattr('__class__.__name__', 'eq', 'dict') | map(attribute='__class__') | first",
    "messages | sort(attribute='__class__') | first",
    "(messages | map('upper')).gi_frame",
    "(messages | map('upper')).gi_frame.f_globals",
    "messages.append(1)",
    "messages.pop()",
    "messages[0].update({'role': 'x'})",
    "messages[0].clear()",
    "messages.sort()",
    "config",
    "environment.globals",
    "get_flashed_messages.__globals__",
    "url_for.__globals__",
    "joiner.__call__.__func__.__globals__",
    "caller.__class__",
    "loop.__class__",
    "'x'.encode().__class__",
    "''.join.__self__.__class__",
    "(1).__class__.__bases__",
    "[].__reduce_ex__(2)",
    "'a'.translate({97: 'x' * 9})",
    "'abc'.maketrans.__self__.mro()",
    "{}.items.__self__.__class__",
    "namespace(a=1).__class__",
    "messages[0]['content'].__doc__.__class__",
    "lipsum(n=10**9)",
    "weighed.__self__",
]
BOMBS = {
    "a string repeated": "{{ 'x' * 10**10 }}",
    "a list repeated": "{{ ([1] * 10**9) | length }}",
    "an integer": "{{ 10**10**8 }}",
    "integers that are squared":
        "{% set n = namespace(x=3) %}{% for i in range(60) %}{% set n.x = n.x * n.x %}{% endfor %}",
    "nested ranges": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a longer range": "{% for a in range(10**12) %}{% endfor %}",
    "loops over text": (
        "{% set n = namespace(s='x') %}{% for i in range(14) %}{% set n.s = n.s ~ n.s %}{% endfor %}"
        "{% for a in n.s %}{% for b in n.s %}{% endfor %}{% endfor %}"
    ),
    "a string that doubles":
        "{% set n = namespace(s='x') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    "a sum that doubles": "{% set n = namespace(s='x') %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "a join that doubles": (
        "{% set n = namespace(s='x') %}{% for i in range(60) %}{% set n.s = [n.s, n.s] | join %}{% endfor %}"
    ),
    "a method that doubles": (
        "{% set n = namespace(s='x') %}{% for i in range(60) %}{% set n.s = n.s.join([n.s, n.s, n.s]) %}{% endfor %}"
    ),
    "lists that hold themselves": (
        "{% set n = namespace(l=[1]) %}{% for i in range(60) %}{% set n.l = [n.l, n.l] %}{% endfor %}{{ n.l }}"
    ),
    "lists that are compared": (
        "{% set n = namespace(a=[1], b=[1]) %}{% for i in range(60) %}{% set n.a = [n.a, n.a] %}"
        "{% set n.b = [n.b, n.b] %}{% endfor %}{{ n.a == n.b }}"
    ),
    "macros that call themselves": (
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(90) }}"
    ),
    "a macro without end": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "a loop that calls itself": "{% for x in [[1], [1]] recursive %}{{ loop([[1], [1]]) }}{% endfor %}",
    "blocks": "{% block a %}{{ self.b() }}{{ self.b() }}{% endblock %}{% block b %}{{ self.a() }}{% endblock %}",
    "JSON with an indentation": "{{ messages | tojson(indent=2000000000) }}",
    "JSON with an indentation of text": "{{ messages | tojson(indent='x' * 10000000) }}",
    "JSON with a float": "{{ messages | tojson(indent=2e9) }}",
    "an indentation": "{{ 'a\n' | indent(10**10) }}",
    "a centred text": "{{ 'a'.center(10**10) }}",
    "a justified text": "{{ 'a'.ljust(10**10) }}{{ 'a'.zfill(10**10) }}",
    "tabs": "{{ '\t'.expandtabs(10**10) }}",
    "a replacement of nothing": "{{ ('a' * 100000).replace('', 'b' * 100000) }}",
    "the filter replace": "{{ ('a' * 100000) | replace('a', 'b' * 100000) }}",
    "the filter join": "{{ range(99999) | join('b' * 100000) }}",
    "a width": "{{ '%010000000000d' % 1 }}",
    "a width from outside": "{{ '%*d' % (10**10, 1) }}",
    "a width of format": "{{ '{:>10000000000}'.format(1) }}",
    "a width of format from outside": "{{ '{:>{w}}'.format(1, w=10**10) }}",
    "a precision": "{{ 1 | round(10**9) }}",
    "a date": "{{ strftime_now('%c' * 10000000) }}",
    "batches": "{{ [1] | batch(10**9, 'x') | list }}",
    "slices": "{{ [1] | slice(10**9) | list }}",
    "words": "{{ lipsum(10**6) }}",
    "generators that give nothing": (
        "{% for i in range(99999) %}{{ range(99999) | select('none') | list }}{% endfor %}"
    ),
    "comparisons of long texts": (
        "{% set a = 'x' * 5000000 %}{% set b = a ~ 'y' %}"
        "{% for i in range(99999) %}{% if b in a %}{% endif %}{% endfor %}"
    ),
    "slices of long texts": "{% set a = 'x' * 5000000 %}{% for i in range(99999) %}{% set b = a[1:] %}{% endfor %}",
    "splits": "{{ ('a,' * 20000000).split(',') | length }}",
    "keys that are hashed":
        "{% set t = (1,) * 50000 %}{% set d = {'a': 1} %}{% for i in range(99999) %}{% set x = d[t] %}{% endfor %}",
    "a dictionary of lists":
        "{% set n = namespace(t=(1,)) %}{% for i in range(60) %}{% set n.t = (n.t, n.t) %}{% endfor %}"
    "{{ {n.t: 1} }}",
    "brackets": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "lists within lists": "{{ " + "[" * 300 + "]" * 300 + " }}",
    "conditions within conditions": "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
    "a sum of many": "{{ " + "+".join(["1"] * 20000) + " }}",
    "an include": "{% include '/etc/passwd' %}",
    "an import": "{% import '/etc/passwd' as p %}",
    "a parent": "{% extends '/etc/passwd' %}",
    "a lone surrogate": "{{ '\\ud800' }}",
    "an error with lines": "{{ raise_exception('a\nb' * 100000) }}",
    "only in a long conversation": "{% if messages | length > 3 %}{{ 'x' * 10**10 }}{% endif %}",
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    return Tokenizer.load(write_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.mark.parametrize("gadget", GADGETS)
def test_no_gadget_gets_at_python(tokenizer, gadget: str):
    """Each is refused, or is nothing: what it is said to be is never Python's."""
    try:
        template = ChatTemplate(tokenizer, TRIMMING + "{# #}{{ 'KEEP' }}".replace("'KEEP'", f"({gadget}) | string"))
        template.check_trainable()
    except ValueError as error:
        assert "\n" not in str(error)
        return
    said = template.render([Turn("user", "a")]).rpartition("<|eot|>")[2]
    assert said.strip() in ("", "[]", "None"), said


@pytest.mark.parametrize("bomb", BOMBS)
def test_no_template_works_for_more_than_a_moment(tokenizer, bomb: str):
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(ValueError) as error:
        ChatTemplate(tokenizer, BOMBS[bomb] + TRIMMING, where="template.jinja").check_trainable()
    took = time.monotonic() - began
    assert took < SECONDS
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < BYTES
    assert str(error.value).startswith("template.jinja: ")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1000


def test_a_bomb_that_waits_for_a_longer_conversation_is_stopped_then(tokenizer):
    loops = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    source = f"{{% if messages | length > 9 %}}{loops}{{% endif %}}"
    template = ChatTemplate(tokenizer, TRIMMING + source)
    assert template.prompt([Turn("user", "a")])
    began = time.monotonic()
    with pytest.raises(ValueError, match=r"turn 10 \(user\): the chat template fails \(it does more than any"):
        template.prompt([Turn("user", "a"), Turn("assistant", "b")] * 5 + [Turn("user", "c")])
    assert time.monotonic() - began < SECONDS


def test_long_honest_conversations_are_rendered(tokenizer):
    """A megabyte in one turn, and a thousand turns."""
    template = ChatTemplate(tokenizer, TRIMMING)
    assert len(template.render([Turn("user", "x" * 1_000_000)])) > 1_000_000
    many = [Turn("user", "question " * 20), Turn("assistant", "answer " * 20)] * 500
    assert template.render(many).count("<|eot|>") == 1000
