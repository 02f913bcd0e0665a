"""Whether the forget budget is kept, and what it costs beside the best fixed share of replay; on a CPU, in minutes.

    python -m benchmarks.forget_budget --model DIR --domain loglm.json --output DIR
        [--budget 0.1] [--seeds 20] [--searched 8] [--fixed 0.02 0.1 0.3 0.6]

A tiny Llama writes three sets of documents: replay, a general set by which the run steers, and a fresh one that nobody
looks at before the end. Each seed is a run of `logtrain cpt` on the domain with the budget; for the first `searched`
seeds also one for each fixed share (trainer.replay_bounds has no room then), all of them keep the best step within the
budget. Each line of OUTPUT/budget.jsonl is a run, as its forgetting.json tells it.
"""

import argparse
import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from benchmarks.self_replay import prepared, written
from logtrain import cpt
from logtrain.data.shards import CONTEXT, Split
from logtrain.text.tokenizer import Tokenizer

STEERED = "steered"


def main() -> None:
    args = parse()
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    write_data(args, output)
    for seed in range(args.seeds):
        run_once(args, output, seed, STEERED)
        for share in args.fixed if seed < args.searched else ():
            run_once(args, output, seed, f"{share:g}")
    print_table(read(output), args.budget)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--domain", required=True, help="file to train on")
    parser.add_argument("--output", required=True)
    parser.add_argument("--budget", type=float, default=0.1)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--searched", type=int, default=8, help="seeds for which fixed shares are tried, too")
    parser.add_argument("--fixed", type=float, nargs="+", default=[0.02, 0.1, 0.3, 0.6])
    parser.add_argument("--rate", default="1e-3")
    parser.add_argument("--steps", default="40")
    parser.add_argument("--rows", default="4")
    parser.set_defaults(seq_len=128, replay_tokens="15k", max_tokens="120")
    return parser.parse_args()


def write_data(args: argparse.Namespace, output: Path) -> None:
    """What is not there yet. The two sets are prepared from the texts that the model wrote."""
    prepared(args, args.domain, output / "domain", "0.03", "auto")
    written(args, "documents", output / "replay", "1309")
    for seed, name in (("2", "general"), ("3", "fresh")):
        if not (output / name).exists():
            written(args, "documents", output / f"{name}-written", seed)
            split, tokenizer = Split.open(output / f"{name}-written"), Tokenizer.load(args.model)
            texts = [
                tokenizer.decode((split.read(number, 0, int(length)) & (CONTEXT - 1)).tolist())
                for number, length in enumerate(split.lengths)
            ]
            file = output / f"{name}.jsonl"
            file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
            prepared(args, str(file), output / name, "0.5", "auto")


def run_once(args: argparse.Namespace, output: Path, seed: int, way: str) -> None:
    """A run of the program, unless budget.jsonl has it."""
    if any((line["seed"], line["way"]) == (seed, way) for line in read(output)):
        return
    share = "0.1" if way == STEERED else way
    bounds = ["0.01", "0.8"] if way == STEERED else [share, share]
    flags = ["--name", "run", "--model", args.model, "--runs", str(output), "--seed", str(seed)]
    flags += ["--data", f"domain={output / 'domain'}", f"replay={output / 'replay'}", "--mix.replay", share]
    flags += [
        "--mix.domain",
        str(1 - float(share)),
        "--valid",
        *(f"{name}={output / name}" for name in ("general", "fresh")),
    ]
    flags += ["--roles.general", "general", "--trainer.forget_budget", str(args.budget), "--trainer.keep_best"]
    flags += ["--trainer.replay_bounds", *bounds, "--trainer.valid_every", "4", "--trainer.log_every", "100"]
    flags += ["--trainer.epochs", "1000", "--trainer.max_steps", args.steps, "--trainer.keep", "1"]
    flags += ["--loader.seq_len", str(args.seq_len), "--loader.rows_per_step", args.rows, "--optim.lr", args.rate]
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        cpt.main(flags)
    facts = json.loads((output / "run" / "forgetting.json").read_text())
    with open(output / "budget.jsonl", "a") as stream:
        stream.write(json.dumps({"seed": seed, "way": way, **facts}) + "\n")
    shutil.rmtree(output / "run")
    print(
        json.dumps({"seed": seed, "way": way, "is_within": facts["is_within"], "step": facts["step"], **brief(facts)}),
        flush=True,
    )


def brief(facts: dict[str, Any]) -> dict[str, float]:
    """The loss on the domain, and the rises of the two sets."""
    of = {found["name"]: found for found in facts["sets"]}
    rises = {name: round(of[name]["rise"], 4) for name in ("general", "fresh")}
    return {"domain": round(of["domain"]["after"], 4), **rises}


def read(output: Path) -> list[dict[str, Any]]:
    file = output / "budget.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def print_table(lines: list[dict[str, Any]], budget: float) -> None:
    """How often the budget was exceeded, and the domain's loss beside that of the best fixed share of the same seed."""
    steered = [line for line in lines if line["way"] == STEERED]
    within = [line for line in steered if line["is_within"]]
    over = []
    for line in within:
        fresh = next(found for found in line["sets"] if found["name"] == "fresh")
        over.append(fresh["low"] / fresh["before"] - budget)  # above 0: exceeded by more than the interval
    print(f"{len(steered)} seeds, budget {budget:.1%}: {len(within)} have a step within it")
    if within:
        rises = [brief(line)["fresh"] for line in within]
        print(f"rise of the fresh set: mean {sum(rises) / len(rises):.2%}, greatest {max(rises):.2%}")
        print(f"exceeded by more than the interval: {sum(excess > 0 for excess in over)} of {len(within)}")
    ratios = []
    for line in within:
        others = [other for other in lines if other["seed"] == line["seed"] and other["way"] != STEERED]
        losses = [brief(other)["domain"] for other in others if other["is_within"]]
        if losses:
            ratios.append(brief(line)["domain"] / min(losses) - 1)
    if ratios:
        worst, mean = max(ratios), sum(ratios) / len(ratios)
        print(f"domain loss beside the best fixed share, {len(ratios)} seeds: mean {mean:+.2%}, worst {worst:+.2%}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
