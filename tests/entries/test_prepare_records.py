"""Raw logs: stack traces stay whole, repetitions are left out, values are masked."""

import json

import pytest

from logtrain import prepare
from logtrain.data.records import Beginning, blocks, found_beginning
from logtrain.text.masked import mask
from logtrain.text.tokenizer import Tokenizer
from tests.support.preparing import arguments, read_documents

HEADS = {
    "iso": "2024-01-{day:02} 10:00:{i:02},123 {level} [main] com.x.Service: ",
    "syslog": "Jul {day:2} 10:00:{i:02} host{i} kernel[{i}]: ",
    "apache": "[Sun Dec {day:02} 04:47:{i:02} 2005] [{level}] ",
    "bgl": "- 11178385{i:02} 2005.06.{day:02} R02-M1 ",
    "level": "{level} 24/01/{day:02} 10:00:{i:02} ",
    "android": "03-{day:02} 16:13:38.{i:03}  1702  2395 D Window: ",
    "hdfs": "0811{day:02} 2035{i:02} 143 INFO dfs.DataNode: ",
    "containers": "2024-01-{day:02}T10:00:{i:02}.123456Z {level} something ",
    "colours": "\x1b[32m2024-01-{day:02} 10:00:{i:02}\x1b[0m \x1b[31m{level}\x1b[0m ",
    "glog": "I01{day:02} 10:00:{i:02}.123456   {i} file.go:42] ",
}
BELOW = {
    "java": "java.lang.IllegalStateException: broken 7\n\tat com.x.Y.z(Y.java:12)\n\tat com.x.Q(Q.java:9)\n"
    "Caused by: java.io.IOException: disk 3\n\t... 23 more\n",
    "python": 'Traceback (most recent call last):\n  File "a.py", line 3, in <module>\n    f(1)\nValueError: bad 5\n',
    "go": "panic: runtime error\n\ngoroutine 1 [running]:\nmain.main()\n\t/a/b.go:12 +0x1d\n",
    "blank": "\n\nsee above\n",
}


def made(head: str, below: str, every: int = 3) -> list[str]:
    return [
        HEADS[head].format(day=1 + i % 28, i=i % 60, level=["INFO", "ERROR", "WARN"][i % 3])
        + f"something of {i} went on\n"
        + (BELOW[below] if i % every == 0 else "")
        for i in range(200)
    ]


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("below", BELOW)
def test_stack_traces_stay_whole(head, below):
    expected = made(head, below)
    assert list(blocks(iter("".join(expected).splitlines(keepends=True)))) == expected
    assert list(blocks(iter([]))) == []


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("head", ["iso", "syslog", "apache", "android", "containers", "colours", "glog"])
@pytest.mark.parametrize("below", BELOW)
def test_logs_that_are_stack_traces_for_the_most_part(head, below, every):
    """Whose lines have more numbers in one place than there are times."""
    expected = made(head, below, every)
    assert list(blocks(iter("".join(expected).splitlines(keepends=True)))) == expected


def test_where_no_time_is_found_what_is_indented_goes_on():
    lines = ["one\n", "  two\n", "three\n", "four\n", "\tfive\n"]
    assert found_beginning(lines) == Beginning(0, "")
    assert list(blocks(iter(lines))) == ["one\n  two\n", "three\n", "four\n\tfive\n"]


LEVELS = {
    "python": ["INFO:root:", "ERROR:root:", "WARNING:root:"],
    "plain": ["INFO", "ERROR", "WARN"],
    "brackets": ["[info]", "[error]", "[warn]"],
    "title": ["Info: ", "Severe: ", "Warning: "],
    "behind a name": ["main INFO", "worker ERROR", "main DEBUG"],
    "colours": ["\x1b[32mINFO\x1b[0m", "\x1b[31mERROR\x1b[0m", "\x1b[33mWARN\x1b[0m"],
}


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("below", BELOW)
@pytest.mark.parametrize("head", LEVELS)
def test_stack_traces_stay_whole_where_lines_have_a_level_and_no_time(head, below, every):
    said = (f"{LEVELS[head][i % 3]} {SAID[i * 7 % 5]}\n" for i in range(200))
    expected = [line + (BELOW[below] if i % every == 0 else "") for i, line in enumerate(said)]
    assert list(blocks(iter("".join(expected).splitlines(keepends=True)))) == expected


def test_lines_without_a_level_stay_records_where_few_have_one():
    lines = [f"{'' if i % 5 else 'ERROR '}{['disk full', 'user root', 'net down'][i % 3]}\n" for i in range(200)]
    assert list(blocks(iter(lines))) == lines


def test_a_level_behind_a_number_in_every_line_is_no_beginning():
    """Times need not look like it, and lines without a level begin a record, too."""
    lines = [f"0811{i % 28:02} {'' if i % 3 else 'INFO '}block of {i}\n" for i in range(200)]
    assert list(blocks(iter(lines))) == lines


SAID = ["disk full", "10.0.0.1 connected", "retry 3 of 5", 'user "root"', "GET /api?id=3 200"]
VARIED = {  # heads that are not the same in all lines
    "docker": lambda i, said: json.dumps({"log": said, "stream": "stdout", "time": i}, separators=(",", ":")),
    "zap": lambda i, said: json.dumps({"level": "info", "ts": i + 0.5, "caller": f"x{i % 3}/y.go", "msg": said}),
    "kernel": lambda i, said: f"[{i * 131.071:12.6f}] {said}",
    "milliseconds left out": lambda i, said: f"2024-01-01 10:00:{i % 60:02}{'.123' if i % 3 else ''} INFO {said}",
    "hexadecimal": lambda i, said: f"{i * 0x9E3779B97F4A7C15 % 2**64:016x} {said}",
}


@pytest.mark.parametrize("below", BELOW)
@pytest.mark.parametrize("head", VARIED)
def test_heads_that_vary(head, below):
    """JSON logs, and a kernel's that has been up for 10,000 s: most of their lines went on a block of others."""
    expected = [VARIED[head](i, SAID[i * 7 % 5]) + "\n" + (BELOW[below] if i % 3 == 0 else "") for i in range(200)]
    assert list(blocks(iter("".join(expected).splitlines(keepends=True)))) == expected


@pytest.mark.parametrize("name", ["Android", "Apache", "BGL", "HDFS", "Linux", "OpenSSH", "Spark", "Zookeeper"])
def test_lines_of_real_logs_are_records(shared, name):
    (path,) = (shared / "data" / "loghub" / name).glob("*.log")
    lines = path.read_bytes().decode(errors="surrogateescape").split("\n")
    assert len(list(blocks(iter(lines)))) >= 0.99 * len(lines)


def documents(folder) -> list[str]:
    tokenizer = Tokenizer.load(json.loads((folder / "manifest.json").read_text())["tokenizer"]["path"])
    return [tokenizer.decode(ids) for ids, _ in read_documents(folder)["train"]]


def test_documents_are_cut_between_blocks(bytes_tokenizer, tmp_path, inline):
    expected = made("iso", "java")
    (tmp_path / "a.log").write_text("".join(expected))
    flags = {"text_chars": 250, "valid_fraction": 0, "records": "block"}
    prepare.main(arguments(bytes_tokenizer, tmp_path / "out", tmp_path / "a.log", **flags))
    texts = documents(tmp_path / "out")
    assert "".join(texts) == "".join(expected)
    assert all(text.startswith("2024-01-") for text in texts)
    flags["records"] = "line"
    prepare.main(arguments(bytes_tokenizer, tmp_path / "lines", tmp_path / "a.log", **flags))
    assert not all(text.startswith("2024-01-") for text in documents(tmp_path / "lines"))


def test_repetitions_are_left_out_over_all_files(bytes_tokenizer, tmp_path, inline, capsys):
    often = [
        f"Jul  1 10:00:{i % 60:02} sshd[{i}]: Failed password for root from 10.0.0.{i} port 22\n" for i in range(90)
    ]
    rare = [f"Jul  1 10:00:{i:02} kernel: Out of memory: kill process {i}\n" for i in range(2)]
    lines = [*often[:60], rare[0], *often[60:], rare[1]]
    (tmp_path / "a.log").write_text("".join(lines[:50]))
    (tmp_path / "b.log").write_text("".join(lines[50:]))
    inputs = [tmp_path / "a.log", tmp_path / "b.log"]
    flags = {"valid_fraction": 0, "max_per_template": 5, "seq_len": 1000}
    prepare.main(arguments(bytes_tokenizer, tmp_path / "out", *inputs, **flags))
    assert "".join(documents(tmp_path / "out")) == "".join([*often[:5], *rare])
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["records"] == {"read": 92, "left_out": 85, "templates": 2}
    assert "records of text files: 92, of which 85 were left out" in capsys.readouterr().out
    prepare.main([*arguments(bytes_tokenizer, tmp_path / "masked", *inputs, **flags), "--mask_values"])
    assert documents(tmp_path / "masked") == [
        "".join(f"{text.decode()}\n" for text in mask([line[:-1] for line in kept]).texts) for kept in (often[:5], rare)
    ]


def test_rules_of_records_are_for_text(chat_tokenizer, tmp_path, inline):
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(ValueError, match="records = block has no meaning with format = sharegpt"):
        prepare.main(arguments(chat_tokenizer, tmp_path / "o", tmp_path / "a.json", format="sharegpt", records="block"))
