"""logtrain.metrics: the FLOPs and peaks that MFU rests on, one series over kills, and what a person sees."""

import contextlib
import os
import pty
import re
import sys
import threading
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import orjson
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from logtrain.observe.metrics import Metrics, model_flops, peak_flops, peak_memory_gib

LLAMA_8B = SimpleNamespace(
    vocab_size=128256,
    hidden_size=4096,
    intermediate_size=14336,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
)


def record(step: int, **changed) -> dict:
    return {
        "step": step,
        "epoch": step / 106,
        "loss": 1 / (step + 1),
        "grad_norm": 1.25,
        "lr": 9.5e-6,
        "tokens": step * 1048576,
        "targets": step * 1040000,
        "tokens_per_second": 58412.3,
        "tokens_per_second_per_gpu": 7301.5,
        "mfu": 0.4123,
        "peak_memory_gib": 54.02,
        "step_seconds": 17.95,
        "data_seconds": 0.02,
        "eta_seconds": (106 - step) * 17.95,
        **changed,
    }


def valid(step: int) -> dict:
    return {"step": step, "epoch": step / 106, "set": "valid", "valid_loss": 0.5, "valid_targets": 12345}


def read(folder: Path) -> list[dict]:
    return [orjson.loads(line) for line in (folder / "metrics.jsonl").read_bytes().splitlines()]


# -- FLOPs, peaks, memory -----------------------------------------------------------------------------


def test_model_flops_of_llama_8b():
    # 8,030,261,248 parameters, less the embedding (128,256 x 4,096) and the scales of 65 norms
    matrices = 8_030_261_248 - 128_256 * 4096 - 65 * 4096
    assert model_flops(LLAMA_8B, 1, 0) == 6 * matrices
    assert model_flops(LLAMA_8B, 0, 1) == 12 * 32 * 4096
    one_document = model_flops(LLAMA_8B, 8192, 8192 * 8193 // 2)
    documents_of_444 = model_flops(LLAMA_8B, 8192, 8192 * 445 // 2)
    assert one_document / documents_of_444 == pytest.approx(1.134, abs=1e-3)  # what masking saves


@pytest.mark.parametrize("tied", [False, True])
def test_model_flops_are_what_a_run_of_the_model_counts(tied):
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = SimpleNamespace(
        vocab_size=97, hidden_size=64, intermediate_size=160, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=16
    )
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=97,
            hidden_size=64,
            intermediate_size=160,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            tie_word_embeddings=tied,
            attn_implementation="eager",
        )
    )
    tokens = torch.arange(64)[None] % 97
    with FlopCounterMode(display=False) as counter:
        model(input_ids=tokens, labels=tokens).loss.backward()
    assert counter.get_total_flops() == model_flops(shape, 64, 64 * 64)  # eager attention does all pairs


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA H200", 989.4),
        ("NVIDIA GH200 480GB", 989.4),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA B200", 2250),
        ("NVIDIA GB200", 2500),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
        ("NVIDIA L40", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA GeForce RTX 3090", None),
        ("AMD Instinct MI300X", None),
    ],
)
def test_peak_flops(monkeypatch, name, teraflops):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    peak = peak_flops(torch.device("cuda", 0))
    assert peak == (None if teraflops is None else pytest.approx(teraflops * 1e12))
    assert peak_flops(torch.device("cpu")) is None


@pytest.mark.skipif(sys.platform != "linux", reason="compares with /proc")
def test_peak_memory_is_in_gib(monkeypatch):
    peak_kib = int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])
    assert peak_memory_gib(torch.device("cpu")) == pytest.approx(peak_kib / 2**20, rel=0.05)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 54 * 2**30)
    assert peak_memory_gib(torch.device("cuda", 0)) == 54


# -- the files ----------------------------------------------------------------------------------------


def test_every_record_is_in_both_files_at_once(tmp_path, capsys):
    records = [valid(0), record(10), record(20, mfu=None, loss=float("nan"))]
    with Metrics(tmp_path, enabled=True, total_steps=106) as metrics:
        metrics.info("two\nlines é")
        metrics.valid(records[0])
        metrics.train(records[1])
        assert read(tmp_path) == records[:2]  # already on disk: a kill loses nothing
        metrics.train(records[2])
    assert read(tmp_path) == [*records[:2], {**records[2], "loss": None}]  # JSON has no NaN

    printed = capsys.readouterr().out
    assert "\x1b" not in printed and "\r" not in printed
    lines = printed.splitlines()
    assert lines[:3] == ["two", "lines é", "step=0 epoch=0 set=valid valid_loss=0.5 valid_targets=12345"]
    assert lines[4].startswith("step=20 epoch=0.188679 loss=nan grad_norm=1.25 lr=9.5e-06 tokens=20971520 ")
    assert " mfu=null " in lines[4]
    parsed = {key: float(value) for key, value in (part.split("=") for part in lines[3].split(" "))}
    assert parsed == pytest.approx(records[1], rel=1e-5)

    logged = (tmp_path / "log.txt").read_text(encoding="utf-8").splitlines()
    assert [line.split(" ", 1)[1] for line in logged] == lines
    for line in logged:
        assert abs((datetime.now().astimezone() - datetime.fromisoformat(line.split(" ")[0])).total_seconds()) < 60


def test_a_text_with_spaces_stays_one_value(tmp_path, capsys):
    with Metrics(tmp_path, enabled=True, total_steps=1) as metrics:
        metrics.valid({**valid(1), "set": 'held "out"=1'})
    assert r'set="held \"out\"=1" valid_loss=' in capsys.readouterr().out


def test_other_ranks_are_silent(tmp_path, capsys):
    with Metrics(tmp_path, enabled=False, total_steps=10) as metrics:
        metrics.train(record(1))
        metrics.valid(valid(1))
        metrics.info("x")
        metrics.close()
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


def test_what_stopped_a_run_is_logged(tmp_path):
    with pytest.raises(ValueError), Metrics(tmp_path, enabled=True, total_steps=10):
        raise ValueError("training has diverged")
    assert "stopped by ValueError: training has diverged" in (tmp_path / "log.txt").read_text()


@pytest.mark.parametrize(
    ("torn", "resume_step", "kept"),
    [
        (b"", 20, [0, 10, 20, 20]),
        (b"", 25, [0, 10, 20, 20]),
        (b"", 30, [0, 10, 20, 20, 30]),
        (b"", 0, []),  # the run starts anew, its validation before the first step too
        (b'{"step":40,"epo', 30, [0, 10, 20, 20, 30]),
        (b'{"step":40,"epo', 20, [0, 10, 20, 20]),
        (b'{"step":20}', 30, [0, 10, 20, 20, 30]),  # whole, but for the end of its line
        (b"\0\0\0\0\n\0\0", 30, [0, 10, 20, 20, 30]),  # what a file system leaves after a power cut
    ],
)
def test_a_resumed_run_continues_one_series(tmp_path, capsys, torn, resume_step, kept):
    with Metrics(tmp_path, enabled=True, total_steps=106) as metrics:
        for line in (valid(0), record(10), record(20), valid(20), record(30)):
            (metrics.valid if "set" in line else metrics.train)(line)
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(torn)
    capsys.readouterr()
    with Metrics(tmp_path, enabled=True, total_steps=106, resume_step=resume_step) as metrics:
        metrics.train(record(resume_step + 10))
    assert [line["step"] for line in read(tmp_path)] == [*kept, resume_step + 10]
    removed = 5 + (torn.count(b"\n") + 1 if torn else 0) - len(kept)
    said = f"metrics.jsonl: removed {removed} records made after the checkpoint; their steps run again\n"
    assert capsys.readouterr().out.startswith(said if removed else "step=")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.txt", "metrics.jsonl"]


def test_a_kill_while_records_are_removed_leaves_the_old_ones(tmp_path, monkeypatch):
    with Metrics(tmp_path, enabled=True, total_steps=106) as metrics:
        metrics.train(record(10))
        metrics.train(record(20))

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            Metrics(tmp_path, enabled=True, total_steps=106, resume_step=10)
    assert read(tmp_path) == [record(10), record(20)]
    Metrics(tmp_path, enabled=True, total_steps=106, resume_step=10).close()
    assert read(tmp_path) == [record(10)]


# -- the terminal -------------------------------------------------------------------------------------


def run_on_a_terminal(folder: Path, width: int, monkeypatch) -> str:
    """What a run writes to a terminal of `width` columns."""
    ours, theirs = pty.openpty()
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.delenv("NO_COLOR", raising=False)
    written = []

    def read_all():
        with contextlib.suppress(OSError):  # Linux: the other end is closed
            while part := os.read(ours, 65536):
                written.append(part)

    reader = threading.Thread(target=read_all)
    reader.start()
    with open(theirs, "w", encoding="utf-8") as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", terminal)
        with Metrics(folder, enabled=True, total_steps=106) as metrics:
            metrics.info("model of [8B] parameters")
            metrics.valid(valid(0))
            metrics.train(record(10, mfu=None))
            print("from elsewhere")
            metrics.train(record(106))
    reader.join()
    os.close(ours)
    return b"".join(written).decode()


@pytest.mark.parametrize(("width", "last"), [(80, "MFU"), (120, "tokens")])
def test_a_terminal_shows_a_table_and_a_bar(tmp_path, monkeypatch, width, last):
    written = run_on_a_terminal(tmp_path, width, monkeypatch)
    assert "\x1b[?25l" in written and "\x1b[?25h" in written  # the cursor is hidden and comes back
    lines = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line).split("\r")[-1] for line in written.split("\r\n")]
    assert max(map(len, lines)) <= width
    table = [line for line in lines if line.strip() and not line.startswith("training")]
    assert table[0] == "model of [8B] parameters"
    headings = re.split(r" {2,}", table[1].strip())
    assert headings[:3] == ["step", "epoch", "loss"] and headings[-1] == last
    assert table[2].split() == ["0", "0.000", "0.5000", "on", "valid", "(12,345", "targets)"]
    assert table[3].split()[:6] == ["10", "0.094", "0.0909", "1.25", "9.50e-06", "7,302"]
    assert table[3].split()[8] == "-"
    assert table[4] == "from elsewhere"  # above the bar, not through it
    assert table[5].split()[8] == "41.2%"
    assert len({len(line) for line in (table[1], table[3], table[5])}) == 1  # columns are aligned
    bar = [line for line in lines if line.startswith("training")][-1]
    assert re.fullmatch(r"training ━+ 106/106 100% 0:00:\d\d 0:00:00 left *", bar)

    assert [line["step"] for line in read(tmp_path)] == [0, 10, 106]
    log = (tmp_path / "log.txt").read_text()
    assert "\x1b" not in log and " step=10 epoch=0.0943396 loss=0.0909091 " in log
