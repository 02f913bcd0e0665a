"""Versions in a store: whole or not there, whoever writes beside, and whatever is killed; what a model came from."""

import hashlib
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import nullcontext
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from logtrain import hub, lineage
from logtrain.core.checksums import write_checksums
from logtrain.core.config import load
from logtrain.core.store import Store, parse
from logtrain.core.untrusted import read_sealed, sealed
from logtrain.cpt import CptConfig
from logtrain.sharing import versions
from logtrain.sharing.ancestry import Ancestry
from logtrain.sharing.versions import pull, push, sweep
from tests.support.elsewhere import s3_server
from tests.support.preparing import write_bytes_tokenizer
from tests.support.program import SERVER, Program
from tests.support.training import train

pytestmark = pytest.mark.slow

ROUNDS = int(os.environ.get("LOGTRAIN_ROUNDS", "100"))
FORK = multiprocessing.get_context("fork")


@pytest.fixture(params=["folder", "s3"])
def root(request, tmp_path):
    if request.param == "folder":
        yield str(tmp_path / "store")
    else:
        with s3_server():
            yield f"s3://bucket/{tmp_path.name}"


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(str(tmp_path / "store"))


def folder(path: Path, **files: str) -> Path:
    for name, text in files.items():
        file = path / re.sub(r"__(json|bin|toml)$", r".\1", name).replace("__", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return path


def content(path: Path) -> dict[str, str]:
    return {str(file.relative_to(path)): file.read_text() for file in path.rglob("*") if file.is_file()}


def said(capsys, *words: str) -> str:
    assert hub.main(list(words)) == 0
    return capsys.readouterr().out


def test_push_pull_list_show_diff_gc(root, tmp_path, capsys):
    first = folder(tmp_path / "a", same="1" * 100, changed="2", sub__gone="3")
    assert "hub://logs:1: data, 3 files" in said(capsys, "push", "logs", str(first), "--store", root, "--note", "x")
    assert "there already" in said(capsys, "push", "logs", str(first), "--store", root)
    (first / "changed").write_text("22")
    (first / "sub/gone").unlink()
    assert "hub://logs:2: data, 2 files" in said(capsys, "push", "logs", str(first), "--store", root)
    objects = [name for name in Store(root).listed("objects") if versions.PARTIAL not in name]
    assert len(objects) == 4  # of the file that both have there is one
    listing = said(capsys, "list", "--store", root)
    assert "hub://logs:2" in listing
    assert "hub://logs:1" not in listing
    assert "hub://logs:1" in said(capsys, "list", "logs", "--store", root)
    assert "hub://logs:1" in said(capsys, "--verb", "list", "--what", "logs", "--store", root)
    assert json.loads(said(capsys, "show", "logs:1", "--store", root))["note"] == "x"
    different = said(capsys, "diff", "logs:1", "logs:2", "--store", root).splitlines()
    assert [line[:8] for line in different] == ["~ file c", "- file s"]
    said(capsys, "pull", "logs:1", str(tmp_path / "out"), "--store", root)
    assert content(tmp_path / "out") == {"same": "1" * 100, "changed": "2", "sub/gone": "3"}
    assert "removed 0" in said(capsys, "gc", "--store", root, "--hours", "0")
    told = said(capsys, "gc", "logs:1", "--store", root, "--hours", "0")
    assert "hub://logs:1: removed" in told
    assert "1 versions name 2 files" in told
    assert "removed 2" in told
    with pytest.raises(ValueError, match="no hub://logs:1"):
        hub.main(["pull", "logs:1", str(tmp_path / "out2"), "--store", root])
    (first / "changed").write_text("222")
    assert "hub://logs:3" in said(capsys, "push", "logs", str(first), "--store", root)  # no number twice


def late(function: Callable) -> Callable:
    """The same some milliseconds later, so that what was looked up before it may no longer be so."""

    def called(*args, **options):
        time.sleep(random.random() / 200)
        return function(*args, **options)

    return called


def write_versions(environment: dict[str, str], begin: Barrier, root: str, source: Path, rounds: int) -> None:
    """In a process of its own. Each name appears late: a store that looks whether a number is free, and then takes it,
    gives one twice within few rounds. On time, a hundred rounds found that in three of five tries.
    """
    os.environ.update(environment)
    store = Store(root)
    for name in ("link", "rename", "replace"):
        setattr(os, name, late(getattr(os, name)))
    store.system.pipe_file = late(store.system.pipe_file)
    begin.wait()
    for number in range(rounds):
        push(store, "shared", folder(source, file=f"{source.name} {number}", common="the same"))


@pytest.mark.parametrize("rounds", [10, pytest.param(ROUNDS, marks=pytest.mark.trial("a hundred versions of each"))])
def test_two_writers_lose_nothing(root, tmp_path, rounds):
    facts = dict(os.environ), SERVER.Barrier(2), root
    processes = [SERVER.Process(target=write_versions, args=(*facts, tmp_path / w, rounds)) for w in "ab"]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    store = Store(root)
    assert store.numbers("shared") == list(range(1, 2 * rounds + 1))
    for number in (1, rounds, 2 * rounds):
        pull(store, parse(f"shared:{number}"), tmp_path / f"out-{number}")
        assert content(tmp_path / f"out-{number}")["common"] == "the same"
    hashes = {version["files"]["file"]["sha256"] for version in store.versions("shared")}
    assert len(hashes) == 2 * rounds
    assert sweep(store, 0.0)[:2] == (2 * rounds, 2 * rounds + 1)


def push_much(root: str, source: Path) -> None:
    push(Store(root), "big", source)


def pull_much(root: str, output: Path) -> None:
    pull(Store(root), parse("big:1"), output)


def seconds(target, arguments: tuple) -> float:
    """How long a process takes for it, from its start to its end."""
    process = FORK.Process(target=target, args=arguments)
    began = time.monotonic()
    process.start()
    process.join()
    assert process.exitcode == 0
    return time.monotonic() - began


def killed(target, arguments: tuple, seconds: float) -> bool:
    """Kill a process after so long; -> whether it was running."""
    process = FORK.Process(target=target, args=arguments)
    process.start()
    time.sleep(seconds)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    return process.exitcode == -signal.SIGKILL


def test_a_push_or_pull_that_is_killed_leaves_a_sound_store(store, tmp_path):
    """At random moments of both, to their very ends: 20 times each, and on until 8 of each were hit while they ran."""
    chance = random.Random(16)
    source, pulled = folder(tmp_path / "big", **{f"f{i}": str(i) * 40_000 for i in range(30)}), tmp_path / "pulled"
    pushed = seconds(push_much, (store.root, source))
    took, hits = {"push": pushed, "pull": seconds(pull_much, (store.root, pulled))}, {"push": 0, "pull": 0}
    for turn in range(60):
        if turn >= 20 and min(hits.values()) >= 8:
            break
        for i in range(30):
            (source / f"f{i}").write_text(f"{turn} {i}" * 9_000)
        shutil.rmtree(pulled, ignore_errors=True)
        hits["push"] += killed(push_much, (store.root, source), chance.random() * took["push"])
        hits["pull"] += killed(pull_much, (store.root, pulled), chance.random() * took["pull"])
        sweep(store, 1.0)
        newest = store.find(parse("big"))
        pull(store, parse("big"), tmp_path / f"out-{turn}")
        texts = content(tmp_path / f"out-{turn}")
        assert len(texts) == 30 == len(newest["files"])
        assert texts["f7"] in ("7" * 40_000, *(f"{t} 7" * 9_000 for t in range(turn + 1)))
    assert min(hits.values()) >= 8, hits
    swept = sweep(store, 0.0)
    named = {facts["sha256"] for name in store.names() for v in store.versions(name) for facts in v["files"].values()}
    assert {name.rpartition("/")[2] for name in store.listed("objects")} == named  # nothing is left of those killed
    assert swept.objects == len(named)


def test_what_was_damaged_is_not_pulled(store, tmp_path):
    version, _ = push(store, "logs", folder(tmp_path / "a", file="content", other="o"))
    damaged = Path(store.root, "objects", "ed", version["files"]["file"]["sha256"])
    assert damaged.read_text() == "content"
    damaged.write_text("CONTENT")
    with pytest.raises(ValueError, match="file is damaged over there"):
        pull(store, parse("logs"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    push(store, "again", tmp_path / "a")  # mends it
    pull(store, parse("logs"), tmp_path / "mended")
    assert content(tmp_path / "mended") == {"file": "content", "other": "o"}
    store.remove(store.find(parse("again:1")))
    damaged.unlink()
    with pytest.raises(ValueError, match="file in hub://logs:1 are missing; push that folder again"):
        sweep(store, 0.0)
    push(store, "logs", tmp_path / "a")
    sweep(store, 0.0)
    facts = Path(store.root, "versions/logs/000001.json")
    facts.write_text(facts.read_text().replace("file", "../f"))
    with pytest.raises(ValueError, match="damaged"):
        pull(store, parse("logs:1"), tmp_path / "out")


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), Path.mkdir])
@pytest.mark.parametrize("what", ["versions/a/000001.json", "objects"])
def test_what_is_no_file_in_a_store_is_refused_at_once(store, tmp_path, make, what):
    version, _ = push(store, "a", folder(tmp_path / "a", x="a"))
    sha256 = version["files"]["x"]["sha256"]
    file = Path(store.root, what) if what.endswith("json") else Path(store.root, what, sha256[:2], sha256)
    file.unlink()
    make(file)
    with pytest.raises(ValueError, match=r"not a regular file|no hub://a; "):
        pull(store, parse("a"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_versions_that_name_each_other_have_an_end(store, tmp_path):
    parents = [{"role": "model", "path": "hub://a:1", "sha256": ""}] * 3
    facts = {"parents": parents, "config": {}}
    push(store, "a", folder(tmp_path / "a", weights__bin="a", lineage__json=json.dumps(facts)))
    lines = Ancestry(store).lines("hub://a:1")
    assert len(lines) == 10_001 and lines[-1] == "more than 10,000 ancestors"


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        ({"parents": {}}, "lineage.json: parents = {}: expected an array"),
        ({"parents": [{"role": "model"}]}, r"lineage.json: parents\[0\].path: missing"),
        ({"parents": [3]}, r"lineage.json: parents\[0\]: expected an object, found a number"),
        ({"config": []}, r"lineage.json: config = \[\]: expected an object"),
    ],
)
def test_a_damaged_lineage_is_one_line(store, tmp_path, facts, told):
    path = folder(tmp_path / "a", lineage__json=json.dumps(facts))
    for use in (lambda: push(store, "a", path), lambda: Ancestry(store).lines(str(path))):
        with pytest.raises(ValueError, match=told):
            use()


@pytest.mark.parametrize("change", [lambda file: file.unlink(), lambda file: file.write_text("{}")])
def test_a_published_folder_whose_lineage_is_gone_or_another_has_no_other_one(store, tmp_path, change):
    path = folder(tmp_path / "a", lineage__json=json.dumps({"parents": [], "config": {}}))
    write_checksums(path)
    assert Ancestry(store).lines(str(path)) == [f"data {path}"]
    change(path / "lineage.json")
    for use in (lambda: push(store, "a", path), lambda: Ancestry(store).lines(str(path))):
        with pytest.raises(ValueError, match=r"damaged since it was published: lineage.json"):
            use()


def test_losses_that_have_changed_are_neither_pushed_nor_told(store, tmp_path):
    path = folder(tmp_path / "a", lineage__json=json.dumps({"parents": [], "config": {}}))
    (tmp_path / "a.json").write_bytes(sealed({"live_loss": 1.5, "exported_loss": 1.51}))
    version, _ = push(store, "own", path)
    assert version["lineage"]["facts"] == {"live_loss": 1.5, "exported_loss": 1.51}
    (tmp_path / "a.json").write_bytes(sealed({"live_loss": 1.5, "exported_loss": 1.51}).replace(b"1.51", b"1.61"))
    for use in (lambda: push(store, "other", path), lambda: Ancestry(Store(str(tmp_path))).lines(str(path))):
        with pytest.raises(ValueError, match=r"a\.json: its content has changed since it was written"):
            use()


def test_a_config_that_has_changed_since_is_not_pushed(store, tmp_path):
    scores = json.dumps({"models": {}})
    path = folder(tmp_path / "a", scores__json=scores, config__toml='models = ["a=m"]\ndata = "x.json"\n')
    version, _ = push(store, "own", path)
    assert [parent["path"] for parent in version["lineage"]["parents"]] == ["m", "x.json"]
    text = (path / "config.toml").read_text()
    for told, expected in ((text, True), (text.replace("m", "n"), False)):
        seal = f"# sha256 of what follows: {hashlib.sha256(text.encode()).hexdigest()}\n"
        (path / "config.toml").write_text(seal + told)
        with nullcontext() if expected else pytest.raises(ValueError, match=r"config.toml: has changed since"):
            push(store, "own", path)


def test_a_version_of_a_newer_program_is_told(store, tmp_path):
    push(store, "a", folder(tmp_path / "a", x="a"))
    file = Path(store.root, "versions/a/000001.json")
    file.write_bytes(sealed(read_sealed(file) | {"signed": "x"}))
    with pytest.raises(ValueError, match="written by a newer version of logtrain: signed is unknown to this one"):
        store.find(parse("a:1"))
    file.write_bytes(file.read_bytes().replace(b'"x"', b'"y"'))
    with pytest.raises(ValueError, match=r"damaged: .* has changed since it was written"):
        store.find(parse("a:1"))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["push", "a b:c", "x"], "expected NAME or NAME:VERSION"),
        (["push", "logs:3", "x"], "a version gets its number from the store; push logs"),
        (["push", "logs"], "hub push: expected 2 words after it, found 1"),
        (["push", "logs", "/nowhere"], "/nowhere: no such file or folder"),
        (["show", "none"], "no hub://none"),
        (["show", "none:7"], "versions of none: none"),
        (["steal", "x"], "--verb steal: expected one of"),
        (["gc", "--hours", "-1"], "hours = -1.0 must not be negative"),
    ],
)
def test_mistakes(store, words, expected):
    with pytest.raises(ValueError) as error:
        hub.main([*words, "--store", store.root])
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_a_version_wherever_a_path_is(store, tmp_path, monkeypatch):
    monkeypatch.setenv("LOGTRAIN_STORE", store.root)
    monkeypatch.setenv("LOGTRAIN_CACHE", str(tmp_path / "cache"))
    push(store, "base", folder(tmp_path / "m", **{"config.json": "{}", "model.safetensors": "w"}))
    (tmp_path / "m/config.json").write_text("{ }")
    push(store, "base", tmp_path / "m")
    flags = ["--name", "x", "--data", "d", "--model"]
    assert content(Path(load(CptConfig, [*flags, "hub://base:1"]).model))["config.json"] == "{}"
    assert content(Path(load(CptConfig, [*flags, "hub://base"]).model))["config.json"] == "{ }"
    with pytest.raises(ValueError, match="no hub://none"):
        load(CptConfig, [*flags, "hub://none"])


def test_the_chain_from_raw_text_to_the_export_and_its_scores(tmp_path, monkeypatch, capsys):
    """Each step takes what the store has; lineage needs none of the folders any more."""
    from logtrain.text.tokenizer import Tokenizer
    from tests.support.synthetic import write_model

    root = str(tmp_path / "store")
    monkeypatch.setenv("LOGTRAIN_STORE", root)
    monkeypatch.setenv("LOGTRAIN_CACHE", str(tmp_path / "cache"))
    (tmp_path / "t").mkdir()
    model = write_model(tmp_path / "model", vocab_size=Tokenizer.load(write_bytes_tokenizer(tmp_path / "t")).vocab_size)
    for file in (tmp_path / "t").iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    raw = tmp_path / "app.jsonl"
    raw.write_text("\n".join(json.dumps({"text": f"disk {i} is full at {i * 7}"}) for i in range(200)))
    said(capsys, "push", "raw", str(raw))
    said(capsys, "push", "base", str(model))
    prepared = Program(
        ["--input", "hub://raw:1", "--tokenizer", "hub://base:1", "--output", str(tmp_path / "d"), "--seq_len", "64"],
        tmp_path / "said",
        entry="logtrain.prepare",
        environment=dict(os.environ),
    )
    assert prepared.wait(120) == [0], (tmp_path / "said").read_text()
    said(capsys, "push", "prepared", str(tmp_path / "d"))
    flags = ["--name", "r", "--model", "hub://base:1", "--data", "hub://prepared:1", "--runs", str(tmp_path / "runs")]
    flags += ["--loader.seq_len", "64", "--loader.rows_per_step", "2", "--trainer.max_steps", "2"]
    assert train(flags) == 0
    assert 'data = "hub://prepared:1"' in (tmp_path / "runs/r/config.toml").read_text()
    said(capsys, "push", "trained", str(tmp_path / "runs/r/export"))
    for gone in ("d", "runs", "model", "cache", "app.jsonl"):
        (tmp_path / gone).rename(tmp_path / f"{gone}-gone")
    for what in (["hub://trained:1"], ["--model", str(tmp_path / "runs-gone/r/export")]):
        assert lineage.main([*what, "--store", root]) == 0
        chain = capsys.readouterr().out.splitlines()
        assert [line.strip().split(":")[0] for line in chain][1:] == ["model", "data", "text", "tokenizer"]
        assert "hub://trained:1" in chain[0]
        assert "optim.lr 1e-05" in chain[0]
        assert "hub://base:1" in chain[1]
        assert "prepared hub://prepared:1" in chain[2]
        assert "data hub://raw:1" in chain[3]
        assert "hub://base:1" in chain[4]
