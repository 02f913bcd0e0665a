"""A judge behind a server: what is asked and paid for is kept, and nothing is asked twice."""

import json
import shutil
from pathlib import Path

import pytest

from logtrain import judge
from logtrain.core.run_folder import hold
from logtrain.core.untrusted import read_sealed, sealed
from tests.support.evaluation import evaluated, flags
from tests.support.scripted_server import scripted


def test_a_judgement_by_a_server_is_kept_and_goes_on(chat_models, question_file, tmp_path, capsys):
    run = tmp_path / "run"
    assert evaluated(flags(chat_models, question_file, run)) == 0
    outputs = {}
    for line in (run / "samples.jsonl").read_text().splitlines():
        sample = json.loads(line)
        outputs.setdefault(sample["output"], sample["model"])

    def prefers_b(messages: list[dict]) -> str | int:
        if len(server.seen) == 7 and not failed:
            failed.append(True)
            return 400
        first = messages[0]["content"].partition("<answer_1>\n")[2].partition("\n</answer_1>")[0]
        return f"Because.\nVerdict: {1 if outputs[first] == 'b' else 2}"

    failed: list[bool] = []
    with scripted(prefers_b) as server:
        arguments = ["--run", str(run), "--base_url", server.url, "--model", "m", "--concurrency", "1",
                     "--price_per_million_in", "1", "--no_reference", "--max_new_tokens", "50"]  # fmt: skip
        with pytest.raises(ValueError, match="status 400"):
            judge.main(arguments)
        assert not (run / "judge.json").exists()
        with open(run / "judge" / "verdicts.jsonl", "ab") as stream:
            stream.write(b'{"torn')
        assert judge.main(arguments) == 0
        asked = len(server.seen)
        assert judge.main(arguments) == 0
        assert len(server.seen) == asked, "nothing is asked twice"
    found = read_sealed(run / "judge.json")
    (pair,) = found["pairs"]
    assert asked == found["verdicts"] + 1 == 2 * (11 - pair["equal"]) + 1
    assert pair["preferred"]["mean"] == (11 - pair["equal"] / 2) / 11
    assert (pair["bias"]["mean"], pair["unread"]) == (0, 0)
    kept = [
        json.loads(line) for line in (run / "judge" / "verdicts.jsonl").read_text().splitlines() if "sha256" in line
    ]
    assert len(kept) == found["verdicts"] and all("<answer_2>" in one["prompt"] for one in kept)
    assert found["dollars"] == pytest.approx(sum(one["prompt_tokens"] for one in kept) / 1e6)
    assert "b preferred to a: " in capsys.readouterr().out


def damage(file: Path, old: bytes, new: bytes) -> None:
    assert old in file.read_bytes()
    file.write_bytes(file.read_bytes().replace(old, new, 1))


def of_another_run(file: Path) -> None:
    facts = read_sealed(file)
    assert facts["file"] == file.stem and len(facts["run"]) == 12
    file.write_bytes(sealed(facts | {"run": "0" * 12}))


DAMAGES = {
    r"scores\.json: another file lies in its place: scores of run 0000": lambda run: of_another_run(
        run / "scores.json"
    ),
    r"scores\.json: its content has changed": lambda run: damage(
        run / "scores.json", b'"questions": 1', b'"questions": 7'
    ),
    r"scores\.json: data = \[\]: expected an object": lambda run: (run / "scores.json").write_text('{"data": []}'),
    r"config\.toml: has changed": lambda run: damage(run / "config.toml", b"max_new_tokens = 1", b"max_new_tokens = 2"),
    r"a\.00000\.jsonl line 1: has": lambda run: damage(run / "answers/a.00000.jsonl", b'"output"', b'"outpux"'),
    r"answers: 1 questions have lost answers": lambda run: damage(
        run / "answers/a.00000.jsonl", (run / "answers/a.00000.jsonl").read_bytes().splitlines(True)[0], b""
    ),
    r"File exists: .*judge": lambda run: (run / "judge").write_text(""),
}


@pytest.mark.parametrize("told", DAMAGES)
def test_a_damaged_evaluation_is_not_judged(finished, tmp_path, told):
    run = shutil.copytree(finished, tmp_path / "run")
    DAMAGES[told](run)
    with pytest.raises((ValueError, OSError), match=told):
        judge.main(["--run", str(run), "--base_url", "http://127.0.0.1:9/v1", "--model", "m"])


def test_two_judges_do_not_meet(finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    with hold(run / "judge"), pytest.raises(ValueError, match=r"judge: in use by .*; wait for it$"):
        judge.main(["--run", str(run), "--base_url", "http://127.0.0.1:9/v1", "--model", "m"])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (["--limit", "-1"], "limit = -1 must be at least 0"),
        (["--price_per_million_out", "-1"], "price_per_million_out = -1.0 must be"),
        (["--prompt", "{prompt}"], r"has no \{first\}"),
        (["--run", "{empty}"], "holds no scores.json"),
    ],
)
def test_mistakes(finished, tmp_path, changes, told):
    (tmp_path / "prompt.txt").write_text("{question} {second}")
    names = {"prompt": tmp_path / "prompt.txt", "empty": tmp_path}
    flags = [flag.format(**names) for flag in changes]
    with pytest.raises(ValueError, match=told):
        judge.main(["--run", str(finished), "--base_url", "http://127.0.0.1:9/v1", "--model", "m", *flags])
