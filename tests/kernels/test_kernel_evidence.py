"""The evidence about the kernels, as it is shown, holds what is asked of them; and its instruments measure right."""

import json
import os
import subprocess
import sys

import pytest
import torch

from tests.support import ROOT

pytestmark = pytest.mark.slow

pytest.importorskip("liger_kernel", reason="what the kernels are compared with")

ROPE_TABLES = 2  # cos and sin of one token are 64 numbers: too few for 16 bytes a thread, and 2% of the bytes
NORM_SCALES = 2  # a program reads 128, 4 bytes each, for the norms of 64 columns: 1% of the bytes
SEEDS = 8  # of a program's 64 tokens, 8 bytes each; and where there are 16 ranks, parts of h and dA: 1% of the bytes


def python(*arguments: str, **environment: str) -> str:
    """What a process of its own prints, because Triton decides at import whether it compiles or interprets."""
    inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment = inherited | {"OMP_NUM_THREADS": "1"} | environment
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def evidence(*arguments: str) -> list[dict]:
    return [json.loads(line) for line in python("-m", "benchmarks.kernels", "--json", *arguments).splitlines()]


@pytest.fixture(scope="module")
def binaries() -> list[dict]:
    return evidence("--compile", "--arch", "90", "--libraries", "logtrain")


@pytest.fixture(scope="module")
def traffic() -> dict[tuple[str, str, str], dict]:
    rows = evidence("--traffic", "--models", "3B")  # the one whose width is no power of two
    return {(row["library"], row["op"], row["shape"]): row for row in rows}


def test_every_operation_is_compiled_at_every_size_and_spills_nothing(binaries):
    operations = {row["op"] for row in binaries}
    assert {"rms_norm", "add_rms_norm_backward", "rope_backward", "swiglu", "softmax_gradient"} <= operations
    assert {"dropped_linear_qkv", "dropped_linear_down_backward"} <= operations
    assert {"float8_pair", "rms_norm_pair", "swiglu_pair", "swiglu_backward_pair"} <= operations
    assert {(row["op"], row["shape"]) for row in binaries} == {
        (operation, model) for operation in operations for model in ("8B", "70B", "1B", "3B")
    }
    assert [row for row in binaries if row["spill_bytes"]] == []
    assert all(16 <= row["registers"] <= 255 for row in binaries)


def test_every_access_to_bulk_data_is_16_bytes_wide(binaries):
    for row in binaries:
        assert row["accesses_16"] > 0
        allowed = {"rope": ROPE_TABLES, "dropped_linear": SEEDS, "rms_norm_pair": NORM_SCALES}
        assert row["accesses_narrow"] <= max([n for op, n in allowed.items() if op in row["op"]], default=0), row


def test_every_kernel_addresses_tensors_of_more_than_2_to_the_31_elements(binaries):
    assert [row for row in binaries if not row["offsets_64"]] == []


def test_the_mask_hides_behind_the_loads(binaries):
    """At 2.9 TB/s each of 132 processors of 1.7 GHz gets 6.5 elements of bf16 a clock, or gets and gives half as many.
    It can issue 128 instructions in one, half of them to the units of logic.
    """
    seen = 0
    for row in (row for row in binaries if row["op"].startswith("dropped_linear")):
        elements = 64 * (64 if "backward" in row["op"] else 128) / (32 * row["num_warps"])  # of a thread and iteration
        a_clock = 2.9e12 / (4 if "backward" in row["op"] else 2) / 132 / 1.7e9
        assert 20 < row["loop_logic"] < row["loop"]
        assert row["loop"] / elements * a_clock < 0.7 * 128, row
        assert row["loop_logic"] / elements * a_clock < 0.75 * 64, row
        assert row["programs"] >= 128  # of 132 processors
        assert row["shared_bytes"] >= 32 * 1024  # tiles on their way
        seen += 1
    assert seen == 4 * 4


def test_traffic_is_near_the_least_possible(traffic):
    """But softmax_gradient has two reads and a write against one of each, and some sums of dropped_linear's gradients
    are made in parts.
    """
    for (library, operation, _), row in traffic.items():
        if library == "logtrain":
            limit = {"softmax_gradient": 1.501, "dropped_linear_qkv_backward": 1.08}.get(operation, 1.05)
            assert 1 <= row["ratio"] <= limit, row


def test_traffic_is_at_most_ligers(traffic):
    for (library, operation, model), row in traffic.items():
        ours_alone = operation.startswith(("dropped_linear", "float8")) or operation.endswith(("_largest", "_pair"))
        if library == "logtrain" and not ours_alone:
            assert row["bytes_moved"] <= traffic["liger", operation, model]["bytes_moved"], row


INSTRUMENTS = ROOT / "tests/support/kernel_instruments.py"


@pytest.fixture(scope="module")
def counted() -> dict:
    return json.loads(python(str(INSTRUMENTS), "count", TRITON_INTERPRET="1", PYTHONPATH=str(ROOT)))


def test_bytes_of_a_known_kernel_are_counted(counted):
    """Half of the lanes are masked off, all programs share one value, and each reads its block twice."""
    programs, lanes, itemsize = 3, 32, 2
    assert counted["kernel"] == {
        "loaded": 2 * programs * lanes * itemsize + 4,  # the shared fp32 once
        "stored": programs * lanes * 4,
        "cached": (programs - 1) * 4,
        "around": 0,
    }


def test_bytes_of_pytorch_operations_are_counted(counted):
    """A tensor of [6, 10] in fp32 has 240 bytes."""
    known = {"sum": 240 + 40, "fill": 240, "copy": 2 * 240, "add in place": 3 * 240, "view": 0, "empty": 0}
    assert counted["around"] == known


def test_launches_are_recorded_as_the_kernel_gets_them():
    launch = json.loads(python(str(INSTRUMENTS), "record", PYTHONPATH=str(ROOT)))
    assert launch == {
        "kernel": "known_kernel",
        "grid": [3],
        "options": {"BLOCK": 1024, "num_warps": 2},
        "asked_for": ["meta", "cuda", 132],  # where the tensor is, where it says it is, processors of that device
        "num_warps": 2,
        "wide": 8,  # 16 numbers a thread: two loads of x, in bf16, and a store in fp32
        "narrow": 0,  # the shared value is one a program
    }


def test_plain_pytorch_and_the_references_compute_the_same():
    """What --time holds the kernels against is the same operation: outputs or gradients agree to bf16's rounding."""
    from benchmarks.kernels.attention import ATTENTION
    from benchmarks.kernels.head import head_and_loss
    from benchmarks.kernels.operations import OPERATIONS
    from benchmarks.kernels.time import SMALL, call_of, contenders

    compared = []
    for operation in (*OPERATIONS, *ATTENTION, head_and_loss):
        results = {}
        for contender in contenders(operation(SMALL, 1, "cpu"), on_gpu=False):
            torch.manual_seed(0)
            result = call_of(contender, operation(SMALL, 24, "cpu"))()
            results[contender] = result if isinstance(result, tuple) else (result,)
        for contender in results:
            for theirs, ours in zip(results[contender], results["reference"], strict=True):
                difference = (theirs.float() - ours.float()).norm() / ours.float().norm()
                assert difference < 0.02, (operation.__name__, contender)
                compared.append(contender)
    assert compared.count("eager") >= 12 and "F.linear_cross_entropy" in compared


def test_occupancy_follows_the_calculator():
    from benchmarks.kernels.occupancy import occupancy

    many = 10**6
    assert occupancy(90, 32, 0, 8, many) == 1.0
    assert occupancy(90, 33, 0, 8, many) == 0.75  # 40 registers: 48 warps
    assert occupancy(90, 255, 0, 16, many) == 0.0  # does not start at all
    assert occupancy(90, 128, 0, 16, many) == 0.25
    assert occupancy(90, 32, 100 * 1024, 4, many) == 2 * 4 / 64  # shared memory holds two
    assert occupancy(90, 16, 0, 1, many) == 0.5  # 32 programs at most
    assert occupancy(90, 80, 8192, 8, 2 * 132) == 0.25  # no more were started
