"""The package outside a checkout: what the wheel and the source distribution hold is enough to run every command."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from logtrain.__main__ import commands
from tests.support import ROOT

pytestmark = pytest.mark.slow
BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"
SOURCES = ("logtrain", "kernels", "csrc", "setup.py", "pyproject.toml", "README.md", "LICENSE")


def build(kind: str, source: Path, into: Path) -> Path:
    """A distribution of the sources in a folder, by the build backend alone: pip would fetch setuptools."""
    command = [sys.executable, "-c", BUILD, kind, str(into)]
    result = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return into / result.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel that was built from an unpacked source distribution of this checkout."""
    folder = tmp_path_factory.mktemp("package")
    (folder / "checkout").mkdir()
    for name in SOURCES:
        source, copy = ROOT / name, folder / "checkout" / name
        if source.is_file():
            shutil.copy(source, copy)
        else:
            shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__", "*.so", "*.egg-info"))
    with tarfile.open(build("build_sdist", folder / "checkout", folder)) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    return build("build_wheel", unpacked, folder)


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The wheel unpacked, which is what installing it does."""
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def run(installed: Path, *arguments: str) -> subprocess.CompletedProcess:
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(installed)}
    command = [sys.executable, "-P", "-m", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=installed.parent)


def test_it_is_the_installed_package_that_runs(installed):
    code = "import logtrain.data.pack as pack, logtrain_kernels; print(pack.__file__, pack.USES_CPP)"
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(installed)}
    result = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, env=environment)
    assert result.stdout == f"{installed}/logtrain/data/pack.py True\n", result.stderr


@pytest.mark.parametrize("command", commands())
def test_every_command_answers(installed, command):
    result = run(installed, "logtrain", command, "--help")
    assert (result.returncode, result.stderr) == (0, "")


def test_what_is_read_at_run_time_is_there(installed):
    """Descriptions of GPUs, the page of an evaluation, the tasks of a chat, and the marks of typed packages."""
    names = {str(path.relative_to(installed)) for path in installed.rglob("*") if path.is_file()}
    for package in ("logtrain", "kernels"):
        for path in (ROOT / package).rglob("*"):
            if path.is_file() and path.suffix not in (".pyc", ".so") and "egg-info" not in str(path):
                assert str(path.relative_to(ROOT)).removeprefix("kernels/") in names


def test_the_console_script_is_named(installed):
    (points,) = installed.glob("*.dist-info/entry_points.txt")
    assert "logtrain = logtrain.__main__:main" in points.read_text()


def test_a_plan_without_a_checkout(installed):
    result = run(installed, "logtrain", "plan", "--gpu", "h300", "--model", "Llama-3.1-8B", "--data", "none")
    assert (result.returncode, result.stdout) == (2, "")
    assert "h100-sxm" in result.stderr
