"""What is elsewhere arrives whole or not at all, once for all processes, whatever the server does on the way."""

import hashlib
import multiprocessing
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest

from logtrain.core import cache, location
from logtrain.core.cache import fetched
from logtrain.core.config import dump, load
from logtrain.core.kinds import Config
from logtrain.core.located import located
from logtrain.core.location import FILE, FOLDER, MODEL, TOKENIZER
from tests.support import ROOT
from tests.support.elsewhere import HubServer, Server, s3_server, system, web_server

CONTENT = hashlib.sha256(b"logs").digest() * 1000  # 32 kB, in pieces of 10 kB


@pytest.fixture(autouse=True)
def small(tmp_path, monkeypatch):
    monkeypatch.setenv("LOGTRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "PIECE", 10_000)
    monkeypatch.setattr(location, "PATIENCE", 0.001)


@pytest.fixture
def web(tmp_path):
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "app.log").write_bytes(CONTENT)
    with web_server(folder) as server:
        yield server


@pytest.fixture(scope="module")
def s3():
    with s3_server():
        system().pipe(
            {
                "bucket/model/config.json": b"{}",
                "bucket/model/tokenizer.json": b"{ }",
                "bucket/model/model-00001-of-00001.safetensors": CONTENT,
                "bucket/model/pytorch_model.bin": b"no",
                "bucket/model/original/params.json": b"1",
                "bucket/app.log": CONTENT,
            }
        )
        yield "s3://bucket"


def left_in_cache(folder: Path) -> list[str]:
    """Files with names that a reader would take."""
    return [str(path) for path in (folder / "cache" / "inputs").rglob("[!.]*") if path.is_file()]


@pytest.mark.parametrize("has_ranges", [True, False])
@pytest.mark.parametrize("fault", ["", "503", "cut", "short", "503 cut short 503", "stall"])
def test_faults_of_a_server_are_outlived(web: Server, monkeypatch, fault, has_ranges):
    monkeypatch.setattr("logtrain.core.web.POOL.connection_pool_kw", {"timeout": 0.2, "retries": False})
    web.has_ranges, web.pause = has_ranges, 0.5
    web.faults = ["", *fault.split()] if has_ranges or fault != "short" else []
    path = fetched(f"{web.url}/app.log", FILE)
    assert path.read_bytes() == CONTENT
    assert path.name == "app.log"
    assert not web.faults


@pytest.mark.parametrize("has_ranges", [True, False])
@pytest.mark.parametrize("fault", ["503", "cut"])
def test_a_server_that_never_gives_all_leaves_nothing(web: Server, tmp_path, fault, has_ranges):
    web.has_ranges = has_ranges
    web.faults = ["", "", *[fault] * 20]
    with pytest.raises(ValueError, match=r"http://127.0.0.1:\d+/app.log: .*; tried 6 times") as error:
        fetched(f"{web.url}/app.log", FILE)
    assert "\n" not in str(error.value)
    assert left_in_cache(tmp_path) == []
    web.faults.clear()
    assert fetched(f"{web.url}/app.log", FILE).read_bytes() == CONTENT


def test_what_was_fetched_before_a_cut_is_not_fetched_again(web: Server):
    web.faults = ["", "", "", *["503"] * 6]
    with pytest.raises(ValueError, match="tried 6 times"):
        fetched(f"{web.url}/app.log", FILE)
    web.requests.clear()
    fetched(f"{web.url}/app.log", FILE)
    assert (
        len(web.requests) == 1 + 1 + 4 - 1 + 1
    )  # what it is, whether in pieces, the pieces but one, whether it changed


def test_a_file_that_changes_on_the_way_is_refused(web: Server, tmp_path, monkeypatch):
    whole = cache.piece_of

    def changed_meanwhile(system, file, at):
        (web.folder / "app.log").write_bytes(CONTENT[::-1])
        return whole(system, file, at)

    monkeypatch.setattr(cache, "piece_of", changed_meanwhile)
    with pytest.raises(ValueError, match="changed while it was fetched"):
        fetched(f"{web.url}/app.log", FILE)
    assert left_in_cache(tmp_path) == []
    monkeypatch.undo()


def test_a_new_version_is_fetched_and_an_old_one_is_not_again(web: Server):
    uri = f"{web.url}/app.log"
    first = fetched(uri, FILE)
    web.requests.clear()
    assert fetched(uri, FILE) == first
    assert len(web.requests) == 1
    (web.folder / "app.log").write_bytes(b"other")
    assert fetched(uri, FILE).read_bytes() == b"other"
    assert first.read_bytes() == CONTENT
    web.has_tags = False
    (web.folder / "app.log").write_bytes(b"OTHER")
    assert fetched(uri, FILE).read_bytes() == b"OTHER"
    (web.folder / "app.log").write_bytes(b"other")
    assert fetched(uri, FILE).read_bytes() == b"other"  # of one without a version nobody knows whether it is the same


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("{web}/none.log", "/none.log: no such file or folder"),
        ("http://127.0.0.1:9/x.log", "tried 6 times"),
        ("s3://", "s3://: names nothing there"),
        ("https:///", "https:///: names nothing there"),
        ("ftp://host/x.log", "ftp://host/x.log: no such scheme here; there are s3://"),
        ("https://user:pass@127.0.0.1:9/x?sig=secret", "https://127.0.0.1:9/x: "),
    ],
)
def test_what_cannot_be_had_is_one_line(web: Server, uri, expected):
    with pytest.raises(ValueError) as error:
        fetched(uri.format(web=web.url), FILE)
    assert expected in str(error.value)
    assert "\n" not in str(error.value)
    assert "secret" not in str(error.value)
    assert "pass@" not in str(error.value)


def test_a_folder_of_a_web_server(web: Server):
    with pytest.raises(ValueError, match="gives files, no folders"):
        fetched(f"{web.url}/model", FOLDER)


def test_folders_of_s3(s3):
    folder = fetched(f"{s3}/model", FOLDER)
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert names == {"config.json", "tokenizer.json", "model-00001-of-00001.safetensors", "original/params.json"}
    assert (folder / "model-00001-of-00001.safetensors").read_bytes() == CONTENT
    assert fetched(f"{s3}/model/", FOLDER).name == "model"
    without = fetched(f"{s3}/model", TOKENIZER)
    assert not list(without.glob("*.safetensors"))
    assert fetched(f"{s3}/app.log", FILE).read_bytes() == CONTENT
    for uri, place in ((f"{s3}/none", FOLDER), (f"{s3}/none.log", FILE), ("s3://none/x", FOLDER)):
        with pytest.raises(ValueError, match="no such"):
            fetched(uri, place)


FETCH = (
    "import sys; from logtrain.core.cache import fetched; from logtrain.core.location import MODEL; "
    "print(fetched(sys.argv[1], MODEL))"
)


def test_the_hugging_face_hub(tmp_path):
    """In a process of its own: its library reads the address of the hub when it is imported."""
    pytest.importorskip("huggingface_hub", reason="needs huggingface_hub (logtrain[remote])")
    hub = HubServer({"config.json": b"{}", "model.safetensors": CONTENT})
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_token", "PYTHONPATH": str(ROOT)}

    def fetch(uri: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-c", FETCH, uri]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    done = fetch("hf://org/name@v1")
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.split()[-1])
    assert (folder / "model.safetensors").read_bytes() == CONTENT
    assert "/org/name/resolve/v1/config.json" in hub.requests
    environment["HF_TOKEN"] = "other"
    done = fetch("hf://org/name@v1")
    assert "ValueError: hf://org/name@v1: no such" in done.stderr
    hub.shutdown()


def test_names_that_lead_out_of_the_folder(s3, tmp_path):
    system().pipe({"bucket/evil/a/../../../out.txt": b"x"})
    with pytest.raises(ValueError, match="leads out of it"):
        fetched(f"{s3}/evil", FOLDER)


def fetch_and_tell(uri: str, folder: str, results) -> None:
    os.environ["LOGTRAIN_CACHE"] = folder
    results.put(str(fetched(uri, FILE)))


def test_eight_processes_fetch_once(web: Server, tmp_path):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    uri = f"{web.url}/app.log"
    processes = [context.Process(target=fetch_and_tell, args=(uri, str(tmp_path / "c"), results)) for _ in range(8)]
    for process in processes:
        process.start()
    paths = {results.get(timeout=60) for _ in processes}
    for process in processes:
        process.join()
    assert len(paths) == 1
    assert Path(paths.pop()).read_bytes() == CONTENT
    assert len(web.requests) == 8 + 1 + 4 + 1  # each asks what it is; one fetches


def test_a_hub_id_without_its_scheme(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for flags in (["--model", "meta-llama/Llama-3.1-8B"], ["--models", "base=meta-llama/Llama-3.1-8B"]):
        with pytest.raises(ValueError, match=r"Llama-3.1-8B: no such folder; .* is hf://meta-llama/Llama-3.1-8B$"):
            load(Models, flags)
    Path("meta-llama").mkdir()
    assert load(Models, ["--model", "meta-llama/Llama-3.1-8B"]).model == "meta-llama/Llama-3.1-8B"


@dataclass(frozen=True, kw_only=True)
class Models(Config):
    """Models."""

    model: Annotated[str, MODEL] = ""
    """A model."""
    models: Annotated[tuple[str, ...], MODEL] = ()
    """Models."""


@dataclass(frozen=True, kw_only=True)
class Paths(Config):
    """Paths."""

    inputs: Annotated[tuple[str, ...], FILE]
    """Files."""
    log: Annotated[str, FILE] = "x.log"
    """A file."""
    url: str = ""
    """No path."""


def test_settings_that_are_uris_become_paths_and_are_written_as_uris(web: Server, tmp_path):
    uri = f"{web.url}/app.log"
    config = load(Paths, ["--inputs", f"a={uri}", "here.log", "--log", f"file://{tmp_path}/a.log", "--url", uri])
    assert config.url == uri
    assert config.log == f"{tmp_path}/a.log"
    label, _, path = config.inputs[0].partition("=")
    assert (label, config.inputs[1]) == ("a", "here.log")
    assert Path(path).read_bytes() == CONTENT
    (tmp_path / "config.toml").write_text(dump(config))
    assert f'"a={uri}"' in dump(config)
    assert load(Paths, [str(tmp_path / "config.toml")]) == config
    assert located(config, True) == config
