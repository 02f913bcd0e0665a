"""A folder that was published is what it was, or is refused; what others have made is taken as it is."""

from pathlib import Path

import pytest

from logtrain.core.checksums import FILE, check_folder, write_checksums


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "weights").write_bytes(bytes(range(256)) * 99)
    (tmp_path / "config.json").write_text("{}")
    write_checksums(tmp_path)
    return tmp_path


def test_what_is_whole_passes_with_what_has_come_to_it_since(folder):
    (folder / "README.md").write_text("mine")
    check_folder(folder)
    (folder / FILE).unlink()
    (folder / "weights").write_bytes(b"meant")
    check_folder(folder)


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
