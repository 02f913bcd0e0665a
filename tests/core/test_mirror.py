"""What is written to a URI: a reader never finds a folder that seems complete and is not, and a writer can go on from
what is there.
"""

import shutil
from pathlib import Path

import pytest

from logtrain.core import mirror
from logtrain.core.mirror import CLAIM, Mirror
from tests.support.elsewhere import s3_server, system

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server():
    with s3_server():
        yield


@pytest.fixture
def uri(server, tmp_path, monkeypatch, request):
    monkeypatch.setenv("LOGTRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(mirror, "EVERY", 3600)
    monkeypatch.setattr("logtrain.core.location.PATIENCE", 0.001)
    return f"s3://bucket/{request.node.name}/out"


def there(uri: str) -> dict[str, bytes]:
    found = system().find(uri.removeprefix("s3://"))
    return {path.partition("/out/")[2]: system().cat_file(path) for path in found if not path.endswith(CLAIM)}


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        file = folder / name.replace("__", "/").replace("_json", ".json").replace("_st", ".safetensors")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


def test_files_arrive_and_go(uri):
    out = Mirror(uri, takes_part=True)
    write(out.path, config_json="1", export__model_st="22", export__checksums_json="3")
    (out.path / ".lock").write_text("")
    (out.path.parent / "out.json").write_text("beside")
    out.copy()
    expected = {"config.json": b"1", "export/model.safetensors": b"22", "export/checksums.json": b"3"}
    assert there(uri) == expected
    assert system().cat_file(f"{uri}.json".removeprefix("s3://")) == b"beside"
    shutil.rmtree(out.path / "export")
    write(out.path, config_json="4")
    out.close()
    assert there(uri) == {"config.json": b"4"}


def test_what_names_a_folders_files_comes_last_and_goes_first(uri, monkeypatch):
    """The state there after each request: the marker of a folder is only there with the weights that it names."""
    out, seen = Mirror(uri, takes_part=True), []

    def watched(done):
        def noted(*arguments):
            done(*arguments)
            seen.append({name: text.decode() for name, text in there(uri).items()})

        return noted

    for method in ("put_file", "rm_file"):
        monkeypatch.setattr(out.system, method, watched(getattr(out.system, method)))
    for number in ("one", "two"):
        write(out.path, export__model_st=number, export__checksums_json=number, export__a_st=number, export__z=number)
        out.copy()
    shutil.rmtree(out.path / "export")
    out.copy()
    assert len(seen) == 4 + 5 + 4
    for state in seen:
        if marker := state.get("export/checksums.json"):
            assert {state["export/model.safetensors"], state["export/a.safetensors"], state["export/z"]} == {marker}


def test_a_writer_goes_on_from_what_is_here_or_there(uri, tmp_path, monkeypatch):
    out = Mirror(uri, takes_part=True)
    write(out.path, config_json="1", checkpoints__step_1__model_st="w", checkpoints__step_1__checkpoint_json="c")
    out.copy()
    write(out.path, metrics="not copied: the process was killed")
    again = Mirror(uri, takes_part=True)
    assert (again.path / "metrics").read_text().startswith("not copied")
    system().pipe({f"{uri}/checkpoints/step_2/model.safetensors".removeprefix("s3://"): b"half"})

    monkeypatch.setenv("LOGTRAIN_CACHE", str(tmp_path / "another machine"))
    other = Mirror(uri, takes_part=True)
    found = {str(path.relative_to(other.path)) for path in other.path.rglob("*") if path.is_file()}
    assert found == {"config.json", "checkpoints/step_1/model.safetensors", "checkpoints/step_1/checkpoint.json"}
    write(other.path, config_json="2")
    other.copy()
    assert there(uri)["config.json"] == b"2"
    with pytest.raises(ValueError, match=r"another machine .* writes there now"):
        again.copy()

    monkeypatch.setenv("LOGTRAIN_CACHE", str(tmp_path / "cache"))
    assert (Mirror(uri, takes_part=True).path / "config.json").read_text() == "2"


def test_a_folder_that_was_deleted_there_is_begun_anew(uri):
    out = Mirror(uri, takes_part=True)
    write(out.path, config_json="1")
    out.copy()
    system().rm(uri.removeprefix("s3://"), recursive=True)
    assert not Mirror(uri, takes_part=True).path.exists()


def test_folders_that_are_not_ours_are_not_touched(uri):
    system().pipe({f"{uri}/holiday.jpg".removeprefix("s3://"): b"x"})
    with pytest.raises(ValueError, match="holds files that logtrain has not written; choose another"):
        Mirror(uri, takes_part=True)
    assert there(uri) == {"holiday.jpg": b"x"}
    for wrong in ("s3://bucket", "https://host/folder"):
        with pytest.raises(ValueError, match="cannot be written"):
            Mirror(wrong, takes_part=True)


def test_a_server_that_is_away_for_a_while(uri, monkeypatch):
    out = Mirror(uri, takes_part=True)
    write(out.path, config_json="1")
    real, count = out.system.put_file, iter(range(100))

    def failing(*arguments):
        if next(count) < 8:
            raise OSError("503 Slow Down")
        real(*arguments)

    monkeypatch.setattr(out.system, "put_file", failing)
    with pytest.raises(ValueError, match="503 Slow Down; tried 6 times"):
        out.copy()
    out.close()
    assert there(uri) == {"config.json": b"1"}


def away(*_):
    raise OSError("away")


def test_what_could_not_be_copied_at_the_end_is_said_and_stays(uri, monkeypatch):
    out = Mirror(uri, takes_part=True)
    write(out.path, config_json="1")
    with monkeypatch.context() as patch:
        patch.setattr(out.system, "put_file", away)
        with pytest.raises(ValueError, match=r"all of it is in .*, and the same command copies it"):
            out.close()
    Mirror(uri, takes_part=True).close()
    assert there(uri) == {"config.json": b"1"}
