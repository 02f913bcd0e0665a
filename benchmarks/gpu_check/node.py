"""The recipe itself on all GPUs of a machine, 1 to 8, by the launcher that users start: its steps beside the plan.

With 8 GPUs the model has the shape of Llama-3.1-8B, with fewer that of Llama-3.2-1B; its weights are random, its data
the demo's. The plan is made here, with the description of this very GPU; the machine must have what a plan needs
(torch >= 2.13), or be given a plan that was made elsewhere by `logtrain plan RECIPE --gpus N --gpu NAME --json`:

    python -m benchmarks.gpu_check.node [--plan plan.json]

Without a GPU it is one process with the demo's model, and nothing is predicted.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.gpu_check.curve import ROOT, command
from benchmarks.gpu_check.figures import foretell, tell
from benchmarks.gpu_check.parts import CPT
from benchmarks.gpu_check.verdicts import MEMORY, TOTAL
from logtrain.planning.gpu_file import gpu_of
from logtrain.planning.result import PlanResult

SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
)
LLAMAS = {True: (4096, 14_336, 32, 32, 8, 128), False: (2048, 8192, 16, 32, 8, 64)}  # by whether there are 8 GPUs
FIGURES = {  # of benchmarks.speed and of a plan: unit, and the band of the predicted value
    "step_seconds": ("s", TOTAL),
    "tokens_per_second_per_gpu": ("1/s", TOTAL),
    "peak_memory_gib": ("GiB", MEMORY),
}


def prepare(folder: Path, gpus: int) -> list[str]:
    """Write model and data into a folder; -> the recipe with the flags that go with them."""
    on_gpu, model, data = gpus > 0, folder / "data" / "model", folder / "prepared"
    rows, seq_len = ("60000", "8192") if on_gpu else ("150", "512")
    command("launch/demo/data.py", str(folder / "data"), "--rows", rows)
    if on_gpu:
        path = model / "config.json"
        config = json.loads(path.read_text()) | dict(zip(SIZES, LLAMAS[gpus == 8], strict=True))
        config |= {"vocab_size": 128_256, "max_position_embeddings": 131_072, "tie_word_embeddings": gpus < 8}
        path.write_text(json.dumps(config))
    files = ["--input", str(folder / "data" / "nlplog.json"), "--tokenizer", str(model), "--output", str(data)]
    command("-m", "logtrain.prepare", *files, "--seq_len", seq_len)
    recipe = [CPT, "--model", str(model), "--data", str(data), "--init", "random", "--loader.seq_len", seq_len]
    if gpus == 8:
        return recipe
    flags = ["--loader.rows_per_step", str(gpus * 8 or 2)]
    return recipe + flags + ([] if on_gpu else ["--loader.rows_per_batch", "1", "--dtype", "float32"])


def plan_of(recipe: list[str], gpus: int) -> PlanResult:
    """The plan of this machine's GPU. Raises ValueError where nothing is known of it."""
    device = torch.cuda.get_device_name()
    gpu = gpu_of(device)
    if gpu is None:
        raise ValueError(f"{device}: not among logtrain/planning/gpus; describe it there, then try again")
    arguments = ["-m", "logtrain.plan", *recipe, "--gpus", str(gpus), "--gpu", gpu, "--json"]
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"no plan: {done.stderr.strip()}")
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", type=Path, help="a plan of this job that was made elsewhere, as JSON")
    given = parser.parse_args().plan
    gpus = min(8, torch.cuda.device_count())
    with tempfile.TemporaryDirectory() as folder:
        recipe = prepare(Path(folder), gpus)
        launcher = f'here=launch; PET_NPROC_PER_NODE={gpus or 1}; . launch/ranks.sh; exec "$@"'
        program = [sys.executable, "launch/torchrun.py", "-m", "--", "benchmarks.speed", *recipe]
        done = subprocess.run(["bash", "-c", launcher, "node", *program], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            raise SystemExit(f"benchmarks.speed failed with {done.returncode}")
        speed = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
        for name, (unit, _) in FIGURES.items():
            tell(f"node of {speed['gpus']}: {name}", speed[name], unit)
        tell(f"node of {speed['gpus']}: the loss is finite", float(speed["loss_finite"]), "")
        if gpus:
            plan = json.loads(given.read_text()) if given else plan_of(recipe, gpus)
            for name, (unit, band) in FIGURES.items():
                foretell(f"node of {gpus}: {name}", plan[name], unit, band)


if __name__ == "__main__":
    main()
