"""The plan held against published figures: `python -m benchmarks.plan [--json] [ROW ...]`, ten minutes on one core.

Every row of other systems that can be modelled goes through the recorder and the cost model that `logtrain.plan` uses,
in the configuration it was published for, with the constants of the GPU it ran on. Nothing is adjusted to the figures.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.peers import FusedLlama, Mpt, Setting, TransformersLlama, trace_peer
from logtrain.planning.cost import Gpu, Workload, breakdown, simulate

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Row:
    system: str
    source: str
    tokens_per_second: float  # a GPU, published
    memory_gib: float | None = None  # published
    setting: Setting
    gpu: str = "h100-sxm"
    length: int = 0  # tokens that attend to one another; 0: the whole row
    kernel: str = "fa2"
    quiet: tuple[str, ...] = ()
    note: str = ""


def llama(**changes) -> Setting:
    return Setting(**{"model": TransformersLlama, "rows": 2, "seq_len": 8192, "accumulation": 1, **changes})


def mpt(hidden: int, heads: int, **changes) -> Setting:
    return Setting(model=lambda: Mpt(hidden, heads, 32), vocab_size=Mpt.VOCABULARY, **changes)


TITAN = "pytorch/torchtitan benchmarks/llama3_h100_202412_torchtitan.md"
FOUNDRY = "mosaicml/llm-foundry scripts/train/benchmarking/README.md"
SELECTIVE = {"recompute": "every second product"}
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
        setting=llama(**SELECTIVE),
        gpu="h100-sxm-500w",
    ),
    "titan-compile": Row(
        system="torchtitan 12/2024, compile",
        source=TITAN,
        tokens_per_second=6667,
        memory_gib=77.0,
        setting=llama(**SELECTIVE, fusion="compile"),
        gpu="h100-sxm-500w",
    ),
    "titan-128": Row(
        system="torchtitan 12/2024, eager, 128 GPUs",
        source=TITAN,
        tokens_per_second=5605,
        memory_gib=67.0,
        setting=llama(**SELECTIVE, gpus=128),
        gpu="h100-sxm-500w",
    ),
    "titan-128-compile": Row(
        system="torchtitan 12/2024, compile, 128 GPUs",
        source=TITAN,
        tokens_per_second=6514,
        memory_gib=62.0,
        setting=llama(**SELECTIVE, fusion="compile", gpus=128),
        gpu="h100-sxm-500w",
    ),
    "inductor": Row(
        system="PyTorch Inductor + block bucketing",
        source="pytorch pull 179937",
        tokens_per_second=9369,
        memory_gib=56.75,
        setting=llama(**SELECTIVE, seq_len=4096, fusion="compile"),
        note="recomputation is not stated; torchtitan's default",
    ),
    "inductor-copy": Row(
        system="the same, copy-engine collectives",
        source="pytorch pull 179937",
        tokens_per_second=9593,
        memory_gib=57.96,
        setting=llama(**SELECTIVE, seq_len=4096, fusion="compile"),
        quiet=("all_gather", "reduce_scatter"),
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
NOT_MODELLED = {
    "Megatron-Bridge 25.11, fp8": "the cost model has no fp8 products yet",
    "torchtitan 12/2024, compile + float8": "the same",
    "NeMo LoRA, fp8": "the same",
    "hosted service, SFT LoRA": "rows are padded to the longest chat of a batch, and the lengths are not published",
}


def predict(row: Row) -> dict:
    trace, gpu = trace_peer(row.setting), Gpu(row.gpu)
    workload = Workload(np.array([row.length or row.setting.seq_len]), row.kernel, row.quiet)
    step_seconds, parts = breakdown(trace.ops, trace.repeats, simulate(trace.ops, gpu, workload))
    speed = trace.tokens * trace.accumulation / step_seconds
    return {
        "system": row.system,
        "published": row.tokens_per_second,
        "predicted": speed,
        "error": speed / row.tokens_per_second - 1,
        "published_gib": row.memory_gib,
        "allocated_gib": trace.peak.total / GIB,
        "reserved_gib": trace.peak.reserved / GIB,
        "memory_error": trace.peak.reserved / GIB / row.memory_gib - 1 if row.memory_gib else None,
        "step_seconds_by": parts,
        "source": row.source,
        "note": row.note,
    }


def line(found: dict) -> str:
    memory = f"{'-':>9} {found['reserved_gib']:9.1f} {'':>7}"
    if found["published_gib"]:
        memory = f"{found['published_gib']:9.1f} {found['reserved_gib']:9.1f} {found['memory_error']:+7.1%}"
    return (
        f"{found['system']:52} {found['published']:9,.0f} {found['predicted']:9,.0f} {found['error']:+7.1%}  {memory}"
    )


def summary(found: list[dict], of: str, choose: Callable[[dict], bool]) -> str:
    errors = [abs(row["error"]) for row in found if choose(row)]
    memory = [abs(row["memory_error"]) for row in found if choose(row) and row["memory_error"] is not None]
    text = f"{of}: {len(errors)} rows, median error {statistics.median(errors):.1%}, worst {max(errors):.1%}"
    return text + (f"; memory: median {statistics.median(memory):.1%}, worst {max(memory):.1%}" if memory else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", choices=[*ROWS, []], help="some rows (all: none)")
    parser.add_argument("--json", action="store_true", help="one object a line instead of the table")
    arguments = parser.parse_args()
    found = []
    if not arguments.json:
        print(f"{'':52} {'tokens/s/GPU':>19} {'':>7}  {'memory, GiB':>19}")
        print(f"{'':52} {'published':>9} {'predicted':>9} {'error':>7}  {'published':>9} {'reserved':>9} {'error':>7}")
    for name in arguments.rows or ROWS:
        found.append(predict(ROWS[name]))
        print(json.dumps(found[-1]) if arguments.json else line(found[-1]), flush=True)
    if not arguments.json:
        print()
        print(summary(found, "all", lambda row: True))
        if any(row["note"] != OLD for row in found):
            print(summary(found, "without the rows that are upper bounds", lambda row: row["note"] != OLD))
        for system, why in NOT_MODELLED.items():
            print(f"not modelled: {system}: {why}")
        for text in sorted({row["note"] for row in found if row["note"]}):
            print(f"note: {', '.join(row['system'] for row in found if row['note'] == text)}: {text}")


if __name__ == "__main__":
    main()
