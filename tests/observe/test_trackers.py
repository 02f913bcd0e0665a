"""The trackers get every record under the same names, each read back by its own tool; one that fails stops nothing."""

import json
import os
import socket
import struct
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from logtrain.observe import trackers
from logtrain.observe.prometheus import Prometheus
from logtrain.observe.trackers import Trackers, check_trackers, figures_of, figures_of_sample
from tests.support.synthetic import write_data, write_model
from tests.support.training import records, train

CONFIG = {"name": "run", "optim.lr": 1e-3, "track": ()}
RECORD = {"time": 1.7e9, "step": 10, "loss": 2.5, "mfu": None, "grad_norm": 1.0}
VALID = {"time": 1.7e9, "step": 10, "set": "valid", "valid_loss": 1.5, "delta": -0.5, "valid_targets": 12}


def test_all_have_the_same_names():
    assert figures_of(RECORD) == {"train/loss": 2.5, "train/grad_norm": 1.0}
    assert figures_of(VALID) == {"valid/valid/loss": 1.5, "valid/valid/delta": -0.5, "valid/valid/targets": 12}
    sample = {"time": 1.0, "node": "a", "cpu": 50.0, "gpus": [{"power_w": 650.0, "throttles": ["power cap"]}]}
    assert figures_of_sample(sample) == {"system/cpu": 50.0, "system/gpu0/power_w": 650.0}


def logged(name: str, folder: Path, said: list[str]) -> Trackers:
    """Two records in one tracker, and the export."""
    made = Trackers((name,), folder, "run", CONFIG, said.append)
    made.log(figures_of(RECORD), 10)
    made.log(figures_of({**RECORD, "step": 20, "loss": 2.0}), 20)
    made.export = "/runs/run/export"
    made.thread.join(0.1)
    made.waiting.put(None)
    made.thread.join(120)
    assert not made.thread.is_alive()
    return made


def test_tensorboard_reads_its_files(tmp_path):
    pytest.importorskip("tensorboard", reason="needs the extra track")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    said: list[str] = []
    logged("tensorboard", tmp_path, said)
    assert said == []
    found = EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    assert [(event.step, event.value) for event in found.Scalars("train/loss")] == [(10, 2.5), (20, 2.0)]
    texts = {tag: found.Tensors(tag)[0].tensor_proto.string_val[0].decode() for tag in found.Tags()["tensors"]}
    assert "optim.lr = 0.001" in texts["config/text_summary"] and texts["export/text_summary"] == "/runs/run/export"


def written(content: bytes) -> Iterator[bytes]:
    """The records of a .wandb file: a header of 7 bytes, then LevelDB's log format in blocks of 32 KiB."""
    at, parts = 7, b""
    while at + 7 <= len(content):
        if (1 << 15) - at % (1 << 15) < 7:  # the rest of a block
            at += (1 << 15) - at % (1 << 15)
        _, length, kind = struct.unpack_from("<IHB", content, at)
        parts, at = parts + content[at + 7 : at + 7 + length], at + 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield parts
            parts = b""


@pytest.mark.slow
def test_wandb_reads_its_offline_run(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="needs the extra track")
    monkeypatch.setenv("WANDB_MODE", "offline")
    said: list[str] = []
    logged("wandb", tmp_path, said)
    assert said == []
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    from wandb.proto import wandb_internal_pb2

    history, config = [], {}
    for data in written(file.read_bytes()):
        record = wandb_internal_pb2.Record.FromString(data)
        if record.WhichOneof("record_type") == "history":
            history.append({i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in record.history.item})
        for update in (*record.run.config.update, *record.config.update):
            config[update.key or "/".join(update.nested_key)] = json.loads(update.value_json)
    assert [(each["step"], each["train/loss"]) for each in history] == [(10, 2.5), (20, 2.0)]
    assert config["optim.lr"] == 1e-3


@pytest.mark.slow
def test_mlflow_finds_the_run_on_its_server(tmp_path, monkeypatch):
    pytest.importorskip("mlflow", reason="needs the extra track")
    from mlflow.tracking import MlflowClient

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    store = ["--backend-store-uri", f"sqlite:///{tmp_path}/mlflow.db", "--default-artifact-root", str(tmp_path)]
    uri = f"http://127.0.0.1:{port}"
    with subprocess.Popen([*command, *store], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            for _ in range(600):
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.2)
            monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
            said: list[str] = []
            logged("mlflow", tmp_path, said)
            assert said == []
            client = MlflowClient(uri)
            (run,) = client.search_runs([client.get_experiment_by_name("logtrain").experiment_id])
            losses = client.get_metric_history(run.info.run_id, "train/loss")
            assert [(each.step, each.value) for each in losses] == [(10, 2.5), (20, 2.0)]
            assert run.data.params["optim.lr"] == "0.001" and run.data.tags["export"] == "/runs/run/export"
            assert run.info.status == "FINISHED"
        finally:
            server.terminate()


@pytest.mark.slow
def test_trackio_has_the_run(tmp_path, monkeypatch):
    pytest.importorskip("trackio", reason="needs the extra track")
    program = (
        "import sys; from pathlib import Path; from tests.observe.test_trackers import logged\n"
        "said = []; logged('trackio', Path(sys.argv[1]), said); assert not said, said"
    )
    environment = {**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio"), "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run([sys.executable, "-c", program, tmp_path], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    import sqlite3

    (file,) = (tmp_path / "trackio").glob("logtrain*.db")
    with sqlite3.connect(file) as database:
        found = [json.loads(row[0]) for row in database.execute("select metrics from metrics order by id")]
    assert [each["train/loss"] for each in found if "train/loss" in each] == [2.5, 2.0]


class Failing:
    def __init__(self, *_):
        self.count = 0

    def log(self, figures, step):
        raise ConnectionError(f"no server at step {step}")

    def close(self, export):
        raise AssertionError("it was left out before")


def login_missing(*_):
    raise SystemExit("no API key")


@pytest.mark.parametrize(("made", "told"), [(Failing, "ConnectionError: no server"), (login_missing, "no API")])
def test_a_tracker_that_fails_is_said_once_and_left_out(tmp_path, monkeypatch, made, told):
    monkeypatch.setitem(trackers.TRACKERS, "wandb", (made, "wandb"))
    said: list[str] = []
    logged("wandb", tmp_path, said)
    assert len(said) == 1 and told in said[0] and said[0].endswith("the run goes on without it")


def test_a_server_that_hangs_holds_up_nothing(tmp_path, monkeypatch):
    class Hanging(Failing):
        def log(self, figures, step):
            time.sleep(60)

    monkeypatch.setitem(trackers.TRACKERS, "wandb", (Hanging, "wandb"))
    monkeypatch.setattr(trackers, "PATIENCE", 0.2)
    monkeypatch.setattr(trackers, "MOST_WAITING", 5)
    made = Trackers(("wandb",), tmp_path, "run", CONFIG, print)
    began = time.monotonic()
    for step in range(1000):
        made.log({"train/loss": 1.0}, step)
    made.close()
    assert time.monotonic() - began < 5


def test_one_that_is_not_installed_is_one_line(monkeypatch):
    monkeypatch.setitem(trackers.TRACKERS, "wandb", (Failing, "no_such_module"))
    with pytest.raises(ValueError, match=r"track = wandb: not installed; pip install 'logtrain\[track\]'"):
        check_trackers(("wandb",))


def test_prometheus_has_the_last_figures_and_a_port_that_is_taken_is_one_line():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shown = Prometheus(port, 'a"b')
    shown.update({"train/loss": 2.5})
    shown.update({"system/gpu0/power_w": 650.0})
    with pytest.raises(ValueError, match=f"prometheus = {port}: .*choose another port"):
        Prometheus(port, "b")
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        text = answer.read().decode()
    assert text == 'logtrain_system_gpu0_power_w{run="a\\"b"} 650.0\nlogtrain_train_loss{run="a\\"b"} 2.5\n'
    shown.close()


def test_a_run_with_every_outlet_has_the_losses_of_one_without(tmp_path, monkeypatch):
    handed: list[tuple[dict, int]] = []

    class Keeping(Failing):
        def log(self, figures, step):
            handed.append((figures, step))

        def close(self, export):
            handed.append(({"export": export}, -1))

    monkeypatch.setitem(trackers.TRACKERS, "tensorboard", (Keeping, "torch"))
    model = write_model(tmp_path / "model", hidden_size=32, intermediate_size=48, vocab_size=130, num_attention_heads=4)
    data = write_data(tmp_path / "data", model, seq_len=32, lengths={"train": [30] * 20, "valid": [30] * 4})
    flags = ["--name", "run", "--model", str(model), "--data", str(data), "--loader.seq_len", "32"]
    flags += ["--loader.rows_per_step", "4", "--trainer.log_every", "1"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    assert train([*flags, "--runs", str(tmp_path / "on"), "--track", "tensorboard", "--prometheus", port]) == 0
    assert train([*flags, "--runs", str(tmp_path / "off")]) == 0
    losses = [[each["loss"] for each in records(tmp_path / kind / "run")] for kind in ("on", "off")]
    assert losses[0] == losses[1]
    assert [figures["train/loss"] for figures, _ in handed if "train/loss" in figures] == losses[0]
    assert handed[-1][0] == {"export": str(tmp_path / "on" / "run" / "export")}
