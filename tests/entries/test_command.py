"""`logtrain COMMAND`: what it offers, what it says to a mistake, and that neither help nor a mistake is waited for."""

import os
import resource
import subprocess
import sys

import pytest

from logtrain.__main__ import COMMANDS
from tests.support import ROOT

SECONDS = 1.5  # of CPU


def logtrain(*arguments: str) -> tuple[subprocess.CompletedProcess, float]:
    """What the command gives, and the CPU seconds that it takes."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT}/kernels", "COLUMNS": "120"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "logtrain", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return result, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_without_a_command_it_lists_them():
    result, seconds = logtrain()
    assert result.returncode == 0
    assert [line.split()[0] for line in result.stdout.split("\n\n")[1].splitlines()] == list(COMMANDS)
    assert seconds < SECONDS


def test_a_command_that_is_none():
    result, _ = logtrain("evalute", "--data", "x")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "error: evalute: no such command; did you mean evaluate?\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_comes_at_once_and_names_the_command(command):
    result, seconds = logtrain(command, "--help")
    assert result.returncode == 0
    assert result.stdout.startswith(f"usage: logtrain {command} [FILE.toml ...]")
    assert seconds < SECONDS


@pytest.mark.parametrize("command", COMMANDS)
def test_a_mistyped_flag_is_told_at_once(command):
    result, seconds = logtrain(command, "--modle", "x")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error: --modle: unknown flag; ")
    assert result.stderr.count("\n") == 1
    assert seconds < SECONDS
