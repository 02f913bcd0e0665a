"""An evaluation from files to scores: it says what transformers and the scores' libraries say, and shows it."""

import json
import math
import os
import shutil

import pytest
import torch

from logtrain.evaluation import grounding
from logtrain.evaluation.scoring import METRICS, corpus_scores, score
from logtrain.evaluation.screen import print_scores
from logtrain.observe import progress
from logtrain.text.chat_template import ChatTemplate, Turn
from logtrain.text.tokenizer import Tokenizer
from tests.support.evaluation import NEW, ROWS, TASKS, evaluated, flags, read
from tests.support.llama import load_transformers
from tests.support.synthetic import edit_json


def test_answers_are_those_of_transformers_and_scores_those_of_the_answers(chat_models, finished):
    scores, samples = read(finished)
    assert len(samples) == len(chat_models) * len(ROWS)
    outputs: dict[str, list[str]] = {name: [] for name in chat_models}
    for name, folder in chat_models.items():
        theirs, tokenizer = load_transformers(folder), Tokenizer.load(folder)
        template = ChatTemplate.load(tokenizer)
        of_model = [sample for sample in samples if sample["model"] == name]
        for row, sample in zip(ROWS, of_model, strict=True):
            question = f"{row['instruction']}\n{row['input']}" if row["input"] else row["instruction"]
            prompt = template.prompt([Turn("user", question)])
            ids = torch.tensor([prompt])
            out = theirs.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False, pad_token_id=0
            )[0, len(prompt) :].tolist()
            stopped = out[-1] == template.end_id
            text = tokenizer.decode(out[:-1] if stopped else out)
            grounded = grounding.scores(text, [Turn("user", question)], row["output"])
            expected = {
                "row": ROWS.index(row), "turn": 1, "task": row["domain"], "reference": row["output"],
                "prompt_tokens": len(prompt), "output": text, "finish_reason": "stop" if stopped else "length",
                "scores": {**score(text, row["output"]), "stopped": float(stopped), **grounded},
            }  # fmt: skip
            assert {key: sample[key] for key in expected} == expected
            outputs[name].append(text)
        pairs = list(zip(outputs[name], (row["output"] for row in ROWS), strict=True))
        assert scores["models"][name]["corpus"] == corpus_scores(pairs)
    assert outputs["a"] != outputs["b"]


def test_means_and_differences_are_those_of_the_samples(finished):
    scores, samples = read(finished)
    for task in (None, *TASKS):
        values = {
            name: [s["scores"] for s in samples if s["model"] == name and task in (None, s["task"])] for name in "ab"
        }
        of = {
            name: model if task is None else {"metrics": model["tasks"][task]}
            for name, model in scores["models"].items()
        }
        (difference,) = scores["differences"]
        differences = difference["metrics"] if task is None else difference["tasks"][task]
        for metric in ("fuzzy", "rougeL", "length_ratio", "stopped"):
            means = {name: math.fsum(s[metric] for s in values[name]) / len(values[name]) for name in "ab"}
            for name in "ab":
                cell = of[name]["metrics"][metric]
                assert cell["mean"] == pytest.approx(means[name], abs=1e-12)
                assert cell["low"] <= cell["mean"] <= cell["high"]
                assert cell["n"] == len(values[name])
            assert differences[metric]["difference"] == pytest.approx(means["b"] - means["a"], abs=1e-12)
        assert "json_valid" not in of["a"]["metrics"], "no reference is JSON"
    assert difference["models"] == ["a", "b"]


def test_a_model_beside_itself_differs_by_nothing(chat_models, question_file, tmp_path):
    assert evaluated(flags({"one": chat_models["a"], "other": chat_models["a"]}, question_file, tmp_path / "run")) == 0
    (difference,) = read(tmp_path / "run")[0]["differences"]
    for cell in difference["metrics"].values():
        end, p = (0, 1) if cell["n"] > 1 else (None, None)  # a single pair has neither interval nor p-value
        assert (cell["difference"], cell["low"], cell["high"], cell["significant"]) == (0, end, end, False)
        assert cell["p"] == p


def test_perplexities_are_those_of_transformers(chat_models, question_file, tmp_path):
    texts, talks = tmp_path / "general.jsonl", tmp_path / "chat.json"
    long = " ".join(f"disk {i} error" for i in range(300))
    written = ["why because é", "Failed user\n\n10.0.0.1", long]
    texts.write_text("\n".join(json.dumps({"text": text}) for text in written))
    talks.write_text(json.dumps([{"messages": [
        {"role": "user", "content": "why"}, {"role": "assistant", "content": "because é"},
        {"role": "user", "content": "disk"}, {"role": "assistant", "content": "error"},
    ]}]))  # fmt: skip
    named = ["--perplexity", f"general={texts}", f"chat={talks}", "--limit", "1"]
    assert evaluated(flags({"a": chat_models["a"]}, question_file, tmp_path / "run", *named)) == 0
    found = read(tmp_path / "run")[0]["models"]["a"]["perplexity"]
    theirs, tokenizer = load_transformers(chat_models["a"]), Tokenizer.load(chat_models["a"])
    end = tokenizer.document_end()
    documents = [[tokenizer.bos_id, *tokenizer.encode(text), end] for text in written]
    assert len(documents[-1]) > 512, "longer than the model's context"
    pieces = [ids[start : start + 513] for ids in documents for start in range(0, len(ids), 512)]  # 512, and the next
    chat_ids, is_target = ChatTemplate.load(tokenizer).encode(
        [Turn("user", "why"), Turn("assistant", "because é"), Turn("user", "disk"), Turn("assistant", "error")]
    )

    def loss(ids: list[int], wanted: list[bool]) -> float:
        with torch.no_grad():
            logits = theirs(torch.tensor([ids])).logits[0, :-1].double()
        losses = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")
        return losses[torch.tensor(wanted[1:], dtype=torch.bool)].sum().item()

    for name, total, tokens, num_bytes in (
        ("general", sum(loss(p, [True] * len(p)) for p in pieces), sum(len(p) - 1 for p in pieces),
         sum(len(text.encode()) for text in written)),
        ("chat", loss(chat_ids, list(is_target)), sum(is_target), len("because éerror".encode())),
    ):  # fmt: skip
        assert found[name]["tokens"] == tokens
        assert found[name]["loss"] == pytest.approx(total / tokens, rel=1e-5)
        assert found[name]["perplexity"] == pytest.approx(math.exp(total / tokens), rel=1e-4)
        assert found[name]["bits_per_byte"] == pytest.approx(total / math.log(2) / num_bytes, rel=1e-5)


def test_every_answer_of_a_conversation_is_asked_for_after_the_turns_before(chat_models, tmp_path):
    question_file = tmp_path / "chat.jsonl"
    talk = [("human", "why"), ("gpt", "because"), ("human", "disk"), ("gpt", "error")]
    question_file.write_text(json.dumps({"conversations": [{"from": who, "value": text} for who, text in talk]}))
    for answers, turns in (("last", [3]), ("all", [1, 3])):
        run = tmp_path / answers
        arguments = flags({"a": chat_models["a"]}, question_file, run, "--format", "sharegpt", "--answers", answers)
        assert evaluated(arguments) == 0
        scores, samples = read(run)
        assert scores["models"]["a"]["metrics"]["fuzzy"]["n"] == 1, "conversation, whatever was asked of it"
        assert [(s["turn"], s["reference"]) for s in samples] == [(i, talk[i][1]) for i in turns]
        template = ChatTemplate.load(Tokenizer.load(chat_models["a"]))
        roles = {"human": "user", "gpt": "assistant"}
        for sample in samples:
            before = [Turn(roles[who], text) for who, text in talk[: sample["turn"]]]
            assert sample["prompt_tokens"] == len(template.prompt(before))


def test_bad_rows_are_named_or_left_out_and_told(chat_models, tmp_path):
    question_file = tmp_path / "test.json"
    question_file.write_text(json.dumps([ROWS[0], {**ROWS[1], "domain": "\ud800x"}, ROWS[2]]))
    arguments = flags({"a": chat_models["a"]}, question_file, tmp_path / "run")
    with pytest.raises(ValueError, match=r"1 bad row .*row 1: \\ud800 without its other half"):
        evaluated(arguments)
    assert evaluated([*arguments, "--max_bad_rows", "1"]) == 0
    scores, samples = read(tmp_path / "run")
    assert scores["data"]["left_out"] == {"bad rows": 1}
    assert [sample["row"] for sample in samples] == [0, 2]
    assert "Left out: 1 bad rows" in (tmp_path / "run" / "compare.html").read_text()


def test_nlplog_rows_ask_their_instruction(chat_models, tmp_path):
    question_file = tmp_path / "nlplog.json"
    question_file.write_text(
        json.dumps([{"instruction": "why disk", "log": "disk", "output": "because", "domain": "Linux"}])
    )
    assert evaluated(flags({"a": chat_models["a"]}, question_file, tmp_path / "run", "--format", "nlplog")) == 0
    (sample,) = read(tmp_path / "run")[1]
    template = ChatTemplate.load(Tokenizer.load(chat_models["a"]))
    assert (sample["task"], sample["prompt_tokens"]) == ("Linux", len(template.prompt([Turn("user", "why disk")])))


def test_what_is_too_long_for_one_model_is_left_out_for_all_and_told(chat_models, tmp_path, capsys):
    question_file, small = tmp_path / "test.json", tmp_path / "small"
    shutil.copytree(chat_models["b"], small)
    edit_json(small / "config.json", max_position_embeddings=60)
    question_file.write_text(json.dumps([ROWS[0], {**ROWS[1], "input": "disk error " * 40}, ROWS[2]]))
    arguments = flags({"a": chat_models["a"], "small": small}, question_file, tmp_path / "run")
    with pytest.raises(
        ValueError, match=r"test.json row 1: a prompt of 1\d\d tokens and an answer of up to 12, but small knows 60"
    ):
        evaluated(arguments)
    assert not (tmp_path / "run").exists()
    assert evaluated([*arguments, "--too_long", "skip"]) == 0
    scores, samples = read(tmp_path / "run")
    assert [s["row"] for s in samples] == [0, 2, 0, 2]
    (told,) = scores["data"]["too_long"]
    assert "row 1" in told
    assert "Left out: 1 too long" in (tmp_path / "run" / "compare.html").read_text()


# What is shown


def test_the_page_is_one_file_with_every_figure_and_no_markup_of_a_models(
    chat_models, question_file, tmp_path, monkeypatch
):
    evil = "<script>alert(1)</script>"
    rows = [{**ROWS[0], "output": f"because {evil}", "domain": evil}, *ROWS[1:]]
    (tmp_path / "test.json").write_text(json.dumps(rows))
    run = tmp_path / "run"
    assert evaluated(flags(chat_models, tmp_path / "test.json", run)) == 0
    page = (run / "compare.html").read_text()
    assert evil not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 1
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert 'src="data:image/svg+xml;base64,' in page
    scores, _ = read(run)
    for model in scores["models"].values():
        for metric in METRICS:
            if metric in model["metrics"]:
                assert f"{model['metrics'][metric]['mean']:.4f}" in page
    for cell in scores["differences"][0]["metrics"].values():
        assert f"{cell['difference']:+.4f}" in page
    assert (run / "compare.png").read_bytes().startswith(b"\x89PNG")


def test_lines_for_programs_and_tables_for_people(finished, capsys, monkeypatch):
    scores, _ = read(finished)
    print_scores(scores)
    lines = capsys.readouterr().out.splitlines()
    cell = scores["differences"][0]["metrics"]["fuzzy"]
    expected = f"difference of=b less=a metric=fuzzy difference={cell['difference']:.6g} low={cell['low']:.6g}"
    assert any(line.startswith(expected) for line in lines)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "200")
    print_scores(scores)
    shown = capsys.readouterr().out
    for model in scores["models"].values():
        for metric in model["metrics"].values():
            assert f"{metric['mean']:.4f}" in shown
    assert "b - a" in shown


def test_how_far_it_is_is_told_in_lines(chat_models, question_file, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    assert evaluated(flags({"a": chat_models["a"]}, question_file, tmp_path / "run", "--limit", "3")) == 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    for number, line in enumerate(lines, start=1):
        figures = dict(pair.split("=") for pair in line.removeprefix("evaluate ").split())
        assert float(figures.pop("tokens_per_second")) > 0 and float(figures.pop("eta_seconds")) >= 0
        assert figures == {"model": "a", "answers": str(number), "of": "3", "ranks": "1"}


# Real input


def test_smollm2_answers_real_questions(smollm2, shared, tmp_path):
    question_file = shared / "data" / "loglm" / "log_interpretation_test.json"
    run = tmp_path / "run"
    arguments = flags({"smollm2": smollm2}, question_file, run)
    torch.set_num_threads(2)
    try:
        assert evaluated([*arguments, "--limit", "8", "--max_new_tokens", "60"]) == 0
    finally:
        torch.set_num_threads(1)
    scores, samples = read(run)
    assert len(samples) == 8
    assert 0.2 < scores["models"]["smollm2"]["metrics"]["fuzzy"]["mean"] < 0.6
    assert os.path.getsize(run / "compare.html") > 20_000
