"""Lines are grouped as one would by hand, whatever is in them, and in a bounded time."""

import random
import time

import numpy as np
import pytest

from logtrain.text.log_templates import LogTemplates
from logtrain.text.severity import ERROR, FATAL, PLAIN, WARNING, severity

SSH = [
    "Dec 10 06:55:48 LabSZ sshd[24200]: Failed password for invalid user webmaster from 173.234.31.186 port 38926 ssh2",
    "Dec 10 09:32:20 LabSZ sshd[24680]: Accepted password for fztu from 119.137.62.142 port 49116 ssh2",
    "Dec 10 07:02:47 LabSZ sshd[24203]: Failed password for invalid user pgadmin from 5.36.59.76 port 2011 ssh2",
    "Dec 10 07:07:38 LabSZ sshd[24206]: Connection closed by 5.36.59.76 [preauth]",
    "Dec 10 07:07:45 LabSZ sshd[24207]: Failed password for invalid user root1 from 112.95.230.3 port 49 ssh2",
]


def test_lines_that_differ_in_values_or_a_word_are_a_group():
    templates = LogTemplates()
    assert templates.add(SSH).tolist() == [0, 1, 0, 2, 0]
    first, accepted, _ = templates.templates
    assert first.text == "<*> LabSZ sshd[<*>]: Failed password for invalid user <*> from <*> port <*>"
    assert (first.count, first.variants, first.severity) == (3, 3, ERROR)
    assert (accepted.count, accepted.severity) == (1, PLAIN)


def test_groups_do_not_depend_on_how_the_lines_come(monkeypatch):
    lines = [line.replace("LabSZ", f"host{i % 3}") for i, line in enumerate(SSH * 40)]
    whole = LogTemplates().add(lines)
    pieces = LogTemplates()
    found = [pieces.add(lines[at : at + 7]) for at in range(0, len(lines), 7)]
    monkeypatch.setattr("logtrain.text.log_templates.CHUNK", 100)
    assert np.concatenate(found).tolist() == whole.tolist() == LogTemplates().add(lines).tolist()
    assert sum(template.count for template in pieces.templates) == len(lines)


def test_what_is_more_serious_is_a_group_of_its_own():
    """Or a rare failure would be one of many lines that differ in a word."""
    lines = [f"INFO dfs.Scanner: Verification of all blocks succeeded for blk_{i}" for i in range(50)]
    lines.insert(20, "INFO dfs.Scanner: Verification of all blocks failed for blk_777")
    numbers = LogTemplates().add(lines)
    assert (numbers == numbers[20]).sum() == 1


@pytest.mark.parametrize("texts", [[""], ["", " ", "\t"], ["\ud800 a"], ["#", "<*> <*>", "1 2 3", "é ß"], ["x" * 5000]])
def test_odd_texts(texts):
    templates = LogTemplates()
    numbers = templates.add(texts)
    assert len(numbers) == len(texts)
    assert set(numbers.tolist()) == set(range(len(templates.templates)))
    assert templates.add([]).tolist() == []


def test_lines_without_anything_in_common_take_no_quadratic_time():
    draw = random.Random(1)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=6)) for _ in range(5000)]
    seconds = []
    for count in (2_000, 16_000):
        lines = [f"ERROR app: {' '.join(draw.choices(words, k=9))}" for _ in range(count)]
        began = time.process_time()
        LogTemplates().add(lines)
        seconds.append(time.process_time() - began)
    assert seconds[1] < 8 * 4 * seconds[0]  # 64 times as long if every two were compared


@pytest.mark.parametrize(
    ("line", "rank"),
    [
        ("081109 203615 148 INFO dfs.DataNode: PacketResponder 1 terminating", PLAIN),
        ("[Sun Dec 04 04:47:44 2005] [error] mod_jk child workerEnv in error state 6", ERROR),
        ("2015-10-18 18:01:47,978 WARN [main] Client: Address change detected", WARNING),
        ("- 1117838570 R02-M1-N0-C:J12-U11 RAS KERNEL FATAL data storage interrupt", FATAL),
        ("- 1117838570 R02-M1-N0-C:J12-U11 RAS KERNEL INFO instruction cache parity error corrected", WARNING),
        ("03-17 16:13:38.811 1702 2395 E PowerManager: acquire lock", ERROR),
        ("03-17 16:13:38.811 1702 2395 D PowerManager: E of I", PLAIN),
        ("kernel: Out of memory: Kill process 23 (java)", ERROR),
        ("Caused by: java.lang.NullPointerException: null", ERROR),
        ("connect to db-1 port 5432: Connection refused", ERROR),
        ("sshd: No route to host", ERROR),
        ("E/Zygote ( 33): the device went away", ERROR),
        ("kernel: EXT4-fs (sda1): I/O error while writing superblock", ERROR),
        ("kernel panic - not syncing", FATAL),
        ("all is well", PLAIN),
        ("", PLAIN),
    ],
)
def test_how_serious_a_line_is(line, rank):
    assert severity(line.encode()) == rank
    assert severity(b"\xff\xfe " + line.encode()) in range(4)
