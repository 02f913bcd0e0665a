"""What an answer in free text says is read by the rules that are stated, and nothing else is."""

import time

import pytest

from logtrain.evaluation.extraction import json_value, label, short_answer, template
from logtrain.evaluation.tasks import VERDICTS

CAUSES = {each: each for each in ("disk", "network", "disk full", "Memory leak")}


@pytest.mark.parametrize(
    ("answer", "read"),
    [
        ("abnormal", "abnormal"),
        (" **Normal**.\n", "normal"),
        ('"ABNORMAL"', "abnormal"),
        ("The log entry is anomalous because of the error.", "abnormal"),
        ("I would call it abnormal. Abnormal entries name a failure.", "abnormal"),
        ("It is not abnormal.", "normal"),
        ("This isn't a normal line", "abnormal"),
        ("No anomalies were detected", "normal"),
        ("It does not appear to be abnormal", "normal"),
        ("not normal but abnormal", "abnormal"),
        ("Normally this is fine", None),
        ("it may be normal or abnormal", None),
        ("Normal lines are dull.\nAnswer: abnormal", "abnormal"),
        ("The final answer: **abnormal**, though normal lines look alike", "abnormal"),
        ('{"label": "Abnormal", "why": "a normal line has no error"}', "abnormal"),
        ('```json\n{"verdict": "normal"}\n```\nor abnormal', "normal"),
        ("<think>abnormal, surely</think>normal", "normal"),
        ("abnormal, surely</think>normal", "normal"),
        ("<think>abnormal", None),
        ("", None),
        ("the error", None),
    ],
)
def test_a_verdict(answer, read):
    assert label(answer, VERDICTS) == read


@pytest.mark.parametrize(
    ("answer", "read"),
    [
        ("disk full", "disk full"),
        ("the DISK FULL condition", "disk full"),
        ("disks are fine, the network is not", "network"),
        ("not the network, the disk", "disk"),
        ("memory leak", "Memory leak"),
        ("disk and network", None),
        ("not the network", None),
        ("Category: network. It may look like a disk.", "network"),
    ],
)
def test_a_label_of_several(answer, read):
    assert label(answer, CAUSES) == read


@pytest.mark.parametrize(
    ("answer", "read"),
    [
        ("Received block <*> of size <*>", "Received block <*> of size <*>"),
        ("`Received block <*>`", "Received block <*>"),
        ("Here it is:\n```\nReceived <*>\n```\nwith one variable", "Received <*>"),
        ("The template is `a <*>` as asked.", "a <*>"),
        ("Log template: `a <*>`\nIt has one variable.", "a <*>"),
        ('{"template": "a {x} <*>"}', "a {x} <*>"),
        ("a <*>\nb <*>", None),
        ("either `a` or `b`\nwho knows", None),
        ("", None),
        ('"quoted <*>"', "quoted <*>"),
    ],
)
def test_a_template(answer, read):
    assert template(answer) == read


def test_a_short_answer():
    assert short_answer("It is sshd, so:\nAnswer: sshd\n") == "sshd"
    assert short_answer('{"answer": 12}') == "12"
    assert short_answer(" 10.0.0.1 \n") == "10.0.0.1"
    assert short_answer(" \n") is None


def test_json_in_a_text():
    assert json_value('so: {"a": [1, {"b": 2}]} and {"c": 3}') == {"a": [1, {"b": 2}]}
    assert json_value('{"draft": 1}\n```json\n{"final": 2}\n```') == {"final": 2}
    assert json_value("a {template} with {braces}") is None
    assert json_value('[1, 2] then {"a": 1}', dict) == {"a": 1}


@pytest.mark.parametrize("text", ["```\n", "{", "[[", "not ", "`a", "answer: ", "<think>", '{"a":', "normal "])
def test_no_answer_takes_long_or_raises(text):
    answer, began = text * (300_000 // len(text)), time.process_time()
    label(answer, VERDICTS), template(answer), short_answer(answer), json_value(answer)
    assert time.process_time() - began < 5
