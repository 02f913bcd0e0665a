"""An evaluation by a server says what one on this machine says; what a server does wrong is one line."""

import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from logtrain.generation.generator import Generator
from logtrain.generation.load import ModelFolder
from logtrain.generation.request import Request
from logtrain.text.chat_template import ChatTemplate, Turn
from tests.support.chats import TRIMMING
from tests.support.evaluation import NEW, ROWS, evaluated, flags, num_answers, read
from tests.support.program import Program
from tests.support.synthetic import edit_json

CPU = torch.device("cpu")


class FakeServer(ThreadingHTTPServer):
    """An OpenAI-compatible server whose answers are the model's own; `fails`: statuses to give first."""

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), Handler)
        self.loaded, self.lock = ModelFolder(folder).load(CPU), threading.Lock()
        self.template = ChatTemplate.load(self.loaded.folder.tokenizer)
        self.fails: list[int] = []
        self.text_of, self.stop = self.loaded.folder.tokenizer.decode, {}
        self.seen: list[tuple[str, dict, dict]] = []
        self.busy = self.most = 0
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_) -> None:
        pass

    def do_POST(self) -> None:
        server: FakeServer = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/detokenize":
            self.send(200, {"prompt": server.text_of(body["tokens"])})
            return
        with server.lock:
            server.seen.append((self.path, body, dict(self.headers)))
            server.busy += 1
            server.most = max(server.most, server.busy)
            status = server.fails.pop(0) if server.fails else 200
        reply = {"error": {"message": "no such model"}} if status != 200 else self.reply(server, body)
        with server.lock:
            server.busy -= 1
        self.send(status, reply)

    def do_GET(self) -> None:
        self.send(200, {"data": [{"id": "a", "root": "/models/a", "max_model_len": 512, "created": 7}]})

    def send(self, status: int, reply: dict | bytes) -> None:
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
        counts_stop = bool(server.stop) and answer.finish_reason == "stop"
        usage = {"completion_tokens": len(answer.ids) + counts_stop, "prompt_tokens": len(prompt)}
        return {"choices": [{**text, "finish_reason": answer.finish_reason, **server.stop}], "usage": usage}


@pytest.fixture
def server(chat_models) -> Iterator[FakeServer]:
    fake = FakeServer(chat_models["a"])
    thread = threading.Thread(target=fake.serve_forever, daemon=True)
    thread.start()
    yield fake
    fake.shutdown()
    fake.server_close()


@pytest.mark.parametrize("prompts", ["ids", "messages"])
def test_a_server_with_the_same_model_gets_the_same_scores(
    chat_models, question_file, finished, server, tmp_path, monkeypatch, prompts
):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    server.fails = [503, 429, 500]
    remote = ["--backend", "openai", "--base_url", server.url, "--prompts", prompts, "--concurrency", "3"]
    only = shutil.ignore_patterns("*.safetensors", "config.json")  # a tokenizer is all that is needed here
    folder = shutil.copytree(chat_models["a"], tmp_path / "tokenizer", ignore=only)
    assert evaluated(flags({"a": folder}, question_file, tmp_path / "run", *remote)) == 0
    (scores, samples), (expected, expected_samples) = read(tmp_path / "run"), read(finished)
    del expected["models"]["a"]["path"], scores["models"]["a"]["path"]
    assert expected["models"]["a"].pop("answered_by")["dtype"] == "float32"
    by = scores["models"]["a"].pop("answered_by")
    assert by["server_model"] == {"id": "a", "root": "/models/a", "max_model_len": 512}
    assert (by["backend"], by["base_url"], by["prompts"], by["dtype"]) == ("openai", server.url, prompts, None)
    assert by["sampling"]["max_new_tokens"] == NEW
    assert f"Answered by the server {server.url} (id a root /models/a" in (tmp_path / "run/compare.html").read_text()
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


def test_a_server_that_counts_the_end_of_an_answer_gets_the_same_counts(
    chat_models, question_file, finished, server, tmp_path
):
    server.stop = {"stop_reason": None}  # as vLLM
    remote = ["--backend", "openai", "--base_url", server.url]
    assert evaluated(flags({"a": chat_models["a"]}, question_file, tmp_path / "run", *remote)) == 0
    counts = [
        [one["output_tokens"] for one in read(run)[1] if one["model"] == "a"] for run in (tmp_path / "run", finished)
    ]
    assert counts[0] == counts[1]


def test_a_server_with_another_template_is_refused(chat_models, question_file, server, tmp_path):
    server.template = ChatTemplate(server.loaded.folder.tokenizer, TRIMMING.replace("header|>", "header|>!"))
    remote = ["--backend", "openai", "--base_url", server.url, "--prompts", "messages", "--resume", "auto"]
    arguments = flags({"a": chat_models["a"]}, question_file, tmp_path / "run", *remote)
    with pytest.raises(
        ValueError, match=r"makes \d+ tokens of a prompt that has \d+ by the folder of a: it has another"
    ):
        evaluated(arguments)
    assert num_answers(tmp_path / "run") == 0
    assert evaluated([*arguments, "--no_check_server"]) == 0  # check_server = false


def test_a_server_with_another_tokenizer_is_refused(chat_models, question_file, server, tmp_path, capfd):
    server.text_of = lambda ids: " ".join(map(str, ids))
    remote = ["--backend", "openai", "--base_url", server.url]
    arguments = flags({"a": chat_models["a"]}, question_file, tmp_path / "run", *remote)
    with pytest.raises(
        ValueError, match=r"the ids of 'sshd\[24499\]: .*' are '\d+ .*' to the server: it has another tok"
    ):
        evaluated([*arguments, "--run", str(tmp_path / "other")])
    assert not server.seen
    server.text_of = lambda ids: None  # a server that does not say
    assert evaluated(arguments) == 0
    assert "does not say which text ids are, so that its tokenizer could not be checked" in capfd.readouterr().err


def test_sampling_is_asked_of_a_server_each_question_with_its_own_seed(chat_models, question_file, server, tmp_path):
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
    assert evaluated(flags({"a": chat_models["a"]}, question_file, tmp_path / "run", *remote, *drawn)) == 0
    bodies = [body for _, body, _ in server.seen]
    assert {body["seed"] for body in bodies} == {1309 + i for i in range(len(ROWS))}
    for body in bodies:
        assert [body[key] for key in ("temperature", "top_k", "repetition_penalty", "stop")] == [0.7, 5, 1.1, ["x"]]


def test_a_server_is_told_every_token_that_ends_an_answer(chat_models, question_file, server, tmp_path):
    folder = shutil.copytree(chat_models["a"], tmp_path / "a")
    edit_json(folder / "generation_config.json", eos_token_id=[7, 5])
    remote = ["--backend", "openai", "--base_url", server.url, "--limit", "1"]
    assert evaluated(flags({"a": folder}, question_file, tmp_path / "run", *remote)) == 0
    ((_, body, _),) = server.seen
    assert body["stop_token_ids"] == sorted([5, 7, server.template.end_id])


def test_an_error_ends_it_at_once_and_what_was_answered_is_not_asked_again(
    chat_models, question_file, server, tmp_path, monkeypatch
):
    hangs, over, reply = iter([True]), threading.Event(), Handler.reply

    def reply_or_hang(*asked) -> dict:
        if next(hangs, False):
            over.wait(60)
        return reply(*asked)

    monkeypatch.setattr(Handler, "reply", reply_or_hang)
    server.fails = [200] * 5 + [404]
    run = tmp_path / "run"
    remote = ["--backend", "openai", "--base_url", server.url, "--concurrency", "2", "--resume", "auto"]
    arguments = flags({"a": chat_models["a"]}, question_file, run, *remote)
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


def test_what_a_server_does_wrong_is_told(chat_models, question_file, server, tmp_path, monkeypatch):
    arguments = flags(
        {"a": chat_models["a"]},
        question_file,
        tmp_path / "run",
        "--resume",
        "auto",
        "--backend",
        "openai",
        "--base_url",
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
