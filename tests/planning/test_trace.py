"""The recorded step is the step: its memory and collectives are those of real runs on two and on four ranks."""

import dataclasses
import json
import math
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from logtrain.core.batch import Batch
from logtrain.core.world import World, compute_dtype
from logtrain.cpt import CptConfig
from logtrain.data.config import LoaderConfig
from logtrain.data.loader import Step
from logtrain.model import llama
from logtrain.model.llama import LlamaConfig
from logtrain.model.weights import RandomWeights
from logtrain.planning.operation import Op
from logtrain.planning.trace import trace_step
from logtrain.training.config import ParallelConfig, TrainerConfig
from logtrain.training.optim import make_optimizer
from logtrain.training.optim_config import OptimConfig
from logtrain.training.sharding import build_model, make_mesh
from logtrain.training.step import TrainStep
from tests.support.ranks import Ranks

SHAPE = LlamaConfig(
    vocab_size=640,  # the logits are not what takes most: logsumexp on CPUs keeps a copy of them inside
    hidden_size=256,
    intermediate_size=512,
    num_layers=3,
    num_heads=8,
    num_kv_heads=2,
    head_dim=32,
    norm_eps=1e-5,
    rope_theta=10_000.0,
    rope_scaling=None,
    max_positions=4096,
    tied=False,
)
VARIANTS = {
    "none": {},
    "selective": {"recompute": "selective"},
    "full, two rows": {"recompute": "full", "loader": LoaderConfig(seq_len=1024, rows_per_step=4, rows_per_batch=2)},
    "no resharding": {"parallel": ParallelConfig(reshard_after_forward=False)},
    "four ranks": {"loader": LoaderConfig(seq_len=1024, rows_per_step=8)},
    "bfloat16": {"dtype": "bfloat16", "parallel": ParallelConfig(reduce_dtype="bfloat16")},
}


def config_of(variant: str) -> CptConfig:
    return CptConfig(
        **{
            "name": "test",
            "model": "",
            "data": "",
            "dtype": "float32",
            "loader": LoaderConfig(seq_len=1024, rows_per_step=6),
            **VARIANTS[variant],
        }
    )


def whole_rows(q_TNH, k_TKH, v_TKH, _cu_seqlens, max_seqlen):
    """Attention that reads no lengths: fake tensors have none."""
    q, k, v = (x.unflatten(0, (-1, max_seqlen)).transpose(1, 2) for x in (q_TNH, k_TKH, v_TKH))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2).flatten(0, 1)


class Calls(TorchDispatchMode):
    """Collectives, with the bytes of the larger side."""

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(issubclass(t, DTensor) for t in types):
            return NotImplemented
        if func.overloadpacket.__name__ in KINDS:
            sizes = [x.nbytes for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
            self.found[KINDS[func.overloadpacket.__name__], max(sizes)] += 1
        return func(*args, **kwargs or {})


KINDS = {"_allgather_base_": "all_gather", "_reduce_scatter_base_": "reduce_scatter", "all_reduce": "all_reduce"}


@patch.object(llama, "attention", lambda *args: whole_rows(*args))  # a rank lives on for other tests
def real_step(config: CptConfig) -> tuple[int, Counter]:
    """On a rank: the second of two real steps, of which the first has one micro-batch; -> (bytes that it held at most
    beyond those before it, as PyTorch's own profiler counted them; collectives with their bytes).
    """
    torch.set_num_threads(1)
    world = World()
    mesh = make_mesh("cpu", world.size, config.parallel)
    model = build_model(config, SHAPE, mesh, compute_dtype(world.device, config.dtype), RandomWeights(SHAPE, 0))
    train_step = TrainStep(model, make_optimizer(model, OptimConfig()), OptimConfig(), 1.0, 3, world)
    tokens = config.loader.seq_len * config.loader.rows_per_batch
    ids = torch.randint(SHAPE.vocab_size, (tokens,))
    positions, cu_seqlens = torch.arange(tokens, dtype=torch.int32), torch.tensor([0, tokens])
    batch = Batch(ids, ids, positions, cu_seqlens, config.loader.seq_len, seeds_T=ids)
    first = Step([batch], tokens=tokens, targets=tokens, attention_pairs=0)  # creates the optimizer's state
    step = Step([batch] * config.loader.accumulation(world.size), tokens=tokens, targets=tokens, attention_pairs=0)
    train_step(first, 0)
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile, Calls() as calls:
        train_step(step, 1)
    world.close()
    with tempfile.TemporaryDirectory() as folder:
        profile.export_chrome_trace(f"{folder}/trace.json")
        events = json.loads(Path(f"{folder}/trace.json").read_text())["traceEvents"]
    return most_held(events), calls.found


def most_held(events: list[dict]) -> int:
    """Largest sum of the allocations under way. Not in it: gloo's copies of what it sums, whose threads free them late,
    and what one of our operations takes and gives back, which a GPU's kernel has in registers.
    """
    gloo = spans(events, lambda name: name == "c10d::_reduce_scatter_base_")
    ours = spans(events, lambda name: name.startswith("logtrain::"))
    assert gloo
    assert ours
    changes = sorted((e["ts"], e["args"]["Addr"], e["args"]["Bytes"]) for e in events if e["name"] == "[memory]")
    held, most, sizes = 0, 0, {}
    for at, (when, address, size) in enumerate(changes):
        if size > 0 and not any(start <= when <= end for start, end in gloo):
            freed = next((then for then, other, more in changes[at + 1 :] if other == address and more < 0), math.inf)
            if not any(start <= when and freed <= end for start, end in ours):
                sizes[address] = size
                held += size
        elif size < 0:
            held -= sizes.pop(address, 0)
        most = max(most, held)
    return most


def spans(events: list[dict], is_meant: Callable[[str], bool]) -> list[tuple[float, float]]:
    """When operations of such names began and ended."""
    return [(e["ts"], e["ts"] + e["dur"]) for e in events if "dur" in e and is_meant(e["name"])]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.slow
def test_real_ranks(ranks: Ranks, monkeypatch, variant: str):
    """Peak memory within 3%, collectives exactly."""
    config, size = config_of(variant), 4 if variant == "four ranks" else 2
    (held, calls), *_ = ranks.run(size, real_step, config)
    monkeypatch.setattr(llama, "attention", whole_rows)
    trace = trace_step(config, SHAPE, size, on_gpu=False)
    found = Counter()
    for op in trace.ops:
        if op.kind in ("all_gather", "reduce_scatter", "all_reduce"):
            found[op.kind, max(op.read, op.written)] += trace.count(op)
    assert found == calls
    assert trace.peak.total - trace.bytes_between_steps == pytest.approx(held, rel=0.03)


def bytes_of(op: Op) -> int:
    return op.read + op.written


def test_a_teacher_takes_time_and_no_memory():
    """Of Llama-3's vocabulary, in whose chunks the logits are."""
    shape = dataclasses.replace(SHAPE, vocab_size=128_256, num_layers=1)
    plain, taught = (
        trace_step(CptConfig(name="test", model="", data="", trainer=TrainerConfig(replay_kl=share)), shape, 8)
        for share in (0.0, 1.0)
    )
    assert taught.syncs == []
    assert 0 < taught.peak.total - plain.peak.total < 0.001 * plain.peak.total
    flops, moved = ([trace.total(of) for trace in (plain, taught)] for of in (lambda op: op.flops, bytes_of))
    assert flops[0] == flops[1] > 0
    assert 1.2 * moved[0] < moved[1]
