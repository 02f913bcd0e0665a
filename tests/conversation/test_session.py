"""A conversation reads only what is new, loses nothing, and is a row that prepare reads."""

import json
import re
import resource

import pytest

from logtrain import prepare
from logtrain.conversation.commands import handle
from logtrain.conversation.tasks import LONGEST_PROMPT, TASKS
from logtrain.data.conversations import conversations
from logtrain.data.files import InputFile
from logtrain.data.log import read_log
from logtrain.generation.generator import Generator
from logtrain.generation.lookup import Lookup
from logtrain.generation.request import Request
from tests.support.conversations import CONTEXT, NEW, ask, new_conversation, write_log


def test_what_is_shown_piece_by_piece_is_the_answer(model, monkeypatch):
    """Of steps that bring several tokens: all drafts are right."""
    conversation, steps = new_conversation(model), []
    prompt, generator = conversation.prompt("why?", None), conversation.generator
    ((_, answer),) = generator.run([Request(prompt=prompt, max_new_tokens=NEW)])
    whole = [*prompt, *answer.ids]
    monkeypatch.setattr(Lookup, "drafts", lambda _, ids, most: whole[len(ids) : len(ids) + most])
    step = generator.step
    monkeypatch.setattr(generator, "step", lambda: steps.append(step()) or steps[-1])
    deltas = [response.delta for response in conversation.ask("why?")]
    assert max(map(len, steps)) == 12
    assert "".join(deltas) == answer.text != ""


def test_a_second_question_reads_only_what_is_new_and_is_answered_the_same(model, tmp_path, monkeypatch):
    """Greedy answers are those of a generator that keeps nothing."""
    conversation, read = new_conversation(model), []
    conversation.attach(read_log(str(write_log(tmp_path / "app.log", 60))))
    conversation.generator.scheduler.draft_step_tokens = 0  # drafts are read, too
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
        response = list(conversation.ask(question))[-1]
        answers.append(response.text)
        assert response.text == expected.text
        assert sum(read) == len(prompt) - response.reused_tokens + len(expected.ids) - (
            expected.finish_reason == "length"
        )
        reused.append(response.reused_tokens / len(prompt))
    assert len(set(answers)) == 3
    assert reused[0] == 0
    assert min(reused[1:]) > 0.8


def test_questions_draw_anew_and_a_session_repeats_with_its_seed(model):
    def session(seed: int) -> list[str]:
        conversation = new_conversation(model, temperature=1.5, seed=seed)
        said = [ask(conversation, "why?")]
        said.append(ask(conversation, "why?"))
        conversation.reset()
        return [*said, ask(conversation, "why?")]

    first = session(1)
    assert len(set(first)) == 3
    assert session(1) == first
    assert not set(session(2)) & set(first)


def test_a_conversation_that_outgrows_the_context_says_so_and_loses_nothing(model):
    conversation = new_conversation(model, system="be brief")
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
    conversation = new_conversation(model, system="be brief")
    conversation.attach(read_log(str(write_log(tmp_path / "app.log"))))
    with pytest.raises(ValueError, match="nothing to save"):
        conversation.save(str(tmp_path / "said.json"))
    for question in (conversation.task_question("cause"), "é <|eot|>\n\nwhy?"):
        ask(conversation, question)
    path = tmp_path / "said.jsonl"
    assert conversation.save(str(path)) == "2 answers, 2 of them cut short"
    (row,) = conversations(InputFile(path), "messages")
    assert list(row.turns) == conversation.all_turns
    assert row.turns[1].content == f"{TASKS['cause'].prompt}\n{(tmp_path / 'app.log').read_text().strip()}"
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
    conversation, path = new_conversation(model), tmp_path / "said.json"
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
    conversation = new_conversation(model)
    conversation.attach(read_log(str(write_log(tmp_path / "app.log"))))

    def ends(self, logits_SV, batch):
        for state in batch:
            state.changes = state.changes or self.changes(state)
        return [(next(iter(self.stop_ids)), None) for _ in batch]

    with monkeypatch.context() as patch:
        patch.setattr(Generator, "sample", ends)
        assert ask(conversation, "why?") == ""
    assert conversation.turns == []
    ask(conversation, "why?")
    assert conversation.turns[0].content.startswith("why?\nsshd[24499]: error 1\n"), "with the log still"


# ---- the log


def test_a_log_goes_with_the_next_question_and_stays_for_the_tasks(model, tmp_path):
    conversation, said = new_conversation(model), []
    path = write_log(tmp_path / "app.log")
    log = "sshd[24499]: error 18\nsshd[24499]: error 19\nsshd[24499]: error 20"
    assert handle(f'/log "{path}" -3', conversation, said.append) == ""
    tokens = len(conversation.tokenizer.encode(f"\n{log}"))
    assert said == [f"{path}: 3 lines, {tokens} tokens; with the next question"]
    handle(f"/log {path} 18-20", conversation, said.append)
    assert said.pop().endswith(f"with the next question, and not {path}")
    for name in ("/summarize", "/SUMMARISE", "/patterns"):
        ask(conversation, handle(name, conversation, said.append))
    summarise, patterns = TASKS["summarise"].prompt, TASKS["patterns"].prompt
    asked = [turn.content for turn in conversation.turns[::2]]
    assert asked == [f"{summarise}\n{log}", summarise, patterns]
    handle("/reset", conversation, said.append)
    with pytest.raises(ValueError, match="/cause: no log to ask about"):
        handle("/cause", conversation, said.append)


def test_a_log_that_does_not_fit_is_folded_and_unfolded(model, tmp_path):
    """The rare error is with the question; so are lines that were brought back, before it and after."""
    path = write_log(tmp_path / "app.log", 3000)
    lines = path.read_text().splitlines()
    lines[1234] = "kernel: disk /dev/sdb failed"
    path.write_text("\n".join(lines))
    for settings in ({}, {"memory": 2000 * 256 / 2**30}):
        conversation, said = new_conversation(model, **settings), []
        handle(f"/log {path}", conversation, said.append)
        assert re.search(r": 3,000 lines, folded: 2 templates, \d+ lines whole; .* tokens instead of", said[0])
        assert "T1 2,999 lines L1-L3000: sshd[<*>]: error <*>" in said.pop()
        with pytest.raises(ValueError, match=r"/unfold 4000-: .* has lines 1-3000"):
            handle("/unfold 4000-", conversation, said.append)
        with pytest.raises(ValueError, match="T3: no template of this log; it has T1 to T2"):
            handle("/unfold T3", conversation, said.append)
        handle("/unfold 2000-2002", conversation, said.append)
        assert said.pop().splitlines() == [f"L{n} {lines[n - 1]}" for n in (2000, 2001, 2002)] + [
            "3 lines; with the next question"
        ]
        handle("/unfold t1", conversation, said.append)
        assert said.pop().endswith("\n... and 2,799 more\n2,999 lines; too many for the model: ask for fewer")
        ask(conversation, "why?")
        asked = conversation.turns[0].content.splitlines()
        assert {"L1235 kernel: disk /dev/sdb failed", "L2000 sshd[24499]: error 2000", "[L1]"} & set(asked)
        handle("/unfold T2", conversation, said.append)
        handle("/unfold 7-8", conversation, said.append)
        ask(conversation, "and then?")
        later = "and then?\nL1235 kernel: disk /dev/sdb failed\nL7 sshd[24499]: error 7\nL8 sshd[24499]: error 8"
        assert conversation.turns[2].content == later
        handle("/reset", conversation, said.append)
        with pytest.raises(ValueError, match="/unfold 7-: no log is folded"):
            handle("/unfold 7-", conversation, said.append)


def test_a_log_that_not_even_folded_fits_is_told(model, tmp_path):
    alone = len(new_conversation(model).prompt(LONGEST_PROMPT, None))
    conversation = new_conversation(model, max_new_tokens=CONTEXT - alone - 60)
    with pytest.raises(ValueError, match=r"app.log: a folded log takes more than the \d+ tokens .* smaller --max_new"):
        conversation.attach(read_log(str(write_log(tmp_path / "app.log", 3000))))
    assert conversation.log is None


# ---- a real model


def test_smollm2_is_asked_about_a_real_log(smollm2, shared):
    conversation = new_conversation(smollm2, max_new_tokens=32)
    conversation.attach(read_log(str(shared / "data" / "loghub" / "OpenSSH" / "OpenSSH_2k.log"), "1-6"))
    question = "Which component wrote these log lines, and which IP addresses do they name?"
    assert "173.234.31.186" in ask(conversation, question)
    response = list(conversation.ask("Is this an attack?"))[-1]
    assert response.reused_tokens / response.prompt_tokens > 0.9
    plain = Generator(conversation.generator.cached.model, conversation.tokenizer, conversation.generator.stop_ids)
    prompt = conversation.template.prompt([*conversation.turns[:-1]])
    ((_, expected),) = plain.run([Request(prompt=prompt, max_new_tokens=32)])
    assert response.text == expected.text
