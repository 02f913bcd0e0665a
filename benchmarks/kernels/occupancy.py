"""How many warps of a kernel a streaming multiprocessor holds at once, of the 64 it has room for.

The limits and the granularities are those of NVIDIA's occupancy calculator ("Compute Capabilities" in the CUDA C++
programming guide). For sm_90, a program of W warps with R registers a thread and S bytes of shared memory:

    by registers      floor(4 * floor(16,384 / (256 * ceil(R / 8))) / W)      four partitions of 16,384 registers
    by shared memory  floor(233,472 / (128 * ceil((S + 1,024) / 128)))        228 KiB; 1 KiB a program is the system's
    by warps          floor(64 / W)                                           and never more than 32 programs
    by the launch     ceil(programs / 132)

    occupancy = W * the least of these / 64
"""

from math import ceil

SHARED_BYTES = {80: 164 * 1024, 90: 228 * 1024, 100: 228 * 1024}
PROCESSORS = {80: 108, 90: 132, 100: 148}
MAX_WARPS, MAX_PROGRAMS, PARTITIONS, PARTITION_REGISTERS = 64, 32, 4, 16_384


def occupancy(arch: int, registers: int, shared_bytes: int, num_warps: int, num_programs: int) -> float:
    """The share of 64 warps that are resident: of programs with `num_warps` warps, `registers` a thread and
    `shared_bytes` each, of which `num_programs` are launched on GPUs of compute capability `arch` (90: sm_90).
    """
    registers_of_warp = 256 * ceil(registers / 8)  # 32 threads, in units of 256
    resident = min(
        PARTITIONS * (PARTITION_REGISTERS // registers_of_warp) // num_warps,
        SHARED_BYTES[arch] // (128 * ceil((shared_bytes + 1024) / 128)),
        MAX_WARPS // num_warps,
        MAX_PROGRAMS,
        ceil(num_programs / PROCESSORS[arch]),
    )
    return resident * num_warps / MAX_WARPS
