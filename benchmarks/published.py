"""Published figures of other systems, each with the configuration and the GPU that it was published for: the rows that
benchmarks/plan.py holds the plan against. The rows of HELD_OUT were fixed before their errors were looked at.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch

from benchmarks.peer_models import LLAMA_7B, FusedLlama, Mpt, TransformersLlama
from benchmarks.peers import Setting
from logtrain.planning.cost import Workload
from logtrain.planning.gpu import Gpu, Range, scaled
from logtrain.planning.gpu_file import read_gpu
from logtrain.planning.shape import read_shape

# Seconds that the host takes to launch a kernel of another system, as a share of ours: wrappers cost 4 us an operation,
# and autograd functions 25 us forth and back (meta-pytorch/attention-gym pull 302).
HOST, HOST_RANGE = 1.5, Range(0.6, 2.0)
# FlashAttention-1 in Triton: FlashAttention-2 is 1.3 to 2.5 times as fast (arXiv:2307.08691).
FA1, FA1_RANGE = 0.55, Range(0.73, 1.4)


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
    """of attention; fa1 is FlashAttention-1 in Triton"""
    hbm2e: bool = False
    """whether its memory is that of h100-sxm-500w.toml"""
    by_copy_engines: tuple[str, ...] = ()
    """kinds of collectives that copy engines run"""
    note: str = ""

    @property
    def costs(self) -> Gpu:
        """The GPU, with what is particular to the row."""
        gpu = read_gpu(self.gpu)
        if self.hbm2e:
            other = read_gpu("h100-sxm-500w")
            gpu = replace(gpu, bandwidth=other.bandwidth, compiled_bandwidth=other.compiled_bandwidth)
        ranges = {**gpu.ranges, "host": HOST_RANGE}
        if self.kernel == "fa1":
            gpu = replace(gpu, attention={"fa1": scaled(gpu.attention["fa2"], FA1)})
            ranges["attention"] = FA1_RANGE
        return replace(gpu, host=HOST * gpu.host, ranges=ranges)

    @property
    def workload(self) -> Workload:
        """What the row's trace does not have. All ranks have equal rows."""
        setting, length = self.setting, self.length or self.setting.seq_len
        return Workload(np.array([length]), self.kernel, self.by_copy_engines, ranks=setting.gpus)


LLAMA = Setting(
    model=TransformersLlama, rows=2, seq_len=8192, accumulation=1, recompute="every second product"
)  # torchtitan's default


def mpt(hidden: int, heads: int, **changes) -> Setting:
    """An MPT of 32 layers; `changes`: the other fields of its Setting."""
    return Setting(model=lambda: Mpt(hidden, heads, 32), vocab_size=Mpt.VOCABULARY, **changes)


TITAN = "pytorch/torchtitan benchmarks/llama3_h100_202412_torchtitan.md"
FOUNDRY = "mosaicml/llm-foundry scripts/train/benchmarking/README.md"
OLD = "attention by FlashAttention-1 in Triton (its submit_benchmarks.py)"
TITAN_2025 = "torchtitan commit d9bdfbb20"
PARTS = "95 GiB parts, so memory as in the table of 2024; the power limit is not published, 700 W are assumed"
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
        note="its packed documents may not see each other; taken as whole rows, which is a lower bound",
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
        kernel="fa1",
        note=OLD,
    ),
    "mpt-7b-8k": Row(
        system="llm-foundry MPT-7B, 8k, full recomputation",
        source=FOUNDRY,
        tokens_per_second=6935,
        setting=mpt(4096, 32, rows=8, seq_len=8192, accumulation=2, recompute="full"),
        kernel="fa1",
        note=OLD,
    ),
    "mpt-3b": Row(
        system="llm-foundry MPT-3B, 4k",
        source=FOUNDRY,
        tokens_per_second=20_964,
        setting=mpt(2560, 20, rows=5, seq_len=4096, accumulation=6),
        kernel="fa1",
        note=OLD,
    ),
    "mpt-7b-4k": Row(
        system="llm-foundry MPT-7B, 4k, full recomputation",
        source=FOUNDRY,
        tokens_per_second=8611,
        setting=mpt(4096, 32, rows=16, seq_len=4096, accumulation=2, recompute="full"),
        kernel="fa1",
        note=OLD,
    ),
    "titan-2025": Row(
        system="torchtitan 11/2025, eager",
        source=TITAN_2025,
        tokens_per_second=7380,
        memory_gib=47.8,
        setting=replace(LLAMA, rows=1),
        hbm2e=True,
        note=PARTS,
    ),
    "titan-2025-64": Row(
        system="torchtitan 11/2025, eager, 64 GPUs",
        source=TITAN_2025,
        tokens_per_second=5097,
        memory_gib=31.4,
        setting=replace(LLAMA, rows=1, gpus=64),
        hbm2e=True,
        note=PARTS,
    ),
    "lingua": Row(
        system="Meta lingua, a user's run, Llama-7B",
        source="facebookresearch/lingua issue 56",
        tokens_per_second=9080,
        setting=Setting(
            model=lambda: TransformersLlama(LLAMA_7B), rows=2, seq_len=4096, accumulation=1, fusion="compile"
        ),
        note="its configuration compiles; 672 W taken as 700",
    ),
    "nanotron": Row(
        system="nanotron, Llama-3.2-1B",
        source="marin-community/marin issue 1826",
        tokens_per_second=42_000,
        setting=Setting(
            model=lambda: TransformersLlama(read_shape("Llama-3.2-1B")),
            rows=3,
            seq_len=4096,
            accumulation=16,
            sharded=False,
        ),
        note="micro-batch and accumulation are not stated; those of the playbook's configuration are taken",
    ),
}
HELD_OUT = ("titan-2025", "titan-2025-64", "lingua", "mpt-7b-4k", "nanotron")
NO_FP8 = "its casts to float8, by a compiler or by Transformer Engine, are not traced"
NOT_MODELLED = {
    "Megatron-Bridge 25.11, fp8": NO_FP8,
    "torchtitan 12/2024, compile + float8": NO_FP8,
    "NeMo LoRA, fp8": NO_FP8,
    "NeMo 24.12, Nemotron 8B, 64 GPUs, fp8": NO_FP8,
    "Megatron-Bridge 26.04, Llama-3 70B, 64 GPUs, fp8": NO_FP8 + ", and tensor and pipeline parallelism are not traced",
    "hosted service, SFT LoRA": "rows are padded to the longest chat of a batch, and the lengths are not published",
}
