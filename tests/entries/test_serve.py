"""logtrain serve: its flags, its mistakes, workers on several devices; tests/serving/ has what it answers."""

import json
import os
import socket
import subprocess
import sys

import pytest

from logtrain import serve
from logtrain.core.config import load
from logtrain.serving.config import ServeConfig
from tests.support import LAUNCH, ROOT
from tests.support.chats import TRIMMING
from tests.support.conversations import write_chat_model
from tests.support.serving import QUESTION, serving
from tests.support.synthetic import edit_json


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_chat_model(tmp_path_factory.mktemp("model") / "tiny")


MISTAKES = [
    (["--port", "70000"], "port = 70000 is outside 0 to 65535"),
    (["--name", "a b"], "name: 'a b': expected letters, digits"),
    (["--adapters", "a"], "adapters: 'a': expected NAME=DIR"),
    (["--adapters", "a={model}"], "no adapter_config.json in it"),
    (["--devices", "cuda:7"], "device = 'cuda:7': expected auto, cpu, cuda"),
    (["--host", "203.0.113.7"], "--host 203.0.113.7 --port 8000"),
    (["--memory", "100000", "--port", "0"], "the cache (--memory)"),
    (["--memory", "-1"], "memory = -1.0 must be a finite number >= 0"),
    (["--step_tokens", "5"], "step_tokens = 5 is less than max_sequences = 32"),
    (["--deadline", "0"], "deadline = 0.0 must be above 0"),
    (["--max_sequences", "0"], "max_sequences = 0 must be at least 1"),
    (["--api_key", "a\u00e9"], "api_key: expected ASCII"),
    (["--template", "{model}/none.jinja"], "none.jinja"),
    (["--date", "yesterday"], "yesterday"),
    (["--model", "/none"], "/none"),
]


@pytest.mark.parametrize(("flags", "message"), MISTAKES)
def test_a_mistake_is_one_line(model, flags, message):
    if "--memory" in flags and "100000" in flags:
        flags = [*flags, "--max_sequences", "100000000", "--step_tokens", "100000000"]
    with pytest.raises(ValueError) as error:
        serve.main(["--model", str(model), *(flag.format(model=model) for flag in flags)])
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_port_that_is_taken_is_said_before_the_model_is_loaded(model):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"--port {port}: Address already in use; choose another"):
            serve.main(["--model", str(model), "--port", str(port)])


def test_the_key_comes_from_the_environment_too(monkeypatch):
    monkeypatch.setenv("LOGTRAIN_API_KEY", "of the environment".replace(" ", "-"))
    assert load(ServeConfig, ["--model", "m"]).api_key == "of-the-environment"
    assert load(ServeConfig, ["--model", "m", "--api_key", "flag"]).api_key == "flag"


@pytest.mark.slow
def test_two_workers_a_template_and_a_date(model, tmp_path):
    (tmp_path / "t.jinja").write_text(TRIMMING.replace("bos_token }}", "bos_token }}{{ strftime_now('%Y') }}"))
    flags = ["--model", str(model), "--devices", "cpu", "cpu", "--step_tokens", "64", "--max_sequences", "2"]
    flags += [
        "--template",
        str(tmp_path / "t.jinja"),
        "--date",
        "1999-01-02",
        "--host",
        "127.0.0.1",
        "--memory",
        "0.02",
    ]
    with serving(flags, tmp_path / "output") as served:
        assert json.loads(served.get("/health")[1]) == {"status": "ok", "workers_ready": 2, "workers": 2}
        text = served.post("/detokenize", served.post("/tokenize", {"messages": QUESTION})[1])[1]["prompt"]
        assert text.startswith("<|begin|>1999<|start|>user")
        reply = served.chat(n=4, temperature=1, seed=3, max_tokens=60)
        assert len({choice.message.content for choice in reply.choices}) == 4
        assert [
            choice.message.content for choice in served.chat(n=4, temperature=1, seed=3, max_tokens=60).choices
        ] == [choice.message.content for choice in reply.choices]


@pytest.mark.slow
def test_a_model_without_a_chat_template_completes_alone(model, tmp_path):
    folder = write_chat_model(tmp_path / "bare")
    edit_json(folder / "tokenizer_config.json", chat_template=None)
    with serving(["--model", str(folder), "--memory", "0.02"], tmp_path / "output") as served:
        assert "bare answers completions alone: " in served.output.read_text()
        assert served.post("/v1/completions", {"prompt": "why"})[0] == 200
        status, reply = served.post("/v1/chat/completions", {"messages": QUESTION})
        assert status == 400 and reply["error"]["message"].startswith("bare cannot chat: ")


def test_the_launcher_and_its_neighbours_name_what_is_there():
    help = subprocess.run(["bash", LAUNCH / "serve.sh"], capture_output=True, text=True, check=True).stdout
    assert "launch/serve.sh --model" in help
    unit = (LAUNCH / "logtrain.service").read_text()
    command = next(line for line in unit.splitlines() if line.startswith("ExecStart="))
    assert load(ServeConfig, command.split("logtrain.serve ")[1].split()).model == "/opt/models/chat"
    dockerfile = (LAUNCH / "Dockerfile").read_text()
    for source in (line.split()[1:-1] for line in dockerfile.splitlines() if line.startswith("COPY")):
        assert all((ROOT / name).exists() for name in source)


def test_help_is_quick_and_names_every_flag(model):
    environment = {**os.environ, "COLUMNS": "200"}
    command = [sys.executable, "-m", "logtrain.serve", "--help"]
    text = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert all(f"--{name}" in text for name in ServeConfig.__dataclass_fields__)
