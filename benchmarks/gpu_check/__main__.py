"""Everything that one real GPU can prove, in two commands of nine minutes each; a third is for machines with several.
launch/gpu_check.sh starts them.

    python -m benchmarks.gpu_check step [--output DIR]       ceilings, one rank of eight beside peers, its profile
    python -m benchmarks.gpu_check kernels [--output DIR]    tests, times, decode, a small training, LoRA
    python -m benchmarks.gpu_check node [--output DIR]       the recipe on all of the machine's GPUs

Each part is a process of its own. What it prints goes to the screen and into log.txt, its figures into figures.jsonl as
they come, so that a command that is cut off leaves all that was measured. At the end table.txt holds every figure
beside its prediction (benchmarks/results/GPU_predicted.json). Without a GPU the same parts run at a tiny shape on the
CPU: that shows that the check works, and nothing is judged.

The exit status is 1 where a part failed or was cut off, or a figure lies outside its band.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from threading import Timer

import torch

from benchmarks.gpu_check import parts
from benchmarks.gpu_check.figures import Figure, Prediction, figures_in, predictions_in
from benchmarks.gpu_check.verdicts import OUTSIDE, read_predictions, table
from logtrain.planning.gpu_file import gpu_of

ROOT = Path(__file__).resolve().parents[2]
BEFORE_THE_LIMIT = 10  # seconds that are left for the table


class Check:
    """A command of the check under way: where its results go, and what it has so far."""

    def __init__(self, output: Path, limit: float):
        self.output, self.ends = output, time.monotonic() + limit - BEFORE_THE_LIMIT
        self.figures: list[Figure] = []
        self.predictions: dict[str, Prediction] = {}
        self.statuses: dict[str, str] = {}

    def say(self, text: str) -> None:
        """Print a line, and write it into the log."""
        print(text, flush=True)
        with open(self.output / "log.txt", "a", encoding="utf-8") as file:
            file.write(text + "\n")

    def run(self, part: parts.Part) -> None:
        """Run a part to its end, or as long as it may take."""
        seconds = min(part.limit, self.ends - time.monotonic())
        if seconds < 1:
            self.statuses[part.name] = "not begun: no time left"
            return
        self.say(f"\n== {part.name} (about {part.expected} s)")
        began = time.monotonic()
        command = [sys.executable, *part.arguments]
        with subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        ) as process:
            timer = Timer(seconds, process.kill)
            timer.start()
            assert process.stdout is not None
            for line in process.stdout:
                self.say(line.rstrip("\n"))
                self.keep(figures_in([line]))
                self.predictions |= predictions_in([line])
            process.wait()
            cut_off = not timer.is_alive()
            timer.cancel()
        how = "cut off" if cut_off else "done" if process.returncode == 0 else f"FAILED with {process.returncode}"
        self.statuses[part.name] = f"{how} after {time.monotonic() - began:.0f} s"

    def keep(self, figures: list[Figure]) -> None:
        """Put figures on file."""
        self.figures += figures
        with open(self.output / "figures.jsonl", "a", encoding="utf-8") as file:
            file.writelines(json.dumps(figure) + "\n" for figure in figures)

    def finish(self, device: str) -> int:
        """Show and write the table; -> the exit status."""
        gpu = gpu_of(device)
        predictions = read_predictions(gpu or "h200") | self.predictions
        lines = table(self.figures, predictions, on_gpu=gpu is not None)
        if gpu is None:
            lines.append(f"{device}: not judged; the predictions shown are for an H200")
        lines += [f"{name}: {status}" for name, status in self.statuses.items()]
        (self.output / "table.txt").write_text("\n".join(lines) + "\n")
        print("", *lines, sep="\n")
        failed = any(not status.startswith("done") for status in self.statuses.values())
        return int(failed or any(OUTSIDE in line for line in lines))


def machine_text(device: str) -> str:
    """What the check runs on: device, versions, commit, date, and what nvidia-smi says."""
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    commit = done.stdout.strip() or "unversioned"
    facts = f"{device}; torch {torch.__version__}, Python {sys.version.split()[0]}; commit {commit}"
    smi = "nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,power.limit --format=csv"
    try:
        told = subprocess.run(smi.split(), capture_output=True, text=True).stdout
    except FileNotFoundError:
        told = ""
    return f"{facts}; {time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime())} UTC\n{told}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["step", "kernels", "node"], help="what to check")
    parser.add_argument("--output", type=Path, help="folder to write, new or empty")
    parser.add_argument("--limit", type=float, default=parts.LIMIT, help="seconds until the table is there")
    options = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if on_gpu else "cpu"
    name = f"{time.strftime('%Y-%m-%d')}_{device.replace(' ', '-')}_{options.command}"
    output = (options.output or ROOT / "benchmarks" / "results" / name).absolute()
    output.mkdir(parents=True, exist_ok=True)
    if any(output.iterdir()):
        parser.error(f"{output} is not empty; give another folder with --output")
    check = Check(output, options.limit)
    text = machine_text(device)
    (output / "machine.txt").write_text(text)
    check.say(text)
    commands = {"step": parts.step_parts(output), "kernels": parts.kernel_parts(), "node": parts.node_parts()}
    chosen = commands[options.command]
    with tempfile.TemporaryDirectory() as folder:
        for part in chosen if on_gpu else parts.rehearsal(chosen, Path(folder)):
            check.run(part)
    return check.finish(device)


if __name__ == "__main__":
    sys.exit(main())
