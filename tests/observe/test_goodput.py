"""Where the time of a run goes: the parts add up to the wall time, over kills, too."""

import errno
import threading
import time

import pytest

from logtrain.core.untrusted import read_json
from logtrain.observe import goodput
from logtrain.observe.goodput import Attempt, Goodput, account, read_attempts


def attempt(began: float, resumed_at: int = 0, marks: dict | None = None, **seconds: float) -> Attempt:
    spent = {name.replace("_", " "): value for name, value in seconds.items()}
    made = Attempt(began, began + sum(spent.values()), devices=8, resumed_at=resumed_at, tokens=int(began) * 1000)
    made.seconds |= spent
    made.marks = marks or {}
    return made


def test_stages_add_up_and_an_inner_one_is_not_counted_twice(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "time", lambda: 1000 + now[0])
    monkeypatch.setattr("logtrain.observe.goodput.seconds_running", lambda: 0.0)
    kept = Goodput()
    now[0] += 3
    kept.enter("load")
    now[0] += 5
    kept.open(tmp_path, 0, devices=2, price=2.0)
    with kept.stage("step"):
        now[0] += 10
        with kept.stage("data wait"):
            now[0] += 1
        with kept.stage("validation"):
            now[0] += 2
        now[0] += 7
        kept.lose(4)
    kept.attempt.tokens = 3600
    found = kept.account()
    expected = {"start": 3, "load": 5, "step": 13, "data wait": 1, "validation": 2, "lost": 4}
    assert {name: spent for name, spent in found.seconds.items() if spent} == expected
    assert (found.wall, found.hours * 3600, found.device_hours * 3600) == (28, 28, pytest.approx(56))
    assert found.goodput == 13 / 28
    kept.write()
    assert read_attempts(tmp_path) == [kept.attempt]
    lines = found.told()
    assert lines[0].startswith("time: 28 s, of it 46.4% in steps that count (start 3 s, load 5 s, step 13 s,")
    assert "115,714 tokens a dollar" in lines[1]  # 3,600 tokens for 56 / 3600 * 2 dollars


def test_what_came_after_the_checkpoint_is_lost():
    """Two kills: the second attempt reaches no checkpoint, the third goes on from the first one's again."""
    first = attempt(0, marks={"0": {"start": 10.0}, "5": {"start": 10.0, "step": 50.0, "validation": 4.0}},
                    start=10, step=70, validation=6, checkpoint=3)  # fmt: skip
    second = attempt(100, 5, {"5": {"start": 11.0, "load": 2.0}}, start=11, load=2, step=20)
    third = attempt(200, 5, {"5": {"start": 9.0}, "10": {"start": 9.0, "step": 60.0}}, start=9, step=61, export=5)
    found = account([first, second, third])
    assert found.seconds["step"] == 50 + 0 + 61
    assert found.seconds["lost"] == 20 + 2 + 20
    assert found.seconds["validation"] == 4
    assert found.seconds["start"] == 30
    assert found.seconds["idle"] == pytest.approx((100 - 89) + (200 - 133))
    assert found.wall == pytest.approx(third.last - first.began) == pytest.approx(sum(found.seconds.values()))
    assert found.device_hours == pytest.approx(8 * found.hours)


def test_a_run_that_begins_anew_has_lost_all_steps():
    found = account([attempt(0, marks={"0": {"start": 5.0}}, start=5, step=30), attempt(40, step=1)])
    assert (found.seconds["step"], found.seconds["lost"], found.seconds["start"]) == (1, 30, 5)


def test_an_older_checkpoint_loses_the_attempts_after_it():
    first = attempt(0, marks={"0": {}, "2": {"step": 20.0}, "4": {"step": 40.0}}, step=40)
    second = attempt(50, 4, {"4": {}, "6": {"step": 20.0}}, step=25)
    found = account([first, second, attempt(90, 2, {"2": {}}, step=3)])
    assert (found.seconds["step"], found.seconds["lost"]) == (20 + 3, 20 + 25)


IMPOSSIBLE = [
    b'{"attempts": [{"began": 1, "last": 2, "devices": %s}]}' % more
    for more in (b"0", b'1, "seconds": {"step": NaN}', b'1, "seconds": {"step": Infinity}', b'1, "tokens": -1')
]


def test_an_account_of_an_older_version_has_fewer_stages(tmp_path):
    (tmp_path / goodput.FILE).write_text(
        '{"attempts": [{"began": 1, "last": 5, "devices": 2, "seconds": {"step": 4}}]}'
    )
    assert account(read_attempts(tmp_path)).seconds["step"] == 4 == account(read_attempts(tmp_path)).wall


@pytest.mark.parametrize("content", [b"", b"[1]", b'{"attempts": [{"began": "x"}]}', b"\xff", *IMPOSSIBLE])
def test_a_damaged_account_is_told_and_stops_no_run(tmp_path, content):
    (tmp_path / goodput.FILE).write_bytes(content)
    with pytest.raises(ValueError, match="remove it to begin the account anew"):
        read_attempts(tmp_path)
    kept = Goodput()
    kept.open(tmp_path, 0)
    kept.write()
    assert len(read_attempts(tmp_path)) == 1


def test_a_full_disk_stops_no_run(tmp_path):
    kept = Goodput()
    kept.open(tmp_path / "gone", 0)
    kept.write()


def test_a_disk_that_answers_late_holds_up_no_step(tmp_path, monkeypatch):
    kept, is_reading, answers = Goodput(), threading.Event(), threading.Event()
    kept.open(tmp_path, 0)
    (tmp_path / "metrics.jsonl").touch()
    monkeypatch.setattr(goodput.Lines, "__call__", lambda _: is_reading.set() or (answers.wait(60) and 1))
    writer = threading.Thread(target=kept.write)
    writer.start()
    assert is_reading.wait(60)
    kept.written = -1e9
    stepper = threading.Thread(target=lambda: (kept.enter("step"), kept.write_now_and_then()), daemon=True)
    stepper.start()
    stepper.join(20)
    assert not stepper.is_alive() and kept.stage_now == "step"
    answers.set()
    writer.join()
    assert read_attempts(tmp_path)[0].lines == {"metrics.jsonl": 1}


def test_settings_that_cannot_be_read_any_more_stop_no_run(tmp_path, monkeypatch):
    def broken(*_):
        raise OSError(errno.EIO, "Input/output error")

    (tmp_path / "config.toml").write_text("# run 0123456789ab\n")
    kept = Goodput()
    kept.open(tmp_path, 0)
    monkeypatch.setattr("logtrain.core.origin.read_bytes", broken)
    kept.end("finished")
    assert read_json(tmp_path / goodput.FILE)["run"] == "0123456789ab"
    Goodput().open(tmp_path, 0)


@pytest.mark.parametrize(
    ("seconds", "told"), [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1:00 min"), (727, "12:07 min"), (11109, "3:05:09 h")]
)
def test_times_as_people_read_them(seconds, told):
    assert goodput.clock(seconds) == told
