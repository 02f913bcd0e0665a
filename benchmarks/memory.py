"""Predicted GPU memory of a training step of Llama-3.1-8B on 8 ranks: `python -m benchmarks.memory [--json]`.

A prediction, for no GPU is needed: the real model, sharded by FSDP2 over a pretended world of 8, runs forward and
backward on tensors without contents, and PyTorch's tracker counts what is alive. Traced at 2 and 4 blocks, which gives
the cost of a block and of the rest, and continued to 32. Added are the fp32 shards that an update needs: weights,
gradients and two moments, 16 bytes a parameter over 8 ranks. Fragmentation, NCCL's buffers and the CUDA context are not
counted, 2 GiB or more together. Attention is traced as one document a row.
"""

import argparse
import json

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore

from logtrain import model as llama
from logtrain.optim import OptimConfig, adamw
from logtrain.parallel import ParallelConfig, shard

RANKS, BLOCKS, TOKENS, GIB = 8, 32, 8192, 2**30
SHAPE = {
    "vocab_size": 128_256,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_heads": 32,
    "num_kv_heads": 8,
    "head_dim": 128,
    "norm_eps": 1e-5,
    "rope_theta": 500_000.0,
    "rope_scaling": None,
    "max_positions": 131_072,
    "tied": False,
}


def whole_row_attention(q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor, _cu_seqlens: Tensor, _max_seqlen: int) -> Tensor:
    """Keeps what FlashAttention keeps; fake tensors have no contents, so document bounds cannot be read."""
    q, k, v = (x.transpose(0, 1)[None] for x in (q_TNH, k_TKH, v_TKH))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)[0].transpose(0, 1)


def traced(num_layers: int, recompute: str, tokens: int) -> float:
    """Peak bytes of forward and backward beyond the sharded weights and gradients."""
    config = llama.LlamaConfig(num_layers=num_layers, **SHAPE)
    mesh = init_device_mesh("cpu", (RANKS,), mesh_dim_names=("shard",))
    with FakeTensorMode():
        with torch.device("meta"):
            model = llama.Llama(config)
        shard(model, mesh, ParallelConfig(), torch.bfloat16)
        model.to_empty(device="cpu")
        for block in model.blocks:
            block.recompute = recompute
        ids = torch.zeros(tokens, dtype=torch.long)
        inputs = (ids, ids, ids.int(), torch.zeros(2, dtype=torch.int32))
        tracker = FSDPMemTracker(model, adamw(model, OptimConfig()))
        tracker.track_inputs(inputs)
        with tracker:
            model(*inputs, tokens).backward()
        (peak,) = tracker.get_tracker_snapshot("peak").values()
    held = sum(size for kind, size in peak.items() if str(kind).split(".")[-1] in ("SHARDED_PARAM", "SHARDED_GRAD"))
    return peak["Total"] - held


def predict(recompute: str, rows: int) -> dict:
    two, four = (traced(blocks, recompute, rows * TOKENS) for blocks in (2, 4))
    block = (four - two) / 2
    states = 16 * llama.LlamaConfig(num_layers=BLOCKS, **SHAPE).num_parameters / RANKS
    return {
        "recompute": recompute,
        "rows_per_batch": rows,
        "block_gib": block / GIB,
        "rest_gib": (two - 2 * block) / GIB,
        "states_gib": states / GIB,
        "predicted_gib": (two + (BLOCKS - 2) * block + states) / GIB,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one object a line instead of the table")
    as_json = parser.parse_args().json
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=RANKS)
    llama.attention = whole_row_attention
    if not as_json:
        print("predicted GiB a GPU: Llama-3.1-8B, FSDP2 over 8 ranks, bf16, rows of 8,192, plain PyTorch operations")
        print(f"{'recompute':10} {'rows':>5} {'a block':>8} {'the rest':>9} {'states':>7} {'peak':>7}")
    for recompute in ("none", "selective", "full"):
        for rows in (1, 2):
            row = predict(recompute, rows)
            if as_json:
                print(json.dumps(row))
            else:
                print(
                    f"{recompute:10} {rows:5} {row['block_gib']:8.2f} {row['rest_gib']:9.2f} "
                    f"{row['states_gib']:7.2f} {row['predicted_gib']:7.1f}"
                )


if __name__ == "__main__":
    main()
