"""What is wrong with an evaluation's input is one line that says what, and nothing is written."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from logtrain.core import entry
from tests.support.evaluation import ROWS, evaluated, flags
from tests.support.synthetic import edit_json


def data_of(content: str, name: str) -> Callable[[Path], list[str]]:
    """Flags that name a file with that content."""

    def write(at: Path) -> list[str]:
        (at / name).write_text(content)
        return ["--data", f"{at}/{name}"]

    return write


def without_tokenizer(at: Path) -> list[str]:
    (at / "a" / "tokenizer.json").unlink()
    return []


def without_template(at: Path) -> list[str]:
    edit_json(at / "a" / "tokenizer_config.json", chat_template=None)
    return []


def fixed(*flags: str) -> Callable[[Path], list[str]]:
    return lambda _: list(flags)


EMPTY_REFERENCE = json.dumps([{**ROWS[0], "output": " "}])
SERVER = ("--backend", "openai")
WRONG: dict[str, tuple[Callable[[Path], list[str]], str]] = {
    "no models": (fixed("--models"), "models: none given"),
    "a model without a name": (fixed("--models", "/x"), "models: '/x': expected NAME=PATH"),
    "a name twice": (fixed("--models", "a=/x", "a=/x"), "each name once"),
    "a column that is not there": (fixed("--task_column", "kind"), "task_column = kind: no question has such a column"),
    "endless memory": (fixed("--memory", "inf"), "memory = inf must be a finite number >= 0"),
    "a name of two words": (fixed("--models", "a b=/x"), "expected NAME=PATH"),
    "no such model": (fixed("--models", "a=/nowhere"), "/nowhere/config.json: no such file"),
    "no tokenizer": (without_tokenizer, "no tokenizer.json or tokenizer.model"),
    "no chat template": (without_template, "the tokenizer has no chat template"),
    "no data": (fixed("--data", "/nowhere.json"), "/nowhere.json: no such file"),
    "an empty file": (data_of("", "e.json"), "e.json: holds no row"),
    "an empty reference": (data_of(EMPTY_REFERENCE, "r.json"), 'r.json row 0: "output" is empty'),
    "other columns": (fixed("--format", "sharegpt"), 'no "conversations" among its columns'),
    "a text file": (data_of("x", "t.log"), "a text file has no alpaca rows"),
    "too little memory": (fixed("--memory", "0.00001"), "test.json row "),
    "a server without an address": (fixed(*SERVER), "backend = openai and base_url go together"),
    "an address of nothing": (fixed(*SERVER, "--base_url", "localhost"), "expected http://... or https://..."),
    "perplexity on a server": (
        fixed(*SERVER, "--base_url", "http://x/v1", "--perplexity", "x=/x.json"),
        "perplexity: only with backend = local",
    ),
    "a perplexity of nothing": (fixed("--perplexity", "x=/nowhere.json"), "/nowhere.json: no such file"),
    "an unknown flag": (fixed("--modles", "x"), "did you mean --models?"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_is_one_line(chat_models, question_file, tmp_path, monkeypatch, capsys, wrong):
    shutil.copytree(chat_models["a"], tmp_path / "a")
    change, message = WRONG[wrong]
    run = tmp_path / "run"
    monkeypatch.setattr("sys.argv", ["evaluate", *flags({"a": tmp_path / "a"}, question_file, run), *change(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        entry.run(evaluated)
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert error.count("\n") == 1
    assert message in error
    assert not (run / "scores.json").exists()


def test_a_mistyped_flag_is_told_before_torch_is_imported():
    program = (
        "import sys; from logtrain import evaluate\n"
        "try: evaluate.main(['--modles', 'x'])\nexcept ValueError as error: print(error)\n"
        "print([name for name in ('torch', 'matplotlib', 'sacrebleu') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "--modles: unknown flag; did you mean --models?\n[]\n"
