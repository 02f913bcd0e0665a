"""The demo's own data: answers that are true of their logs, and a model folder as Hugging Face lays it out."""

import importlib
import json
import re
import string
import subprocess
import sys
from random import Random

import pytest

from tests.support import LAUNCH

TASKS = {
    "template": "The template of this log is",
    "grok": "I would use this grok pattern",
    "anomaly": r"(Yes|No), this log|This is (ab)?normal behaviour",
    "meaning": r"This \w+ log means|It says that",
    "cause": r"The evidence in the log",
    "solution": r"I recommend these steps|Nothing needs to be done",
}
GROK = {  # what the grok patterns match, as far as the demo's values go
    "IP": r"\d+(?:\.\d+){3}",
    "POSINT": r"[1-9]\d*",
    "INT": r"[+-]?\d+",
    "WORD": r"\w+",
    "NOTSPACE": r"\S+?",
    "USERNAME": r"[\w.-]+",
    "HOSTNAME": r"[\w.-]+",
    "PATH": r"(?:/[\w.-]+)+",
    "UUID": r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}",
    "BASE16NUM": r"[0-9a-f]+",
}


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    generate(folder)
    return folder


@pytest.fixture(scope="module")
def rows(demo):
    return json.loads((demo / "nlplog.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def questions():
    sys.path.insert(0, str(LAUNCH / "demo"))
    try:
        return importlib.import_module("questions")
    finally:
        sys.path.remove(str(LAUNCH / "demo"))


def generate(folder, *flags):
    subprocess.run([sys.executable, LAUNCH / "demo" / "data.py", folder, *flags], check=True)


def test_rows_have_the_shape_of_nlplog(rows):
    assert len(rows) == 6000
    for row in rows:
        assert list(row) == ["instruction", "log", "output", "domain"]
        assert all(isinstance(value, str) and value.strip() for value in row.values())
        assert row["log"] in row["instruction"]
        assert not re.search(r"[{<](?!\*>|hex|\d)[a-z_ ]+[}>]", row["log"]), "a placeholder was left over"


def test_every_system_is_asked_every_task(rows):
    def tasks(row):
        return {task for task, pattern in TASKS.items() if re.search(pattern, row["output"])}

    asked = {(row["domain"], task) for row in rows for task in tasks(row)}
    systems = {row["domain"] for row in rows}
    assert len(systems) >= 12
    assert asked == {(system, task) for system in systems for task in TASKS}
    assert all(tasks(row) for row in rows)


def test_a_grok_answer_parses_its_own_log_into_the_values_it_names(rows):
    answers = [row for row in rows if row["output"].startswith("I would use this grok pattern")]
    assert len(answers) > 800
    for row in answers:
        pattern = re.search(r"`(.*)`", row["output"])[1]
        names = []

        def group(match, names=names):
            names.append(match[2])
            first = names.count(match[2]) == 1
            return f"(?P<{match[2]}>{GROK[match[1]]})" if first else f"(?P={match[2]})"

        fields = re.fullmatch(re.sub(r"%\{(\w+):(\w+)\}", group, pattern), row["log"])
        assert fields, (pattern, row["log"])
        for name, value in fields.groupdict().items():
            assert re.search(rf"%\{{\w+:{name}\}} captures the .* {re.escape(value)}\.$", row["output"], re.M)


def test_a_template_answer_with_its_values_gives_back_its_log(rows):
    answers = [row for row in rows if row["output"].startswith("The template of this log is")]
    assert len(answers) > 800
    for row in answers:
        template = re.search(r"`(.*)`", row["output"])[1]
        values = re.findall(r"^\d+\. \w+ = (\S+) \(", row["output"], re.M)
        one_of_them = "|".join(map(re.escape, values))  # a value may stand in several places
        pattern = re.escape(template).replace(re.escape("<*>"), f"({one_of_them})")
        found = re.fullmatch(pattern, row["log"])
        assert found, row
        assert set(found.groups()) == set(values)


def test_explanations_use_only_values_of_their_log(questions):
    def names(text):
        return {name for _, name, _, _ in string.Formatter().parse(text) if name}

    for events in questions.EVENTS.values():
        for event in events:
            assert all(names(text) <= names(event.log) for text in (event.says, event.why, *event.do)), event
            assert all(questions.kind_of(name).grok in GROK for name in names(event.log))
        assert any(event.is_fault for event in events)
        assert any(not event.is_fault for event in events)


def test_a_fault_is_called_one(questions):
    """The verdict of an anomaly answer is that of the event which the line came from."""
    for event in (event for events in questions.EVENTS.values() for event in events):
        answer = questions.answer_anomaly(event, {}, "HDFS", Random(0))
        assert answer.startswith(("Yes", "This is abnormal")) == event.is_fault


@pytest.mark.slow
def test_the_same_arguments_write_the_same_bytes(tmp_path):
    for name, flags in (("a", ()), ("b", ()), ("c", ("--seed", "7"))):
        generate(tmp_path / name, "--rows", "400", "--vocab_size", "600", *flags)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*.*"))
    names = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    model = [f"model/{name}" for name in names]
    assert [str(file) for file in files] == ["chats.json", *model, "nlplog.json", "questions.json"]
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert (tmp_path / "a" / "nlplog.json").read_bytes() != (tmp_path / "c" / "nlplog.json").read_bytes()


def test_transformers_reads_the_model_folder(demo, rows):
    from transformers import AutoConfig, AutoTokenizer

    config = AutoConfig.from_pretrained(demo / "model")
    tokenizer = AutoTokenizer.from_pretrained(demo / "model")
    assert config.model_type == "llama"
    assert config.num_key_value_heads < config.num_attention_heads
    assert len(tokenizer) == config.vocab_size == 2048
    assert tokenizer.bos_token_id == config.bos_token_id
    assert tokenizer.convert_tokens_to_ids("<|end_of_text|>") == config.eos_token_id
    assert min(tokenizer.all_special_ids) > 2000, "special tokens come after all others"
    for row in rows[:200]:
        ids = tokenizer(row["output"])["input_ids"]
        assert ids[0] == config.bos_token_id
        assert tokenizer.decode(ids, skip_special_tokens=True) == row["output"]
    chat = [{"role": "user", "content": " hi "}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def test_chats_and_questions_are_of_the_tasks_and_not_the_rows(demo, rows):
    asked = {row["instruction"] for row in rows}
    for name, count in (("chats", 600), ("questions", 60)):
        found = json.loads((demo / f"{name}.json").read_text(encoding="utf-8"))
        assert len(found) == count
        assert {row["domain"] for row in found} == {
            "template",
            "grok pattern",
            "anomaly",
            "meaning",
            "root cause",
            "solution",
        }
        for row in found:
            question, answer = row["conversations"]
            assert (question["from"], answer["from"]) == ("human", "gpt")
            task = row["domain"].split()[-1].replace("pattern", "grok")
            assert re.search(TASKS[task], answer["value"])
        new = [row for row in found if row["conversations"][0]["value"] not in asked]
        assert len(new) > 0.95 * count, "few of them are among the rows by chance"


def test_the_weights_are_random_and_of_the_config(demo):
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(demo / "model", output_loading_info=True)
    assert not any(info.values()), info
    assert model.lm_head.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(1.3e6, rel=0.05)
