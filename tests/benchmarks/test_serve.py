"""What `benchmarks.serve` tells of the server and of transformers behind the simplest server."""

import json
import subprocess
import sys

import pytest

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
    for way in ("server", "transformers"):
        median, worst = rows[way]["first_token_p50"], rows[way]["first_token_worst"]
        assert 0 < median <= rows[way]["first_token_p95"] <= worst
        whole = 16 * 60 / rows[way]["tokens_per_second"]  # seconds that all 16 answers took, about
        assert median < 0.9 * whole, "the first token comes before the last"
