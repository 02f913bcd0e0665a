"""Answers on disk: what has changed since it was written is refused in one line, what was torn is asked again."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from logtrain.core.run_folder import enter_run_folder
from logtrain.core.untrusted import SEAL, seal_of, sealed
from logtrain.evaluation.answering import perplexity_file, read_perplexities, write_perplexities
from logtrain.evaluation.answers import RecordedAnswer, read_answers, record_answers
from logtrain.evaluation.results import Perplexity

ANSWERS = [RecordedAnswer(i, "aa", "bb", 7 + i, f"because é {i}", None if i else 3, "stop") for i in range(3)]
PERPLEXITY: Perplexity = {
    "perplexity": 7.5, "loss": 2.01, "bits_per_byte": 0.7, "tokens": 12, "sha256": "cc", "model_sha256": "dd"
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Config:
    max_new_tokens: int = 8


@pytest.fixture
def file(tmp_path) -> Path:
    assert list(record_answers(tmp_path, "a", 0, ANSWERS)) == ANSWERS
    return tmp_path / "a.00000.jsonl"


def flips(content: bytes) -> Iterator[bytes]:
    """The content with a bit of each of its bytes flipped, one at a time."""
    for at in range(len(content)):
        yield content[:at] + bytes([content[at] ^ 1 << at % 7]) + content[at + 1 :]


def test_what_is_written_is_read(file):
    assert read_answers(file.parent, "a") == dict(enumerate(ANSWERS))


def test_no_flipped_bit_changes_an_answer(file):
    """Each is refused, or the answer is not there and will be asked for again."""
    whole, refused, asked_again = file.read_bytes(), 0, 0
    for content in flips(whole):
        file.write_bytes(content)
        try:
            found = read_answers(file.parent, "a")
        except ValueError as error:
            assert "\n" not in str(error)
            assert str(error).startswith(f"{file} line ")
            refused += 1
            continue
        assert all(found[number] == ANSWERS[number] for number in found)
        asked_again += len(found) < len(ANSWERS)
    assert refused > len(whole) / 4
    assert refused + asked_again >= len(whole) - len(ANSWERS)  # a line may end with another space


def test_answers_of_another_evaluation_are_refused(tmp_path):
    """Of the same model to the same questions, drawn otherwise."""
    for name, new in (("one", 8), ("other", 9)):
        enter_run_folder(tmp_path / name, Config(max_new_tokens=new), False, ()).close()
        list(record_answers(tmp_path / name / "answers", "a", 0, ANSWERS))
    file = tmp_path / "one/answers/a.00000.jsonl"
    assert read_answers(file.parent, "a") == dict(enumerate(ANSWERS))
    file.write_bytes((tmp_path / "other/answers/a.00000.jsonl").read_bytes())
    with pytest.raises(ValueError, match=rf"{file} line 1: another file lies in its place: answers of run "):
        read_answers(file.parent, "a")


def test_a_torn_line_is_asked_again(file):
    lines = file.read_bytes().splitlines(keepends=True)
    for cut in range(1, len(lines[1]) - 1, 5):
        file.write_bytes(lines[0] + lines[1][:cut] + b"\n" + lines[2])
        assert read_answers(file.parent, "a") == {0: ANSWERS[0], 2: ANSWERS[2]}


@pytest.mark.parametrize(
    "change", [{"number": "1"}, {"output": None}, {"output_tokens": 1.5}, {"more": 1}, {"number": True}]
)
def test_another_type_is_refused_though_its_hash_fits(file, change):
    facts = ANSWERS[1]._asdict() | change
    file.write_text(json.dumps(facts | {SEAL: seal_of(facts)}) + "\n")
    with pytest.raises(ValueError, match=r"a\.00000\.jsonl line 1: .*(expected|newer version of logtrain: more)"):
        read_answers(file.parent, "a")


def test_answers_and_perplexities_under_the_name_of_others_are_refused(tmp_path):
    for name in ("a", "b"):
        list(record_answers(tmp_path, name, 0, [RecordedAnswer(3, "m", "p", 1, name, 2, "stop")]))
    assert read_answers(tmp_path, "b")[3].output == "b"
    (tmp_path / "a.00000.jsonl").replace(tmp_path / "b.00000.jsonl")
    with pytest.raises(ValueError, match=r"b\.00000\.jsonl line 1: an answer of a; give its file that name again"):
        read_answers(tmp_path, "b")
    perplexity_file(tmp_path, "a").write_bytes(sealed({"judge": "m", "pairs": []}))
    with pytest.raises(ValueError, match=r"a\.perplexity\.json: perplexities = null: expected an object"):
        read_perplexities(tmp_path, "a")


def test_perplexities_that_were_exchanged_are_refused(tmp_path):
    """With those of another candidate, or of another evaluation."""
    for run, identity in (("one", "0" * 12), ("two", "1" * 12)):
        (tmp_path / run).mkdir()
        (tmp_path / run / "config.toml").write_text(f"# run {identity}\n")
        for name in ("a", "b"):
            write_perplexities(tmp_path / run / "answers", name, {"text": PERPLEXITY})
    folder = tmp_path / "one" / "answers"
    own, other = perplexity_file(folder, "a"), perplexity_file(folder, "b")
    assert read_perplexities(folder, "a") == {"text": PERPLEXITY} == read_perplexities(folder, "b")
    own.write_bytes(other.read_bytes())
    with pytest.raises(ValueError, match=r"a\.perplexity\.json: perplexities of b; give the file that name again"):
        read_perplexities(folder, "a")
    other.write_bytes(perplexity_file(tmp_path / "two" / "answers", "b").read_bytes())
    with pytest.raises(ValueError, match=r"b\.perplexity\.json: another file lies in its place: .* of run 1{12}"):
        read_perplexities(folder, "b")


def test_no_flipped_bit_changes_a_perplexity(tmp_path):
    write_perplexities(tmp_path, "a", {"sha256": PERPLEXITY})
    file = perplexity_file(tmp_path, "a")
    assert read_perplexities(tmp_path, "a") == {"sha256": PERPLEXITY}
    for content in flips(file.read_bytes()):
        file.write_bytes(content)
        try:
            assert read_perplexities(tmp_path, "a") == {"sha256": PERPLEXITY}
        except ValueError as error:
            assert str(error).startswith(f"{file}: ")
            assert "\n" not in str(error)
