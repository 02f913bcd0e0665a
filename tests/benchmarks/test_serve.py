"""What `benchmarks.serve` tells of the server and of transformers behind the simplest server."""

import argparse
import json
import subprocess
import sys

import numpy as np
import pytest

from benchmarks.serve import prompts_of
from logtrain.generation.load import ModelFolder
from tests.support.conversations import write_chat_model


@pytest.mark.slow
def test_first_tokens_of_both_servers_are_told_and_come_before_the_answers(tmp_path):
    model = str(write_chat_model(tmp_path / "tiny"))
    flags = ["--model", model, "--rounds", "1", "--clients", "8", "--new_tokens", "60", "--json"]
    done = subprocess.run([sys.executable, "-m", "benchmarks.serve", *flags], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = {row["way"]: row for row in json.loads(done.stdout)["loads"]}
    assert rows["generator"]["first_token_p50"] is None
    assert rows["server"]["differing_answers"] == 0
    for way in ("server", "simplest"):
        median, worst = rows[way]["first_token_p50"], rows[way]["first_token_worst"]
        assert 0 < median <= rows[way]["first_token_p95"] <= worst
        whole = 16 * 60 / rows[way]["tokens_per_second"]  # seconds that all 16 answers took, about
        assert median < 0.9 * whole, "the first token comes before the last"


def test_questions_become_the_prompts_of_a_chat(tmp_path):
    folder, questions = ModelFolder(write_chat_model(tmp_path / "tiny")), tmp_path / "questions.json"
    questions.write_text(json.dumps([{"instruction": "why?", "input": f"error {i}"} for i in range(9)]))
    prompts = prompts_of(argparse.Namespace(questions=questions), folder)
    found = [folder.tokenizer.decode(ids) for ids in prompts.drawn(np.random.default_rng(7), 9)]
    for i in range(9):
        assert sum(f"why?\nerror {i}" in text for text in found) == 1, "each is asked once"
