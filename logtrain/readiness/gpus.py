"""What NVML says of GPUs before they are used: driver, links, clocks, memory errors."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from logtrain.observe.sensors import USUAL, Figures, GpuSensors, pynvml

MOST_LINKS = 18  # NVLinks of an H100


def driver_version() -> str:
    """The version of NVIDIA's driver on this machine; "" where there is none."""
    if pynvml is not None:
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlInit()
            return str(pynvml.nvmlSystemGetDriverVersion())
    return ""


def facts_of_gpus(uuids: Sequence[str] = ()) -> list[Figures]:
    """What NVML says of each GPU, or of those with the given UUIDs: the sensors' figures and what does not change.
    Whatever a GPU does not tell is left out; {"lost": why} is all of one that does not answer.
    """
    sensors = GpuSensors(uuids)
    read = sensors.read()
    return [
        found if "lost" in found else found | fixed(handle) for found, handle in zip(read, sensors.handles, strict=True)
    ]


def fixed(handle: Any) -> Figures:
    """What does not change of a GPU."""
    told: dict[str, Callable[[], Any]] = {
        "name": lambda: str(pynvml.nvmlDeviceGetName(handle)),
        "most_clock_mhz": lambda: pynvml.nvmlDeviceGetMaxClockInfo(handle, pynvml.NVML_CLOCK_SM),
        "pcie_generation": lambda: pynvml.nvmlDeviceGetCurrPcieLinkGeneration(handle),
        "most_pcie_generation": lambda: pynvml.nvmlDeviceGetMaxPcieLinkGeneration(handle),
        "pcie_lanes": lambda: pynvml.nvmlDeviceGetCurrPcieLinkWidth(handle),
        "most_pcie_lanes": lambda: pynvml.nvmlDeviceGetMaxPcieLinkWidth(handle),
        "nvlinks": lambda: active_links(handle),
    }
    found = Figures()
    for name, fact in told.items():
        with contextlib.suppress(pynvml.NVMLError):
            found[name] = fact()
    return found


def active_links(handle: Any) -> dict[str, int]:
    """How many of a GPU's NVLinks there are and are up. Raises NVMLError where it has none."""
    states = []
    for link in range(MOST_LINKS):
        with contextlib.suppress(pynvml.NVMLError):
            states.append(pynvml.nvmlDeviceGetNvLinkState(handle, link))
    if not states:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
    return {"links": len(states), "up": sum(states)}


def told(gpu: Figures) -> str:
    """A GPU's facts, in words."""
    if "lost" in gpu:
        return f"does not answer: {gpu['lost']}"
    parts = []
    if "clock_mhz" in gpu:
        most = f" of {gpu['most_clock_mhz']}" if "most_clock_mhz" in gpu else ""
        parts.append(f"{gpu['clock_mhz']}{most} MHz")
    if "temperature_c" in gpu:
        parts.append(f"{gpu['temperature_c']} °C")
    if "power_w" in gpu:
        parts.append(f"{gpu['power_w']:.0f} W")
    if gpu.get("throttles"):
        parts.append(f"slowed down: {', '.join(gpu['throttles'])}")
    if "ecc_errors" in gpu:
        parts.append(f"{gpu['ecc_errors']} memory errors")
    if "nvlinks" in gpu:
        parts.append(f"{gpu['nvlinks']['up']} of {gpu['nvlinks']['links']} NVLinks")
    if "pcie_generation" in gpu and "pcie_lanes" in gpu:
        parts.append(f"PCIe {gpu['pcie_generation']} x{gpu['pcie_lanes']}")
    return ", ".join(parts)


def wrong_with(gpu: Figures) -> list[str]:
    """What is wrong with a GPU under load, with what to do."""
    if "lost" in gpu:
        return [f"does not answer ({gpu['lost']}): reset it, or the machine"]
    found = [
        f"is slowed down ({why}) at {gpu.get('clock_mhz', '?')} MHz: see to its cooling and power"
        for why in gpu.get("throttles", [])
        if why not in USUAL
    ]
    if gpu.get("ecc_errors"):
        found.append(
            f"has {gpu['ecc_errors']} uncorrectable memory errors: have it checked, and leave it out until then"
        )
    links = gpu.get("nvlinks", {"links": 0, "up": 0})
    if links["up"] < links["links"]:
        found.append(f"has {links['up']} of {links['links']} NVLinks up: see nvidia-smi nvlink -s, and reset it")
    for what, unit in (("pcie_lanes", "lanes of PCIe"), ("pcie_generation", "as generation of PCIe")):
        now, most = gpu.get(what, 0), gpu.get(f"most_{what}", 0)
        if now < most:
            found.append(f"has {now} of {most} {unit} under load: seat it anew, or look at the BIOS")
    return found
