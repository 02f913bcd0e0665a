"""The plan of a job in float8: its products are costed by a sourced factor, its gathers are bytes, or it is refused."""

from collections import Counter
from dataclasses import replace

import pytest

from logtrain.data.config import LoaderConfig
from logtrain.model.config import Float8Config
from logtrain.planning.config import PlanConfig
from logtrain.planning.cost import FLOAT8_PRODUCT, product_seconds
from logtrain.planning.gpu_file import read_gpu
from logtrain.planning.operation import COMPUTE
from logtrain.planning.prediction import make_plan
from logtrain.planning.shape import read_shape
from logtrain.planning.trace import trace_step
from logtrain.training.config import RunConfig
from tests.support.planning import op
from tests.support.precision import NEEDS_2_13

SHAPE = replace(read_shape("Llama-3.2-1B"), num_layers=2)
PLAIN = RunConfig(name="x", model="", data="", dtype="bfloat16", loader=LoaderConfig(seq_len=1024, rows_per_step=2))


def test_a_float8_product_is_faster_by_the_gpus_factor():
    gpu = read_gpu("h100-sxm")
    large = op("product", shape=(16384, 28672, 4096, 1))
    in_float8 = replace(large, name=FLOAT8_PRODUCT)
    assert product_seconds(large, gpu) == pytest.approx(gpu.float8 * product_seconds(in_float8, gpu))
    assert 1.5 < gpu.float8 < 2.1
    assert read_gpu("a100-80g").float8 == 0


@NEEDS_2_13
@pytest.mark.parametrize("recipe", ["tensorwise", "rowwise"])
def test_all_products_of_the_blocks_are_in_float8_and_gathered_in_bytes(recipe):
    plain = trace_step(PLAIN, SHAPE, 2)
    config = replace(PLAIN, precision="fp8", fp8=Float8Config(recipe=recipe), dtype="bfloat16")
    trace = trace_step(config, SHAPE, 2)
    products = [o for o in trace.ops if o.name == FLOAT8_PRODUCT]
    assert len(products) == 2 * 4 * 3  # blocks, matrices; y, dx and dW
    assert sum(o.flops for o in trace.ops if o.kind == "product") == sum(
        o.flops for o in plain.ops if o.kind == "product"
    )
    block = 2048 * (3072 + 2048 + 3 * 8192)  # weights: q, k and v; o; gate, up and down
    gathered = [sum(o.written for o in t.ops if o.kind == "all_gather") for t in (plain, trace)]
    assert gathered[0] - gathered[1] == pytest.approx(3 * block, rel=0.01)  # forwards, and the first one's backward
    assert not trace.syncs
    assert trace.bytes_between_steps == pytest.approx(plain.bytes_between_steps, rel=1e-3)
    assert trace.peak.total < plain.peak.total + 2**16  # the peak is at the head, and scales are small


@NEEDS_2_13
@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_a_forward_casts_only_what_this_pass_needs(recompute):
    """x as it lies where it is multiplied, transposed where the backward comes next; a kept look is not done again."""
    config = replace(PLAIN, precision="fp8", dtype="bfloat16", recompute=recompute)
    ops = [o for o in trace_step(config, SHAPE, 2).ops if o.stream == COMPUTE]  # on others shards are cast
    names = Counter(o.name for o in ops)
    T, x, dy = 1024, 2048 + 2048 + 2048 + 8192, 3072 + 2048 + 2 * 8192 + 2048  # operands' elements of a token and block
    ways = {"none": (2, 0), "selective": (1, 1), "full": (1, 2)}[recompute]
    written = {
        phase: sum(o.written - 4 for o in ops if o.name.endswith("_pair") and o.phase == phase)
        for phase in ("forward", "backward")
    }
    assert written == {"forward": 2 * T * ways[0] * x, "backward": 2 * T * (ways[1] * x + 2 * dy)}
    again = recompute == "full"
    assert (names["swiglu_largest"], names["swiglu_backward_largest"]) == (2 + 2 * again, 2)
    assert names["float8_largest"] == 2 * (1 + 2) + 2 * again  # x of o; dy of o, of down
    assert names["rope_backward_largest"] == 2


@NEEDS_2_13
def test_what_is_not_known_is_said():
    flags = {"model": "Llama-3.2-1B", "precision": "fp8", "loader": LoaderConfig(seq_len=1000), "documents": 100}
    with pytest.raises(ValueError, match=r"^precision = fp8: the rate of float8 products on A100.* is not known"):
        make_plan(PlanConfig(**flags, gpu="a100-80g"))
    with pytest.raises(ValueError, match=r"^precision = fp8: tokens of a micro-batch: 1000 is no multiple of 16"):
        make_plan(PlanConfig(**flags))
