"""The plan held against published figures: `python -m benchmarks.plan [--json] [ROW ...]`, ten minutes on one core.

Every row of other systems that can be modelled goes through the recorder and the cost model that `logtrain.plan` uses,
in the configuration it was published for, with the constants of the GPU it ran on. Nothing is adjusted to the figures.
"""

import argparse
import json
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch

from benchmarks.peer_models import FusedLlama, Mpt, TransformersLlama
from benchmarks.peers import Setting, trace_peer
from logtrain.planning.cost import Workload
from logtrain.planning.gpu import read_gpu
from logtrain.planning.timeline import breakdown, simulate

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Row:
    """A system, and what was published of it."""

    system: str
    source: str
    tokens_per_second: float
    """published, for one GPU"""
    memory_gib: float | None = None
    """published, for one GPU"""
    setting: Setting
    gpu: str = "h100-sxm"
    length: int = 0
    """tokens that attend to one another; 0: the whole row"""
    kernel: str = "fa2"
    """of attention"""
    by_copy_engines: tuple[str, ...] = ()
    """kinds of collectives that copy engines run"""
    note: str = ""


LLAMA = Setting(
    model=TransformersLlama, rows=2, seq_len=8192, accumulation=1, recompute="every second product"
)  # torchtitan's default


def mpt(hidden: int, heads: int, **changes) -> Setting:
    """An MPT of 32 layers; `changes`: the other fields of its Setting."""
    return Setting(model=lambda: Mpt(hidden, heads, 32), vocab_size=Mpt.VOCABULARY, **changes)


TITAN = "pytorch/torchtitan benchmarks/llama3_h100_202412_torchtitan.md"
FOUNDRY = "mosaicml/llm-foundry scripts/train/benchmarking/README.md"
OLD = "attention by FlashAttention-1 in Triton (its submit_benchmarks.py), taken as FlashAttention-2: an upper bound"
ROWS = {
    "hosted": Row(
        system="hosted service, ZeRO-3, Liger, full recomputation",
        source="fpt-corp/ai-studio tutorials",
        tokens_per_second=7270,
        memory_gib=54.0,
        setting=Setting(
            model=lambda: TransformersLlama(fused_head=True),
            rows=8,
            seq_len=8192,
            accumulation=2,
            recompute="full",
            fusion="liger",
            reduce_dtype=torch.bfloat16,
            head_chunk=2**29,
        ),
        note="DeepSpeed as FSDP2; its memory may be GB",
    ),
    "nemo": Row(
        system="NeMo 25.04, distributed optimizer, CP2",
        source="NVIDIA/dgxc-benchmarking v25.04.02",
        tokens_per_second=10_682,
        setting=Setting(model=FusedLlama, rows=1, seq_len=4096, accumulation=32, sharded=False),
        length=8192,
        kernel="fa3",
        note="half a row a GPU; the exchange of keys and values between the two is taken as hidden",
    ),
    "nemo-lora": Row(
        system="NeMo LoRA, packed",
        source="NVIDIA/dgxc-benchmarking v25.02.02",
        tokens_per_second=17_809,
        setting=Setting(model=lambda: FusedLlama(lora_rank=16), rows=1, seq_len=4096, accumulation=4, sharded=False),
        length=4096,
        kernel="fa3",
    ),
    "titan": Row(
        system="torchtitan 12/2024, eager",
        source=TITAN,
        tokens_per_second=5762,
        memory_gib=82.4,
        setting=LLAMA,
        gpu="h100-sxm-500w",
    ),
    "titan-compile": Row(
        system="torchtitan 12/2024, compile",
        source=TITAN,
        tokens_per_second=6667,
        memory_gib=77.0,
        setting=replace(LLAMA, fusion="compile"),
        gpu="h100-sxm-500w",
    ),
    "titan-128": Row(
        system="torchtitan 12/2024, eager, 128 GPUs",
        source=TITAN,
        tokens_per_second=5605,
        memory_gib=67.0,
        setting=replace(LLAMA, gpus=128),
        gpu="h100-sxm-500w",
    ),
    "titan-128-compile": Row(
        system="torchtitan 12/2024, compile, 128 GPUs",
        source=TITAN,
        tokens_per_second=6514,
        memory_gib=62.0,
        setting=replace(LLAMA, fusion="compile", gpus=128),
        gpu="h100-sxm-500w",
    ),
    "inductor": Row(
        system="PyTorch Inductor + block bucketing",
        source="pytorch pull 179937",
        tokens_per_second=9369,
        memory_gib=56.75,
        setting=replace(LLAMA, seq_len=4096, fusion="compile"),
        note="recomputation is not stated; torchtitan's default",
    ),
    "inductor-copy": Row(
        system="PyTorch Inductor + block bucketing, copy engines",
        source="pytorch pull 179937",
        tokens_per_second=9593,
        memory_gib=57.96,
        setting=replace(LLAMA, seq_len=4096, fusion="compile"),
        by_copy_engines=("all_gather", "reduce_scatter"),
        note="recomputation is not stated; torchtitan's default",
    ),
    "mpt-7b": Row(
        system="llm-foundry MPT-7B, 2k",
        source=FOUNDRY,
        tokens_per_second=10_643,
        setting=mpt(4096, 32, rows=6, seq_len=2048, accumulation=1),
        note=OLD,
    ),
    "mpt-7b-8k": Row(
        system="llm-foundry MPT-7B, 8k, full recomputation",
        source=FOUNDRY,
        tokens_per_second=6935,
        setting=mpt(4096, 32, rows=8, seq_len=8192, accumulation=2, recompute="full"),
        note=OLD,
    ),
    "mpt-3b": Row(
        system="llm-foundry MPT-3B, 4k",
        source=FOUNDRY,
        tokens_per_second=20_964,
        setting=mpt(2560, 20, rows=5, seq_len=4096, accumulation=6),
        note=OLD,
    ),
}
NO_FP8 = "the cost model has no fp8 products yet"
NOT_MODELLED = {
    "Megatron-Bridge 25.11, fp8": NO_FP8,
    "torchtitan 12/2024, compile + float8": NO_FP8,
    "NeMo LoRA, fp8": NO_FP8,
    "hosted service, SFT LoRA": "rows are padded to the longest chat of a batch, and the lengths are not published",
}


@dataclass(frozen=True)
class Comparison:
    """A row's published figures beside the predicted ones, on one GPU."""

    system: str
    published: float
    """tokens a second"""
    predicted: float
    """tokens a second"""
    error: float
    """of the speed, as a share of the published one"""
    published_gib: float | None
    allocated_gib: float
    reserved_gib: float
    memory_error: float | None
    """of the reserved memory, as a share of the published one"""
    step_seconds_by: dict[str, float]
    source: str
    note: str


def compare(row: Row) -> Comparison:
    """Trace and cost a row's step. Takes some ten seconds."""
    trace, gpu = trace_peer(row.setting), read_gpu(row.gpu)
    workload = Workload(np.array([row.length or row.setting.seq_len]), row.kernel, row.by_copy_engines)
    step_seconds, seconds_by = breakdown(trace.ops, trace.repeats, simulate(trace.ops, gpu, workload))
    speed = trace.tokens * trace.accumulation / step_seconds
    return Comparison(
        system=row.system,
        published=row.tokens_per_second,
        predicted=speed,
        error=speed / row.tokens_per_second - 1,
        published_gib=row.memory_gib,
        allocated_gib=trace.peak.total / GIB,
        reserved_gib=trace.peak.reserved / GIB,
        memory_error=trace.peak.reserved / GIB / row.memory_gib - 1 if row.memory_gib else None,
        step_seconds_by=seconds_by,
        source=row.source,
        note=row.note,
    )


HEADING = (
    f"{'':52} {'tokens/s/GPU':>19} {'':>7}  {'memory, GiB':>19}\n"
    f"{'':52} {'published':>9} {'predicted':>9} {'error':>7}  {'published':>9} {'reserved':>9} {'error':>7}"
)


def table_line(row: Comparison) -> str:
    """A row of the table below HEADING."""
    memory = f"{'-':>9} {row.reserved_gib:9.1f} {'':>7}"
    if row.published_gib:
        memory = f"{row.published_gib:9.1f} {row.reserved_gib:9.1f} {row.memory_error:+7.1%}"
    return f"{row.system:52} {row.published:9,.0f} {row.predicted:9,.0f} {row.error:+7.1%}  {memory}"


def summary(rows: list[Comparison], of: str) -> str:
    """The median and the worst error of some rows; `of` names them."""
    errors = [abs(row.error) for row in rows]
    memory = [abs(row.memory_error) for row in rows if row.memory_error is not None]
    text = f"{of}: {len(errors)} rows, median error {statistics.median(errors):.1%}, worst {max(errors):.1%}"
    return text + (f"; memory: median {statistics.median(memory):.1%}, worst {max(memory):.1%}" if memory else "")


def closing_lines(rows: list[Comparison]) -> Iterator[str]:
    """What stands below the table: errors over all rows, what is not in it, and notes."""
    yield summary(rows, "all")
    exact = [row for row in rows if row.note != OLD]
    if exact:
        yield summary(exact, "without the rows that are upper bounds")
    for system, why in NOT_MODELLED.items():
        yield f"not modelled: {system}: {why}"
    for note in sorted({row.note for row in rows if row.note}):
        yield f"note: {', '.join(row.system for row in rows if row.note == note)}: {note}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", choices=[*ROWS, []], help="names of rows; none: all")
    parser.add_argument("--json", action="store_true", help="print one object a line instead of the table")
    arguments = parser.parse_args()
    if not arguments.json:
        print(HEADING)
    compared = []
    for name in arguments.rows or ROWS:
        compared.append(compare(ROWS[name]))
        print(json.dumps(asdict(compared[-1])) if arguments.json else table_line(compared[-1]), flush=True)
    if not arguments.json:
        print("", *closing_lines(compared), sep="\n")


if __name__ == "__main__":
    main()
