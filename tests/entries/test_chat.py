"""A chat as a person and a script meet it, on a real pseudo-terminal and through pipes."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from logtrain.data.log import read_log
from logtrain.generation import memory
from logtrain.generation.config import SamplingConfig
from tests.support import ROOT
from tests.support.chat_process import ANSWERING, CTRL_C, CTRL_D, ENTER, NOTED, PROMPT, UP, pasted, script, terminal
from tests.support.conversations import NEW, ask, new_conversation, write_chat_model, write_log
from tests.support.program import SERVER
from tests.support.synthetic import edit_json


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_chat_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def flags(model) -> list[str]:
    return ["--model", str(model), "--temperature", "0", "--max_new_tokens", str(NEW)]


def questions(saved: Path) -> list[str]:
    return [turn["content"] for turn in json.loads(saved.read_text())["messages"] if turn["role"] == "user"]


@pytest.mark.parametrize(
    ("flag", "status", "text"), [("--help", 0, "--max_new_tokens INT"), ("--modle", 2, "did you mean --model?")]
)
def test_help_and_a_mistyped_flag_answer_at_once(flag, status, text):
    """Within 1.5 seconds of CPU, so without torch."""
    process = subprocess.Popen(
        [sys.executable, "-m", "logtrain.chat", flag], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    said = process.stdout.read().decode()
    _, code, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(code)
    assert process.returncode == status
    assert text in said
    assert used.ru_utime + used.ru_stime < 1.5


# ---- on a terminal


def test_an_answer_comes_token_by_token(flags):
    with terminal(flags, answers=["Grüße, 日本: 10.0.0.1"], gate=SERVER.Semaphore(0)) as person:
        assert "M parameters in float32, on the CPU" in person.until(PROMPT)
        person.send("why?" + ENTER)
        person.until(ANSWERING)
        for piece, tokens in (("G", 1), ("r", 1), ("ü", 2), ("ß", 2)):
            person.step(tokens)
            assert person.until(piece) == ""
        person.step(40)
        assert person.until("\n") == "e, 日本: 10.0.0.1"
        facts = person.until(" to the first")
        assert re.fullmatch(r"\d+ prompt tokens \(0 reused\), \d+ answer tokens, [\d.]+ tokens/s, [\d.]+ s", facts)
        person.until(PROMPT)
        person.send(CTRL_D)
        assert person.status() == 0


def test_ctrl_c_stops_an_answer_within_a_step_and_what_came_of_it_stays(flags, tmp_path):
    saved = tmp_path / "said.json"
    with terminal(flags, answers=["one two three", "yes"], gate=SERVER.Semaphore(0)) as person:
        person.until(PROMPT)
        person.send("count" + ENTER)
        person.step(3)
        person.until("one")
        person.send(CTRL_C)
        person.until(NOTED)
        person.step(1)  # the one that is going on, if it had begun
        person.until("stopped; the conversation has the answer as far as it came")
        person.until(PROMPT)
        person.step(9)
        person.send("go on" + ENTER)
        assert int(re.search(r"\((\d+) reused\)", person.until(" to the first"))[1]) > 20
        person.until(PROMPT)
        person.send(f"/save {saved}{ENTER}")
        person.until("2 answers, 1 of them cut short")
    turns = json.loads(saved.read_text())["messages"]
    assert [turn["role"] for turn in turns] == ["user", "assistant"] * 2
    assert turns[1]["content"].strip() == "one"
    assert turns[3]["content"] == "yes"


def test_ctrl_c_stops_the_reading_of_a_long_prompt_within_a_step(flags, tmp_path):
    log = write_log(tmp_path / "app.log", 150)
    with terminal([*flags, "--log", str(log)], answers=["unheard", "heard"], gate=SERVER.Semaphore(0)) as person:
        person.until("150 lines, ")
        assert int(person.until("tokens").strip().replace(",", "")) > 5 * 256  # of a long path the line is folded here
        person.until(PROMPT)
        person.send("why?" + ENTER)
        person.step(1)
        person.until("reading the prompt: 256 of")
        person.send(CTRL_C)
        person.until(NOTED)
        person.step(1)
        person.until("no answer, so the question is not part of the conversation")
        person.until("(0 reused)")
        person.until(PROMPT)
        person.step(20)
        person.send(UP + ENTER)  # the same question, with the log still
        person.until("heard")
        assert re.search(r"\((256|512) reused\)", person.until(" to the first")), "Ctrl-C came before a step, or in it"


def test_ctrl_c_at_the_prompt_takes_back_a_line_and_twice_leaves(flags):
    with terminal(flags, answers=["yes"]) as person:
        person.until(PROMPT)
        person.send("not this" + CTRL_C)
        person.until(PROMPT)
        person.send(CTRL_C)
        person.until("Ctrl-C once more leaves")
        person.until(PROMPT)
        person.send("this" + ENTER)
        person.until("yes")
        person.until(PROMPT)
        person.send(CTRL_C)
        person.until("Ctrl-C once more leaves")
        person.until(PROMPT)
        person.send(CTRL_C)
        assert person.status() == 0


def test_pasted_lines_are_one_question_also_while_an_answer_comes(flags, tmp_path):
    saved = tmp_path / "said.json"
    with terminal(flags, answers=["first", "second", "third"], gate=SERVER.Semaphore(0)) as person:
        person.until(PROMPT)
        person.send(pasted("error 1\n  at a\n\n/help\n") + "why?" + ENTER)
        person.until(ANSWERING)
        person.send(pasted("error 2\nerror 3") + ENTER + "typed ahead" + ENTER)
        person.step(40)
        assert person.until("first") == "", "what is typed is not echoed"
        for line, piece in (("error 3", "second"), ("typed ahead", "third")):
            assert line in person.until(piece)
        person.until(PROMPT)
        person.send(f"/save {saved}{ENTER}")
        person.until("3 answers, in")
    assert questions(saved) == ["error 1\n  at a\n\n/help\nwhy?", "error 2\nerror 3", "typed ahead"]


def test_earlier_lines_come_back_and_alt_enter_begins_a_new_one(flags, tmp_path):
    saved = tmp_path / "said.json"
    with terminal(flags, answers=["first", "second", "third"]) as person:
        person.until(PROMPT)
        person.send("why" + ENTER)
        person.until("first")
        person.until(PROMPT)
        person.send(UP + " not\x1b\rnow" + ENTER)
        person.until("second")
        person.until(PROMPT)
        person.send(UP + UP + UP + "?" + ENTER)
        person.until("third")
        person.until(PROMPT)
        person.send("/sa\t")
        person.until("ve")
        person.send(f"{saved}{ENTER}")
        person.until("3 answers, in")
        person.until(PROMPT)
        person.send("/exit" + ENTER)
        assert person.status() == 0
    assert questions(saved) == ["why", "why not\nnow", "why?"]


def test_neither_a_model_nor_a_log_steers_the_terminal(flags, tmp_path):
    title = "\x1b]0;pwned\x07\x1b[2J\x9b2J"
    write_log(tmp_path / "a\x1b[2Jb.log")
    with terminal(flags, answers=[f"so {title} it is\r."]) as person:
        person.until(PROMPT)
        person.send("/log " + str(tmp_path / "a") + "\t")
        person.until("b.log")
        person.send(ENTER)
        assert r"a\x1b[2Jb.log: 20 lines" in person.until("next question").replace("\n", "")
        person.until(PROMPT)
        person.send("why?" + ENTER)
        person.until(r"so \x1b]0;pwned\x07\x1b[2J\x9b2J it is\r.")
    assert not any(code in person.output for code in ("\x1b]", "\x07", "\x1b[2J", "\x9b"))


def test_an_answer_with_other_spaces_and_joined_emoji_is_shown_as_it_is(flags):
    answer = "1\u00a0000\u202f€\u3000👩\u200d💻."
    with terminal(flags, answers=[answer]) as person:
        person.until(PROMPT)
        person.send("why?" + ENTER)
        person.until(answer)


def test_stdout_that_is_no_terminal_gets_the_answers_alone(flags, tmp_path):
    out, said = tmp_path / "out", "Grüße\x1b[31m"
    out.touch()
    with terminal(flags, answers=[said, "cut " * 99], stdout=out) as person:
        person.until(PROMPT)
        person.send("why?" + ENTER)
        person.until(" to the first")
        person.until(PROMPT)
        person.send("and then?" + ENTER)
        person.until("cut at max_new_tokens = 60")
        person.until(PROMPT)
        person.send(CTRL_D)
        assert person.status() == 0
    first, second, end = out.read_text(encoding="utf-8").split("\n")
    assert (first, end) == (said, "")
    assert second == ("cut " * 99)[: len(second)]


def test_a_mistake_is_one_line_and_the_chat_goes_on(flags, tmp_path):
    with terminal(flags, answers=["yes"]) as person:
        for line, message in (
            ("/cause", "/cause: no log to ask about; attach one with /log FILE"),
            ("/smumarise", "the nearest is /summarise"),
            (f"/log {tmp_path}/none.log", "none.log: no such file"),
            ("caf\udce9", "a byte that is not UTF-8 was typed"),
            (pasted("error " * 5000), "too many for the model's context of 4,096, with an answer of up to 60; shorten"),
        ):
            person.until(PROMPT)
            person.send(line + ENTER)
            person.until(message)
        person.until(PROMPT)
        person.send("why?" + ENTER)
        person.until("yes")


# ---- in a pipe


def test_a_pipe_brings_one_question_and_gets_the_answer_alone(flags, model, tmp_path):
    expected = ask(new_conversation(model), "error 1\n\nerror 2")
    assert script(flags, b"error 1\n\nerror 2\n", tmp_path) == (0, f"{expected}\n", "cut at max_new_tokens = 60\n")
    assert script(flags, b"error 1", tmp_path, answers=["Gr\u00fc\u00dfe\x1b[31m\n"]) == (0, "Grüße\x1b[31m\n", "")


def test_a_pipe_may_ask_a_task_about_a_log(flags, model, tmp_path):
    log = write_log(tmp_path / "app.log")
    conversation = new_conversation(model)
    conversation.attach(read_log(str(log), "5-9"))
    expected = ask(conversation, conversation.task_question("cause"))
    log.write_bytes(log.read_bytes().replace(b"\n", b"\r\n"))
    status, out, error = script([*flags, "--log", str(log), "--lines", "5-9"], b"/cause\n", tmp_path)
    assert (status, out) == (0, f"{expected}\n")
    assert r"(5 line ends \r\n are read as \n)" in error


@pytest.mark.parametrize(
    ("more", "stdin", "message"),
    [
        ([], b"", "stdin: no question in it"),
        ([], b"caf\xe9\n", "stdin: not UTF-8 at byte 3"),
        ([], b"/save said.json\n", "/save: where stdin is no terminal only a question, or one of /summarise, /cause"),
        ([], b"/cause\n", "/cause: no log to ask about"),
        ([], b"error " * 5000, "too many for the model's context of 4,096"),
        (["--log", "none.log"], b"why?\n", "none.log: no such file"),
        (["--lines", "1-2"], b"why?\n", "lines = 1-2: of which log? give --log FILE"),
        (["--max_new_tokens", "4096"], b"why?\n", "max_new_tokens = 4,096 fills the model's context of 4,096"),
        (["--memory", "0.00001"], b"why?\n", "max_new_tokens = 60 fills the cache (--memory) of 41; make it smaller"),
        (["--memory", "-1"], b"why?\n", "memory = -1.0 must be"),
        (["--top_p", "2"], b"why?\n", "top_p = 2.0 is outside (0, 1]"),
        (["--date", "today"], b"why?\n", "date = today: not a date as 2024-07-26"),
        (["--template", "none.jinja"], b"why?\n", "none.jinja: no such file"),
        (["--model", "nowhere"], b"why?\n", "nowhere/config.json: no such file; give a Hugging Face model folder"),
    ],
)
def test_a_mistake_of_a_script_is_one_line_and_status_2(flags, tmp_path, more, stdin, message):
    status, out, error = script([*flags, *more], stdin, tmp_path)
    assert (status, out) == (2, "")
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


# ---- what is loaded


def test_a_folder_that_cannot_chat_is_one_line(model, tmp_path):
    for name, damage, message in (
        ("base", lambda folder: edit_json(folder / "tokenizer_config.json", chat_template=None), "no chat template"),
        ("mute", lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer.json or tokenizer.model in it"),
        ("wild", lambda folder: edit_json(folder / "generation_config.json", top_p="most"), 'top_p = "most"; expected'),
    ):
        folder = tmp_path / name
        folder.mkdir()
        for file in model.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        damage(folder)
        with pytest.raises(ValueError, match=re.escape(message)) as error:
            new_conversation(folder)
        assert str(folder) in str(error.value)
        assert "\n" not in str(error.value)


def test_what_is_larger_than_the_device_is_named(model, monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda device: 100_000)
    with pytest.raises(ValueError, match=r"M parameters in float32: 0.0 GiB, more than the 0.0 GiB that the CPU has"):
        new_conversation(model)
    monkeypatch.undo()
    weights = 4 * new_conversation(model).generator.cached.model.config.num_parameters
    monkeypatch.setattr(memory, "free_bytes", lambda device: weights + 1000)
    with pytest.raises(ValueError, match=r"the cache \(--memory\): 0.0 GiB, more than"):
        new_conversation(model)


def test_flags_go_before_what_the_folder_says(model):
    assert new_conversation(model, temperature=-1.0).sampling == SamplingConfig(temperature=0.6, top_p=0.9)
    sampling = new_conversation(model, temperature=0.0, top_k=5, repetition_penalty=1.2, seed=3).sampling
    assert sampling == SamplingConfig(temperature=0.0, top_p=0.9, top_k=5, repetition_penalty=1.2, seed=3)
