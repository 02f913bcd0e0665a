"""Text from elsewhere does not steer a terminal."""

import pytest
from rich.cells import cell_len

from logtrain.core.printable import printable, shortened


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("1\u00a0000\u202f€ « Où\u00a0? »", None),
        ("障害\u3000原因\t日本\n", None),
        ("👩\u200d💻 ❤\ufe0f 🇫🇷 👍🏽 \U0001fae9", None),  # the last is younger than Python 3.11's tables
        ("نمی\u200cخواهم", None),
        ("\x1b[2J\x07\r\x7f\x9b", r"\x1b[2J\x07\r\x7f\x9b"),
        ("a\u202eb\u2066c\u2028d\u2029e\u200bf\ufeffg", r"a\u202eb\u2066c\u2028d\u2029e\u200bf\ufeffg"),
        ("\udcff\U000e0041", r"\udcff\U000e0041"),
    ],
)
def test_what_is_shown_as_it_is(text, shown):
    assert printable(text) == (text if shown is None else shown)


def test_on_one_line():
    assert printable("a\n\tb\r\u200d\x1b", one_line=True) == "a\\n\\tb\\r\u200d\\x1b"


@pytest.mark.parametrize("width", range(2, 12))
@pytest.mark.parametrize("name", ["run-of-the-night", "日志日志日志日志", "日1志2日3志4日5志6"])
def test_a_shortened_name_has_its_beginning_and_end(name, width):
    short = shortened(name, width)
    begin, _, end = short.partition("…")
    assert cell_len(short) <= width and name.startswith(begin) and name.endswith(end) and "…" in short
