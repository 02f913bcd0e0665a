"""core/config.py: what wins, what is refused and with which words, and that dump loads back equal."""

import dataclasses
import importlib
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from logtrain.__main__ import commands, module_of
from logtrain.core import kinds
from logtrain.core.config import dump, load
from tests.support import ROOT


@dataclass(frozen=True, kw_only=True)
class Rope:
    theta: float = 5e5
    kinds: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Optim:
    lr: float = 1e-5
    """Peak learning rate."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    fused: bool = True
    rope: Rope = field(default_factory=Rope)

    def __post_init__(self):
        if self.lr <= 0:
            raise ValueError(f"optim.lr = {self.lr}: must be positive")


@dataclass(frozen=True, kw_only=True)
class Config:
    """A config with every kind of field."""

    name: str = "run"
    seq_len: int = 8192
    input: tuple[str, ...] = ()
    """Files to read."""
    compile: bool = False
    optim: Optim = Optim(lr=2e-5)
    level: Literal[1, 2, "full"] = 1


@dataclass(frozen=True, kw_only=True)
class Model:
    path: str
    """Where the weights are."""


@dataclass(frozen=True, kw_only=True)
class Needy:
    output: str
    model: Model


def write(folder: Path, text: str, name: str = "a.toml") -> str:
    path = folder / name
    path.write_bytes(text.encode())
    return str(path)


# -- what wins -------------------------------------------------------------------------------------


def test_defaults_then_files_left_to_right_then_flags(tmp_path):
    first = write(tmp_path, 'name = "first"\nseq_len = 1\n[optim]\nlr = 1\nfused = false\n')
    second = write(tmp_path, "seq_len = 2\n[optim]\nlr = 0.5\n[optim.rope]\nkinds = [3, -4]\n", "b.toml")
    assert load(Config, []) == Config()
    assert load(Config, []).optim.lr == 2e-5  # the default of the field, not of its class
    got = load(Config, ["--seq_len=3", first, "--no_compile", second, "--compile"])
    assert got == Config(
        name="first", seq_len=3, compile=True, optim=Optim(lr=0.5, fused=False, rope=Rope(kinds=(3, -4)))
    )
    assert type(load(Config, [first]).optim.lr) is float  # from TOML's `1`


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--seq_len", "1", "--seq-len=2"], {"seq_len": 2}),
        (["--seq_len", "-1"], {"seq_len": -1}),
        (["--name", "a b"], {"name": "a b"}),
        (["--name="], {"name": ""}),
        (["--name", ""], {"name": ""}),
        (["--name=--x=y"], {"name": "--x=y"}),
        (["--name", "-x"], {"name": "-x"}),
        (["--name", "not-a-config.toml"], {"name": "not-a-config.toml"}),
        (["--input", "a", "b.toml", "-c", "--compile"], {"input": ("a", "b.toml", "-c"), "compile": True}),
        (["--input", "a", "--input", "b"], {"input": ("b",)}),
        (["--input", "a", "--input"], {"input": ()}),
        (["--input=a b"], {"input": ("a b",)}),
        (["--level", "2"], {"level": 2}),
        (["--level", "full"], {"level": "full"}),
        (["--optim.lr", "1e-3"], {"optim": Optim(lr=1e-3)}),
        (["--optim.lr", "inf"], {"optim": Optim(lr=float("inf"))}),
        (["--optim.no-fused"], {"optim": Optim(lr=2e-5, fused=False)}),
        (["--optim.rope.kinds", "1", "-2"], {"optim": Optim(lr=2e-5, rope=Rope(kinds=(1, -2)))}),
    ],
)
def test_flags(argv, expected):
    assert load(Config, argv) == Config(**expected)


def test_a_required_field_may_come_from_either(tmp_path):
    recipe = write(tmp_path, '[model]\npath = "m"\n')
    assert load(Needy, [recipe, "--output", "o"]) == Needy(output="o", model=Model(path="m"))


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--optim.lrr", "1"], "--optim.lrr: unknown flag; did you mean --optim.lr?"),
        (["--lr=1"], "--lr: unknown flag; did you mean --optim.lr?"),
        (["--seqlen", "1"], "--seqlen: unknown flag; did you mean --seq_len?"),
        (["--zzzzzz"], "--zzzzzz: unknown flag; --help lists all there are"),
        (["--no_name"], "--no_name: unknown flag; did you mean --name?"),
        (["--seq_len", "long"], "--seq_len long: expected an integer"),
        (["--seq_len", "1.5"], "--seq_len 1.5: expected an integer"),
        (["--seq_len=True"], "--seq_len True: expected an integer"),
        (["--seq_len"], "--seq_len: has no value; expected an integer"),
        (["--seq_len", "--compile"], "--seq_len: has no value; expected an integer"),
        (["--optim.lr", "fast"], "--optim.lr fast: expected a number"),
        (["--optim.schedule", "cosin"], '--optim.schedule cosin: expected one of "cosine", "linear", "constant"'),
        (["--level", "3"], '--level 3: expected one of 1, 2, "full"'),
        (["--optim.rope.kinds", "1", "x"], "--optim.rope.kinds x: expected an integer"),
        (["--compile=true"], "--compile=true: a switch takes no value; it is on with --compile, off with --no_compile"),
        (["--compile", "true"], "true: neither a flag (--key value) nor a TOML file (*.toml)"),
        (["--name", "\udcff"], r"--name '\udcff': expected a string"),
        (["-x"], "-x: neither a flag (--key value) nor a TOML file (*.toml)"),
        (["gone.toml"], "gone.toml: No such file or directory"),
        (["--optim.lr", "0"], "optim.lr = 0.0: must be positive"),
    ],
)
def test_flags_refused(argv, message):
    with pytest.raises(ValueError) as error:
        load(Config, argv)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n[optim]\nlrr = 1\n", ":3: optim.lrr: unknown key; did you mean optim.lr?"),
        ("optim.lrr = 1", ":1: optim.lrr: unknown key; did you mean optim.lr?"),
        ("name = 'x'\nlr = 1\n", ":2: lr: unknown key; did you mean optim.lr?"),
        ("seq-len = 1", ":1: seq-len: unknown key; did you mean seq_len?"),
        ("[optimm]\nlr = 1\n", ":1: optimm: unknown key; did you mean optim?"),
        ("name = 'x'\n\n[zzz]\n\n", ":3: zzz: unknown key; --help lists all there are"),
        ("optim = 3", ":1: optim = 3: expected a table, [optim]"),
        ("[[optim]]\nlr = 1\n", ':1: optim = [{"lr": 1}]: expected a table, [optim]'),
        ("name = '''\nseq_len = true\n'''\nseq_len = true\n", ":4: seq_len = true: expected an integer"),
        ("seq_len = 1.0", ":1: seq_len = 1.0: expected an integer"),
        ('seq_len = "1"', ':1: seq_len = "1": expected an integer'),
        ("[seq_len]\nx = 1", ':1: seq_len = {"x": 1}: expected an integer'),
        ("name = 5", ":1: name = 5: expected a string"),
        ("name = 2024-01-01", ':1: name = "2024-01-01": expected a string'),
        ("compile = 1", ":1: compile = 1: expected true or false"),
        ("level = true", ':1: level = true: expected one of 1, 2, "full"'),
        ("level = 1.0", ':1: level = 1.0: expected one of 1, 2, "full"'),
        ("optim.lr = '1e-5'", ':1: optim.lr = "1e-5": expected a number'),
        ("optim.lr = nan", ":1: optim.lr = NaN: expected a number"),
        ("optim.lr = true", ":1: optim.lr = true: expected a number"),
        ("optim.lr = 9007199254740993", ":1: optim.lr = 9007199254740993: expected a number"),
        ("input = 'a'", ':1: input = "a": expected a list, each item a string'),
        ("\ninput = [\n  'a',\n  3,\n]\n\n", ':5: input = ["a", 3]: expected a list, each item a string'),
        ("optim.rope.kinds = [true]", ":1: optim.rope.kinds = [true]: expected a list, each item an integer"),
        ("optim.schedule = 'x'", ':1: optim.schedule = "x": expected one of "cosine", "linear", "constant"'),
        ("name = 'x'\nname = 'y'\n", ":2: not TOML: Cannot overwrite a value"),
        ("seq_len = \n", ":1: not TOML: Invalid value"),
        ("name = '''x\n\n", ":3: not TOML: "),
    ],
)
def test_toml_refused(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(ValueError) as error:
        load(Config, [path])
    assert "\n" not in str(error.value)
    if "not TOML" in message:  # the rest is in the words of the standard library
        assert str(error.value).startswith(path + message)
    else:
        assert str(error.value) == path + message


def test_unreadable_files_refused(tmp_path):
    path = tmp_path / "a.toml"
    path.write_bytes(b'name = "\xff"')
    with pytest.raises(ValueError, match=r"a\.toml: not UTF-8 at byte 8$"):
        load(Config, [str(path)])
    (tmp_path / "b.toml").mkdir()
    with pytest.raises(ValueError, match=r"b\.toml: Is a directory$"):
        load(Config, [str(tmp_path / "b.toml")])


def test_required_fields_are_all_named():
    with pytest.raises(ValueError) as error:
        load(Needy, [])
    assert (
        str(error.value) == "output, model.path: required; give --output ... --model.path ..., or set it in a TOML file"
    )


# -- dump ------------------------------------------------------------------------------------------

texts = st.text(st.characters(exclude_categories=["Cs"]))
numbers = st.floats(allow_nan=False)
ropes = st.builds(Rope, theta=numbers, kinds=st.lists(st.integers(-(2**63), 2**63 - 1)).map(tuple))
optims = st.builds(
    Optim,
    lr=st.floats(min_value=0, exclude_min=True),
    schedule=st.sampled_from(["cosine", "linear", "constant"]),
    fused=st.booleans(),
    rope=ropes,
)
configs = st.builds(
    Config,
    name=texts,
    seq_len=st.integers(-(2**63), 2**63 - 1),
    input=st.lists(texts).map(tuple),
    compile=st.booleans(),
    optim=optims,
    level=st.sampled_from([1, 2, "full"]),
)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(config=configs)
def test_dump_loads_back_equal(tmp_path, config):
    path = tmp_path / "config.toml"
    path.write_text(dump(config), encoding="utf-8", newline="")
    got = load(Config, [str(path)])
    assert got == config
    assert repr(got) == repr(config)  # 1 == 1.0 == True, -0.0 == 0.0: equality alone would let a type or a sign change


def test_dump_of_awkward_values(tmp_path):
    name = '"quoted" \\ back\nline\ttab\r\x00\x7f é 🙂 """ \'\'\''
    config = Config(name=name, optim=Optim(lr=1e-5, rope=Rope(theta=float("-inf"))))
    path = write(tmp_path, dump(config))
    assert load(Config, [path]) == config


# -- run and --help, as a person meets them --------------------------------------------------------

ENTRY = """
import signal, sys
from tests.core.test_config import Config
from logtrain.core.config import load
from logtrain.core.entry import run

def main(argv):
    config = load(Config, argv)
    if config.name == "interrupt":
        raise KeyboardInterrupt
    if config.name == "full":
        raise OSError(28, "No space left on device", "shard")
    if config.name == "two lines":
        raise ValueError("first\\nsecond")
    if config.name.startswith("row"):
        raise ValueError(f"no column {config.name}")
    if config.name == "bug":
        raise KeyError("ours")
    return config.seq_len

if __name__ == "__main__":
    run(main)
"""


@pytest.fixture(scope="module")
def entry(tmp_path_factory):
    path = tmp_path_factory.mktemp("entry") / "entry.py"
    path.write_text(ENTRY)

    def call(*argv, **environment):
        command = [sys.executable, str(path), *argv]
        environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "COLUMNS": "100", **environment}
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

    return call


def test_run_exits_with_what_main_returns(entry):
    done = entry("--seq_len", "75")
    assert (done.returncode, done.stdout, done.stderr) == (75, "", "")


@pytest.mark.parametrize(
    ("argv", "code", "stderr"),
    [
        (["--seq_len", "x"], 2, "error: --seq_len x: expected an integer\n"),
        (["--name", "full"], 2, "error: shard: No space left on device\n"),
        (["--name", "two lines"], 2, "error: first second\n"),
        (["--name", "row\x1b]0;x\x07\x9b2J\r\u202eé"], 2, "error: no column row\\x1b]0;x\\x07\\x9b2J \\u202eé\n"),
        (["--name", "interrupt"], 130, ""),
    ],
)
def test_run_shows_one_line(entry, argv, code, stderr):
    done = entry(*argv)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", stderr)


def test_run_hides_no_bug_of_ours_and_shows_the_place_on_request(entry):
    assert "Traceback" in entry("--name", "bug").stderr
    assert "Traceback" in entry("--seq_len", "x", LOGTRAIN_TRACEBACK="1").stderr


@pytest.mark.slow
def test_other_ranks_speak_later_and_say_who_they_are(entry):
    done = entry("--seq_len", "x", RANK="3")
    assert (done.returncode, done.stderr) == (2, "rank 3: error: --seq_len x: expected an integer\n")


def test_help_has_the_docstrings_and_the_defaults(entry):
    done = entry("--help")
    assert done.returncode == 0
    for part in ("[FILE.toml ...]", "--seq_len INT", "--optim.lr FLOAT", "Peak learning rate. (default: 2e-05)"):
        assert part in done.stdout
    assert "--optim.fused, --optim.no_fused" in done.stdout
    assert entry("-h", RANK="1").stdout == ""


@dataclass(frozen=True, kw_only=True)
class Wrapped(kinds.Config, prefix="part."):
    rows: Literal["auto", "all"] = "auto"
    """Rows: auto takes
    {instruction, output}, 2 columns.

    A second paragraph.
    """
    names: Annotated[tuple[str, ...], kinds.NONE_BY_DEFAULT] = ()
    """Names of
    100 rows."""


def test_help_breaks_no_sentence_where_the_source_does(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        load(Wrapped, ["--help"])
    shown = capsys.readouterr().out
    assert "Rows: auto takes {instruction, output}, 2 columns." in shown
    assert "columns. A second" not in shown
    assert "Names of 100 rows. (default: none)" in shown


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rows": "al"}, 'part.rows = \'al\': expected one of "auto", "all"'),
        ({"names": "ab"}, "part.names = 'ab': expected a list, each item a string"),
        ({"names": ("a", 1)}, "part.names = ('a', 1): expected a list, each item a string"),
    ],
)
def test_a_value_from_python_is_held_to_its_type(wrong, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Wrapped(**wrong)
    assert Wrapped(names=["a"]).names == ("a",)  # pyright: ignore[reportArgumentType]


def test_every_config_is_held_to_its_types():
    """Whatever a command can be told, it is told through a class with the base `Config`."""
    for name, path in commands().items():
        module = importlib.import_module(module_of(path))
        configs = [x for x in vars(module).values() if isinstance(x, type) and dataclasses.is_dataclass(x)]
        assert any(config.__name__.lower() == f"{name}config" for config in configs), name
        for config in configs:
            parts = [kind for kind in kinds.kinds_of(config).values() if dataclasses.is_dataclass(kind)]
            assert all(issubclass(part, kinds.Config) for part in [config, *parts]), config
