"""One rank of eight on a device of its own: what it holds, gathers and computes is what the whole job's rank does."""

import gzip
import json
from dataclasses import replace

import pytest
import torch

from benchmarks.gpu_check.parts import TINY
from benchmarks.one_rank.__main__ import run
from benchmarks.one_rank.categories import IDLE, seconds_by_category
from benchmarks.one_rank.links import LATENCY, Links, Scatter
from benchmarks.one_rank.rank import OneRankConfig, Rank
from logtrain.data.config import LoaderConfig
from logtrain.planning.prediction import collectives
from logtrain.planning.shape import read_shape
from logtrain.planning.trace import pretended_world, trace_step

CPU = torch.device("cpu")
FIRST_LOSSES = (6.250704, 6.253784)  # nats, of torch 2.13 and of 2.11


@pytest.fixture
def config(tmp_path) -> OneRankConfig:
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    loader = LoaderConfig(seq_len=64, rows_per_step=48, rows_per_batch=2)
    return OneRankConfig(model=str(tmp_path), loader=loader, dtype="float32", recompute="selective")


def test_a_rank_of_eight_gathers_and_scatters_what_the_plan_counts(config):
    with pretended_world(8):
        rank = Rank(config, CPU)
        first, second = rank.steps(config.loader, 2)
        losses = [run(rank, first, 0)]
        rank.links.calls, rank.links.bytes = dict.fromkeys(rank.links.calls, 0), dict.fromkeys(rank.links.bytes, 0)
        losses.append(run(rank, second, 1))
    assert rank.held_parameters() == 1 / 8
    assert losses == pytest.approx(FIRST_LOSSES, abs=1e-5)
    if torch.__version__ >= "2.13":  # what a plan needs
        planned = collectives(trace_step(config, read_shape(config.model), 8))
        for kind in ("all_gather", "reduce_scatter"):
            assert rank.links.calls[kind] == planned[kind]["count"]
            assert rank.links.bytes[kind] == planned[kind]["bytes"]


def test_every_row_of_a_micro_batch_is_another_of_the_ranks(config):
    """The loader packs for all ranks, of which this one is the first, and pads cu_seqlens to one length."""
    with pretended_world(8):
        (step,) = Rank(config, CPU).steps(config.loader, 1)
    assert [len(batch.tokens_T) for batch in step.batches] == [2 * 64] * 3
    assert len({len(batch.cu_seqlens) for batch in step.batches}) == 1
    assert step.tokens <= 48 * 64
    assert step.targets > 8 * sum(int((batch.labels_T >= 0).sum()) for batch in step.batches) * 0.9


def test_links_take_the_time_of_their_bytes_and_none_at_0():
    links = Links(8, CPU, 350e9)
    assert links.seconds(10**9) == pytest.approx(LATENCY + 7 / 8 / 350)
    links.bandwidth = 0.0
    assert links.seconds(10**9) == 0.0


def test_what_is_scattered_is_the_average_of_ranks_that_all_send_the_same():
    links, parts = Links(4, CPU), torch.arange(12.0)
    out = torch.empty(3)
    Scatter(links)(out, parts, None, torch.distributed.ReduceOp.AVG)
    assert out.tolist() == [0.0, 1.0, 2.0]
    assert (links.calls["reduce_scatter"], links.bytes["reduce_scatter"]) == (1, 48)
    with pytest.raises(AssertionError):
        Scatter(links)(out, parts, None, torch.distributed.ReduceOp.SUM)


def test_a_recipe_of_replicas_holds_the_whole_model_and_gathers_nothing(config):
    replicas = replace(config, ranks=4, parallel=replace(config.parallel, shard_ranks=1))
    with pretended_world(4):
        rank = Rank(replicas, CPU)
        run(rank, rank.steps(config.loader, 1)[0], 0)
    assert rank.held_parameters() == 1.0
    assert rank.links.calls == {"all_gather": 0, "reduce_scatter": 0}


def kernel(name: str, start: int, microseconds: int, launcher: int, stream: int = 7) -> dict:
    arguments = {"External id": launcher, "stream": stream}
    return {"ph": "X", "cat": "kernel", "name": name, "ts": start, "dur": microseconds, "args": arguments}


def operation(name: str, number: int, at: int, *shapes: list) -> dict:
    arguments = {"External id": number, "Input Dims": list(shapes)}
    return {"ph": "X", "cat": "cpu_op", "name": name, "ts": at, "dur": 1, "tid": 1, "args": arguments}


@pytest.mark.parametrize("zipped", [True, False])
def test_a_kernels_time_goes_to_the_category_of_what_launched_it(zipped, tmp_path):
    region = {"ph": "X", "cat": "user_annotation", "name": "FSDP::pre_forward (blocks.0)", "ts": 50, "dur": 9, "tid": 1}
    events = [
        operation("aten::mm", 1, 1, [128, 64], [64, 96]),
        operation("aten::mm", 2, 2, [128, 64], [64, 512]),
        operation("logtrain::softmax_gradient", 3, 3, [128, 512], [128]),
        operation("aten::_foreach_norm", 4, 4, [[64, 512], [96]]),
        operation("aten::_fused_adamw_", 5, 5, [[64, 512]]),
        operation("torch_attn::_varlen_attn", 6, 6, [128, 4, 16]),
        operation("logtrain::add_rms_norm", 7, 7, [128, 64]),
        operation("fsdp::split_with_sizes_copy", 8, 8, [4096]),
        operation("aten::copy_", 9, 55, [4096]),
        operation("aten::copy_", 10, 70, [4096]),
        region,
        {"ph": "i", "cat": "kernel", "name": "an instant"},
        kernel("nvjet_gemm", 100, 40, 1),
        kernel("nvjet_gemm", 140, 20, 2),
        kernel("softmax_gradient_kernel", 160, 10, 3),
        kernel("multi_tensor", 170, 3, 4),
        kernel("adamw", 173, 7, 5),
        kernel("flash_fwd_kernel", 180, 30, 6),
        kernel("add_rms_norm_kernel", 230, 5, 7),  # 20 after the one before has ended
        kernel("split", 235, 4, 8),
        kernel("copy", 239, 2, 9),
        kernel("copy", 241, 6, 10),
        kernel("wait_kernel", 0, 10_000, 11, stream=20),  # longer than all others, but nobody computes there
        kernel("copy on the stream of collectives", 300, 50, 9, stream=20),
    ]
    path = tmp_path / ("trace.json.gz" if zipped else "trace.json")
    with gzip.open(path, "wt") if zipped else open(path, "w") as file:
        json.dump({"traceEvents": events}, file)
    expected = {
        "gemm": 40,
        "head": 30,
        "optimizer": 10,
        "attention": 30,
        "elementwise": 11,
        "sharding copies": 6,
        IDLE: 20,
    }
    assert {name: round(1e6 * s) for name, s in seconds_by_category(path, 512).items()} == expected


def test_a_trace_without_kernels_has_no_categories(tmp_path):
    (tmp_path / "trace.json").write_text(json.dumps({"traceEvents": [operation("aten::mm", 1, 1)]}))
    assert seconds_by_category(tmp_path / "trace.json", 512) == {}
