"""What a synthesis has kept of its chunks and answers: damage and other versions are one line, wherever they are."""

import json
from collections import Counter
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from logtrain.core.run_folder import enter_run_folder
from logtrain.core.sealed_lines import adding, sealed_line
from logtrain.synthesis.chunks import Chunk, Chunks, kept_chunks, line_of
from logtrain.synthesis.journal import FILE, Answer, Failure, Journal, Sent, read_journal


@dataclass(frozen=True, kw_only=True)
class Config:
    seed: int = 1


SENT = {"event": "sent", "job": 1, "attempt": 0, "tokens": 3}
EVENTS = [
    Sent(0, 0, 30, 9),
    Answer(0, 0, "why", "stop", 20, 3, True, ""),
    Sent(1, 0, 30, 9),
    Failure(1, 0, "timeout", "late", True),
]


def test_events_are_read_as_they_were_written(tmp_path):
    for events in (EVENTS[:2], EVENTS[2:]):
        with Journal(tmp_path) as journal:
            journal.add(events)
    assert list(read_journal(tmp_path, 2)) == EVENTS


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        ({"event": {}, "job": 1}, "written by another version of logtrain: '{}' is no event"),
        ({"job": 1}, "written by another version of logtrain: 'None' is no event"),
        (SENT, "an older version of logtrain: prompt_tokens is missing"),
        (SENT | {"prompt_tokens": "1"}, 'prompt_tokens = "1": expected an integer'),
        (SENT | {"prompt_tokens": 1, "job": 2}, "job 2 of 2: is of another run"),
    ],
)
def test_another_event_is_one_line(tmp_path, facts, told):
    with Journal(tmp_path) as journal:
        journal.add(EVENTS[:1])
    with adding(tmp_path / FILE) as stream:
        stream.write(sealed_line(facts))
    with pytest.raises(ValueError, match=rf"{FILE} line 2: .*{told}"):
        list(read_journal(tmp_path, 2))


def test_the_journal_of_another_synthesis_is_refused(tmp_path):
    for name in ("one", "other"):
        enter_run_folder(tmp_path / name, Config(), False, ()).close()
        with Journal(tmp_path / name) as journal:
            journal.add(EVENTS)
    assert list(read_journal(tmp_path / "one", 2)) == EVENTS
    (tmp_path / "one" / FILE).write_bytes((tmp_path / "other" / FILE).read_bytes())
    with pytest.raises(ValueError, match=rf"one/{FILE} line 1: another file lies in its place: journal of run "):
        list(read_journal(tmp_path / "one", 2))


@pytest.fixture
def chunks(tmp_path) -> Chunks:
    """Those of a run, as an older version of the program has left them."""
    found = Chunks([Chunk("A", "a.log", 1, 2, "one\ntwo"), Chunk("B", "b.log", 5, 1, "three")], Counter(short=3))
    head = {"left_out": dict(found.left_out), "sha256": found.sha256, "prompts": "p"}
    (tmp_path / "chunks.jsonl").write_bytes(json.dumps(head).encode() + b"\n" + b"".join(map(line_of, found.chunks)))
    return found


def test_chunks_of_an_older_version_and_a_flipped_bit_of_ours(tmp_path, chunks):
    assert kept_chunks(SimpleNamespace(), tmp_path, "p") == chunks
    file = tmp_path / "chunks.jsonl"
    head = {"left_out": dict(chunks.left_out), "chunks_sha256": chunks.sha256, "prompts": "p"}
    whole = sealed_line(head) + b"".join(map(line_of, chunks.chunks))
    file.write_bytes(whole)
    assert kept_chunks(SimpleNamespace(), tmp_path, "p") == chunks
    for at in range(len(whole)):
        flipped = bytearray(whole)
        flipped[at] ^= 1 << at % 7
        file.write_bytes(flipped)
        with pytest.raises(ValueError, match=f"{file}: not as it was written"):
            kept_chunks(SimpleNamespace(), tmp_path, "p")
    for other in (whole.removesuffix(b"\n"), whole + b"\n", whole.replace(b"\n", b"\r\n")):
        file.write_bytes(other)
        with pytest.raises(ValueError, match=f"{file}: not as it was written"):
            kept_chunks(SimpleNamespace(), tmp_path, "p")
