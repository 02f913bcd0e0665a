"""An evaluation from files to scores: it says what transformers and the scores' libraries say; ranks, kills and servers
change nothing; what is wrong is one line.
"""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from logtrain import evaluate
from logtrain.core import entry
from logtrain.evaluation.scoring import METRICS, corpus_scores, score
from logtrain.generation.generator import Generator
from logtrain.generation.load import ModelFolder
from logtrain.generation.request import Request
from logtrain.text.chat_template import ChatTemplate, Turn
from logtrain.text.tokenizer import Tokenizer
from tests.support import chats
from tests.support.llama import load_transformers
from tests.support.program import Program
from tests.support.ranks import Ranks
from tests.support.synthetic import edit_json, write_model

CPU = torch.device("cpu")
NEW = 12
TASKS = ("cause", "meaning")
ROWS = [
    {
        "instruction": f"why error {i}",
        "input": "disk 10.0.0.1" * (i % 3),
        "output": f"because disk {i}",
        "domain": TASKS[i % 2],
    }
    for i in range(11)
]


def write_chat_model(folder: Path, seed_of: float) -> Path:
    """A random model with the small chat tokenizer; `seed_of`: size of its weights, so that models differ."""
    end = Tokenizer.load(chats.write_tokenizer(folder)).token_id("<|eot|>")
    write_model(folder, vocab_size=420, initializer_range=seed_of, tie_word_embeddings=True, eos_token_id=end)
    return chats.write_tokenizer(folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    return {name: write_chat_model(tmp_path_factory.mktemp(name), size) for name, size in (("a", 0.3), ("b", 0.5))}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "test.json"
    path.write_text(json.dumps(ROWS))
    return path


def flags(models: dict[str, Path], data: Path, run: Path, *more: str) -> list[str]:
    named = [f"{name}={path}" for name, path in models.items()]
    fixed = ["--data", str(data), "--format", "alpaca", "--run", str(run), "--max_new_tokens", str(NEW)]
    return ["--models", *named, *fixed, *more]


def evaluated(arguments: list[str]) -> int:
    """What an error leaves to the end of the process, its process group, ends here."""
    try:
        return evaluate.main(arguments)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def read(run: Path) -> tuple[dict, list[dict]]:
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    return json.loads((run / "scores.json").read_text()), samples


@pytest.fixture(scope="module")
def whole(models, data, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("whole") / "run"
    assert evaluated(flags(models, data, run)) == 0
    return run


# What it says


def test_answers_are_those_of_transformers_and_scores_those_of_the_answers(models, whole):
    scores, samples = read(whole)
    assert len(samples) == len(models) * len(ROWS)
    outputs: dict[str, list[str]] = {name: [] for name in models}
    for name, folder in models.items():
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
            expected = {
                "row": ROWS.index(row), "turn": 1, "task": row["domain"], "reference": row["output"],
                "prompt_tokens": len(prompt), "output": text, "finish_reason": "stop" if stopped else "length",
                "scores": {**score(text, row["output"]), "stopped": float(stopped)},
            }  # fmt: skip
            assert {key: sample[key] for key in expected} == expected
            outputs[name].append(text)
        pairs = list(zip(outputs[name], (row["output"] for row in ROWS), strict=True))
        assert scores["models"][name]["corpus"] == corpus_scores(pairs)
    assert outputs["a"] != outputs["b"]


def test_means_and_differences_are_those_of_the_samples(whole):
    scores, samples = read(whole)
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


def test_a_model_beside_itself_differs_by_nothing(models, data, tmp_path):
    assert evaluated(flags({"one": models["a"], "other": models["a"]}, data, tmp_path / "run")) == 0
    (difference,) = read(tmp_path / "run")[0]["differences"]
    for cell in difference["metrics"].values():
        assert (cell["difference"], cell["low"], cell["high"], cell["significant"]) == (0, 0, 0, False)
        assert cell["p"] == 1


def test_perplexities_are_those_of_transformers(models, data, tmp_path):
    texts, talks = tmp_path / "general.jsonl", tmp_path / "chat.json"
    long = " ".join(f"disk {i} error" for i in range(300))
    written = ["why because é", "Failed user\n\n10.0.0.1", long]
    texts.write_text("\n".join(json.dumps({"text": text}) for text in written))
    talks.write_text(json.dumps([{"messages": [
        {"role": "user", "content": "why"}, {"role": "assistant", "content": "because é"},
        {"role": "user", "content": "disk"}, {"role": "assistant", "content": "error"},
    ]}]))  # fmt: skip
    named = ["--perplexity", f"general={texts}", f"chat={talks}", "--limit", "1"]
    assert evaluated(flags({"a": models["a"]}, data, tmp_path / "run", *named)) == 0
    found = read(tmp_path / "run")[0]["models"]["a"]["perplexity"]
    theirs, tokenizer = load_transformers(models["a"]), Tokenizer.load(models["a"])
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


def test_every_answer_of_a_conversation_is_asked_for_after_the_turns_before(models, tmp_path):
    data = tmp_path / "chat.jsonl"
    talk = [("human", "why"), ("gpt", "because"), ("human", "disk"), ("gpt", "error")]
    data.write_text(json.dumps({"conversations": [{"from": who, "value": text} for who, text in talk]}))
    for answers, turns in (("last", [3]), ("all", [1, 3])):
        run = tmp_path / answers
        arguments = flags({"a": models["a"]}, data, run, "--format", "sharegpt", "--answers", answers)
        assert evaluated(arguments) == 0
        scores, samples = read(run)
        assert scores["models"]["a"]["metrics"]["fuzzy"]["n"] == 1, "conversation, whatever was asked of it"
        assert [(s["turn"], s["reference"]) for s in samples] == [(i, talk[i][1]) for i in turns]
        template = ChatTemplate.load(Tokenizer.load(models["a"]))
        roles = {"human": "user", "gpt": "assistant"}
        for sample in samples:
            before = [Turn(roles[who], text) for who, text in talk[: sample["turn"]]]
            assert sample["prompt_tokens"] == len(template.prompt(before))


def test_bad_rows_are_named_or_left_out_and_told(models, tmp_path):
    data = tmp_path / "test.json"
    data.write_text(json.dumps([ROWS[0], {**ROWS[1], "domain": "\ud800x"}, ROWS[2]]))
    arguments = flags({"a": models["a"]}, data, tmp_path / "run")
    with pytest.raises(ValueError, match=r"1 bad row .*row 1: \\ud800 without its other half"):
        evaluated(arguments)
    assert evaluated([*arguments, "--max_bad_rows", "1"]) == 0
    scores, samples = read(tmp_path / "run")
    assert scores["data"]["left_out"] == {"bad rows": 1}
    assert [sample["row"] for sample in samples] == [0, 2]
    assert "Left out: 1 bad rows" in (tmp_path / "run" / "compare.html").read_text()


def test_nlplog_rows_ask_their_instruction(models, tmp_path):
    data = tmp_path / "nlplog.json"
    data.write_text(json.dumps([{"instruction": "why disk", "log": "disk", "output": "because", "domain": "Linux"}]))
    assert evaluated(flags({"a": models["a"]}, data, tmp_path / "run", "--format", "nlplog")) == 0
    (sample,) = read(tmp_path / "run")[1]
    template = ChatTemplate.load(Tokenizer.load(models["a"]))
    assert (sample["task"], sample["prompt_tokens"]) == ("Linux", len(template.prompt([Turn("user", "why disk")])))


def test_what_is_too_long_for_one_model_is_left_out_for_all_and_told(models, tmp_path, capsys):
    data, small = tmp_path / "test.json", tmp_path / "small"
    shutil.copytree(models["b"], small)
    edit_json(small / "config.json", max_position_embeddings=60)
    data.write_text(json.dumps([ROWS[0], {**ROWS[1], "input": "disk error " * 40}, ROWS[2]]))
    arguments = flags({"a": models["a"], "small": small}, data, tmp_path / "run")
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


# Whatever happens on the way


def evaluate_on_a_rank(arguments: list[str]) -> int:
    return evaluate.main(arguments)


def test_ranks_change_nothing(models, data, whole, ranks: Ranks, tmp_path):
    assert ranks.run(2, evaluate_on_a_rank, flags(models, data, tmp_path / "run")) == [0, 0]
    for name in ("scores.json", "samples.jsonl"):
        assert (tmp_path / "run" / name).read_bytes() == (whole / name).read_bytes()
    assert len(list((tmp_path / "run" / "answers").glob("a.?????.jsonl"))) == 2


def num_answers(run: Path) -> int:
    return sum(file.read_bytes().count(b"\n") for file in (run / "answers").glob("*.jsonl"))


@pytest.mark.parametrize("moment", [1, len(ROWS) + 3])
def test_killed_at_any_moment_it_resumes_to_the_same_scores(models, data, whole, tmp_path, moment):
    run = tmp_path / "run"
    arguments = [*flags(models, data, run), "--resume", "auto"]
    program = Program(arguments, tmp_path / "output", entry="logtrain.evaluate")
    program.until(lambda: num_answers(run) >= moment)
    program.send(signal.SIGKILL)
    assert program.wait() == [-signal.SIGKILL]
    assert not (run / "scores.json").exists()
    (file,) = (run / "answers").glob("a.*.jsonl")
    with open(file, "ab") as stream:
        stream.write(b'{"number": 3, "outp')  # the kill came in the middle of a line
    before = num_answers(run)
    assert evaluated(arguments) == 0
    for name in ("scores.json", "samples.jsonl"):
        assert (run / name).read_bytes() == (whole / name).read_bytes()
    assert num_answers(run) <= len(models) * len(ROWS) + 2, "nothing is asked twice"
    assert before >= moment


def test_a_finished_evaluation_is_not_asked_again_and_no_other_is_mixed_in(models, data, whole, tmp_path, monkeypatch):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    with pytest.raises(ValueError, match="holds a run already; --resume auto goes on with it, another --run starts"):
        evaluated(flags(models, data, run))
    with pytest.raises(ValueError, match=r"was started with max_new_tokens = 12, now it is 13"):
        evaluated(flags(models, data, run, "--resume", "auto", "--max_new_tokens", "13"))
    other = tmp_path / "test.json"
    other.write_text(json.dumps([ROWS[0], {**ROWS[1], "input": "else"}, *ROWS[2:]]))
    with pytest.raises(ValueError, match="a's answers are to another row 1 than the data has now; restore"):
        evaluated(flags(models, other, run, "--resume", "auto"))
    retrained = {"a": models["a"], "b": tmp_path / "retrained"}
    shutil.copytree(models["b"], retrained["b"])
    file = retrained["b"] / "model.safetensors"
    weights = bytearray(file.read_bytes())
    weights[-1] ^= 1
    file.write_bytes(weights)
    with pytest.raises(ValueError, match="b's answers are of another model, tokenizer or template than are"):
        evaluated(flags(retrained, data, run, "--resume", "auto"))
    monkeypatch.setattr(ModelFolder, "load", None)  # nobody is asked
    assert evaluated(flags(models, data, run, "--resume", "auto")) == 0
    assert (run / "scores.json").read_bytes() == (whole / "scores.json").read_bytes()


def test_another_run_goes_on_with_what_the_answers_do_not_depend_on(models, data, whole, tmp_path, monkeypatch):
    """Moved, with fewer questions, another reference, and the same model by another name of its folder."""
    run, moved = tmp_path / "moved", tmp_path / "other.json"
    shutil.copytree(whole, run)
    moved.write_text(json.dumps([{**ROWS[0], "output": "else"}, *ROWS[1:]]))
    same = {name: Path(f"{folder}/.") for name, folder in reversed(models.items())}
    with monkeypatch.context() as patch:
        patch.setattr(ModelFolder, "load", None)  # nobody is asked
        assert evaluated([*flags(same, moved, run), "--resume", "auto", "--limit", "3"]) == 0
    samples = {(s["model"], s["row"]): s for s in read(run)[1]}
    before = {(s["model"], s["row"]): s for s in read(whole)[1]}
    assert set(samples) == {(name, row) for name in models for row in range(3)}
    for key, sample in samples.items():
        assert sample["output"] == before[key]["output"]
        assert (sample["scores"] == before[key]["scores"]) == (key[1] > 0)


def test_a_template_that_was_mended_is_not_mixed_with_the_old(models, data, tmp_path):
    """Its prompts may be the same, and the end of an answer another."""
    template, source = tmp_path / "mine.jinja", chats.TRIMMING
    template.write_text(source)
    arguments = flags({"a": models["a"]}, data, tmp_path / "run", "--template", str(template), "--limit", "1")
    assert evaluated(arguments) == 0
    template.write_text(source + "{# mended #}")
    with pytest.raises(ValueError, match="a's answers are of another model, tokenizer or template"):
        evaluated([*arguments, "--resume", "auto"])


def test_what_is_wrong_with_the_last_model_is_met_before_the_first_answers(models, data, tmp_path):
    """And once it is mended, nothing is in the way."""
    broken = {"a": models["a"], "b": tmp_path / "broken"}
    shutil.copytree(models["b"], broken["b"])
    (broken["b"] / "model.safetensors").rename(tmp_path / "weights")
    with pytest.raises(ValueError, match="broken"):
        evaluated(flags(broken, data, tmp_path / "run"))
    (tmp_path / "weights").rename(broken["b"] / "model.safetensors")
    assert evaluated(flags(broken, data, tmp_path / "run", "--limit", "1")) == 0


def test_a_full_disk_is_one_line_and_the_answers_go_on(models, data, whole, tmp_path):
    limited = (
        "import resource, sys; from logtrain import evaluate; from logtrain.core.entry import run; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (700, 700)); run(evaluate.main)"  # stands in for a full disk
    )
    arguments = flags(models, data, tmp_path / "run", "--resume", "auto")
    result = subprocess.run([sys.executable, "-c", limited, *arguments], capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1] == (
        f"error: {tmp_path / 'run'}: File too large; --resume auto goes on with the answers that are there"
    )
    assert evaluated(arguments) == 0
    assert (tmp_path / "run" / "samples.jsonl").read_bytes() == (whole / "samples.jsonl").read_bytes()


# A server


class FakeServer(ThreadingHTTPServer):
    """An OpenAI-compatible server whose answers are the model's own; `fails`: statuses to give first."""

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), Handler)
        self.loaded, self.lock = ModelFolder(folder).load(CPU), threading.Lock()
        self.template = ChatTemplate.load(self.loaded.folder.tokenizer)
        self.fails: list[int] = []
        self.seen: list[tuple[str, dict, dict]] = []
        self.busy = self.most = 0
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_) -> None:
        pass

    def do_POST(self) -> None:
        server: FakeServer = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.seen.append((self.path, body, dict(self.headers)))
            server.busy += 1
            server.most = max(server.most, server.busy)
            status = server.fails.pop(0) if server.fails else 200
        reply = {"error": {"message": "no such model"}} if status != 200 else self.reply(server, body)
        with server.lock:
            server.busy -= 1
        content = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def reply(self, server: FakeServer, body: dict) -> dict:
        if chat := "messages" in body:
            prompt = server.template.prompt([Turn(m["role"], m["content"]) for m in body["messages"]])
        else:
            prompt = body["prompt"]
        with server.lock:
            stop_ids = body.get("stop_token_ids", [server.template.end_id])  # no other ends are its own
            generator = Generator(server.loaded.model, server.loaded.folder.tokenizer, stop_ids)
            ((_, answer),) = generator.run([Request(prompt=prompt, max_new_tokens=body["max_tokens"])])
        text = {"message": {"role": "assistant", "content": answer.text}} if chat else {"text": answer.text}
        usage = {"completion_tokens": len(answer.ids)}
        return {"choices": [{**text, "finish_reason": answer.finish_reason}], "usage": usage}


@pytest.fixture
def server(models) -> Iterator[FakeServer]:
    fake = FakeServer(models["a"])
    thread = threading.Thread(target=fake.serve_forever, daemon=True)
    thread.start()
    yield fake
    fake.shutdown()
    fake.server_close()


@pytest.mark.parametrize("prompts", ["ids", "messages"])
def test_a_server_with_the_same_model_gets_the_same_scores(models, data, whole, server, tmp_path, monkeypatch, prompts):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    server.fails = [503, 429, 500]
    remote = ["--backend", "openai", "--base_url", server.url, "--prompts", prompts, "--concurrency", "3"]
    only = shutil.ignore_patterns("*.safetensors", "config.json")  # a tokenizer is all that is needed here
    folder = shutil.copytree(models["a"], tmp_path / "tokenizer", ignore=only)
    assert evaluated(flags({"a": folder}, data, tmp_path / "run", *remote)) == 0
    (scores, samples), (expected, expected_samples) = read(tmp_path / "run"), read(whole)
    del expected["models"]["a"]["path"], scores["models"]["a"]["path"]
    assert scores["models"]["a"] == expected["models"]["a"]
    wanted = [sample for sample in expected_samples if sample["model"] == "a"]
    for sample in (*samples, *wanted):
        del sample["model_sha256"]  # here it covers the weights
    assert samples == wanted
    assert len(server.seen) == len(ROWS) + 3
    assert 1 < server.most <= 3
    for path, body, headers in server.seen:
        assert path == ("/v1/completions" if prompts == "ids" else "/v1/chat/completions")
        assert (body["model"], body["max_tokens"], body["temperature"]) == ("a", NEW, 0.0)
        assert headers["Authorization"] == "Bearer secret"
        if prompts == "messages":  # a strict server refuses fields that are not OpenAI's
            assert body.keys() == {"model", "messages", "max_tokens", "temperature", "top_p", "seed"}
    assert "secret" not in "".join(
        file.read_text() for file in (tmp_path / "run").rglob("*.*") if file.suffix != ".png"
    )


def test_sampling_is_asked_of_a_server_each_question_with_its_own_seed(models, data, server, tmp_path):
    drawn = [
        "--sampling.temperature",
        "0.7",
        "--sampling.top_k",
        "5",
        "--sampling.repetition_penalty",
        "1.1",
        "--stop",
        "x",
    ]
    remote = ["--backend", "openai", "--base_url", server.url]
    assert evaluated(flags({"a": models["a"]}, data, tmp_path / "run", *remote, *drawn)) == 0
    bodies = [body for _, body, _ in server.seen]
    assert {body["seed"] for body in bodies} == {1309 + i for i in range(len(ROWS))}
    for body in bodies:
        assert [body[key] for key in ("temperature", "top_k", "repetition_penalty", "stop")] == [0.7, 5, 1.1, ["x"]]


def test_a_server_is_told_every_token_that_ends_an_answer(models, data, server, tmp_path):
    folder = shutil.copytree(models["a"], tmp_path / "a")
    edit_json(folder / "generation_config.json", eos_token_id=[7, 5])
    remote = ["--backend", "openai", "--base_url", server.url, "--limit", "1"]
    assert evaluated(flags({"a": folder}, data, tmp_path / "run", *remote)) == 0
    ((_, body, _),) = server.seen
    assert body["stop_token_ids"] == sorted([5, 7, server.template.end_id])


def test_an_error_ends_it_at_once_and_what_was_answered_is_not_asked_again(models, data, server, tmp_path, monkeypatch):
    hangs, over, reply = iter([True]), threading.Event(), Handler.reply

    def reply_or_hang(*asked) -> dict:
        if next(hangs, False):
            over.wait(60)
        return reply(*asked)

    monkeypatch.setattr(Handler, "reply", reply_or_hang)
    server.fails = [200] * 5 + [404]
    run = tmp_path / "run"
    remote = ["--backend", "openai", "--base_url", server.url, "--concurrency", "2", "--resume", "auto"]
    arguments = flags({"a": models["a"]}, data, run, *remote)
    program = Program(arguments, tmp_path / "out", entry="logtrain.evaluate")
    try:
        assert program.wait(30) == [2]
    finally:
        over.set()
    assert "status 404" in (tmp_path / "out").read_text()
    assert num_answers(run) == 4
    assert evaluated(arguments) == 0
    assert len(server.seen) == len(ROWS) + 2  # the one that hung, the one refused
    assert len(read(run)[1]) == len(ROWS)


def test_what_a_server_does_wrong_is_told(models, data, server, tmp_path, monkeypatch):
    arguments = flags(
        {"a": models["a"]}, data, tmp_path / "run", "--resume", "auto", "--backend", "openai", "--base_url"
    )
    server.fails = [404] * 50
    with pytest.raises(ValueError, match=rf"{server.url}/completions: status 404: .*no such model"):
        evaluated([*arguments, server.url])
    server.fails = []
    monkeypatch.setattr(Handler, "reply", lambda *_: b"<html>")
    with pytest.raises(ValueError, match="not the reply of an OpenAI-compatible server: <html>"):
        evaluated([*arguments, server.url])
    with pytest.raises(ValueError, match=r"127.0.0.1:9/v1: no answer \(.*refused\); is the server running"):
        evaluated(
            ["--run", str(tmp_path / "other"), *arguments, "http://127.0.0.1:9/v1", "--run", str(tmp_path / "other")]
        )


# What is shown


def test_the_page_is_one_file_with_every_figure_and_no_markup_of_a_models(models, data, tmp_path, monkeypatch):
    evil = "<script>alert(1)</script>"
    rows = [{**ROWS[0], "output": f"because {evil}", "domain": evil}, *ROWS[1:]]
    (tmp_path / "test.json").write_text(json.dumps(rows))
    run = tmp_path / "run"
    assert evaluated(flags(models, tmp_path / "test.json", run)) == 0
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


def test_lines_for_programs_and_tables_for_people(whole, capsys, monkeypatch):
    from logtrain.evaluation.progress import print_scores

    scores, _ = read(whole)
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
    assert "b less a" in shown


# What is wrong


def data_of(content: str, name: str) -> Callable[[Path], list[str]]:
    """Flags that name a file with that content."""

    def write(at: Path) -> list[str]:
        (at / name).write_text(content)
        return ["--data", f"{at}/{name}"]

    return write


def without_tokenizer(at: Path) -> list[str]:
    (at / "a" / "tokenizer.json").unlink()
    return []


def without_template(at: Path) -> list[str]:
    edit_json(at / "a" / "tokenizer_config.json", chat_template=None)
    return []


def fixed(*flags: str) -> Callable[[Path], list[str]]:
    return lambda _: list(flags)


EMPTY_REFERENCE = json.dumps([{**ROWS[0], "output": " "}])
SERVER = ("--backend", "openai")
WRONG: dict[str, tuple[Callable[[Path], list[str]], str]] = {
    "a model without a name": (fixed("--models", "/x"), "models: '/x': expected NAME=PATH"),
    "a name twice": (fixed("--models", "a=/x", "a=/x"), "each name once"),
    "a column that is not there": (fixed("--task_column", "kind"), "task_column = kind: no question has such a column"),
    "endless memory": (fixed("--memory", "inf"), "memory = inf must be a finite number >= 0"),
    "a name of two words": (fixed("--models", "a b=/x"), "expected NAME=PATH"),
    "no such model": (fixed("--models", "a=/nowhere"), "/nowhere/config.json: no such file"),
    "no tokenizer": (without_tokenizer, "no tokenizer.json or tokenizer.model"),
    "no chat template": (without_template, "the tokenizer has no chat template"),
    "no data": (fixed("--data", "/nowhere.json"), "/nowhere.json: no such file"),
    "an empty file": (data_of("", "e.json"), "e.json: holds no row"),
    "an empty reference": (data_of(EMPTY_REFERENCE, "r.json"), 'r.json row 0: "output" is empty'),
    "other columns": (fixed("--format", "sharegpt"), 'no "conversations" among its columns'),
    "a text file": (data_of("x", "t.log"), "a text file has no alpaca rows"),
    "too little memory": (fixed("--memory", "0.00001"), "test.json row "),
    "a server without an address": (fixed(*SERVER), "backend = openai and base_url go together"),
    "an address of nothing": (fixed(*SERVER, "--base_url", "localhost"), "expected http://... or https://..."),
    "perplexity on a server": (
        fixed(*SERVER, "--base_url", "http://x/v1", "--perplexity", "x=/x.json"),
        "perplexity: only with backend = local",
    ),
    "a perplexity of nothing": (fixed("--perplexity", "x=/nowhere.json"), "/nowhere.json: no such file"),
    "an unknown flag": (fixed("--modles", "x"), "did you mean --models?"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_is_one_line(models, data, tmp_path, monkeypatch, capsys, wrong):
    shutil.copytree(models["a"], tmp_path / "a")
    change, message = WRONG[wrong]
    run = tmp_path / "run"
    monkeypatch.setattr("sys.argv", ["evaluate", *flags({"a": tmp_path / "a"}, data, run), *change(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        entry.run(evaluated)
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert error.count("\n") == 1
    assert message in error
    assert not (run / "scores.json").exists()


# Real input


def test_smollm2_answers_real_questions(smollm2, shared, tmp_path):
    data = shared / "data" / "loglm" / "log_interpretation_test.json"
    run = tmp_path / "run"
    arguments = ["--models", f"smollm2={smollm2}", "--data", str(data), "--format", "alpaca", "--run", str(run)]
    torch.set_num_threads(2)
    try:
        assert evaluated([*arguments, "--limit", "8", "--max_new_tokens", "60"]) == 0
    finally:
        torch.set_num_threads(1)
    scores, samples = read(run)
    assert len(samples) == 8
    assert 0.2 < scores["models"]["smollm2"]["metrics"]["fuzzy"]["mean"] < 0.6
    assert os.path.getsize(run / "compare.html") > 20_000
