"""Whether a model that is trained on new data forgets less with data that it wrote before; on a CPU, minutes to hours.

    python -m benchmarks.self_replay --model DIR --domain loglm.json --sets wiki=FILE chat=FILE:sharegpt --output DIR
        [--rates 1e-4 3e-4 1e-3] [--shares 0 0.01 0.05] [--seeds 3] [--steps 30] [--rows 4] [--seq_len 256]
        [--kl 0 1] [--top_k 16] [--precision bf16 --rows_per_batch 4]

The domain's file is prepared as `logtrain prepare` does, with a split without leaks; the model writes documents and, if
it has a chat template, as many tokens of chats (`logtrain replay`). Every combination of rate, share of replay (half of
it chats), trainer.replay_kl and seed is one run of the training program's own parts: the same optimizer, steps and
validation. A line of OUTPUT/runs.jsonl is a run: of the domain and of every set the loss row by row. The table at the
end gives means over seeds, and intervals of differences that are paired by row, from runs without replay and, of runs
with a teacher, from those without. With --own the model also writes sets with another seed: the rise of the loss on
these is an estimate of KL(before || after), thus what was forgotten of its own distribution.
"""

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import torch

from logtrain import prepare, replay
from logtrain.core.config import load
from logtrain.cpt import CptConfig
from logtrain.data.loader import Loader
from logtrain.data.shards import Split
from logtrain.model.llama import Llama
from logtrain.training.forgetting import BeforeAndAfter, compared
from logtrain.training.objective import objective_of
from logtrain.training.optim import make_optimizer
from logtrain.training.setup import RunSetup, set_up
from logtrain.training.state import RowLosses
from logtrain.training.step import TrainStep, validate

NO_REPLAY = 0.0


def main() -> None:
    args = parse()
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    if args.steps:
        write_data(args, output)
        sets = sets_of(args, output)
        for seed, rate, share, kl in itertools.product(range(args.seeds), args.rates, args.shares, args.kl):
            if share or not kl:
                run_once(args, output, sets, rate, share, kl, seed)
    print_table(output / "runs.jsonl")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--domain", required=True, help="file to train on")
    parser.add_argument("--sets", nargs="*", default=[], help="NAME=FILE or NAME=FILE:FORMAT to measure forgetting on")
    parser.add_argument("--output", required=True)
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-4, 3e-4, 1e-3])
    parser.add_argument("--shares", type=float, nargs="+", default=[0.0, 0.01, 0.05])
    parser.add_argument("--kl", type=float, nargs="+", default=[0.0], help="values of trainer.replay_kl")
    parser.add_argument("--top_k", default="16", help="outcomes of the teacher that are stored, where kl is not 0")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=30, help="0: only the table of the runs that are there")
    parser.add_argument("--rows", type=int, default=4, help="rows a step")
    parser.add_argument("--rows_per_batch", type=int, default=1, help="rows of a micro-batch in training")
    parser.add_argument("--seq_len", type=int, default=256)
    parser.add_argument("--precision", default="fp32", help="fp32 or bf16; bf16 takes less time where CPUs have AMX")
    parser.add_argument("--valid_rows", type=int, default=16, help="rows of each set")
    parser.add_argument("--replay_tokens", default="8k", help="of each kind that the model writes")
    parser.add_argument("--own_tokens", default="", help="of each kind of --own; as many as of replay if not given")
    parser.add_argument("--max_tokens", default="200", help="of a written document or answer")
    parser.add_argument("--kinds", nargs="+", default=["documents", "chats"], help="what the model writes")
    parser.add_argument("--own", action="store_true", help="measure on what the model writes with another seed, too")
    return parser.parse_args()


# ---- data


def write_data(args: argparse.Namespace, output: Path) -> None:
    """What is not there yet: the domain, the sets, and what the model writes."""
    prepared(args, args.domain, output / "domain", "0.03", "auto")
    for text in args.sets:
        name, _, rest = text.partition("=")
        file, _, format = rest.partition(":")
        prepared(args, file, output / "sets" / name, "0.9", format or "auto")
    for kind in args.kinds:
        written(args, kind, output / kind, "1309", args.top_k if any(args.kl) else "0")
        if args.own:
            written(args, kind, output / f"own-{kind}", "2", tokens=args.own_tokens)


def prepared(args: argparse.Namespace, file: str, folder: Path, valid: str, format: str, seed: str = "1309") -> None:
    """A prepared folder. `seed`: which documents are held out."""
    flags = ["--input", file, "--tokenizer", args.model, "--output", str(folder), "--seq_len", str(args.seq_len)]
    flags += ["--valid_fraction", valid, "--format", format, "--workers", "1", "--seed", seed]
    if not folder.exists():
        prepare.main([*flags, *(["--too_long", "drop", "--bad_rows", "skip"] if format != "auto" else [])])


def written(args: argparse.Namespace, kind: str, folder: Path, seed: str, top_k: str = "0", tokens: str = "") -> None:
    """What the model writes, with so many outcomes of its distribution; a folder that is there stays."""
    flags = ["--model", args.model, "--kind", kind, "--tokens", tokens or args.replay_tokens, "--sampling.seed", seed]
    flags += ["--teacher_top_k", top_k]
    if not folder.exists():
        replay.main([*flags, "--seq_len", str(args.seq_len), "--max_tokens", args.max_tokens, "--output", str(folder)])


# ---- a run


def flags_of(args: argparse.Namespace, output: Path, rate: float, share: float, kl: float, seed: int) -> list[str]:
    """The run's settings, as `logtrain cpt` takes them."""
    data = [str(output / "domain")]
    if share:
        data = [f"domain={output / 'domain'}", *(f"{kind}={output / kind}" for kind in args.kinds)]
    flags = ["--name", "run", "--model", args.model, "--data", *data, "--seed", str(1309 + seed)]
    flags += ["--precision", args.precision]
    if share:
        flags += ["--mix.domain", str(1 - share)]
        flags += [word for kind in args.kinds for word in (f"--mix.{kind}", str(share / len(args.kinds)))]
    sets = [text.partition("=")[0] for text in args.sets]
    flags += ["--valid", *(f"{name}={output / 'sets' / name}" for name in sets)] if sets else []
    flags += [
        "--trainer.replay_kl",
        str(kl),
        "--loader.seq_len",
        str(args.seq_len),
        "--loader.rows_per_step",
        str(args.rows),
    ]
    return [*flags, "--optim.lr", str(rate), "--trainer.epochs", "1000", "--trainer.max_steps", str(args.steps)]


def sets_of(args: argparse.Namespace, output: Path) -> dict[str, Loader]:
    """The sets by name; their rows are the same for all runs."""
    run = set_up(load(CptConfig, flags_of(args, output, 0.0, NO_REPLAY, 0.0, 0)))
    sets = {"domain" if name == "valid" else name: loader for name, loader in run.data.valid.items()}
    for folder in sorted(output.glob("own-*")) if args.own else ():
        config = run.config.loader.with_rows_per_step(1)
        sets[folder.name] = Loader(Split.open(folder), config, seed=1309, pad_id=run.data.train.pad_id)
    run.world.watchdog.close()
    return sets


def run_once(
    args: argparse.Namespace, output: Path, sets: dict[str, Loader], rate: float, share: float, kl: float, seed: int
) -> None:
    """Train once and add a line to runs.jsonl, unless it has one."""
    what = {"rate": rate, "share": share, "kl": kl, "seed": seed}
    lines = read(output / "runs.jsonl")
    if any(what.items() <= line.items() for line in lines):
        return
    flags = [*flags_of(args, output, rate, share, kl, seed), "--loader.rows_per_batch", str(args.rows_per_batch)]
    run = set_up(load(CptConfig, flags))
    model = run.build_model(run.initial_weights())
    if not lines:
        add(output, {"rate": 0.0, "share": NO_REPLAY, "kl": 0.0, "seed": 0, "sets": losses(args, sets, run, model)})
    optimizer, objective, optim = make_optimizer(model, run.config.optim), objective_of(run.config), run.config.optim
    step = TrainStep(model, optimizer, optim, run.config.trainer.max_grad_norm, args.steps, run.world, objective)
    tokens: dict[str, int] = {}
    for number in range(args.steps):
        made = run.data.train.at(number)
        step(made, number)
        for name, count in zip(run.data.train.names or ["domain"], made.tokens_K, strict=True):
            tokens[name] = tokens.get(name, 0) + count
    add(output, {**what, "tokens": tokens, "sets": losses(args, sets, run, model)})
    run.world.watchdog.close()


def losses(
    args: argparse.Namespace, sets: dict[str, Loader], run: RunSetup, model: Llama
) -> dict[str, dict[str, list[float]]]:
    """The loss of each set row by row, of `valid_rows` at most."""
    found = {}
    for name, loader in sets.items():
        of_set = validate(model, loader, min(args.valid_rows, loader.steps_per_epoch), run.world)
        found[name] = {"losses": of_set.losses_R, "targets": of_set.targets_R}
    return found


def add(output: Path, line: dict[str, Any]) -> None:
    with open(output / "runs.jsonl", "a") as stream:
        stream.write(json.dumps(line) + "\n")
    told = {name: round(sum(of["losses"]) / sum(of["targets"]), 4) for name, of in line["sets"].items()}
    print(json.dumps({key: value for key, value in line.items() if key != "sets"} | told), flush=True)


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


# ---- the table


def print_table(file: Path) -> None:
    """Each rate, share and kl over its seeds: every set's change from before, and what replay and its teacher change,
    paired.
    """
    start, *runs = read(file)
    for rate in sorted({run["rate"] for run in runs}):
        for share, kl in sorted({(run["share"], run["kl"]) for run in runs if run["rate"] == rate}):
            same, plain, untaught = (
                {run["seed"]: run for run in runs if (run["rate"], run["share"], run["kl"]) == (rate, *of)}
                for of in ((share, kl), (NO_REPLAY, 0.0), (share, 0.0))
            )
            print(f"\nrate {rate:g}, replay {share:.0%}, kl {kl:g}, {len(same)} seeds")
            for name in start["sets"]:
                change = across(name, [(start, run) for run in same.values()])
                line = f"  {name:<10} {change.before:.4f} -> {change.after:.4f} {interval(change)}"
                pairs = [(plain[seed], run) for seed, run in same.items() if seed in plain]
                if share and pairs:
                    line += f"; beside none {interval(across(name, pairs))}"
                    without = across(name, [(start, of) for of, _ in pairs])
                    kept = 1 - (change.after - change.before) / (without.after - without.before)
                    line += f"; of the change {kept:.0%} less"
                pairs = [(untaught[seed], run) for seed, run in same.items() if seed in untaught]
                if kl and pairs:
                    line += f"; beside kl 0 {interval(across(name, pairs))}"
                print(line)


def across(name: str, pairs: list[tuple[dict, dict]]) -> BeforeAndAfter:
    """A set in pairs of runs, its rows averaged over the pairs: the rows are the sample."""
    sides = []
    for side in (0, 1):
        rows = [pair[side]["sets"][name]["losses"] for pair in pairs]
        sides.append([sum(column) / len(column) for column in zip(*rows, strict=True)])
    targets = pairs[0][0]["sets"][name]["targets"]
    return compared(name, "", RowLosses(sides[0], targets), RowLosses(sides[1], targets))


def interval(change: BeforeAndAfter) -> str:
    return f"{change.after - change.before:+.4f} ({change.low:+.4f} to {change.high:+.4f})"


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
