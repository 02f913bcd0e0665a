"""Files that somebody has made to harm, in place of what others give us: models, tokenizers, adapters, rows, and what a
run has left. Whoever reads one takes it or refuses it in one line, within PATIENCE seconds and 2 GiB, and never hands
what steers a terminal on to it.
"""

import gzip
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from tests.storm.ground import Ground, remove
from tests.storm.outcome import Outcome, ended_well, last_line
from tests.storm.stages import STAGES

KIND, PATIENCE = "hostile", 20.0
TARGETS = (  # a file, and the stages that read it
    ("model/config.json", ("cpt", "sft", "merge", "evaluate")),
    ("model/tokenizer_config.json", ("prepare chats", "evaluate")),
    ("model/tokenizer.json", ("prepare", "evaluate")),
    ("model/generation_config.json", ("evaluate", "sft")),
    ("model/model.safetensors", ("cpt", "merge", "evaluate")),
    ("text.json", ("prepare",)),
    ("chats.json", ("prepare chats",)),
    ("test.json", ("evaluate",)),
    ("data/manifest.json", ("cpt",)),
    ("chats/manifest.json", ("sft",)),
    ("runs/sft/adapter/adapter_config.json", ("merge", "evaluate")),
    ("runs/sft/adapter/adapter_model.safetensors", ("merge",)),
    ("pairs.json", ("prepare pairs",)),
    ("rows.parquet", ("prepare tables",)),
    ("rows.csv.gz", ("prepare tables",)),
    ("logs.zip", ("prepare tables",)),
    ("a.log", ("synthesise",)),
    ("suite.toml", ("benchmark",)),
    ("reviewed.json", ("review",)),
    ("runs/sft/adapter/base_model.json", ("merge",)),
    ("merged/lineage.json", ("lineage",)),
    ("store/versions/logs/000001.json", ("hub pull", "lineage")),
    ("evaluation/scores.json", ("judge",)),
    ("runs/cpt/goodput.json", ("status", "report")),
    ("runs/cpt/export.json", ("status", "report")),
    ("runs/cpt/metrics.jsonl", ("status", "report", "trace")),
    ("runs/cpt/events.jsonl", ("status", "report")),
)
VALUES: tuple[Any, ...] = (
    *(None, True, [], {}, "", [[]], {"a": {}}, 0, -1, 1, 2**31, 2**62, 2**70, -(2**63), 1e308, 0.5),
    *(float("nan"), float("inf"), "x" * 1_000_000, "\ud800", "\x1b]0;evil\x07\x1b[2J", "a\u202eb", "../../etc/passwd"),
    *([0] * 100_000, "/dev/zero", ".", "9" * 5000, [None], ["\0"]),
)
TEMPLATES = (
    "{% for i in range(99999999) %}{% for j in range(99999999) %}x{% endfor %}{% endfor %}",
    "{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}{{ ns.s }}",
    "{{ messages | tojson(indent=2000000000) }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ 'x' * 9999999999 }}",
    "{{ '%999999999d' % 1 }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{{ '\\ud800' }}",
    "{{ messages[0].content | center(2000000000) }}",
    "{{ cycler.__init__.__globals__.os.system('touch HARM') }}",
    "\x1b[2J{{ raise_exception('\x1b]0;evil\x07') }}",
    "{{ range(10 ** 9) | list }}",
)


def attack(ground: Ground, random: Random) -> Outcome:
    """Put a hostile file in the place of one, and run a stage that reads it."""
    name, stages = random.choice(TARGETS)
    file, stage = ground.here / name, STAGES[random.choice(stages)]
    ground.take_away(stage)
    hows = {
        ".json": [value_in_json] * 4 + [deep, special_file, noise, keys_gone],
        ".safetensors": [header, special_file],
        ".jsonl": [value_in_line] * 3 + [special_file, noise],
    }.get(file.suffix, [noise] * 3 + [special_file])
    if file.name == "tokenizer_config.json":
        hows += [template] * 6
    how = random.choice(hows)
    what = f"{name}: {how(file, random)}; {stage.name}"
    ended = ground.run(stage, patience=PATIENCE + 5)
    wrong = ended_well(ended, PATIENCE) or ("changed" if (ground.here / "HARM").exists() else "")
    is_refused = ended.statuses[0] == 2 and len(ended.errors) == len(ended.statuses)
    verdict = wrong or ("taken" if ended.is_done else "refused" if is_refused else "status")
    remove(ground.here / "HARM")
    ground.restore(stage, name.split("/")[0])
    return Outcome(KIND, what, verdict, last_line(ended)[:200])


def places(value: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Every (container, key) within a JSON value, a thousand at most."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        if len(found) < 1000:
            found.append((value, key))
            places(inner, found)
    return found


def value_in_json(file: Path, random: Random) -> str:
    """Another value in the place of one."""
    facts = json.loads(file.read_text())
    container, key = random.choice(places(facts, []))
    number = random.randrange(len(VALUES))
    container[key] = VALUES[number]
    file.write_text(json.dumps(facts))
    return f"{key!r} = {json.dumps(VALUES[number])[:40]}"


def value_in_line(file: Path, random: Random) -> str:
    """Another value in the place of one, in a line of JSON."""
    lines = file.read_text().splitlines() or ['{"step": 1, "kind": "spike", "time": 1.0, "text": ""}']
    at, number = random.randrange(len(lines)), random.randrange(len(VALUES))
    facts = json.loads(lines[at])
    key = random.choice(list(facts))
    facts[key] = VALUES[number]
    lines[at] = json.dumps(facts)
    file.write_text("\n".join(lines) + "\n")
    return f"line {at + 1}: {key!r} = {json.dumps(VALUES[number])[:40]}"


def keys_gone(file: Path, random: Random) -> str:
    facts = json.loads(file.read_text())
    container, key = random.choice(places(facts, []))
    del container[key]
    file.write_text(json.dumps(facts))
    return f"without {key!r}"


def deep(file: Path, random: Random) -> str:
    depth, (opening, closing) = random.choice([500, 100_000]), random.choice(["[]", ('{"a":', "}")])
    inner = opening * depth + "1" * (opening != "[") + closing * depth
    text = file.read_text()
    at = text.find(":") + 1
    file.write_text(random.choice([inner, text[:at] + inner + ", " + '"b":' + text[at:]]))
    return f"{depth} levels of {opening}"


def template(file: Path, random: Random) -> str:
    facts = json.loads(file.read_text())
    facts["chat_template"] = random.choice(TEMPLATES)
    file.write_text(json.dumps(facts))
    return f"template {facts['chat_template'][:50]!r}"


def special_file(file: Path, random: Random) -> str:
    """No regular file, or one that is endless."""
    file.unlink()

    def sparse() -> None:
        with open(file, "wb") as stream:
            stream.truncate(1 << 40)

    makers: dict[str, Callable[[], object]] = {
        "a FIFO": lambda: os.mkfifo(file),
        "a folder": lambda: file.mkdir(),
        "a link to /dev/zero": lambda: file.symlink_to("/dev/zero"),
        "a link to itself": lambda: file.symlink_to(file.name),
        "a sparse file of 1 TiB": sparse,
        "empty": lambda: file.write_bytes(b""),
        "a gzip bomb": lambda: file.write_bytes(gzip.compress(bytes(1 << 24))),
    }
    name = random.choice(list(makers))
    makers[name]()
    return name


def noise(file: Path, random: Random) -> str:
    """Bytes that are no text, among those that are, or alone."""
    content, more = file.read_bytes(), random.choice([b"\xff\xfe", b"\0" * 9, b"\xed\xa0\x80", random.randbytes(300)])
    at = random.randrange(len(content) + 1)
    file.write_bytes(random.choice([more, content[:at] + more + content[at:]]))
    return f"{more[:9]!r} at {at}"


def header(file: Path, random: Random) -> str:
    """A safetensors file whose header lies."""
    content = file.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    facts, rest = json.loads(content[8 : 8 + size]), content[8 + size :]
    container, key = random.choice(places(facts, []))
    number = random.randrange(len(VALUES))
    container[key] = VALUES[number]
    text = json.dumps(facts).encode()
    length = random.choice([len(text)] * 4 + [2**63, len(text) - 1, 0])
    file.write_bytes(struct.pack("<Q", length) + text + rest)
    return f"header {key!r} = {json.dumps(VALUES[number])[:40]}, length {length}"
