"""What an answer names and its log does not have is found, and what it has is not; in Python and in the page alike."""

import json
import random
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logtrain.text import entities
from logtrain.text.entities import check
from tests.support import ROOT

PAGE = ROOT / "logtrain" / "serving" / "page" / "entities.js"
LOG = r"""Dec 10 06:55:46 LabSZ sshd[24200]: Failed password for user webmaster from 173.234.31.186 port 38926 ssh2
Dec 10 09:05:46 LabSZ sshd[24201]: Failed password for root from 10.0.0.5 port 22 ssh2
Dec 10 09:05:47 LabSZ sshd[24201]: check ns.example.org [173.234.31.186] failed - POSSIBLE BREAK-IN ATTEMPT!
2005-06-03 R02-M1-N0-C:J12-U11 dfs.DataNode$Responder: blk_-1608999687919862906 size 67108864 /mnt/data/x.log
kernel: Out of memory: C:\\xampp\\php\\ext\\a.dll https://example.org/z?a=1 fe80::1 aa:bb:cc:dd:ee:ff 0x1234abcd
took 100ms 3.5s 550e8400-e29b-41d4-a716-446655440000 pam_unix addStoredBlock 1.2.3
"""
CASES = {  # what an answer says -> the entities of it that the log does not have
    "At 06:55:46, or 06:55, on Dec 10, 2005-06-03, 9:05:46": [],
    "At 06:55:47, or 07:55, on Dec 11, 2005-06-04": ["06:55:47", "07:55", "11", "2005-06-04"],
    "- 06:55:46: failed\n- 09:05: failed\n- 07:00:00: failed": ["07:00:00"],
    "173.234.31.186, 10.0.0.5:22, [10.0.0.5], (10.0.0.5).": [],
    "173.234.31.18, 10.0.0.5:23, 10.0.0.51, 0.0.5": ["173.234.31.18", "10.0.0.5:23", "10.0.0.51", "0.0.5"],
    "fe80::1 aa:bb:cc:dd:ee:ff fe80::2 aa:bb:cc:dd:ee:fe": ["fe80::2", "aa:bb:cc:dd:ee:fe"],
    "`/mnt/data/x.log`, /mnt/data, x.log, **/mnt**": [],
    "/mnt/data/y.log, /etc/passwd, y.log, ~/x.sh": ["/mnt/data/y.log", "/etc/passwd", "y.log", "~/x.sh"],
    r"C:\xampp\php\ext\a.dll and C:\xampp\b.dll": [r"C:\xampp\b.dll"],
    "https://example.org/z?a=1 https://evil.org": ["https://evil.org"],
    "port 38926, 38927, 24200, 389, 3.5 s, 100 ms, 1.2.3, 1.2.4": ["38927", "389", "1.2.4"],
    "67,108,864 bytes are 64 MB; 65 MB, 67,108,865": ["65", "67,108,865"],
    "blk_-1608999687919862906 and blk_-1608999687919862907": ["blk_-1608999687919862907"],
    "R02-M1-N0-C:J12-U11, R02-M1, DataNode, Responders, dfs.DataNode; R02-M2, DataXceiver": ["R02-M2", "DataXceiver"],
    "addStoredBlock, pam_unix, OutOfMemory; addBlock, pam_krb5": ["addBlock", "pam_krb5"],
    "0x1234abcd 0x1234abce 550e8400-e29b-41d4-a716-446655440000 550e8400-e29b-41d4-a716-446655440001": [
        "0x1234abce",
        "550e8400-e29b-41d4-a716-446655440001",
    ],
    "see L2, L6, lines 3-6 and line 1; L7, lines 5 to 9, L0; line 38926": ["L7", "lines 5 to 9", "L0"],
    "2 failed passwords, 3 lines with failed, 6 lines; 20 failed passwords": ["20"],
    "1. read/write over TCP/IP\n2) and/or the 24th, e.g. 5 of them\n10. OpenSSH, SHA256, IPv4, HTTP/1.1, 5xx": [],
    "a 10-second wait, 99% and 42%": ["99", "42"],
    "10.0.33.1": ["10.0.33.1"],  # at the beginning of a line, where numbers of sections stand
    "10.0.0.7 failed\n13.5 s later\n10.0.0.5": ["10.0.0.7", "13.5"],
    "13.5.\n": ["13.5"],
    "12.3 Cause\n12.3.1 **Why**\n**12.4** How\n12) a\n12.3. b": [],
    "Ünïcode – 10.0.0.5\u00a0and\u2028x ١٢٣ ²": [],
    "": [],
}


def unknown(answer: str, log: str = LOG) -> list[str]:
    return [entity.text for entity in check(answer, log) if not entity.known]


@pytest.mark.parametrize("answer", CASES)
def test_what_the_log_does_not_have(answer):
    found = check(answer, LOG)
    assert [entity.text for entity in found if not entity.known] == CASES[answer]
    assert all(answer[entity.start : entity.stop] == entity.text for entity in found)


def test_the_question_is_a_source_and_lines_count_from_the_first():
    assert unknown("is 10.9.9.9 there?") == ["10.9.9.9"]
    assert not [
        entity for entity in check("10.9.9.9 in L101, L102", "a\nb\n", "about 10.9.9.9", 101) if not entity.known
    ]


def by_node(pairs: list[tuple[str, str]], folder: Path) -> list[list[list]]:
    """[text, kind, known] of the entities of each (answer, log), by the page's program."""
    node = shutil.which("node")
    if not node:
        pytest.skip("needs node to run the page's program")
    shutil.copy(PAGE, folder / "entities.mjs")
    (folder / "pairs.json").write_text(json.dumps([entities.RULES, pairs]))
    (folder / "run.mjs").write_text("""
        import { readFileSync } from "node:fs";
        import { entityRules, Source } from "./entities.mjs";
        const [RULES, pairs] = JSON.parse(readFileSync("pairs.json"));
        const { entities, units } = entityRules(RULES);
        console.log(JSON.stringify(pairs.map(([answer, log]) => {
          const source = new Source(log, "", 1, units);
          const has = (e) => source.has(e.text, e.kind, answer.slice(e.stop, e.stop + 80));
          return entities(answer).map((e) => [e.text, e.kind, has(e)]);
        })));
    """)
    done = subprocess.run([node, "run.mjs"], cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_page_finds_the_same(tmp_path):
    """Over the cases, and over random pieces of them and of odd characters."""
    draw = random.Random(7)
    pieces = [*re.findall(r"\S+|\s", LOG), *(word for case in CASES for word in re.findall(r"\S+|\s", case))]
    pieces += [*".,:-_/\\$@#[]()`*|=+~'\"<>", "L1", "lines ", "\u2013", "é", "\u00a0", "\n", "__", "1", "22", "a1"]
    pairs = [(answer, LOG) for answer in CASES]
    pairs += [("".join(draw.choices(pieces, k=30)), "".join(draw.choices(pieces, k=200))) for _ in range(1500)]
    expected = [[[e.text, e.kind, e.known] for e in check(answer, log)] for answer, log in pairs]
    for pair, ours, theirs in zip(pairs, expected, by_node(pairs, tmp_path), strict=True):
        assert ours == theirs, pair


@given(st.text(max_size=200), st.text(max_size=200))
def test_any_text(answer, log):
    for entity in check(answer, log):
        assert answer[entity.start : entity.stop] == entity.text


@pytest.mark.parametrize(
    "piece",
    ["a", "1", "_", "$", "a.", "a-", "1_", "1a", "/a", "a/", "aB", ":", "f:", "1,", "1.", "@a", "\\", "0x", "L1 "],
)
def test_no_answer_takes_long(piece):
    began = time.process_time()
    check(piece * 20_000 + "!", LOG)
    assert time.process_time() - began < 2


# ---- answers with false entities


def false_one(entity: entities.Entity, draw: random.Random) -> str:
    """An entity like a true one, with another digit or letter."""
    places = [at for at, c in enumerate(entity.text) if c.isdigit()] or [
        at for at, c in enumerate(entity.text) if c.isalpha()
    ]
    at = draw.choice(places)
    others = "123456789" if entity.text[at].isdigit() else "bcdfghkmpqrst"
    return entity.text[:at] + draw.choice(others.replace(entity.text[at], "")) + entity.text[at + 1 :]


def test_false_entities_of_200_answers_about_real_logs(shared):
    """Answers quote lines of real logs; one entity of each answer is changed."""
    draw = random.Random(1309)
    systems = sorted(path.name for path in (shared / "data" / "loghub").iterdir() if path.is_dir())
    injected = found = true = alarms = 0
    while injected < 200:
        system = draw.choice(systems)
        text = (shared / "data" / "loghub" / system / f"{system}_2k.log").read_text("utf-8", errors="replace")
        lines = draw.sample(text.splitlines(), 60)
        log = "\n".join(lines)
        answer = "\n".join(f"{n}. The log shows: {line}" for n, line in enumerate(draw.sample(lines, 4), 1))
        entities_ = [entity for entity in check(answer, log) if entity.kind != "line"]
        true += len(entities_)
        alarms += sum(not entity.known for entity in entities_)
        candidates = [entity for entity in entities_ if len(entity.text) > 2]
        if not candidates:
            continue
        entity = draw.choice(candidates)
        false = false_one(entity, draw)
        if re.search(rf"(?<![A-Za-z0-9]){re.escape(false)}(?![A-Za-z0-9])", log):
            continue  # it is in the log
        changed = answer[: entity.start] + false + answer[entity.stop :]
        injected += 1
        found += any(e.start <= entity.start < e.stop and not e.known for e in check(changed, log))
    assert found >= 0.95 * injected, (found, injected)
    assert alarms <= 0.03 * true, (alarms, true)
