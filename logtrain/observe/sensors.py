"""Figures of a machine and its GPUs: psutil for the machine, NVML for NVIDIA's GPUs.

Whatever a machine does not tell is left out; nothing here raises for it.
"""

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import psutil

try:
    import pynvml as nvml  # nvidia-ml-py
except ImportError:
    nvml = None
pynvml: Any = nvml

THROTTLES = {  # bits of nvmlClocksEventReasons that slow a GPU down; a cap on power is usual on a busy H100
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "too hot",
    0x40: "too hot (hardware)",
    0x80: "power brake",
}
USUAL = ("power cap",)
PCIE_EVERY = 10  # samples: asking for it takes 20 ms a direction and GPU
NVLINK = ("NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX", "NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX")  # KiB so far, all links
Figures = dict[str, Any]


class Rates:
    """Rates of counters that only grow, between two readings."""

    def __init__(self):
        self.before: dict[str, tuple[float, float]] = {}

    def of(self, name: str, count: float, now: float) -> float | None:
        """Of a counter a second, None at its first reading."""
        then, earlier = self.before.get(name, (now, count))
        self.before[name] = now, count
        return max(0.0, count - earlier) / (now - then) if now > then else None


class HostSensors:
    """Figures of this machine."""

    def __init__(self):
        self.rates = Rates()
        psutil.cpu_percent()  # the first call begins to count

    def read(self) -> Figures:
        """Processors in percent, memory and rates in bytes."""
        now, found = time.monotonic(), {"cpu": psutil.cpu_percent(), "ram_bytes": psutil.virtual_memory().used}
        for name, counters in (("disk", psutil.disk_io_counters), ("network", psutil.net_io_counters)):
            with contextlib.suppress(OSError, RuntimeError):
                count: Any = counters()
                if count is None:
                    continue
                both = (count.read_bytes, count.write_bytes) if name == "disk" else (count.bytes_recv, count.bytes_sent)
                found[f"{name}_bytes_per_second"] = self.rates.of(name, sum(both), now)
        return {name: value for name, value in found.items() if value is not None}


class GpuSensors:
    """Figures of this machine's GPUs, or of those with the given UUIDs; none where NVML is not there."""

    def __init__(self, uuids: Sequence[str] = ()):
        self.rates, self.reads, self.handles = Rates(), 0, []
        if pynvml is None:
            return
        try:
            pynvml.nvmlInit()
            self.handles = (
                [pynvml.nvmlDeviceGetHandleByUUID(uuid) for uuid in uuids]
                if uuids
                else [pynvml.nvmlDeviceGetHandleByIndex(at) for at in range(pynvml.nvmlDeviceGetCount())]
            )
        except pynvml.NVMLError:  # no driver, no GPU, or one of another maker
            self.handles = []

    def read(self) -> list[Figures]:
        """The figures of each GPU; {"lost": what NVML says} of one that does not answer."""
        found = [self.read_one(at, handle) for at, handle in enumerate(self.handles)]
        self.reads += 1
        return found

    def read_one(self, at: int, handle: Any) -> Figures:
        """The figures of one GPU."""
        now, found = time.monotonic(), Figures()
        try:
            found["power_w"] = pynvml.nvmlDeviceGetPowerUsage(handle) / 1000
        except pynvml.NVMLError as error:
            if error.value in (pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_UNKNOWN, pynvml.NVML_ERROR_IRQ_ISSUE):
                return {"lost": str(error)}
        told: dict[str, Callable[[], Any]] = {
            "utilisation": lambda: pynvml.nvmlDeviceGetUtilizationRates(handle).gpu,
            "memory_bytes": lambda: pynvml.nvmlDeviceGetMemoryInfo(handle).used,
            "temperature_c": lambda: pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU),
            "clock_mhz": lambda: pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM),
            "throttles": lambda: reasons(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)),
            "ecc_errors": lambda: pynvml.nvmlDeviceGetTotalEccErrors(
                handle, pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC
            ),
            "nvlink_bytes_per_second": lambda: self.rates.of(f"nvlink {at}", nvlink_bytes(handle), now),
        }
        if self.reads % PCIE_EVERY == 0:
            told["pcie_bytes_per_second"] = lambda: (
                1000
                * sum(
                    pynvml.nvmlDeviceGetPcieThroughput(handle, way)
                    for way in (pynvml.NVML_PCIE_UTIL_TX_BYTES, pynvml.NVML_PCIE_UTIL_RX_BYTES)
                )
            )
        for name, figure in told.items():
            with contextlib.suppress(pynvml.NVMLError):
                value = figure()
                if value is not None:
                    found[name] = value
        return found


def names_of_gpus() -> list[str]:
    """What the driver calls the GPUs of this machine; [] where there is none."""
    names = []
    for handle in GpuSensors().handles:
        with contextlib.suppress(pynvml.NVMLError):
            names.append(pynvml.nvmlDeviceGetName(handle))
    return names


def reasons(bits: int) -> list[str]:
    """Why a GPU's clocks are lower than they could be, in words."""
    return [why for bit, why in THROTTLES.items() if bits & bit]


def nvlink_bytes(handle: Any) -> int:
    """Bytes that a GPU's NVLinks have carried so far. Raises NVMLError where it has none."""
    fields = [(getattr(pynvml, name), 0xFFFFFFFF) for name in NVLINK]  # a scope of all links
    values = pynvml.nvmlDeviceGetFieldValues(handle, fields)
    if any(value.nvmlReturn != pynvml.NVML_SUCCESS for value in values):
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
    return 1024 * sum(value.value.ullVal for value in values)
