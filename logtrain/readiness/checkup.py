"""The check of all machines and devices of a job: facts, speeds held against the GPU's file, and what is wrong."""

import os
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

from logtrain.core.units import size
from logtrain.core.world import World
from logtrain.planning.gpu import Gpu, Range
from logtrain.planning.gpu_file import gpu_of, read_gpu
from logtrain.readiness import gpus, nodes, speed
from logtrain.readiness.stages import gathered

SLOW = {"cuda": 1.05, "cpu": 1.5}  # times as slow as the others' median, from which a rank is named
WHAT = {"product": "matrix products", "copy": "copies in memory"}
CONSTANTS = {"product": "product", "copy": "bandwidth"}  # of the GPU's file


class Device(NamedTuple):
    """What was found of one rank's device."""

    rank: int
    """Its rank."""
    node: str
    """Its machine."""
    name: str
    """The GPU's name, or "CPU"."""
    speed: dict[str, float]
    """What it reaches, by the names of `Speed`."""
    facts: dict[str, Any]
    """What NVML says of it, under load; {} for a CPU."""


class Checkup(NamedTuple):
    """All that was found, on rank 0."""

    machines: list[dict[str, Any]]
    """Facts of each machine."""
    devices: list[Device]
    """Of every rank, in order."""
    collectives: list[speed.Collective]
    """What they reach together."""
    problems: list[str]
    """What is wrong, a line each, with what to do."""

    def to_json(self) -> dict[str, Any]:
        """The checkup for programs."""
        devices, together = ([item._asdict() for item in items] for items in (self.devices, self.collectives))
        return {"machines": self.machines, "devices": devices, "collectives": together, "problems": self.problems}


def examine(folder: Path, seconds: float, gpu: str) -> Checkup:
    """Examine every machine and device of the job. Every rank calls this. `folder`: where runs go. `seconds`: of the
    matrix products. `gpu`: the description of the GPU, "" for that of its name.
    """
    world = World()
    on_gpu = world.device.type == "cuda"
    local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    firsts = sum(gathered(world, world.local_rank == 0))
    world.note("examining the machine")
    facts = nodes.examine(folder, local if on_gpu else 0, local, firsts == 1) if world.local_rank == 0 else None
    machines = [found for found in gathered(world, facts) if found]
    problems = [problem for found in machines for problem in found["problems"]]
    problems += nodes.check_shared(world, folder, firsts) + differing(machines)
    seen: list[dict[str, Any]] = [{}]
    uuids = [f"GPU-{torch.cuda.get_device_properties(world.device).uuid}"] if on_gpu else []

    def look() -> None:
        seen[:] = gpus.facts_of_gpus(uuids)[:1] if on_gpu else [{}]

    reached = speed.measure(world, seconds, look)._asdict()
    name = torch.cuda.get_device_name(world.device) if on_gpu else "CPU"
    node = nodes.platform.node()
    devices = [Device(*found) for found in gathered(world, (world.rank, node, name, reached, (seen or [{}])[0]))]
    together = speed.collectives(world)
    known = gpu or gpu_of(name) or ""
    problems += judged(devices, together, read_gpu(known) if on_gpu and known else None, firsts, world.device.type)
    world.close()
    return Checkup(machines, devices, together, problems)


def differing(machines: Sequence[dict[str, Any]]) -> list[str]:
    """What is not the same on all machines."""
    found = []
    names = {name for facts in machines for name in facts["versions"]}
    for name in [*sorted(names), "driver"]:
        by_node = {facts["node"]: {**facts["versions"], "driver": facts["driver"]}.get(name) for facts in machines}
        if len(set(by_node.values())) > 1:
            told = ", ".join(f"{version} on {node}" for node, version in by_node.items())
            found.append(f"{name} differs: {told}; install the same everywhere")
    return found


def judged(
    devices: Sequence[Device], together: Sequence[speed.Collective], gpu: Gpu | None, machines: int, kind: str
) -> list[str]:
    """What is wrong with devices and links: a GPU that NVML complains of, one slower than its kind or than the others.
    `gpu`: the constants of its kind, None where they are not known. `kind`: cuda or cpu.
    """
    found = [f"{where(device)} {text}" for device in devices for text in gpus.wrong_with(device.facts)]
    for what, doing in WHAT.items():
        rates = [device.speed[what] for device in devices]
        for device, factor in slow_ones(devices, rates, kind):
            found.append(
                f"{where(device)} takes {factor:.2f} times as long as the others for {doing}: every step waits"
            )
        if gpu is not None:
            low, high = band(gpu, CONSTANTS[what])
            found += [
                f"{where(device)} reaches {shown(what, device.speed[what])} in {doing}, {gpu.name} has "
                f"{shown(what, low)} to {shown(what, high)}: see what slows it down"
                for device in devices
                if device.speed[what] < low
            ]
    if gpu is not None:
        for each in together:
            low, _ = link_band(gpu, each.size, machines)
            if each.bandwidth < low:
                found.append(
                    f"{each.kind} of {size(each.size)} reaches {size(each.bandwidth)}/s, {gpu.name} has "
                    f"{size(low)}/s at least: look at nvidia-smi topo -m, and NCCL_DEBUG=INFO"
                )
    return found


def slow_ones(devices: Sequence[Device], rates: Sequence[float], kind: str) -> list[tuple[Device, float]]:
    """The devices that take `SLOW[kind]` times as long as the median of the others, or longer, each with its factor.
    Ranks on CPUs are held against those of other machines: on one they share its cores, whoever gets more of them.
    """
    found = []
    for at, (device, rate) in enumerate(zip(devices, rates, strict=True)):
        others = [
            other
            for number, other in enumerate(rates)
            if (number != at if kind == "cuda" else devices[number].node != device.node)
        ]
        if others and (slower := median(others) / rate) >= SLOW[kind]:
            found.append((device, slower))
    return found


def band(gpu: Gpu, constant: str) -> tuple[float, float]:
    """The range of a constant of a GPU."""
    value, around = getattr(gpu, constant), gpu.ranges.get(constant, Range(1.0, 1.0))
    return value * around.low, value * around.high


def link_band(gpu: Gpu, num_bytes: int, machines: int) -> tuple[float, float]:
    """The range of the bus bandwidth of a collective of that size, within a machine or over several."""
    if machines > 1:
        return band(gpu, "network")
    value, around = gpu.link_bandwidth(num_bytes), gpu.ranges.get("links", Range(1.0, 1.0))
    return value * around.low, value * around.high


def where(device: Device) -> str:
    """A device in words."""
    return f"rank {device.rank} on {device.node} ({device.name})"


def shown(what: str, rate: float) -> str:
    """A rate as people read it."""
    return f"{rate / 1e12:.3g} TFLOP/s" if what == "product" else f"{size(rate)}/s"


def lines(found: Checkup, gpu: Gpu | None) -> list[str]:
    """The checkup for people."""
    told = [line for facts in found.machines for line in nodes.told(facts)]
    ranges = ["", ""]
    if gpu is not None:
        ends = {what: band(gpu, CONSTANTS[what]) for what in WHAT}
        ranges = [f" ({shown(what, low)} to {shown(what, high)})" for what, (low, high) in ends.items()]
    for device in found.devices:
        reached = [f"{shown(what, device.speed[what])}{around}" for what, around in zip(WHAT, ranges, strict=True)]
        facts = gpus.told(device.facts)
        told.append(f"{where(device)}: products {reached[0]}, copies {reached[1]}{'; ' * bool(facts)}{facts}")
    told += [f"{each.kind} of {size(each.size)}: {size(each.bandwidth)}/s of bus" for each in found.collectives]
    absent = {name: remedy for facts in found.machines for name, remedy in facts["missing"].items()}
    told += [f"not there: {name}; {remedy}" for name, remedy in absent.items()]
    return told + [f"WRONG: {problem}" for problem in found.problems]
