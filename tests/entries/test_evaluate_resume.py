"""An evaluation that is shared by ranks or interrupted gives the same scores, and goes on with no other's answers."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from logtrain import evaluate
from logtrain.generation.load import ModelFolder
from tests.support import chats
from tests.support.evaluation import ROWS, evaluated, flags, num_answers, read, results
from tests.support.program import Program
from tests.support.ranks import Ranks


def evaluate_on_a_rank(arguments: list[str]) -> int:
    return evaluate.main(arguments)


def test_ranks_change_nothing(chat_models, question_file, finished, ranks: Ranks, tmp_path):
    assert ranks.run(2, evaluate_on_a_rank, flags(chat_models, question_file, tmp_path / "run")) == [0, 0]
    assert results(tmp_path / "run") == results(finished)
    assert len(list((tmp_path / "run" / "answers").glob("a.?????.jsonl"))) == 2


@pytest.mark.parametrize("moment", [1, len(ROWS) + 3])
def test_killed_at_any_moment_it_resumes_to_the_same_scores(chat_models, question_file, finished, tmp_path, moment):
    run = tmp_path / "run"
    arguments = [*flags(chat_models, question_file, run), "--resume", "auto"]
    program = Program(arguments, tmp_path / "output", entry="logtrain.evaluate")
    program.until(lambda: num_answers(run) >= moment)
    program.send(signal.SIGKILL)
    assert program.wait() == [-signal.SIGKILL]
    assert not (run / "scores.json").exists()
    (file,) = (run / "answers").glob("a.*.jsonl")
    with open(file, "ab") as stream:
        stream.write(b'{"number": 3, "outp')  # the kill came in the middle of a line
    before = num_answers(run)
    assert evaluated(arguments) == 0
    assert results(run) == results(finished)
    assert num_answers(run) <= len(chat_models) * len(ROWS) + 2, "nothing is asked twice"
    assert before >= moment


def test_a_finished_evaluation_is_not_asked_again_and_no_other_is_mixed_in(
    chat_models, question_file, finished, tmp_path, monkeypatch
):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    with pytest.raises(ValueError, match="holds a run already; --resume auto goes on with it, another --run starts"):
        evaluated(flags(chat_models, question_file, run))
    with pytest.raises(ValueError, match=r"was started with max_new_tokens = 12, now it is 13"):
        evaluated(flags(chat_models, question_file, run, "--resume", "auto", "--max_new_tokens", "13"))
    other = tmp_path / "test.json"
    other.write_text(json.dumps([ROWS[0], {**ROWS[1], "input": "else"}, *ROWS[2:]]))
    with pytest.raises(ValueError, match="a's answers are to another row 1 than the data has now; restore"):
        evaluated(flags(chat_models, other, run, "--resume", "auto"))
    retrained = {"a": chat_models["a"], "b": tmp_path / "retrained"}
    shutil.copytree(chat_models["b"], retrained["b"])
    file = retrained["b"] / "model.safetensors"
    weights = bytearray(file.read_bytes())
    weights[-1] ^= 1
    file.write_bytes(weights)
    with pytest.raises(ValueError, match="b's answers are of another model, tokenizer or template than are"):
        evaluated(flags(retrained, question_file, run, "--resume", "auto"))
    monkeypatch.setattr(ModelFolder, "load", None)  # nobody is asked
    assert evaluated(flags(chat_models, question_file, run, "--resume", "auto")) == 0
    assert results(run) == results(finished)


def test_another_run_goes_on_with_what_the_answers_do_not_depend_on(
    chat_models, question_file, finished, tmp_path, monkeypatch
):
    """Moved, with fewer questions, another reference, and the same model by another name of its folder."""
    run, moved = tmp_path / "moved", tmp_path / "other.json"
    shutil.copytree(finished, run)
    moved.write_text(json.dumps([{**ROWS[0], "output": "else"}, *ROWS[1:]]))
    same = {name: Path(f"{folder}/.") for name, folder in reversed(chat_models.items())}
    with monkeypatch.context() as patch:
        patch.setattr(ModelFolder, "load", None)  # nobody is asked
        assert evaluated([*flags(same, moved, run), "--resume", "auto", "--limit", "3"]) == 0
    samples = {(s["model"], s["row"]): s for s in read(run)[1]}
    before = {(s["model"], s["row"]): s for s in read(finished)[1]}
    assert set(samples) == {(name, row) for name in chat_models for row in range(3)}
    for key, sample in samples.items():
        assert sample["output"] == before[key]["output"]
        assert (sample["scores"] == before[key]["scores"]) == (key[1] > 0)


def test_a_template_that_was_mended_is_not_mixed_with_the_old(chat_models, question_file, tmp_path):
    """Its prompts may be the same, and the end of an answer another."""
    template, source = tmp_path / "mine.jinja", chats.TRIMMING
    template.write_text(source)
    arguments = flags(
        {"a": chat_models["a"]}, question_file, tmp_path / "run", "--template", str(template), "--limit", "1"
    )
    assert evaluated(arguments) == 0
    template.write_text(source + "{# mended #}")
    with pytest.raises(ValueError, match="a's answers are of another model, tokenizer or template"):
        evaluated([*arguments, "--resume", "auto"])


def test_what_is_wrong_with_the_last_model_is_met_before_the_first_answers(chat_models, question_file, tmp_path):
    """And once it is mended, nothing is in the way."""
    broken = {"a": chat_models["a"], "b": tmp_path / "broken"}
    shutil.copytree(chat_models["b"], broken["b"])
    (broken["b"] / "model.safetensors").rename(tmp_path / "weights")
    with pytest.raises(ValueError, match="broken"):
        evaluated(flags(broken, question_file, tmp_path / "run"))
    (tmp_path / "weights").rename(broken["b"] / "model.safetensors")
    assert evaluated(flags(broken, question_file, tmp_path / "run", "--limit", "1")) == 0


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_the_answers_go_on(chat_models, question_file, finished, tmp_path):
    limited = (
        "import resource, sys; from logtrain import evaluate; from logtrain.core.entry import run; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1200, 1200)); run(evaluate.main)"  # stands in for a full disk
    )
    arguments = flags(chat_models, question_file, tmp_path / "run", "--resume", "auto")
    result = subprocess.run([sys.executable, "-c", limited, *arguments], capture_output=True, text=True)
    assert result.returncode == 2
    file = tmp_path / "run/answers/a.00000.jsonl"
    assert result.stderr.splitlines()[-1] == (
        f"error: {file}: File too large; --resume auto goes on with the answers that are there"
    )
    assert evaluated(arguments) == 0
    assert (tmp_path / "run" / "samples.jsonl").read_bytes() == (finished / "samples.jsonl").read_bytes()
