"""A folder that was published is what it was, or is refused; what others have made is taken as it is."""

from pathlib import Path

import pytest

from logtrain.core.checksums import FILE, UNVERIFIED, check_folder, description, write_checksums
from logtrain.core.lineage import standing_hash


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "weights").write_bytes(bytes(range(256)) * 99)
    (tmp_path / "config.json").write_text("{}")
    write_checksums(tmp_path)
    return tmp_path


def test_what_is_whole_passes_with_what_has_come_to_it_since(folder, capsys):
    (folder / "README.md").write_text("mine")
    check_folder(folder)
    (folder / FILE).unlink()
    (folder / "weights").write_bytes(b"meant")
    check_folder(folder)
    assert capsys.readouterr().err == "", "what others have made has no checksums, either"


def test_whoever_reads_a_folder_of_ours_without_checksums_says_so_in_one_line(folder, capsys, monkeypatch):
    (folder / "lineage.json").write_text("{}")
    write_checksums(folder)
    check_folder(folder)
    kept, stands = (folder / FILE).read_bytes(), standing_hash(folder)
    assert capsys.readouterr().err == ""
    (folder / FILE).unlink()
    check_folder(folder)
    assert capsys.readouterr().err == f"warning: {folder}: {UNVERIFIED}\n"
    for rank, is_told in (("0", True), ("1", False)):
        monkeypatch.setenv("RANK", rank)
        check_folder(folder)
        assert bool(capsys.readouterr().err) == is_told, "one rank of a job is enough"
    assert (standing_hash(folder), description(folder)) == (stands, kept), "it is found by its hash as before"
    (folder / "weights").write_bytes(b"meant")
    assert standing_hash(folder) not in ("", stands)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("weights", bytes(256 * 99), "weights has another checksum"),
        ("config.json", b"{ }", "config.json has 3 bytes instead of 2"),
        ("config.json", None, "config.json is missing"),
        (FILE, b"{}", "its content has changed"),
    ],
)
def test_damage_is_one_line(folder, name: str, content: bytes | None, told: str):
    (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=told) as caught:
        check_folder(folder)
    assert "\n" not in str(caught.value)
