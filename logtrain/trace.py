"""Tells which documents were in a step and what each weighed; reruns the run without one.

    logtrain trace runs/NAME --step 1200                   the documents of step 1200, with their losses
    logtrain trace runs/NAME --spike                       finds the step by itself, and ranks by gradients, too
    logtrain trace runs/NAME --step 1200 --without 17      the run from the checkpoint before, with document 17 and
                                                           without it

The nearest checkpoint before the step is loaded and the steps up to it are made again: on as many ranks as the run had,
by `launch/run.sh trace ...` if it had several, they are the same bit for bit, which is checked against its records.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from logtrain.core.config import load, words_first
from logtrain.core.entry import run
from logtrain.core.kinds import Config
from logtrain.core.printable import printable
from logtrain.core.run_folder import read_run_config
from logtrain.core.still import Still
from logtrain.observe.run_files import is_number, read_run
from logtrain.observe.state import state_of
from logtrain.training.config import RunConfig

if TYPE_CHECKING:
    from logtrain.observe.run_files import RunFiles
    from logtrain.training.rerun import Document, Rerun, Weighed

FLOAT32 = 1e-6  # what a sum of losses in float32 may be off, as a share of it
AFTER = 5  # steps after the traced one that are rerun to see what its documents change


@dataclass(frozen=True, kw_only=True)
class TraceConfig(Config):
    """Tell which documents were in a step of a run and what each weighed; rerun the run without some of them."""

    run: str
    """Folder of the run; it may also stand first, without the flag."""
    step: int = 0
    """The step, counted from 1. 0: with --spike, the one with the highest spike."""
    spike: bool = False
    """Rank the documents by their gradients, too, which takes a forward and backward each."""
    without: tuple[str, ...] = ()
    """Documents to leave out, each FILE:ROW or its number, in a rerun from the checkpoint before the step."""
    until: int = 0
    """Last step of that rerun. 0: five steps after the traced one."""
    top: int = 20
    """Documents to show. 0: all."""
    json: bool = False
    """Print a JSON object a line instead of the table."""

    def __post_init__(self):
        super().__post_init__()
        for name in ("step", "until", "top"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} = {getattr(self, name)} must not be negative")
        if self.until and not self.without:
            raise ValueError(f"until = {self.until}: only with --without, whose rerun it ends")


def main(argv: list[str]) -> int:
    """Trace the step that the flags ask for; -> the exit status."""
    config = load(TraceConfig, words_first(argv, "--run"))
    folder = Path(config.run)
    trained = read_run_config(folder, RunConfig)
    from logtrain.training.data_kinds import as_trained  # after the flags: no torch for --help
    from logtrain.training.rerun import Rerun, documents_in, ranked
    from logtrain.training.setup import set_up

    files = read_run(folder)
    step = config.step or step_of_spike(files.events, config.spike)
    check_made(step, files, trained.trainer.log_every)
    with Still():
        of_run = set_up(replace(as_trained(trained), runs=str(folder.absolute().parent), name=folder.absolute().name))
        step = of_run.world.from_main(step)  # a run that goes on has other records for each rank
        rerun = Rerun(of_run, step)
        until = until_of(config, step, rerun.train_step.total_steps)
        named: dict[Document, tuple[str, int]] = {}
        for number in range(rerun.began_at, step) if config.without else ():
            named |= documents_in(rerun.train, number)
        doomed = {document for text in config.without for document in find(text, named, rerun.began_at)}
        other = Rerun(of_run, step) if doomed else None  # now, while a run that goes on has the checkpoint
        recorded = {record["step"]: (record.get("loss"), record.get("grad_norm")) for record in files.steps}
        made = list(rerun.advance(step - 1))
        pieces = ranked(rerun.weigh(config.spike))
        lines = [f"step {step}, from the checkpoint of step {rerun.began_at}{same(made, recorded)}"]
        if other:
            lines += compare(rerun, made, recorded, other, doomed, until)
    if of_run.world.is_main:
        tell(pieces, lines, config)
    of_run.world.close()
    return 0


def check_made(step: int, files: "RunFiles", log_every: int) -> None:
    """Raises ValueError for a step that the run has not made, as far as its records tell: one that was killed or failed
    may have made some more than it has records of.
    """
    last = files.attempts[-1] if files.attempts else None
    if last is None or not (files.folder / "metrics.jsonl").exists():
        return
    known = max(files.last.get("step", 0), last.resumed_at)
    beyond = 0 if state_of(files).word in ("finished", "stopped") else log_every - 1
    if known + beyond < step <= last.total_steps:
        raise ValueError(f"step = {step}: the run has made {known:,} of its {last.total_steps:,} steps so far")


def until_of(config: TraceConfig, step: int, total: int) -> int:
    """The last step of the rerun without documents. Raises ValueError where it is none of the run from `step` on."""
    if config.until and not step <= config.until <= total:
        raise ValueError(f"until = {config.until}: expected a step from the traced one, {step}, to the last, {total}")
    return config.until or min(step + AFTER, total)


def step_of_spike(events: list[dict], is_asked: bool) -> int:
    """The step of the highest spike. Raises ValueError where none was recorded."""
    if not is_asked:
        raise ValueError("step: give the --step to trace, or --spike to find one")
    spikes = [
        (event["value"] if is_number(event.get("value")) else 0.0, event["step"])
        for event in events
        if event.get("kind") == "spike" and type(event.get("step")) is int
    ]
    if not spikes:
        raise ValueError("spike: the run has recorded none (events.jsonl); give a --step")
    return max(spikes)[1]


def same(made: list[tuple[int, float, float]], recorded: dict) -> str:
    """Whether rerun steps are those of the run, bit for bit, in words."""
    pairs = [((loss, norm), recorded[number]) for number, loss, norm in made if number in recorded]
    both = [told_of(own) == told_of(other) for own, other in pairs]
    if not both:
        return "; no record in between to hold the rerun against"
    if all(both):
        return f"; {len(both)} of {len(both)} recorded steps are the same bit for bit"
    if all(norm == other and is_near(own, loss) for (own, norm), (loss, other) in pairs):
        return (
            f"; all {len(both)} recorded steps have the same gradient norms bit for bit, and losses that differ only "
            "by rounding: recorded by an older version, which summed losses in float32"
        )
    return (
        f"; {sum(both)} of {len(both)} recorded steps are the same bit for bit: rerun on as many ranks as the run had, "
        "with the data and the model that it had"
    )


def told_of(figures: Sequence[Any]) -> list[Any]:
    """Figures as a record has them: None for one that is not finite."""
    return [None if isinstance(figure, float) and not math.isfinite(figure) else figure for figure in figures]


def is_near(own: float, recorded: object) -> bool:
    """Whether a recorded loss is the own one but for sums in float32."""
    return is_number(recorded) and math.isclose(own, recorded, rel_tol=FLOAT32)


def find(text: str, named: Mapping["Document", tuple[str, int]], began_at: int) -> list["Document"]:
    """The document that a user names, or all that a row has become. `named`: file and row of each document of the rerun
    steps. Raises ValueError where there is none, or the name is that of several.
    """
    file, _, row = text.rpartition(":")
    if text.isdecimal():
        found = [document for document in named if document[1] == int(text)]
        places = {f"{path}:{number}" for path, number in map(named.__getitem__, found)} if len(found) > 1 else set()
    else:
        found = [
            document
            for document, (path, number) in named.items()
            if file and row.isdecimal() and number == int(row) and (path == file or path.endswith(f"/{file}"))
        ]
        places = {f"{named[document][0]}:{row}" for document in found}
    if len(places) > 1:
        raise ValueError(f"without = {text}: is each of {', '.join(sorted(places))}; name the one that is meant")
    if not found:
        raise ValueError(f"without = {text}: no such document in steps {began_at + 1} to the traced one")
    return found


def compare(
    rerun: "Rerun", made: list, recorded: dict, other: "Rerun", doomed: Collection["Document"], until: int
) -> list[str]:
    """The run with and without some documents, step by step."""
    whole = [*made, *rerun.advance(until)]
    without = list(other.advance(until, doomed))
    lines = [f"without {len(doomed)} documents, from step {rerun.began_at + 1}{same(whole, recorded)}"]
    for (number, loss, norm), (_, other_loss, other_norm) in zip(whole, without, strict=True):
        change = f"loss {loss:.4f} -> {other_loss:.4f} ({other_loss - loss:+.4f})"
        lines.append(f"step {number}: {change}, gradient norm {norm:.3g} -> {other_norm:.3g}")
    losses = rerun.valid_loss(), other.valid_loss()
    if losses[0] is not None and losses[1] is not None:
        lines.append(f"held out after step {until}: {losses[0]:.6f} -> {losses[1]:.6f} ({losses[1] - losses[0]:+.6f})")
    return lines


def tell(pieces: list["Weighed"], lines: list[str], config: TraceConfig) -> None:
    """Print what was found of all pieces of the step."""
    shown = pieces[: config.top or None]
    if config.json:
        for piece in shown:
            facts = {name: value for name, value in piece._asdict().items() if value is not None}
            print(orjson.dumps({**facts, "loss": piece.loss}).decode())  # null for what is not finite
        for line in lines:
            print(orjson.dumps({"told": line}).decode())
        return
    for line in lines:
        print(line)
    total = sum(piece.summed_loss for piece in pieces if is_number(piece.summed_loss)) or 1.0
    gradients, are_pairs = ["gradient"] * config.spike, any(piece.margin is not None for piece in pieces)
    headings = ["loss", "share", *gradients, "margin" if are_pairs else "targets", "document", "source", "begins"]
    rows = [headings]
    for piece in shown:
        gradient = [f"{piece.grad_norm:.3g}"] if config.spike else []
        name = f"{Path(piece.file).name}:{piece.row}"
        share = f"{piece.summed_loss / total:.1%}"
        size = str(piece.targets) if piece.margin is None else f"{piece.margin:+.4f}"
        rows.append([f"{piece.loss:.4f}", share, *gradient, size, name, piece.source, piece.text[:60]])
    widths = [max(len(row[at]) for row in rows) for at in range(len(headings) - 1)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        print(printable("  ".join([*cells, row[-1]]), one_line=True))


if __name__ == "__main__":
    run(main)
