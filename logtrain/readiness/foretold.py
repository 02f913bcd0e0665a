"""What a run will take, as the plan predicts it for the GPUs at hand, and what its rehearsal takes of the disk."""

import contextlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from logtrain.core.atomic import write_file
from logtrain.core.config import dump
from logtrain.core.units import size
from logtrain.model.llama import LlamaConfig
from logtrain.model.lora import num_adapter_parameters
from logtrain.observe.goodput import clock
from logtrain.observe.sensors import names_of_gpus
from logtrain.planning.gpu_file import gpu_of
from logtrain.readiness.disk import Rates
from logtrain.readiness.weights import slice_of
from logtrain.training.config import RunConfig

START = 8.0  # seconds until a process has imported torch and met the others
PLAN = "plan.json"  # which observe/run_files.py reads
NO_GPU = "memory and time: not predicted on a CPU; logtrain plan RECIPE predicts for GPUs"


def plan_process(config: RunConfig, folder: Path, gpus: int) -> "subprocess.Popen[str] | str":
    """The plan of a run on the GPUs of this machine, being made by a process of its own; or why there is none.
    `folder`: for the recipe that it reads. `gpus`: ranks of the run.
    """
    names = names_of_gpus()
    if not names:
        return NO_GPU
    known = gpu_of(names[0])
    if known is None:
        return f"not predicted: {names[0]} is not among logtrain/planning/gpus"
    if gpus > 8 and gpus % 8:
        return f"not predicted for {gpus} GPUs: the plan knows 1 to 8, and whole nodes of 8"
    recipe = folder / "plan.toml"
    recipe.write_text(dump(config))
    command = [sys.executable, "-m", "logtrain.plan", str(recipe), "--gpus", str(gpus), "--gpu", known, "--json"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def told_by(process: "subprocess.Popen[str] | str") -> tuple[list[str], dict[str, Any]]:
    """(lines for people, the plan's result) of `plan_process`, once it has ended. Raises ValueError for a job that does
    not surely fit.
    """
    if isinstance(process, str):
        return [process], {}
    output, errors = process.communicate()
    result: dict[str, Any] = {}
    with contextlib.suppress(json.JSONDecodeError):
        result = json.loads(output.strip().splitlines()[-1] if output.strip() else "{}")
    if process.returncode:
        said = errors.strip().splitlines()[-1].removeprefix("error: ") if errors.strip() else "no plan could be made"
        raise ValueError(f"plan: {said}")
    memory, minutes = result["intervals"]["reserved_memory_gib"], result["intervals"]["train_minutes"]
    return [
        f"predicted: {result['reserved_memory_gib']:.0f} GiB a GPU ({memory[0]:.0f}-{memory[1]:.0f}) of "
        f"{result['available_memory_gib']:.0f}; {result['tokens_per_second_per_gpu']:,.0f} tokens/s a GPU, "
        f"{clock(60 * result['train_minutes'])} of training ({clock(60 * minutes[0])} to {clock(60 * minutes[1])})"
    ], result


def foretell(config: RunConfig, gpus: int) -> list[str]:
    """Memory and time that a run will take, in lines, which go on its screen while it trains; the plan's result is kept
    as plan.json in its folder, for its report. `gpus`: ranks of the run.
    """
    with tempfile.TemporaryDirectory() as scratch:
        try:
            lines, result = told_by(plan_process(config, Path(scratch), gpus))
        except (ValueError, OSError) as error:
            return [f"warning: {error}"]
    if result:
        write_file(Path(config.runs) / config.name / PLAN, json.dumps(result).encode())
    return lines


def bytes_of_rehearsal(config: RunConfig, shape: LlamaConfig, stored: int, exported: int) -> tuple[int, int]:
    """(bytes written, bytes read) by a rehearsal: the slice, its checkpoint of step 2, its export. `stored` and
    `exported`: bytes of a weight in the model's files and in the export.
    """
    small = slice_of(shape)
    count = small.num_parameters
    checkpoint = 12 * (num_adapter_parameters(small, config.lora) or count)
    of_slice = stored * count if config.init == "pretrained" else 0
    written = of_slice + checkpoint + exported * count
    return written, 2 * of_slice + checkpoint + 2 * exported * count


def seconds_of_rehearsal(written: int, read: int, rates: Rates) -> float:
    """Seconds that a rehearsal takes of the disk and to start two processes, predicted; its steps come to that."""
    return written / rates.write + read / rates.read + 2 * START


def told_of_disk(written: int, read: int, rates: Rates) -> str:
    """The disk's share in a rehearsal, in words."""
    seconds = seconds_of_rehearsal(written, read, rates)
    return f"the slice writes {size(written)} and reads {size(read)}: about {clock(seconds)} more, predicted"
