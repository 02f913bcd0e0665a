"""A chat as a person and a script meet it, on a real pseudo-terminal and through pipes; and what it is made of."""

import gzip
import json
import re
import resource
import tracemalloc
import zlib
from pathlib import Path

import pytest
import torch
import zstandard

from logtrain import chat, prepare
from logtrain.conversation.commands import COMMANDS, HELP, Leave, question_in
from logtrain.conversation.session import TASKS, Conversation
from logtrain.conversation.terminal import Screen
from logtrain.core.printable import printable
from logtrain.data import log as log_module
from logtrain.data.conversations import conversations
from logtrain.data.files import InputFile
from logtrain.data.log import read_log
from logtrain.generation.generator import Generator, Request
from logtrain.generation.load import published_sampling
from logtrain.generation.sampling import SamplingConfig
from logtrain.text.chat_template import Turn
from logtrain.text.tokenizer import Tokenizer
from tests.support.chats import write_tokenizer
from tests.support.program import SERVER
from tests.support.synthetic import edit_json, write_model
from tests.support.talking import ANSWERING, CTRL_C, CTRL_D, ENTER, NOTED, PROMPT, UP, pasted, script, terminal

CONTEXT = 4096
NEW = 60


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A random Llama with a chat template: what it says is noise, but the same for the same prompt."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = Tokenizer.load(write_tokenizer(folder))
    size, end = tokenizer.vocab_size, tokenizer.token_id("<|eot|>")
    write_model(folder, vocab_size=size, eos_token_id=end, max_position_embeddings=CONTEXT, initializer_range=0.3)
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def flags(model) -> list[str]:
    return ["--model", str(model), "--temperature", "0", "--max_new_tokens", str(NEW)]


def built(model: Path, **settings) -> Conversation:
    settings = {"temperature": 0.0, "max_new_tokens": NEW, **settings}
    return chat.build(chat.ChatConfig(model=str(model), **settings), Screen(is_read=False))


def ask(conversation: Conversation, question: str) -> str:
    return list(conversation.ask(question))[-1].text


def write_log(path: Path, count: int = 20) -> Path:
    path.write_text("".join(f"sshd[24499]: error {i}\n" for i in range(1, count + 1)))
    return path


def questions(saved: Path) -> list[str]:
    return [turn["content"] for turn in json.loads(saved.read_text())["messages"] if turn["role"] == "user"]


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
        assert int(person.until(" tokens").replace(",", "")) > 5 * 256
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


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("1\u00a0000\u202f€ « Où\u00a0? »", None),
        ("障害\u3000原因\t日本\n", None),
        ("👩\u200d💻 ❤\ufe0f 🇫🇷 👍🏽 \U0001fae9", None),  # the last is younger than Python 3.11's tables
        ("نمی\u200cخواهم", None),
        ("\x1b[2J\x07\r\x7f\x9b", r"\x1b[2J\x07\r\x7f\x9b"),
        ("a\u202eb\u2066c\u2028d\u2029e\u200bf\ufeffg", r"a\u202eb\u2066c\u2028d\u2029e\u200bf\ufeffg"),
        ("\udcff\U000e0041", r"\udcff\U000e0041"),
    ],
)
def test_what_is_shown_as_it_is(text, shown):
    assert printable(text) == (text if shown is None else shown)


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
    expected = ask(built(model), "error 1\n\nerror 2")
    assert script(flags, b"error 1\n\nerror 2\n", tmp_path) == (0, f"{expected}\n", "cut at max_new_tokens = 60\n")
    assert script(flags, b"error 1", tmp_path, answers=["Gr\u00fc\u00dfe\x1b[31m\n"]) == (0, "Grüße\x1b[31m\n", "")


def test_a_pipe_may_ask_a_task_about_a_log(flags, model, tmp_path):
    log = write_log(tmp_path / "app.log")
    conversation = built(model)
    conversation.attach(read_log(str(log), "5-9"))
    expected = ask(conversation, conversation.task("cause"))
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
        (["--template", "none.jinja"], b"why?\n", "template none.jinja: No such file"),
        (["--model", "nowhere"], b"why?\n", "nowhere/config.json: no such file; give a Hugging Face model folder"),
    ],
)
def test_a_mistake_of_a_script_is_one_line_and_status_2(flags, tmp_path, more, stdin, message):
    status, out, error = script([*flags, *more], stdin, tmp_path)
    assert (status, out) == (2, "")
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


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
            built(folder)
        assert str(folder) in str(error.value)
        assert "\n" not in str(error.value)


def test_what_is_larger_than_the_device_is_named(model, monkeypatch):
    monkeypatch.setattr(chat, "free_bytes", lambda device: 100_000)
    with pytest.raises(ValueError, match=r"M parameters in float32: 0.0 GiB, more than the 0.0 GiB that the CPU has"):
        built(model)
    monkeypatch.undo()
    weights = sum(parameter.nbytes for parameter in built(model).generator.cached.model.parameters())
    monkeypatch.setattr(chat, "free_bytes", lambda device: weights + 1000)
    with pytest.raises(ValueError, match=r"the cache \(--memory\): 0.0 GiB, more than"):
        built(model)


def test_a_gpu_that_is_full_is_one_line_and_the_conversation_stays(model, monkeypatch):
    conversation = built(model)
    ask(conversation, "why?")
    before, step = list(conversation.turns), Generator.step

    def full(self):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Generator, "step", full)
    with pytest.raises(ValueError, match="the GPU's memory is full; start with a smaller --memory"):
        chat.answer("and then?", conversation, Screen(is_read=False))
    assert conversation.turns == before
    monkeypatch.setattr(Generator, "step", step)
    assert ask(conversation, "and then?")


# ---- the conversation


def test_a_second_question_reads_only_what_is_new_and_is_answered_the_same(model, tmp_path, monkeypatch):
    """Greedy answers are those of a generator that keeps nothing."""
    conversation, read = built(model), []
    conversation.attach(read_log(str(write_log(tmp_path / "app.log", 60))))
    next_logits = conversation.generator.cached.next_logits
    monkeypatch.setattr(
        conversation.generator.cached, "next_logits", lambda c: read.append(len(c[0].tokens)) or next_logits(c)
    )
    plain = Generator(
        conversation.generator.cached.model, conversation.tokenizer, conversation.generator.stop_ids, max_sequences=1
    )
    answers, reused = [], []
    for question in ("why?", "and then?", "error 7?"):
        prompt = conversation.prompt(question, conversation.log)
        ((_, expected),) = plain.run([Request(prompt=prompt, max_new_tokens=NEW)])
        read.clear()
        exchange = list(conversation.ask(question))[-1]
        answers.append(exchange.text)
        assert exchange.text == expected.text
        assert sum(read) == len(prompt) - exchange.reused + len(expected.ids) - (expected.finish_reason == "length")
        reused.append(exchange.reused / len(prompt))
    assert len(set(answers)) == 3
    assert reused[0] == 0
    assert min(reused[1:]) > 0.8


def test_questions_draw_anew_and_a_session_repeats_with_its_seed(model):
    def session(seed: int) -> list[str]:
        conversation = built(model, temperature=1.5, seed=seed)
        said = [ask(conversation, "why?")]
        said.append(ask(conversation, "why?"))
        conversation.reset()
        return [*said, ask(conversation, "why?")]

    first = session(1)
    assert len(set(first)) == 3
    assert session(1) == first
    assert not set(session(2)) & set(first)


def test_a_conversation_that_outgrows_the_context_says_so_and_loses_nothing(model):
    conversation = built(model, system="be brief")
    with pytest.raises(ValueError, match=r"too many for the model's context of 4,096, .*; /reset begins anew") as error:
        for _ in range(100):
            before = list(conversation.turns)
            ask(conversation, "error " * 200)
    assert len(before) > 4
    assert conversation.turns == before
    over = int(re.search(r"tokens, ([\d,]+) too many", str(error.value))[1].replace(",", ""))
    assert over == len(conversation.prompt("error " * 200, None)) + NEW - CONTEXT > 0
    conversation.reset()
    assert ask(conversation, "error " * 200)
    assert [turn.role for turn in conversation.all_turns] == ["system", "user", "assistant"]


def test_a_conversation_that_is_saved_is_a_row_that_prepare_reads(model, tmp_path):
    conversation = built(model, system="be brief")
    conversation.attach(read_log(str(write_log(tmp_path / "app.log"))))
    with pytest.raises(ValueError, match="nothing to save"):
        conversation.save(str(tmp_path / "said.json"))
    for question in (conversation.task("cause"), "é <|eot|>\n\nwhy?"):
        ask(conversation, question)
    path = tmp_path / "said.jsonl"
    assert conversation.save(str(path)) == "2 answers, 2 of them cut short"
    (row,) = conversations(InputFile(path), "messages")
    assert list(row.turns) == conversation.all_turns
    assert row.turns[1].content == f"{TASKS['cause']['prompt'].strip()}\n{(tmp_path / 'app.log').read_text().strip()}"
    before = path.read_bytes()
    for name, message in (
        ("said.jsonl", "exists already"),
        ("said.txt", "prepare would not read it; name it .json"),
        ("none/said.json", "No such file or directory"),
    ):
        with pytest.raises(ValueError, match=message):
            conversation.save(str(tmp_path / name))
    assert path.read_bytes() == before
    assert not (tmp_path / "said.txt").exists()
    flags = ["--format", "messages", "--input", str(path), "--tokenizer", str(model), "--valid_fraction", "0"]
    prepare.main([*flags, "--output", str(tmp_path / "prepared")])
    ids, is_target = conversation.template.encode(conversation.all_turns)
    report = json.loads((tmp_path / "prepared" / "report.json").read_text())
    assert (report["total"]["tokens"], report["total"]["targets"]) == (len(ids), int(is_target.sum()))


def test_a_full_disk_leaves_no_half_of_a_file(model, tmp_path):
    conversation, path = built(model), tmp_path / "said.json"
    ask(conversation, "why?")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, limits[1]))
    try:
        with pytest.raises(ValueError, match=r"said.json: File too large"):
            conversation.save(str(path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not path.exists()


def test_an_answer_that_says_nothing_leaves_the_conversation_as_it_was(model, tmp_path, monkeypatch):
    conversation = built(model)
    conversation.attach(read_log(str(write_log(tmp_path / "app.log"))))
    with monkeypatch.context() as patch:
        patch.setattr(Generator, "sample", lambda self, logits, batch: list(self.stop_ids))
        assert ask(conversation, "why?") == ""
    assert conversation.turns == []
    ask(conversation, "why?")
    assert conversation.turns[0].content.startswith("why?\nsshd[24499]: error 1\n"), "with the log still"


# ---- the log


def test_a_log_goes_with_the_next_question_and_stays_for_the_tasks(model, tmp_path):
    conversation, said = built(model), []
    path = write_log(tmp_path / "app.log")
    log = "sshd[24499]: error 18\nsshd[24499]: error 19\nsshd[24499]: error 20"
    assert question_in(f'/log "{path}" -3', conversation, said.append) == ""
    tokens = len(conversation.tokenizer.encode(f"\n{log}"))
    assert said == [f"{path}: 3 lines, {tokens} tokens; with the next question"]
    question_in(f"/log {path} 18-20", conversation, said.append)
    assert said.pop().endswith(f"with the next question, and not {path}")
    for name in ("/summarize", "/SUMMARISE", "/patterns"):
        ask(conversation, question_in(name, conversation, said.append))
    summarise, patterns = TASKS["summarise"]["prompt"].strip(), TASKS["patterns"]["prompt"].strip()
    asked = [turn.content for turn in conversation.turns[::2]]
    assert asked == [f"{summarise}\n{log}", summarise, patterns]
    question_in("/reset", conversation, said.append)
    with pytest.raises(ValueError, match="/cause: no log to ask about"):
        question_in("/cause", conversation, said.append)


def test_a_log_that_does_not_fit_is_told_with_the_lines_that_do(model, tmp_path):
    path = str(write_log(tmp_path / "app.log", 1000))
    longest = max((task["prompt"].strip() for task in TASKS.values()), key=len)
    for settings, whose in (
        ({}, "the model's context of 4,096"),
        ({"memory": 1500 * 256 / 2**30}, "the cache (--memory) of 1,500"),
    ):
        conversation = built(model, **settings)
        for which, last in (("", 1000), ("-900", 1000), ("50-949", 949)):
            log = read_log(path, which)
            with pytest.raises(ValueError) as error:
                conversation.attach(log)
            told = re.fullmatch(
                rf"{re.escape(path)}: ([\d,]+) lines, ([\d,]+) tokens, ([\d,]+) too many for {re.escape(whose)}, with "
                rf"an answer of up to {NEW}; lines (\d+)-(\d+) fit",
                str(error.value),
            )
            lines, tokens, over, first, end = (int(number.replace(",", "")) for number in told.groups())
            assert (lines, end) == (len(log.lines), last)
            assert tokens == len(conversation.tokenizer.encode(f"\n{log.text}"))
            assert over == len(conversation.prompt(longest, log)) + NEW - conversation.room
            assert conversation.log is None
            conversation.attach(read_log(path, f"{first}-{end}"))
            conversation.reset()
            more = first - 1 - (end - first) // 20
            with pytest.raises(ValueError, match="too many"):
                conversation.attach(read_log(path, f"{more}-{end}"))
    (tmp_path / "long.log").write_text("error " * 5000)
    with pytest.raises(ValueError, match="not one of them fits; shorten it, or start with a smaller --max_new_tokens"):
        conversation.attach(read_log(str(tmp_path / "long.log")))


def test_a_log_is_read_as_it_is_packed_and_encoded(tmp_path):
    text = "é 1\n\n2\t\x1b[31m\n3\r4\n"
    for name, data in (
        ("app", text.encode()),
        ("app.log", b"\xef\xbb\xbf" + text.encode()),
        ("app.log.GZ", gzip.compress(text.encode())),
        ("a b.zst", zstandard.compress(text.encode())),
    ):
        (tmp_path / name).write_bytes(data)
        log = read_log(str(tmp_path / name))
        assert (log.lines, log.note, log.first) == (["é 1", "", "2\t\x1b[31m", "3\r4"], "", 1)
    (tmp_path / "latin.log").write_bytes(b"caf\xe9\r\n\xff\n3\r")
    log = read_log(str(tmp_path / "latin.log"))
    assert log.lines == ["caf\\xe9", "\\xff", "3\r"]
    assert log.note == r"1 line ends \r\n are read as \n; 2 bytes that are not UTF-8 are written as \xNN"


def test_a_packed_log_is_not_unpacked_as_a_whole(tmp_path):
    packer = zlib.compressobj(wbits=31)
    packed = b"".join(packer.compress(b"error " * 170_000 + b"\n") for _ in range(300)) + packer.flush()
    (tmp_path / "app.log.gz").write_bytes(packed)
    assert len(packed) < 1 << 20
    tracemalloc.start()
    try:
        assert len(read_log(str(tmp_path / "app.log.gz"), "2-3").lines) == 2
        assert tracemalloc.get_traced_memory()[1] < 300 << 20
    finally:
        tracemalloc.stop()


def test_lines_of_a_log(tmp_path, monkeypatch):
    path = str(write_log(tmp_path / "app.log", 10))
    for which, first, last in (("", 1, 10), ("3-5", 3, 5), ("4-4", 4, 4), ("9-", 9, 10), ("-2", 9, 10), ("-20", 1, 10)):
        log = read_log(path, which)
        assert log.first == first
        assert log.lines == [f"sshd[24499]: error {i}" for i in range(first, last + 1)]
    (tmp_path / "rotated.log").write_text(f"\0\0\n{(tmp_path / 'app.log').read_text()}")
    assert len(read_log(str(tmp_path / "rotated.log"), "-10").lines) == 10
    monkeypatch.setattr(log_module, "MAX_CHARS", 90)  # four lines
    assert len(read_log(path, "-4").lines) == len(read_log(path, "2-5").lines) == 4
    for which in ("", "2-6", "-5", "3-"):
        with pytest.raises(ValueError, match=r"app.log: more than 90 characters; choose lines, as 100-200, or -50"):
            read_log(path, which)


@pytest.mark.parametrize(
    ("name", "data", "which", "message"),
    [
        ("none.log", None, "", "none.log: no such file"),
        (".", None, "", ": a directory; name a file in it"),
        ("empty.log", b"", "", "empty.log: no line in it"),
        ("blank.log", b"\n \n", "", "blank.log: nothing but blanks in it"),
        ("core", b"ELF\0\0\n", "", "core: zero bytes, so no text"),
        ("wide.log", "error".encode("utf-16"), "", "wide.log: UTF-16, not UTF-8; convert the file with iconv"),
        ("cut.log.gz", gzip.compress(b"error " * 99)[:-9], "", "cut.log.gz: the compressed file is cut short"),
        ("no.log.gz", b"error", "", "no.log.gz: Error -3 while decompressing data"),
        ("no.log.zst", b"error", "", "no.log.zst: "),
        ("app.log", b"1\n2\n", "3-", "app.log: no line in it at 3-"),
        ("app.log", b"1\n2\n", "2", "lines 2: expected as 100-200, 100- to the end, or -50"),
        ("app.log", b"1\n2\n", "-", "lines -: expected as"),
        ("app.log", b"1\n2\n", "0-1", "lines 0-1: no lines; they count from 1"),
        ("app.log", b"1\n2\n", "-0", "lines -0: no lines"),
        ("app.log", b"1\n2\n", "2-1", "lines 2-1: no lines"),
    ],
)
def test_a_log_that_cannot_be_read_is_one_line(tmp_path, name, data, which, message):
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        read_log(str(tmp_path / name), which)
    assert "\n" not in str(error.value)


# ---- commands


def test_what_is_a_question(model):
    conversation = built(model)
    for line, question in (
        ("why?", "why?"),
        ("why\nthen?\n", "why\nthen?"),
        (" /var/log", " /var/log"),
        ("//var/log is full", "/var/log is full"),
        ("   ", ""),
        ("", ""),
    ):
        assert question_in(line, conversation, None) == question


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/hepl", "/hepl: no such command; the nearest is /help. Is it a question? Put a space before it"),
        ("/var/log is full", "/var/log: no such command"),
        ("/", "/: no such command"),
        ("/ log", "/: no such command"),
        ("/log", "/log: expected /log FILE [LINES]"),
        ("/log a b c", "a b c: 3 words, expected 2 at most; put a name with spaces in quotes"),
        ('/log "a', '"a: No closing quotation'),
        ("/save", "/save: expected /save FILE"),
        ("/cause of it", "/cause: nothing may follow it, and 'of it' does"),
        ("/reset\nnow", "/reset: nothing may follow it"),
    ],
)
def test_a_command_that_is_none_is_one_line(model, line, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        question_in(line, built(model), pytest.fail)
    assert "\n" not in str(error.value)


def test_commands(model):
    conversation, said = built(model), []
    question_in("/system be brief\nand kind", conversation, said.append)
    plain = conversation.template.prompt([Turn("user", "why?")])
    told = conversation.template.prompt([Turn("system", "be brief\nand kind"), Turn("user", "why?")])
    assert conversation.prompt("why?", None) == told != plain
    question_in("/system", conversation, said.append)
    assert conversation.prompt("why?", None) == plain
    question_in("/help", conversation, said.append)
    assert said[2] == HELP
    assert all(f"/{name} " in HELP for name in COMMANDS)
    assert max(map(len, HELP.splitlines())) <= 100
    with pytest.raises(Leave):
        question_in("/exit", conversation, said.append)


# ---- how answers are drawn


def test_answers_are_drawn_as_the_folder_says_or_as_llama_3_1s_does(tmp_path):
    file = tmp_path / "generation_config.json"
    llama, neutral = SamplingConfig(temperature=0.6, top_p=0.9), SamplingConfig(temperature=1.0)
    assert published_sampling(tmp_path) == llama
    for facts, expected in (
        ({"eos_token_id": 2}, llama),
        ({"temperature": None}, llama),
        ({"do_sample": True}, neutral),
        ({"do_sample": False, "top_p": 0.5}, SamplingConfig(temperature=0.0, top_p=0.5)),
        ({"temperature": 1}, neutral),
        ({"top_k": 20}, SamplingConfig(temperature=1.0, top_k=20)),
        ({"repetition_penalty": 1.1}, SamplingConfig(temperature=0.6, top_p=0.9, repetition_penalty=1.1)),
    ):
        file.write_text(json.dumps(facts))
        assert published_sampling(tmp_path) == expected
    for facts, message in (
        ({"temperature": -1}, "temperature = -1 must be"),
        ({"top_k": 1.5}, "top_k = 1.5; expected a number"),
        ({"top_p": True}, "top_p = true; expected a number"),
    ):
        file.write_text(json.dumps(facts))
        with pytest.raises(ValueError, match=re.escape(f"{file}: {message}")):
            published_sampling(tmp_path)


def test_flags_go_before_what_the_folder_says(model):
    assert built(model, temperature=-1.0).sampling == SamplingConfig(temperature=0.6, top_p=0.9)
    sampling = built(model, temperature=0.0, top_k=5, repetition_penalty=1.2, seed=3).sampling
    assert sampling == SamplingConfig(temperature=0.0, top_p=0.9, top_k=5, repetition_penalty=1.2, seed=3)


# ---- a real model


def test_smollm2_is_asked_about_a_real_log(smollm2, shared):
    conversation = built(smollm2, max_new_tokens=32)
    conversation.attach(read_log(str(shared / "data" / "loghub" / "OpenSSH" / "OpenSSH_2k.log"), "1-6"))
    question = "Which component wrote these log lines, and which IP addresses do they name?"
    assert "173.234.31.186" in ask(conversation, question)
    exchange = list(conversation.ask("Is this an attack?"))[-1]
    assert exchange.reused / exchange.prompt_tokens > 0.9
    plain = Generator(conversation.generator.cached.model, conversation.tokenizer, conversation.generator.stop_ids)
    prompt = conversation.template.prompt([*conversation.turns[:-1]])
    ((_, expected),) = plain.run([Request(prompt=prompt, max_new_tokens=32)])
    assert exchange.text == expected.text
