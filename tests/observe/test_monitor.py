"""What is noted of a machine and its GPUs: NVML's real interface from Python, before a stand-in of its C library."""

import json
import time

import psutil
import pytest

from logtrain.observe import monitor, sensors
from logtrain.observe.health import Event
from logtrain.observe.monitor import Monitor
from logtrain.observe.sensors import GpuSensors, HostSensors, Rates

pytest.importorskip("pynvml", reason="needs nvidia-ml-py")


def test_the_figures_of_a_gpu_that_is_well(three_gpus):
    found = GpuSensors()
    first, second = found.read()[0], found.read()[0]
    expected = {"power_w": 655.321, "utilisation": 98, "memory_bytes": 70 * 2**30, "temperature_c": 61}
    expected |= {"clock_mhz": 1755, "throttles": ["power cap"], "ecc_errors": 0, "pcie_bytes_per_second": 3e6}
    assert first == expected
    assert second.pop("nvlink_bytes_per_second") > 0  # needs two readings
    assert second == {key: value for key, value in expected.items() if key != "pcie_bytes_per_second"}  # every tenth


def test_the_gpus_of_a_job_are_named_by_uuid(three_gpus):
    assert GpuSensors(["GPU-1"]).read()[0]["temperature_c"] == 88


def test_a_throttled_gpu_memory_errors_and_a_lost_gpu_are_said_once(three_gpus, tmp_path, monkeypatch):
    monkeypatch.setattr(monitor, "EVERY", 0.01)
    said: list[Event] = []
    shown = Monitor(tmp_path, 0, enabled=True, say=said.append).start()
    shown.step = 12
    while not (shown.file.exists() and len(shown.file.read_bytes().splitlines()) >= 5):
        time.sleep(0.01)
    shown.close()
    kinds = {event.kind: event.text for event in said}
    assert sorted(kinds) == ["ecc", "gpu_lost", "throttled"] and len(said) == 3
    assert "GPU 1" in kinds["throttled"] and "too hot (hardware) at 1095 MHz, 88 °C" in kinds["throttled"]
    assert "GPU 1" in kinds["ecc"] and "2 uncorrectable" in kinds["ecc"]
    assert "GPU 2" in kinds["gpu_lost"] and "is lost" in kinds["gpu_lost"]
    samples = [json.loads(line) for line in shown.file.read_text().splitlines()]
    assert all(len(sample["gpus"]) == 3 and 0 <= sample["cpu"] <= 100 for sample in samples)


def test_a_machine_without_nvml_has_figures_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(sensors, "pynvml", None)
    assert GpuSensors().read() == []
    host = HostSensors()
    host.read()
    figures = host.read()
    assert abs(figures["ram_bytes"] - psutil.virtual_memory().used) < 2**30
    assert {"cpu", "ram_bytes", "network_bytes_per_second"} <= figures.keys()


def test_rates_are_those_between_two_readings():
    rates = Rates()
    assert rates.of("a", 100, 1.0) is None
    assert rates.of("a", 300, 3.0) == 100
    assert rates.of("a", 0, 4.0) == 0  # a counter that began anew


def test_another_machine_has_files_of_its_own_and_a_full_disk_stops_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(monitor, "EVERY", 0.01)
    other = Monitor(tmp_path, 8, enabled=True)
    other.write_event(Event(3, "throttled", "x"))
    assert json.loads((tmp_path / "events-rank-00008.jsonl").read_text())["kind"] == "throttled"
    assert other.file.name == "system-rank-00008.jsonl"
    gone = Monitor(tmp_path / "gone", 0, enabled=True).start()
    gone.thread.join(5)
    assert not gone.thread.is_alive()
    gone.close()


def test_a_sample_takes_less_than_half_a_percent_of_a_second(three_gpus):
    """Of the processor: it waits for nothing."""
    host, gpus = HostSensors(), GpuSensors()
    began = time.thread_time()
    for _ in range(50):
        json.dumps([host.read(), gpus.read()])
    assert (time.thread_time() - began) / 50 < 0.005
