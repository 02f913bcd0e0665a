"""Which answers are rows: each reason by the least example that has it, and by its nearest neighbour that has not."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logtrain.core.untrusted import MAX_DEPTH
from logtrain.synthesis.checking import judge
from logtrain.synthesis.chunks import Chunk
from logtrain.synthesis.config import SynthesiseConfig
from logtrain.synthesis.json_schema import check_schema, mismatch, read_answer
from logtrain.synthesis.prompts import Task

LOG = "Dec 10 06:55:46 LabSZ sshd[24200]: Failed password for root from 10.0.0.5 port 22\n" * 6
CHUNK = Chunk("OpenSSH", "ssh.log", 1, 6, LOG.rstrip("\n"))
CONFIG = SynthesiseConfig(input=("a=b.log",), run="r", base_url="http://a/v1", teacher="t")
TEXT = Task(name="summary", teacher="t", ask=("why?",), least_chars=40, most_chars=400)
SCHEMA = {
    "type": "object",
    "required": ["anomalies"],
    "properties": {
        "anomalies": {
            "type": "array",
            "maxItems": 2,
            "items": {
                "type": "object",
                "required": ["line", "severity"],
                "properties": {
                    "line": {"type": "string", "minLength": 1, "maxLength": 100},
                    "severity": {"type": "string", "enum": ["low", "high"]},
                    "count": {"type": "integer", "minimum": 0},
                },
            },
        }
    },
}
JSON = Task(name="anomalies", form="json", teacher="t", ask=("which?",), least_chars=5, schema=SCHEMA)
TURNS = Task(name="questions", form="turns", teacher="t", least_chars=5, least_turns=2, most_turns=3)
GERMAN = "Das Protokoll zeigt, dass der Server nicht mit dem Netz verbunden ist und sich der Fehler wiederholt."
GOOD = "The log is about one host: root was refused at 06:55:46 from 10.0.0.5 by sshd[24200]."


def said(task, text, finish="stop", **settings):
    config = CONFIG if not settings else SynthesiseConfig(**{**vars(CONFIG), **settings})
    return judge(config, task, CHUNK, task.ask[0] if task.ask else "", text, finish)


def test_a_good_answer_is_a_row():
    verdict = said(TEXT, f"\n {GOOD}\n")
    assert verdict.rejected == ""
    assert [tuple(turn) for turn in verdict.turns] == [("user", f"why?\n{CHUNK.text}"), ("assistant", GOOD)]
    assert [turn.content for turn in said(TEXT, GOOD, rows="nlplog").turns] == ["why?", GOOD]


@pytest.mark.parametrize(
    ("text", "finish", "reason"),
    [
        (GOOD, "length", "cut: length"),
        (GOOD, "content_filter", "cut: content_filter"),
        (GOOD + "\x1b[31m", "stop", "unprintable: "),
        (GOOD + "\u202e", "stop", "unprintable: "),
        (GOOD.replace(" ", "\t"), "stop", ""),
        ("I'm sorry, but I can't help with that log. " + GOOD, "stop", "refusal: "),
        ("I\u2019m sorry, this is not for me. " + GOOD, "stop", "refusal: "),
        ("As an AI language model, I have no logs. " + GOOD, "stop", "refusal: "),
        ("I cannot assist with this request of yours. " + GOOD, "stop", "refusal: "),
        (GOOD + " The server said: sorry, I cannot assist.", "stop", ""),
        ("Unfortunately the disk is full, as the log shows it. " + GOOD, "stop", ""),
        ("", "stop", "length: 0 characters, not 40 to 400"),
        (GOOD[:30], "stop", "length: 30 characters"),
        (GOOD * 10, "stop", "length: "),
        (GERMAN, "stop", "language: de"),
        ("日志显示有人从该地址登录失败，系统拒绝了该请求，并且没有其他的错误发生，一切正常。", "stop", "language: "),
        ("\n".join([LOG.splitlines()[0]] * 4), "stop", "copy: 4 of 4 lines are the log's"),
        (GOOD + " It was 10.0.0.9 too.", "stop", "ungrounded: 1 of 4 are not in the log: 10.0.0.9"),
    ],
)  # fmt: skip
def test_the_reasons(text, finish, reason):
    rejected = said(TEXT, text, finish).rejected
    assert rejected.startswith(reason) if reason else rejected == ""


def test_grounding_and_language_are_settings():
    wrong = f"{GOOD} It was 10.0.0.9 too."
    assert said(TEXT, wrong, grounded=0.7).rejected == said(TEXT, wrong, grounded=0.0).rejected == ""
    german = "Das ist nicht der Fehler, und die Meldung ist nicht von dem Server, sondern von der Platte."
    assert said(TEXT, german, language="de").rejected == said(TEXT, german, language="any").rejected == ""
    assert said(TEXT, GOOD, language="de").rejected.startswith("language: en")
    assert said(TEXT, "系统在 10.0.0.5 登录失败" * 4, language="zh").rejected == ""


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"anomalies": []}', ""),
        (
            'Here:\n```json\n{"anomalies": [{"line": "sshd[24200]", "severity": "low", "count": 2}]}\n```\nAll.',
            "",
        ),
        ("none", "json: no object in it"),
        ('{"anomalies": [', "json: "),
        ('{"anomalies": [], "anomalies": []}', 'json: "anomalies" stands twice'),
        ('{"a":' * 5000, "json: "),
        ('{"a":' * (MAX_DEPTH + 5) + "1" + "}" * (MAX_DEPTH + 5), "json: "),
        ('{"anomalies": [{"count": 1' + "0" * 5000 + "}]}", "json: an integer of 5,001 digits"),
        ("{}", "schema: $.anomalies: missing"),
        ('{"anomalies": [{"line": "a"}]}', "schema: $.anomalies[0].severity: missing"),
        ('{"anomalies": [{"line": "", "severity": "low"}]}', "schema: $.anomalies[0].line: 0 is outside 1..100"),
        ('{"anomalies": [{"line": "a", "severity": "mid"}]}', "schema: $.anomalies[0].severity: none of low, high"),
        (
            '{"anomalies": [{"line": "a", "severity": "low", "count": true}]}',
            "schema: $.anomalies[0].count: expected int",
        ),
        (
            '{"anomalies": [{"line": "a", "severity": "low", "count": -1}]}',
            "schema: $.anomalies[0].count: -1 is outside",
        ),
        ('{"anomalies": [{"line": "a", "severity": "low", "x": 1}]}', "schema: $.anomalies[0]: a key that"),
        ('{"anomalies": [1, 2, 3]}', "schema: $.anomalies: 3 is outside ..2"),
        ('{"anomalies": [{"line": "from 10.0.0.9", "severity": "low"}]}', "ungrounded: 1 of 1"),
    ],
)
def test_an_answer_in_json(text, reason):
    verdict = said(JSON, text)
    assert verdict.rejected.startswith(reason) if reason else verdict.rejected == ""
    if not reason:
        value = json.loads(verdict.turns[1].content)
        assert value == json.loads(text[text.find("{") : text.rfind("}") + 1]) and "\n" not in verdict.turns[1].content


def test_a_chat_of_several_turns():
    turns = [{"question": f"What of {n}?", "answer": GOOD} for n in ("root", "port 22", "10.0.0.5", "it")]
    found = said(TURNS, json.dumps({"turns": turns[:2]})).turns
    assert [turn.role for turn in found] == ["user", "assistant"] * 2
    assert [turn.content for turn in found[::2]] == [f"What of root?\n{CHUNK.text}", "What of port 22?"]
    assert said(TURNS, json.dumps({"turns": turns})).rejected == "schema: $.turns: 4 is outside 2..3"
    assert said(TURNS, json.dumps({"turns": turns[:1]})).rejected == "schema: $.turns: 1 is outside 2..3"
    turns[1]["question"] = "What of 10.9.9.9 and 10.9.9.8?"
    assert said(TURNS, json.dumps({"turns": turns[:2]})).rejected.startswith("ungrounded: 2 of ")
    turns[1]["question"] = " "
    assert said(TURNS, json.dumps({"turns": turns[:2]})).rejected == "length: question 2 is empty"


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "text"}, "schema.type: expected one of object, array"),
        ({"type": "string", "pattern": "(a+)+$"}, "schema.pattern: not supported"),
        ({"type": "object", "properties": {"a": {"type": "array"}}}, "schema.properties.a.items: expected a table"),
        ({"type": "object", "properties": {"a": {"type": "null"}}, "required": ["b"]}, "required names"),
        ({"type": "string", "maxLength": "9"}, "schema.maxLength: expected a number"),
        ({"type": "object"}, "schema.properties: missing"),
    ],
)
def test_a_schema_that_is_not_read_is_refused(schema, message):
    with pytest.raises(ValueError, match=message.replace("$", r"\$")):
        check_schema(schema)


@settings(max_examples=50)
@given(st.text(max_size=300), st.sampled_from([TEXT, JSON, TURNS]))
def test_any_text_gets_a_verdict(text, task):
    verdict = said(task, text)
    assert bool(verdict.rejected) != bool(verdict.turns)


LEAVES = st.none() | st.booleans() | st.floats() | st.text(max_size=5)
KEYS = st.sampled_from(["anomalies", "line", "x"])


@settings(max_examples=50)
@given(st.recursive(LEAVES, lambda it: st.lists(it, max_size=3) | st.dictionaries(KEYS, it, max_size=3), max_leaves=9))
def test_any_json_gets_a_verdict(value):
    assert isinstance(mismatch(value, SCHEMA), str)
    if isinstance(value, dict):
        assert str(read_answer(f"so: {json.dumps(value)} that")) == str(value)
