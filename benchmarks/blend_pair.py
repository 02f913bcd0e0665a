"""Whether a blend leads a model back that was pretrained on new data and then fine-tuned; on a CPU, in half an hour.

    python -m benchmarks.blend_pair --model DIR --domain loglm.json --sets wiki=FILE chat=FILE:sharegpt --output DIR
        [--steps 20] [--rows 4] [--seq_len 256] [--cpt_rate 1e-3] [--sft_steps 10] [--sft_rate 2e-4] [--most 12]

The domain's file is split without leaks. On its training rows the model is pretrained as on documents (`logtrain cpt`:
cpt), then fine-tuned on the same rows as chats (`logtrain sft`: sft); another time it is fine-tuned without having been
pretrained (instruct). Two families of blends are tried, as `logtrain blend` makes them:

    interpolate    base + alpha (sft - base)
    residual       cpt + alpha (instruct - base)

The documents that were held out, and those of every set, are dealt into two halves. Alpha is chosen by the first as
`logtrain blend --choose alpha` does, by the lowest mean of the sets' losses. Losses of the second, by which nothing was
chosen, are in OUTPUT/pair.json document by document, and in the table with intervals over documents. The domain counts
twice, as documents and as the answers of chats. What is in OUTPUT already is not made again.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.self_replay import prepared
from logtrain import cpt, sft
from logtrain.core.world import World
from logtrain.data.shards import Split
from logtrain.evaluation.blend_choice import Choice, ChoiceSet, choose_alpha, open_sets
from logtrain.evaluation.intervals import paired
from logtrain.model.blending import Blend
from logtrain.training.blend_input import open_inputs

ENDS = "base", "cpt", "sft"


def main() -> None:
    args = parse()
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    named = write_data(args, output)
    train(args, output, "cpt", args.model)
    train(args, output, "sft", str(output / "cpt" / "export"))
    train(args, output, "instruct", args.model)
    if not (output / "pair.json").exists():
        models = {"base": args.model, **{name: str(output / name / "export") for name in ("cpt", "sft", "instruct")}}
        (output / "pair.json").write_text(json.dumps(measured(args, output, named, models)))
    print_table(json.loads((output / "pair.json").read_text()))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--domain", required=True, help="file of instructions to train on")
    parser.add_argument("--sets", nargs="*", default=[], help="NAME=FILE or NAME=FILE:FORMAT that is not to be lost")
    parser.add_argument("--output", required=True)
    parser.add_argument("--steps", default="20", help="of the run on documents")
    parser.add_argument("--sft_steps", default="10", help="of each run on chats")
    parser.add_argument("--rows", default="4", help="rows a step")
    parser.add_argument("--seq_len", type=int, default=256)
    parser.add_argument("--cpt_rate", default="1e-3")
    parser.add_argument("--sft_rate", default="2e-4", help="of adapters of rank 16")
    parser.add_argument("--precision", default="fp32", help="of the runs; merged bf16 loses small updates")
    parser.add_argument("--alphas", type=float, nargs="+", default=[0.25, 0.5, 0.75, 1.0])
    parser.add_argument("--most", type=int, default=12, help="documents of a half of a set")
    return parser.parse_args()


# ---- data and runs


def write_data(args: argparse.Namespace, output: Path) -> dict[str, Path]:
    """Prepare what is not there yet; -> the sets by name, each a folder of which the valid split counts. Of the answers
    those count alone of which the documents were held out.
    """
    prepared(args, args.domain, output / "documents", "0.03", "auto")
    found = json.loads(Path(args.domain).read_text())
    train, valid = (rows_of(output / "documents", name) for name in ("train", "valid"))
    (output / "train.json").write_text(json.dumps([found[row] for row in train]))
    prepared(args, str(output / "train.json"), output / "chats", "0", "alpaca")
    # Rows that were trained on come last, because a set needs a training split; `measured` skips them.
    (output / "answers.json").write_text(json.dumps([found[row] for row in [*valid, *train[:100]]]))
    prepared(args, str(output / "answers.json"), output / "all" / "answers", "0.9", "alpaca", "2")
    named = {"documents": output / "documents", "answers": output / "all" / "answers"}
    for text in args.sets:
        name, _, rest = text.partition("=")
        file, _, format = rest.partition(":")
        named[name] = output / "all" / name
        prepared(args, file, named[name], "0.9", format or "auto")
    return named


def rows_of(folder: Path, name: str) -> list[int]:
    """The rows that the documents of a split are of."""
    split = Split.open(folder, name)
    return [split.origin(number)[1] for number in range(split.num_documents)]


def train(args: argparse.Namespace, output: Path, name: str, model: str) -> None:
    """A run of the program, unless it is there."""
    if (output / name / "export").exists():
        return
    entry, data, rate, steps = cpt, "documents", args.cpt_rate, args.steps
    if name != "cpt":
        entry, data, rate, steps = sft, "chats", args.sft_rate, args.sft_steps
    flags = ["--name", name, "--model", model, "--runs", str(output), "--data", str(output / data)]
    flags += ["--optim.lr", rate, "--precision", args.precision, "--trainer.epochs", "1000"]
    flags += ["--trainer.max_steps", steps, "--trainer.no_save_last", "--trainer.valid_every", "0"]
    flags += ["--export_dtype", "float32"]
    if status := entry.main([*flags, "--loader.seq_len", str(args.seq_len), "--loader.rows_per_step", args.rows]):
        raise SystemExit(status)  # stopped


# ---- losses


def measured(
    args: argparse.Namespace, output: Path, named: Mapping[str, Path], models: Mapping[str, str]
) -> dict[str, Any]:
    """Alpha of both kinds, chosen by the first halves, with all losses there; and the losses of the ends and of both
    blends on the second halves, document by document.
    """
    world = World()
    everything = open_sets([f"{name}={folder}" for name, folder in named.items()], 0, base_of(models, world), world)
    held_out = len(rows_of(named["documents"], "valid"))
    first, second = [], []
    for each in everything:
        usable = [number for number in each.documents if each.split.lengths[number] <= args.seq_len]
        if each.name == "answers":
            usable = [number for number in usable if each.split.origin(number)[1] < held_out]
        first.append(half(each, usable[: 2 * args.most : 2]))
        second.append(half(each, usable[1 : 2 * args.most : 2]))

    def on(sets: Sequence[ChoiceSet], kind: str, alphas: Sequence[float], *names: str) -> Choice:
        inputs = open_inputs([models[name] for name in names], (0, 1), world.note)
        return choose_alpha(Blend(kind), alphas, inputs, sets, world)  # type: ignore[arg-type]

    chosen = {"interpolate": on(first, "interpolate", [0.0, *args.alphas], "base", "sft")}
    chosen["residual"] = on(first, "residual", [0.0, *args.alphas], "cpt", "instruct", "base")
    judged = {name: on(second, "average", [1.0], name) for name in ENDS}
    judged["interpolate"] = on(second, "interpolate", [chosen["interpolate"].alpha], "base", "sft")
    judged["residual"] = on(second, "residual", [chosen["residual"].alpha], "cpt", "instruct", "base")
    world.close()
    losses = {
        name: {of.name: losses_AD[0].tolist() for of, losses_AD in zip(found.sets, found.losses, strict=True)}
        for name, found in judged.items()
    }
    return {"chosen": {kind: choice.as_json() for kind, choice in chosen.items()}, "losses": losses}


def base_of(models: Mapping[str, str], world: World) -> Any:
    """The first model, whose tokenizer the sets must have."""
    return open_inputs([models["base"]], (0, 1), world.note)[0]


def half(of_set: ChoiceSet, documents: list[int]) -> ChoiceSet:
    """A set of these documents of another."""
    return replace(of_set, documents=documents, targets=int(of_set.split.targets[documents].sum()))


def print_table(found: dict[str, Any]) -> None:
    """Each model's losses, and the differences of the blends from the ends, with 95% intervals over documents."""
    losses = {model: {name: np.array(each) for name, each in of.items()} for model, of in found["losses"].items()}
    for kind, choice in found["chosen"].items():
        means = ", ".join(f"{a:g}: {m:.4f}" for a, m in zip(choice["alphas"], choice["objective"], strict=True))
        print(f"{kind}: alpha = {choice['alpha']:g}, chosen by the first halves, of which the means are {means}")
    for model, of in losses.items():
        mean = np.mean([each.mean() for each in of.values()])
        print(f"{model:<12} mean {mean:.4f}", *(f"{name} {each.mean():.4f}" for name, each in of.items()), sep="  ")
    for kind in found["chosen"]:
        for name, each in losses[kind].items():
            line = f"{kind}, {name} ({len(each)})"
            for other in ENDS:
                of = paired(each, losses[other][name])
                line += f"  to {other} {of.difference:+.4f} ({of.low:+.4f} to {of.high:+.4f})"
            print(line)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
