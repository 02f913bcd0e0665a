"""What a person or a log file sees of long work."""

import pytest

from logtrain.observe import progress
from logtrain.observe.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    """Seconds that a test sets."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_line_comes_every_five_seconds_and_tells_the_time_left(clock, capsys):
    with Progress("prepare", 1000) as shown:
        for done in range(0, 1000, 100):
            clock[0] += 2
            shown.update(done, {"documents": done // 10, "name": "a b"})
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        'prepare documents=20 name="a b" eta_seconds=24',  # 6 s for 200 of 1,000
        'prepare documents=50 name="a b" eta_seconds=12',
        'prepare documents=80 name="a b" eta_seconds=4',  # 18 s for 800: 4.5
    ]


def test_other_ranks_say_nothing(clock, capsys):
    with Progress("evaluate", 10, enabled=False) as shown:
        clock[0] += 60
        shown.update(5, {})
    assert capsys.readouterr() == ("", "")
