"""A recorded launch, compiled for a GPU that is not here, and what its machine code says.

Triton's own binder and options turn the arguments into types, constants and known alignments, as at a launch. Registers
and stack come from the binary's resource table; only spilled registers need a stack.
The width of global accesses is read from the instructions: LDG.E.128 and STG.E.128 move 16 bytes a thread.
"""

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from math import prod

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import create_function_from_signature

from benchmarks.kernels.occupancy import occupancy
from benchmarks.kernels.record import Launch

RESOURCES = re.compile(r"REG:(\d+) STACK:(\d+) .*?LOCAL:(\d+)")
ACCESS = re.compile(r"\b(?:LDG|LDGSTS|STG|ATOMG|REDG)\.E((?:\.\w+)*)")  # LDGSTS: to shared memory, asynchronously
LOADS_AND_STORES = r"(?:tt\.load|tt\.store|ttg\.async_copy_global_to_local)"
OFFSET_64 = re.compile(r"tt\.addptr .*\bi64|tt\.addptr .*xi64>")
OF_A_SCALAR = re.compile(LOADS_AND_STORES + r" .*: (?:tensor<1x)?!tt\.ptr<")  # one value a program, however narrow
LINE = re.compile(r"^(?:(?P<label>\w+):|\S+\s+(?:@\S+\s+)?(?P<name>[A-Z][A-Z0-9]*)[\w.]*\s*(?P<operands>[^;]*);)", re.M)
LOGIC = {"LOP3", "SHF", "ISETP", "SEL", "PRMT", "IADD3", "VIADD", "LEA", "PLOP3", "VIMNMX", "VIADDMNMX", "P2R"}


@dataclass(frozen=True)
class Binary:
    """What the machine code of a launch takes."""

    registers: int  # a thread
    spill_bytes: int
    shared_bytes: int
    num_warps: int
    occupancy: float  # of a processor's warps, those that are resident
    accesses_16: int  # instructions of 16 bytes or more a thread
    accesses_narrow: int  # narrower ones, those of single values left out
    offsets_64: int  # address computations with offsets of 64 bits: tensors may have 2^31 elements
    programs: int
    loop: int  # instructions of the longest loop
    loop_logic: int  # those of them for the units of logic and comparisons


def compiled(launch: Launch, arch: int) -> Binary:
    """A launch compiled for GPUs of compute capability `arch`: 90 is sm_90."""
    kernel, target = launch.kernel, GPUTarget("cuda", arch, 32)
    backend = make_backend(target)
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, options = bind(*launch.args, **launch.options)
    options, signature, constants, attributes = kernel._pack_args(
        backend, launch.options, bound, specialization, options
    )
    source = ASTSource(kernel, signature, constants, attributes)
    result = triton.compile(source, target=target, options=options.__dict__)
    registers, stack, local = resources(result.asm["cubin"])
    widths = access_widths(result.asm["sass"])
    narrow = sum(count for width, count in widths.items() if width < 16)
    shared, warps = result.metadata.shared, result.metadata.num_warps
    loop = longest_loop(result.asm["sass"])
    return Binary(
        registers=registers,
        spill_bytes=stack + local,
        shared_bytes=shared,
        num_warps=warps,
        occupancy=occupancy(arch, registers, shared, warps, prod(launch.grid)),
        accesses_16=widths.total() - narrow,
        accesses_narrow=max(0, narrow - len(OF_A_SCALAR.findall(result.asm["ttgir"]))),
        offsets_64=len(OFFSET_64.findall(result.asm["ttir"])),
        programs=prod(launch.grid),
        loop=len(loop),
        loop_logic=sum(name in LOGIC for name in loop),
    )


def resources(cubin: bytes) -> tuple[int, int, int]:
    """(registers, bytes of stack, bytes of local memory) of a thread."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    ((registers, stack, local),) = RESOURCES.findall(text)
    return int(registers), int(stack), int(local)


def access_widths(sass: str) -> Counter[int]:
    """How many instructions access global memory with how many bytes a thread."""
    widths: Counter[int] = Counter()
    for modifiers in ACCESS.findall(sass):
        bits = [int(m.lstrip("US")) for m in modifiers.split(".") if m.lstrip("US") in ("8", "16", "64", "128", "256")]
        widths[bits[0] // 8 if bits else 4] += 1
    return widths


def longest_loop(sass: str) -> list[str]:
    """The names of the instructions from a label to the last jump back to it, in the longest such loop."""
    names: list[str] = []
    labels: dict[str, int] = {}
    loops: list[list[str]] = [[]]
    for line in LINE.finditer(sass):
        if line["label"]:
            labels[line["label"]] = len(names)
            continue
        names.append(line["name"])
        if line["name"] == "BRA" and line["operands"].split()[-1] in labels:
            loops.append(names[labels[line["operands"].split()[-1]] :])
    return max(loops, key=len)
