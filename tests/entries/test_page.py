"""`logtrain page` as a process."""

import os
import re
import signal
import subprocess
import sys

import pytest
import urllib3

from tests.support import ROOT
from tests.support.openai_server import openai_server

PAGE = [sys.executable, "-m", "logtrain.page"]


def test_it_serves_until_it_is_told_to_end():
    with openai_server() as fake:
        flags = ["--base_url", f"{fake.url}/v1", "--host", "127.0.0.1", "--port", "0"]
        process = subprocess.Popen([*PAGE, *flags], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        try:
            line = process.stdout.readline()
            url = re.fullmatch(rf"the page is at (http://127.0.0.1:\d+/), in front of {fake.url}/v1\n", line)[1]
            assert b"<title>logtrain</title>" in urllib3.request("GET", url).data
            assert urllib3.request("GET", f"{url}v1/models").json()["data"][0]["id"] == "base"
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) in (0, -signal.SIGTERM)
        finally:
            process.kill()
            process.wait()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--base_url", "localhost:8000"], "base_url = 'localhost:8000': expected http://... or https://..."),
        (["--base_url", "http://a/v1", "--port", "99999"], "port = 99999 must be from 0 to 65,535"),
        (["--base_url", "http://a/v1", "--host", "256.0.0.1"], "256.0.0.1:8080: "),
    ],
)
def test_a_mistake_is_one_line(flags, message):
    done = subprocess.run([*PAGE, *flags], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_help_answers_at_once():
    process = subprocess.Popen([*PAGE, "--help"], cwd=ROOT, stdout=subprocess.PIPE)
    said = process.stdout.read().decode()
    _, code, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(code)
    assert "--base_url STR" in said
    assert used.ru_utime + used.ru_stime < 1.5
