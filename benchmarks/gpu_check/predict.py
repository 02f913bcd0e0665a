"""Writes what the check should measure on a GPU, before there is one: `python -m benchmarks.gpu_check.predict`.

Step, memory and LoRA are the plan's, traced from the real step and costed with the constants of the GPU's file; the
links are those that benchmarks.one_rank pretends, which take no processors. Kernels and the decode step are recorded
and costed in the same way, operation by operation. The loss curve is the CPU's. Ceilings are the constants themselves.

The file is benchmarks/results/GPU_predicted.json. Nothing in it is ever changed to fit a measurement: a constant that a
microbenchmark corrects goes into logtrain/planning/gpus, and the file is written anew.
"""

import argparse
import json
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch._subclasses import FakeTensorMode

from benchmarks.gpu_check import ceilings, curve, decode
from benchmarks.gpu_check.figures import Prediction
from benchmarks.gpu_check.parts import CPT, LORA, LORA_ROWS, ONE_OF_EIGHT, ONE_OF_FOUR
from benchmarks.gpu_check.verdicts import MEMORY, RESULTS, TOTAL
from benchmarks.kernels.attention import ATTENTION, DOCUMENT, packed_bounds
from benchmarks.kernels.head import head_and_loss
from benchmarks.kernels.operations import OPERATIONS
from benchmarks.kernels.shapes import MODELS, TOKENS
from benchmarks.one_rank.categories import IDLE
from logtrain.core.config import load
from logtrain.generation.kv_cache import CachedModel, slot_bytes
from logtrain.model.weights import empty_model, materialize
from logtrain.planning.config import PlanConfig
from logtrain.planning.cost import Workload, seconds
from logtrain.planning.gpu import Gpu, LinkRate
from logtrain.planning.gpu_file import read_gpu
from logtrain.planning.operation import Op
from logtrain.planning.prediction import Plan, make_plan
from logtrain.planning.recorder import Recorder
from logtrain.planning.shape import read_shape
from logtrain.planning.timeline import breakdown, simulate
from logtrain_kernels import pretended_gpu

CEILING, CATEGORY, KERNEL, LOSS = 0.10, 0.10, 0.15, 0.01  # bands; bf16 on a CPU is 0.2% off the losses
EXACT = 1e-9  # of counts
SMALL_SHARE = 0.02  # of a step: a category below it is not predicted
Predicted = Iterator[tuple[str, Prediction]]


def figure(name: str, value: float, unit: str, band: float) -> tuple[str, Prediction]:
    shown = value if band == EXACT else float(f"{value:.6g}")
    return name, Prediction(value=shown, unit=unit, band=band)


def predicted_ceilings(gpu: Gpu) -> Predicted:
    for name, (k, n) in {**ceilings.PRODUCTS, "cube": (ceilings.CUBE, ceilings.CUBE)}.items():
        m = ceilings.CUBE if name == "cube" else ceilings.TOKENS
        rate = 2 * m * n * k / (gpu.launch + gpu.padded_flops(m, n, k) / gpu.wave_rate)  # few iterations: full clocks
        yield figure(f"product {name}", rate, "FLOP/s", CEILING)
    yield figure("product cube, sustained", gpu.product, "FLOP/s", CEILING)
    yield figure("copy", gpu.bandwidth, "B/s", CEILING)
    yield figure("pretended links, taken over asked", 1.0, "", 0.05)


def predicted_step(label: str, plan: Plan, bandwidths: tuple[float, ...]) -> Predicted:
    """The step of one rank by category, with links of each bandwidth, none for 0."""
    ranks = plan.config.gpus
    for bandwidth in bandwidths:
        links = tuple(LinkRate(size, bandwidth or 1e30) for size in (1, 2))
        gpu = replace(plan.gpu, beside_product=1.0, beside_attention=1.0, beside_memory=1.0, links=links)
        timeline = simulate(plan.trace.ops, gpu, replace(plan.workload, ranks=1, imbalance=0.0))
        total, parts = breakdown(plan.trace.ops, plan.trace.repeats, timeline)
        name = f"{label}, links {bandwidth:g}"
        yield figure(f"{name}: step", total, "s", TOTAL)
        yield figure(f"{name}: tokens/s/GPU", plan.result["tokens_per_step"] / ranks / total, "1/s", TOTAL)
        yield figure(f"{name}: memory", plan.result["peak_memory_gib"], "GiB", MEMORY)
        if bandwidth == bandwidths[-1]:  # the one that is profiled
            waiting = parts.pop("exposed communication") + parts.pop("host")
            for category, taken in {**parts, IDLE: waiting}.items():
                if taken > SMALL_SHARE * total:
                    yield figure(f"{name}: {category}", taken, "s", CATEGORY)
        for kind in ("all_gather", "reduce_scatter"):
            found = plan.result["collectives"].get(kind, {"count": 0, "bytes": 0})
            yield figure(f"{name}: {kind} calls", found["count"], "", EXACT)
            yield figure(f"{name}: {kind} bytes", found["bytes"], "B", EXACT)


def recorded(call, vocab_size: int = 0) -> list[Op]:
    """The operations that a call on fake tensors would run on a GPU."""
    with Recorder(vocab_size) as recorder:
        call()
    return recorder.ops


def predicted_kernels(gpu: Gpu) -> Predicted:
    """Our kernels at the size of Llama-3.1-8B."""
    lengths = np.diff(packed_bounds(TOKENS))  # here, for it packs with real tensors; the result is kept
    documents = {"attention_documents": lengths[lengths > 0], "attention_equal": np.array([DOCUMENT])}
    for operation in (*OPERATIONS, *ATTENTION, head_and_loss):
        name = operation.__name__
        workload = Workload(documents.get(name.removesuffix("_backward"), np.array([TOKENS])))
        with FakeTensorMode(), pretended_gpu():
            work = operation(MODELS["8B"], TOKENS, "cpu")
            ops = recorded(work.logtrain, MODELS["8B"].V)
        microseconds = 1e6 * sum(seconds(op, gpu, workload) for op in ops)
        yield figure(f"{name}: logtrain", microseconds, "us", KERNEL)


def predicted_decode(gpu: Gpu) -> Predicted:
    """A captured decode step: no time of the host's, attention by the bytes of keys and values that it reads."""
    shape, dtype = read_shape("Llama-3.1-8B"), torch.bfloat16
    for number in (1, 8, 64):
        most = number * (decode.CONTEXT + 1) + 1
        model = empty_model(shape).to(dtype).requires_grad_(False)
        with FakeTensorMode(allow_non_fake_inputs=True), pretended_gpu(), torch.no_grad():
            materialize(model, torch.device("cpu"), None)
            cached = CachedModel(model, most * slot_bytes(shape, dtype), most, cuda_graphs=False)
            inputs = cached.inputs(decode.chunks(number, decode.CONTEXT))
            ops = recorded(lambda cached=cached, inputs=inputs: cached.compute(inputs), shape.vocab_size)
        keys = number * (decode.CONTEXT + 1) * slot_bytes(shape, dtype) / gpu.bandwidth
        attention = sum(op.launches * gpu.launch for op in ops if op.kind == "attention")
        others = sum(seconds(op, gpu, Workload(np.array([1]))) for op in ops if op.kind != "attention")
        taken = keys + attention + others
        yield figure(f"decode, {number} sequences, captured", number / taken, "tokens/s", KERNEL)
        yield figure(f"decode, {number} sequences: largest difference of the logits", 0.0, "", EXACT)


def predicted_curve() -> Predicted:
    """The CPU's losses in float32."""
    with tempfile.TemporaryDirectory() as folder:
        for step, loss in curve.train(curve.STEPS, Path(folder)).items():
            yield figure(f"curve of {curve.STEPS} steps: loss of step {step}", loss, "nats", LOSS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", default="h200", help="a description in logtrain/planning/gpus")
    name = parser.parse_args().gpu
    gpu = read_gpu(name)
    cpt = make_plan(load(PlanConfig, [CPT, "--gpu", name]))
    lora = make_plan(load(PlanConfig, [LORA, "--gpu", name, "--gpus", "4", *LORA_ROWS]))
    figures = dict(predicted_ceilings(gpu))
    figures |= predicted_step(ONE_OF_EIGHT, cpt, (0, 370e9))
    figures |= predicted_step(ONE_OF_FOUR, lora, (0,))
    figures |= predicted_kernels(gpu)
    figures |= predicted_decode(gpu)
    figures |= predicted_curve()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    path = RESULTS / f"{name}_predicted.json"
    path.write_text(json.dumps({"gpu": gpu.name, "commit": commit, "figures": figures}, indent=1) + "\n")
    print(f"{path}: {len(figures)} figures")


if __name__ == "__main__":
    main()
