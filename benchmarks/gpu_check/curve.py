"""The loss curve of a whole small training, by the commands that a user runs: the demo's data, its tiny Llama,
`logtrain.prepare` and `logtrain.cpt`. On a GPU it computes in bfloat16 and should follow the CPU's curve in float32.

    python -m benchmarks.gpu_check.curve [--steps 100]
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.gpu_check.figures import tell

ROOT = Path(__file__).resolve().parents[2]
EVERY, SEQ_LEN, ROWS = 10, 512, 4  # steps between losses; of the demo's recipe: tokens of a row, rows of a step
STEPS = 100
LR = "1e-3"  # with the recipe's 4e-3 the first losses leap, and rounding decides how far
DEMO_ROWS_A_STEP = 16  # of the demo's data: more than a step takes, so that the first epoch has all steps


def train(steps: int, folder: Path, *flags: str) -> dict[int, float]:
    """The loss of every EVERYth step, and of the last, in nats a target. `flags`: more of logtrain.cpt's."""
    data, prepared = folder / "data", folder / "prepared"
    rows = str(max(100, DEMO_ROWS_A_STEP * steps))
    command("launch/demo/data.py", str(data), "--rows", rows, "--chats", "1", "--questions", "1")
    tokens = ["--tokenizer", str(data / "model"), "--seq_len", str(SEQ_LEN)]
    command("-m", "logtrain.prepare", "--input", str(data / "nlplog.json"), "--output", str(prepared), *tokens)
    job = ["--model", str(data / "model"), "--data", str(prepared), "--runs", str(folder), "--name", "curve"]
    job += ["--loader.seq_len", str(SEQ_LEN), "--loader.rows_per_step", str(ROWS), "--loader.rows_per_batch", str(ROWS)]
    job += ["--trainer.max_steps", str(steps), "--trainer.log_every", "1", "--optim.lr", LR, *flags]
    command("-m", "logtrain.cpt", "launch/recipes/demo.toml", *job)
    records = [json.loads(line) for line in (folder / "curve" / "metrics.jsonl").read_text().splitlines()]
    losses = {record["step"]: record["loss"] for record in records if "grad_norm" in record}
    return {step: loss for step, loss in losses.items() if step % EVERY == 0 or step == steps}


def command(*arguments: str) -> None:
    """Run Python in the checkout; what it says is shown only where it fails."""
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed:\n{done.stdout}{done.stderr}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=STEPS, help="steps of the training")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for step, loss in train(options.steps, Path(folder)).items():
            tell(f"curve of {options.steps} steps: loss of step {step}", loss, "nats")


if __name__ == "__main__":
    main()
