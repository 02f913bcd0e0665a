"""What an answer in free text says is read by the rules that are stated, and nothing else is."""

import csv
import json
import time

import pytest

from logtrain.evaluation import root_cause
from logtrain.evaluation.extraction import json_values, label, short_answer, template
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
        # marks, quotes, letters
        ("\u201cabnormal\u201d", "abnormal"),
        ("\u00abNormal\u00bb.", "normal"),
        ("It is _abnormal_, see is_normal", "abnormal"),
        ("\uff21\uff22\uff2e\uff2f\uff32\uff2d\uff21\uff2c", "abnormal"),
        ("ab\u00adnormal\u200b", "abnormal"),
        ("1. abnormal", "abnormal"),
        ("\\boxed{abnormal}", "abnormal"),
        # negation
        ("I do not see any evidence of abnormal behavior.", "normal"),
        ("There are no signs of anomalies in this log.", "normal"),
        ("No abnormalities were found", "normal"),
        ("I do not think that this log entry is abnormal", "normal"),
        ("It does not contain any signs of unusual or abnormal activity", "normal"),
        ("nothing abnormal here", "normal"),
        ("this isnt abnormal", "normal"),
        ("It cannot be considered normal.", "abnormal"),
        ("The log is far from normal", "abnormal"),
        ("rather than abnormal, this is normal", "normal"),
        ("It's abnormal rather than normal", "abnormal"),
        ("It is unlikely to be abnormal", "normal"),
        ("No errors and normal", "normal"),
        ("No, this is abnormal", "abnormal"),
        ("I cannot tell whether it is abnormal", "abnormal"),
        ("Anomaly: no", "normal"),
        ("Abnormal: False", "normal"),
        ("Anomaly detected? **No**.", "normal"),
        ("Anomalies were not detected", "normal"),
        ("Normal: no errors", "normal"),
        ("neither normal nor abnormal", None),
        # alternatives
        ("Is it normal or abnormal? Abnormal.", "abnormal"),
        ("normal/abnormal", None),
        ("Abnormal or anomalous", "abnormal"),
        ("Answer: normal or abnormal?\nAnswer: normal", "normal"),
        # an explanation that names the other label
        ("Abnormal\n\nExplanation: a normal log would have no error.", "abnormal"),
        ("abnormal. Normal entries do not fail.", "abnormal"),
        ("Normal - no abnormal behaviour", "normal"),
        ("Abnormal, as a normal line would not fail", "abnormal"),
        ("**Abnormal** \u2014 normal lines differ", "abnormal"),
        ("Normal, abnormal, normal", None),
        ("Abnormal: line 3; normal: line 4", None),
        ("Answer:\n\n**abnormal**\n\nNormal logs differ.", "abnormal"),
        ("The answer is abnormal. A normal log would not contain errors.", "abnormal"),
        ("The label is **abnormal**, since normal logs do not fail", "abnormal"),
        ("I would classify this log as **abnormal**. A normal log would show success.", "abnormal"),
        ("I cannot classify this as abnormal; it is a normal line", "normal"),
        ("1. Analysis: a normal connection fails.\n2. Verdict: abnormal", "abnormal"),
        ("Verdict: not abnormal", "normal"),
        ("Normal lines end well. This one is abnormal", None),
        # JSON
        ('{"Predicted_Label": "Abnormal", "reason": "a normal line differs"}', "abnormal"),
        ('{"result": {"label": "abnormal"}, "note": "normal"}', "abnormal"),
        ('{"draft": "normal"}\n{"label": "abnormal"}', "abnormal"),
        ('{"is_anomaly": false, "why": "no anomaly"}', "normal"),
        ('{"abnormal": true, "normal": false}', "abnormal"),
        ('{"isAnomaly": true}', "abnormal"),
        ("{'label': 'abnormal', 'why': 'normal lines differ'}", "abnormal"),
        ('{"label": "abnormal (a disk error, normal otherwise)"}', "abnormal"),
        # tags
        ("<thinking>normal?</thinking>abnormal", "abnormal"),
        ("<THINK>normal</THINK>abnormal", "abnormal"),
        ("<think>a</think><think>normal</think>abnormal", "abnormal"),
        ("<answer>\nabnormal\n</answer> since normal lines differ", "abnormal"),
    ],
)
def test_a_verdict(answer, read):
    assert label(answer, VERDICTS) == read


def test_a_verdict_in_a_megabyte():
    assert label("<think>" + "normal " * 150_000 + "</think>abnormal", VERDICTS) == "abnormal"
    assert label("abnormal " + "y " * 500_000, VERDICTS) == "abnormal"
    assert label("x " * 500_000 + "abnormal", VERDICTS) is None, "100,000 characters are read"


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
        ("The root cause is the network, not the disk.", "network"),
        ("Network: no. Disk: yes.", "disk"),
        ("Network, although the disk is full, too", "network"),
        ("I would classify it as `disk full`; the network is fine", "disk full"),
        ('{"label": ["Memory Leak"], "disk": false}', "Memory leak"),
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
        ("\u201cquoted <*>\u201d", "quoted <*>"),
        ("**bold <*>**", "bold <*>"),
        ("*** starred ***", "*** starred ***"),
        ("- a <*>", "- a <*>"),  # a dash may be the template's
        ('"a <*>" to "b"', '"a <*>" to "b"'),
        ('"user "<*>" in"', 'user "<*>" in'),
        ("failed: `a == b' in `int c()' at <*>", "failed: `a == b' in `int c()' at <*>"),
        ("Template: `a <*>` (one variable).", "a <*>"),
        ("**Template:** *** a <*>", "*** a <*>"),
        ("Log template:\n\n```text\na <*>\n```\nwith `<*>` for `x1`", "a <*>"),
        ("Sure! Here is the log template:\n\na <*>\n\nExplanation: <*> is a name.", "a <*>"),
        ("The template is `a <*>`, and `<*>` is a name.", "a <*>"),
        ("One may use `a <*>` where `<*>` is a name.", "a <*>"),
        ("~~~\na <*>\n~~~", "a <*>"),
        ('{"EventTemplate": "a <*>"}', "a <*>"),
        ('[{"id": 1, "template": "a <*>"}]', "a <*>"),
        ('{"template": null}', None),
        ("<template>a <*></template>", "a <*>"),
        ("<think>`b`</think>\na <*>", "a <*>"),
    ],
)
def test_a_template(answer, read):
    assert template(answer) == read


def wrapped(text: str) -> list[str]:
    """Answers that give a template in the ways of models."""
    return [
        text, f"`{text}`", f'"{text}"', f"\u201c{text}\u201d", f"**{text}**", f"Template: {text}",
        f"The template is: {text}", f"The template is `{text}`, where <*> is a number.",
        f"**Log template:** `{text}`\n\nIt has one variable.",
        f"Sure! Here is the template:\n\n{text}\n\nExplanation: `<*>` stands for `x1`.",
        f"Here it is:\n```text\n{text}\n```\nDone.", json.dumps({"EventTemplate": text}),
        f"```json\n{json.dumps({'template': text}, indent=1)}\n```", f"<think>or {text} x?\n</think>\n\n{text}",
        f"<answer>{text}</answer>",
    ]  # fmt: skip


def test_every_template_of_loghub_is_read_however_it_is_given(shared):
    """But for backticks within backticks and asterisks within asterisks."""
    files = sorted((shared / "data" / "loghub").glob("*/*_templates.csv"))
    templates = {row["EventTemplate"].strip() for file in files for row in csv.DictReader(file.open(newline=""))}
    assert len(templates) > 1000
    for text in templates:
        others = text.replace("<*>", "")
        for answer in wrapped(text):
            is_within_its_like = any(mark[0] in others and f"{mark}{text}{mark}" in answer for mark in ("`", "**"))
            assert is_within_its_like or template(answer) == text, answer


def test_a_short_answer():
    assert short_answer("It is sshd, so:\nAnswer: sshd\n") == "sshd"
    assert short_answer("**Answer:**\n\n`sshd`\nbecause ...") == "sshd"
    assert short_answer('{"answer": 12}') == "12"
    assert short_answer('{"Answer": ["a", "b"]}') == "a, b"
    assert short_answer('{"answer": true}') == "true"
    assert short_answer('{"answer": null}') is None
    assert short_answer("<answer>sshd</answer>") == "sshd"
    assert short_answer(" 10.0.0.1 \n") == "10.0.0.1"
    assert short_answer(" \n") is None


def test_json_in_a_text():
    assert json_values('so: {"a": [1, {"b": 2}]} and {"c": 3}') == [{"a": [1, {"b": 2}]}, {"c": 3}]
    assert json_values('{"draft": 1}\n```json\n{"final": 2}\n```') == [{"final": 2}]
    assert json_values('{"draft": 1}\n```\nno JSON\n```') == [{"draft": 1}]
    assert json_values("a {template} with {braces}") == []
    assert json_values('[1, 2] then [x] then {"a": 1}') == [[1, 2], {"a": 1}]


ONE = '{"component": "db", "reason": "cpu"}'


@pytest.mark.parametrize(
    ("answer", "num"),
    [
        (ONE, 1),
        (f"[{ONE}, {ONE}]", 2),
        (f'{{"1": {ONE}, "2": {ONE}}}', 2),
        (f'{{"root_causes": [{ONE}, {ONE}], "confidence": 0.9}}', 2),
        (f'{{"analysis": "slow", "1": {ONE}}}', 1),
        (f'{{"reason": "both", "failures": [{ONE}, {ONE}]}}', 2),
        (f"1. {ONE}\n2. {ONE}", 2),
        (f"First {ONE}?\n```json\n[{ONE}, {ONE}]\n```", 2),
        (f"<think>[{ONE}, {ONE}]</think>{ONE}", 1),
        (f"As [1] says, {{so}}: {ONE}", 1),
        ('{"Root Cause Component": "db"}', 1),
        ('{"component": null}', None),
        ("The db.", None),
    ],
)
def test_failures(answer, num):
    found = root_cause.failures(answer)
    assert (None if found is None else len(found)) == num
    assert not found or {one.component for one in found} == {"db"}


PIECES = [
    "```\n",
    "{",
    "[[",
    "not ",
    "`a",
    "``",
    "answer: ",
    "answer:\n",
    "<think>",
    "</think>",
    "<answer>",
    '{"a":',
    "normal ",
]
PIECES += [
    '{"a":1} ',
    "normal or ",
    "normal:",
    "template is `",
    "classify a ",
    "a, ",
    "**",
    "answer: x\nnormal\n",
    '"',
    "' ",
    "\n",
    "is_normal ",
]


@pytest.mark.parametrize("text", PIECES)
def test_no_answer_takes_long_or_raises(text):
    """A megabyte takes 0.2 s at most."""
    answer, began = text * (1_000_000 // len(text)), time.process_time()
    label(answer, VERDICTS), template(answer), short_answer(answer), root_cause.failures(answer)
    assert time.process_time() - began < 5
