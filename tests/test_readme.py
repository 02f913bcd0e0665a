"""README.md says what is: its commands run, its files exist, its example of an error is what one gets."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from logtrain.chat import ChatConfig
from logtrain.core import config
from logtrain.cpt import CptConfig
from logtrain.evaluate import EvaluateConfig
from logtrain.planning.config import PlanConfig
from logtrain.prepare import PrepareConfig
from logtrain.sft import SftConfig
from tests.support import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = [block.strip().splitlines() for block in re.findall(r"```bash\n(.*?)```", README, re.S)]
COMMANDS = [command for block in BLOCKS for command in block]

# Ones that other tests run, or that are running now.
ELSEWHERE = {
    "bash launch/demo.sh": "tests/launch/test_demo.py",
    "launch/demo.sh --input FILE --model DIR": "tests/launch/test_demo.py",
    "bash launch/test.sh": "launch/test.sh",
}
# What makes the others short: flags added to each command that begins so.
SHORT = {
    "python launch/demo/data.py": ["--rows", "150"],
    "launch/cpt.sh launch/recipes/demo.toml": ["--trainer.max_steps", "2"],
    "python launch/demo/result.py": ["--tokens", "3"],
}
# Ones that need what a test has not: their flags are parsed by the program they are for.
PARSED = {
    "python -m logtrain.prepare --input NLPLog.json": PrepareConfig,
    "launch/cpt.sh launch/recipes/cpt_8xh100.toml": CptConfig,
    "sbatch --nodes 2 launch/slurm.sbatch": CptConfig,
    "python -m logtrain.prepare --format sharegpt": PrepareConfig,
    "python -m logtrain.plan": PlanConfig,
    "PET_NPROC_PER_NODE=4 launch/sft.sh": SftConfig,
    "launch/sft.sh": SftConfig,
    "launch/evaluate.sh": EvaluateConfig,
    "python -m logtrain.chat": ChatConfig,
    "echo /cause | python -m logtrain.chat": ChatConfig,
}

FIRST_FLAGS = ("--input", "--format", "--model", "--models")  # what comes before is the program


def of(table: dict, command: str):
    return next((value for start, value in table.items() if command.startswith(start)), None)


def test_every_command_is_run_or_parsed_by_a_test():
    """The tour is run as it stands; each other command is in one of the tables."""
    assert len(COMMANDS) >= 10
    for command in COMMANDS:
        kinds = [command in ELSEWHERE, "runs/tour" in command, bool(of(PARSED, command))]
        assert sum(kinds) == 1, command
    for test in ELSEWHERE.values():
        assert (ROOT / test).exists()


def test_the_tour(tmp_path):
    """The block of commands from generated data to a result, one after the other."""
    (tmp_path / "launch").symlink_to(ROOT / "launch")
    environment = {**os.environ, "VIRTUAL_ENV": sys.prefix, "PET_NPROC_PER_NODE": "1"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    tour = [command for command in COMMANDS if "runs/tour" in command]
    assert len(tour) == 5
    for command in tour:
        words = [*shlex.split(command), *(of(SHORT, command) or [])]
        result = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    assert (tmp_path / "runs/tour/exported/model.safetensors").exists()
    assert "The exported model goes on:" in result.stdout


@pytest.mark.parametrize("command", [command for command in COMMANDS if of(PARSED, command)])
def test_flags_of_what_needs_more_than_a_test_has(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = shlex.split(command)
    arguments = words[words.index("logtrain.prepare") + 1 :] if "logtrain.prepare" in words else words
    first = next(i for i, word in enumerate(arguments) if word.endswith(".toml") or word in FIRST_FLAGS)
    config.load(of(PARSED, command), arguments[first:])


def test_every_file_and_module_named_exists():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    scripts = re.findall(r"\b(?:launch|benchmarks)/[\w.]+\.(?:sh|py|toml|sbatch)\b", README)
    assert len(links) > 10
    for path in links + scripts:
        assert (ROOT / path).exists() or path == "launch/mine.toml", path
    for module in re.findall(r"-m ((?:logtrain|benchmarks)\.\w+)", README):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module


def test_every_launcher_and_entry_is_in_the_table():
    table = re.findall(r"^\| `([^`]+)` \|", README, re.M)
    files = [path for path in (ROOT / "launch").iterdir() if path.suffix in (".sh", ".sbatch")]
    entries = [path.stem for path in (ROOT / "logtrain").glob("*.py") if "if __name__ ==" in path.read_text()]
    assert {f"launch/{path.name}" for path in files if path.stem not in ("install", "ranks")} <= set(table)
    assert {f"python -m logtrain.{entry}" for entry in entries} <= set(table)


def test_the_error_that_is_shown(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, line, shown = re.search(r"error: (launch/\w+\.toml):(\d+): (.+)", README).groups()
    Path(path).parent.mkdir()
    Path(path).write_text("[optim]\n" + "\n" * (int(line) - 2) + "lrr = 1e-5\n")
    with pytest.raises(ValueError) as error:
        config.load(CptConfig, [path])
    assert str(error.value) == f"{path}:{line}: {shown}"


def test_the_dependencies_are_those_of_setup_py():
    listed = re.search(r"At run time: ([\w, ]+);", README.replace("\n", " "))[1]
    required = re.search(r"RUN_TIME = \[(.*?)\]", (ROOT / "setup.py").read_text(), re.S)[1]
    assert set(listed.split(", ")) == set(re.findall(r'"(\w+)>=', required))
