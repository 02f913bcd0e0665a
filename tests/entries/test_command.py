"""`logtrain COMMAND`: what it offers, what it says to a mistake, and that neither help nor a mistake is waited for."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from logtrain.__main__ import FIRST, commands, module_of
from tests.support import ROOT

SECONDS = 1.5  # of CPU


def logtrain(*arguments: str, root: Path = ROOT) -> tuple[subprocess.CompletedProcess, float]:
    """What the command of the checkout `root` gives, and the CPU seconds that it takes."""
    environment = {**os.environ, "PYTHONPATH": f"{root}:{ROOT}/kernels", "COLUMNS": "120"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "logtrain", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=root)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return result, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_without_a_command_it_lists_them():
    result, seconds = logtrain()
    assert result.returncode == 0
    assert [line.split()[0] for line in result.stdout.split("\n\n")[1].splitlines()] == list(commands())
    assert seconds < SECONDS


def test_the_list_has_every_command_with_what_it_does_on_one_line():
    listed = logtrain()[0].stdout.split("\n\n")[1].splitlines()
    assert {*FIRST} <= commands().keys()
    assert all(line.endswith(".") and len(line) <= 120 for line in listed), listed
    for path in commands().values():
        assert "    run(main)\n" in path.read_text(), f"{path}: does nothing as python -m {module_of(path)}"


STRANGERS = {
    "greet.py": """First line.\n\nAnd more.""",
    "greeting/__main__.py": """Says from its own folder how it was called.""",
    "greeting/__init__.py": "",
    "helper.py": "Is no command.",
}
MAIN = """
import sys
from logtrain.core.entry import program_name, run

def main(argv):
    print(program_name(), argv)
    return 3

if __name__ == "__main__":
    run(main)
"""


@pytest.fixture
def with_strangers(tmp_path) -> Path:
    """A checkout whose package has more commands, and in which no other file has changed."""
    (tmp_path / "logtrain").mkdir()
    for path in (ROOT / "logtrain").iterdir():
        (tmp_path / "logtrain" / path.name).symlink_to(path)
    for name, docstring in STRANGERS.items():
        file = tmp_path / "logtrain" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(f'"""{docstring}"""\n' + (MAIN if name != "helper.py" else ""))
    return tmp_path


def test_a_file_or_a_folder_of_ones_own_is_a_command_and_no_other_file_says_so(with_strangers):
    result, seconds = logtrain("--help", root=with_strangers)
    listed = [tuple(line.split(maxsplit=1)) for line in result.stdout.split("\n\n")[1].splitlines()]
    assert [name for name, _ in listed[: len(FIRST)]] == list(FIRST)
    assert {("greet", "First line."), ("greeting", STRANGERS["greeting/__main__.py"])} <= {*listed[len(FIRST) :]}
    assert seconds < SECONDS
    for name in ("greet", "greeting"):
        result, _ = logtrain(name, "--loud", root=with_strangers)
        assert (result.returncode, result.stdout) == (3, f"logtrain {name} ['--loud']\n"), result.stderr
    module = [sys.executable, "-m", "logtrain.greeting"]
    environment = {**os.environ, "PYTHONPATH": f"{with_strangers}:{ROOT}/kernels"}
    result = subprocess.run(module, capture_output=True, text=True, env=environment, cwd=with_strangers)
    assert (result.returncode, result.stdout) == (3, "python -m logtrain.greeting []\n"), result.stderr
    assert logtrain("helper", root=with_strangers)[0].returncode == 2


def test_a_command_that_is_none():
    result, _ = logtrain("evalute", "--data", "x")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "error: evalute: no such command; did you mean evaluate?\n"


@pytest.mark.parametrize("command", commands())
def test_help_comes_at_once_and_names_the_command(command):
    result, seconds = logtrain(command, "--help")
    assert result.returncode == 0
    assert result.stdout.startswith(f"usage: logtrain {command} [FILE.toml ...]")
    assert seconds < SECONDS


@pytest.mark.parametrize("command", commands())
def test_a_mistyped_flag_is_told_at_once(command):
    result, seconds = logtrain(command, "--modle", "x")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error: --modle: unknown flag; ")
    assert result.stderr.count("\n") == 1
    assert seconds < SECONDS
