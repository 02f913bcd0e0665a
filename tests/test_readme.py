"""README.md and docs/ say what is: their commands run, their files exist, the example of an error is what one gets."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from logtrain.__main__ import FIRST, commands
from logtrain.benchmark import BenchmarkConfig
from logtrain.blend import BlendConfig
from logtrain.chat import ChatConfig
from logtrain.core import config
from logtrain.cpt import CptConfig
from logtrain.doctor import DoctorConfig
from logtrain.dpo import DpoConfig
from logtrain.judge import JudgeConfig
from logtrain.page import PageConfig
from logtrain.planning.config import PlanConfig
from logtrain.prepare import PrepareConfig
from logtrain.rehearse import RehearseConfig
from logtrain.report import ReportConfig
from logtrain.review import ReviewConfig
from logtrain.serve import ServeConfig
from logtrain.sft import SftConfig
from logtrain.status import StatusConfig
from logtrain.synthesise import SynthesiseConfig
from logtrain.trace import TraceConfig
from tests.support import LAUNCH, ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXT = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
BLOCKS = [block.strip().splitlines() for block in re.findall(r"```bash\n(.*?)```", TEXT, re.S)]
SHELL = list(dict.fromkeys(re.sub(r" +# .*", "", command) for block in BLOCKS for command in block))

# Ones that other tests run, that are running now, or (wheels.py) that need a network; the test nearest to each.
ELSEWHERE = {
    "bash launch/demo.sh": "tests/launch/test_demo.py",
    "launch/demo.sh --input FILE --model DIR": "tests/launch/test_demo.py",
    "bash launch/test.sh": "launch/test.sh",
    "python launch/wheels.py": "tests/launch/test_install.py",
    "launch/serve.sh --model runs/chat-8b-lora/export": "tests/entries/test_serve.py",
    "launch/gpu_check.sh --as-is step --output OUT": "tests/launch/test_gpu_check.py",
    "launch/gpu_check.sh --as-is kernels --output OUT2": "tests/launch/test_gpu_check.py",
}
# What makes the others short: flags added to each command that begins so.
SHORT = {
    "python launch/demo/data.py": ["--rows", "150"],
    "launch/run.sh cpt launch/recipes/demo.toml": ["--trainer.max_steps", "2"],
    "python launch/demo/result.py": ["--tokens", "3"],
}
# Configs of commands that need what a test has not: their flags are parsed by the program that they are for.
CONFIGS = {
    "prepare": PrepareConfig,
    "cpt": CptConfig,
    "sft": SftConfig,
    "plan": PlanConfig,
    "blend": BlendConfig,
    "dpo": DpoConfig,
    "rehearse": RehearseConfig,
    "doctor": DoctorConfig,
    "chat": ChatConfig,
    "serve": ServeConfig,
    "page": PageConfig,
    "synthesise": SynthesiseConfig,
    "review": ReviewConfig,
    "judge": JudgeConfig,
    "benchmark": BenchmarkConfig,
}
OF_RUNS = {"report": ReportConfig, "status": StatusConfig, "trace": TraceConfig}  # the first words are folders of runs


def parsed(command: str) -> tuple[str, list[str]] | None:
    """(the command of logtrain, its arguments) of a line of a shell, None for another program's."""
    line = command.split("|")[-1].strip()
    pattern = r"(?:PET_\w+=\S+ )?(?:sbatch --nodes 2 launch/slurm\.sbatch|launch/run\.sh|logtrain) (\w+) (.*)"
    found = re.fullmatch(pattern, line)
    return (found[1], shlex.split(found[2])) if found else None


def test_every_command_is_run_or_parsed_by_a_test():
    """The tour is run as it stands; each other command is in one of the tables."""
    assert len(SHELL) >= 15
    for command in SHELL:
        kinds = [command in ELSEWHERE, "runs/tour" in command, "runs/tour" not in command and bool(parsed(command))]
        assert sum(kinds) == 1, command
    for test in ELSEWHERE.values():
        assert (ROOT / test).exists()


@pytest.mark.slow
def test_the_tour(tmp_path):
    """The block of commands from generated data to a result, one after the other."""
    (tmp_path / "launch").symlink_to(LAUNCH)
    environment = {**os.environ, "VIRTUAL_ENV": sys.prefix, "PET_NPROC_PER_NODE": "1"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    tour = [command for command in SHELL if "runs/tour" in command]
    assert len(tour) == 5
    for command in tour:
        short = next((flags for start, flags in SHORT.items() if command.startswith(start)), [])
        words = [*shlex.split(command), *short]
        result = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    assert (tmp_path / "runs/tour/exported/model.safetensors").exists()
    assert "The exported model goes on:" in result.stdout


@pytest.mark.parametrize("command", [line for line in SHELL if parsed(line) and "runs/tour" not in line])
def test_flags_of_what_needs_more_than_a_test_has(command, monkeypatch):
    from logtrain.evaluation.config import EvaluateConfig

    monkeypatch.chdir(ROOT)
    name, arguments = parsed(command)
    if name in OF_RUNS or name == "review":
        arguments = config.words_first(arguments, "--run" if name in OF_RUNS else "--file")
    if name == "blend":
        arguments = config.words_first(arguments, "--models")
    config.load({**CONFIGS, **OF_RUNS, "evaluate": EvaluateConfig}[name], arguments)


def test_every_file_and_module_named_exists():
    count = 0
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        links = [(page.parent, link) for link in re.findall(r"\]\(([^)#:]+)\)", text)]
        named = re.findall(r"\b(?:launch|benchmarks|logtrain|kernels|tests|csrc)/[\w./]+\.(?:sh|py|toml|cpp)\b", text)
        for folder, path in [*links, *((ROOT, path) for path in named)]:
            assert (folder / path).exists() or "mine" in path or "NAME" in path or "*" in path, f"{page.name}: {path}"
            count += 1
    assert count > 30
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    without_package = re.findall(r"`(\w[\w./-]*/[\w./-]*)`", contributing)
    assert len(without_package) > 25
    for path in without_package:
        assert "NAME" in path or (ROOT / path).exists() or (ROOT / "logtrain" / path).exists(), path
    for module in re.findall(r"-m ((?:logtrain|benchmarks)\.[a-z_]+)", TEXT):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module


def test_every_launcher_and_command_is_in_the_table():
    table = re.findall(r"^\| `([^`]+)` \|", README, re.M)
    files = [path for path in LAUNCH.iterdir() if path.suffix in (".sh", ".sbatch")]
    assert {f"launch/{path.name}" for path in files if path.stem not in ("install", "ranks")} <= set(table)
    shown = [entry.removeprefix("logtrain ") for entry in table if entry.startswith("logtrain ")]
    assert {*FIRST} <= {*shown} <= commands().keys(), "a command that has its place in the list is one of the README"


def test_the_error_that_is_shown(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, line, shown = re.search(r"error: (launch/\w+\.toml):(\d+): (.+)", README).groups()
    Path(path).parent.mkdir()
    Path(path).write_text("[optim]\n" + "\n" * (int(line) - 2) + "lrr = 1e-5\n")
    with pytest.raises(ValueError) as error:
        config.load(CptConfig, [path])
    assert str(error.value) == f"{path}:{line}: {shown}"


def test_the_readme_can_be_read_in_a_sitting():
    assert len(README.splitlines()) <= 150
