"""Tells which documents were in a step and what each weighed; reruns the run without one.

    logtrain trace runs/NAME --step 1200                   the documents of step 1200, with their losses
    logtrain trace runs/NAME --spike                       finds the step by itself, and ranks by gradients, too
    logtrain trace runs/NAME --step 1200 --without 17      the run from the checkpoint before, with document 17 and
                                                           without it

The nearest checkpoint before the step is loaded and the steps up to it are made again: on as many ranks as the run had,
by `launch/run.sh trace ...` if it had several, they are the same bit for bit, which is checked against its records.
"""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from logtrain.core.config import load, words_first
from logtrain.core.entry import run
from logtrain.core.kinds import Config
from logtrain.core.printable import printable
from logtrain.core.run_folder import read_run_config
from logtrain.core.still import Still
from logtrain.observe.run_files import is_number, read_run
from logtrain.training.config import RunConfig

if TYPE_CHECKING:
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


def main(argv: list[str]) -> int:
    """Trace the step that the flags ask for; -> the exit status."""
    config = load(TraceConfig, words_first(argv, "--run"))
    folder = Path(config.run)
    trained = read_run_config(folder, RunConfig)
    from logtrain.training.rerun import Rerun, document_of, places_in, ranked  # after the flags: no torch for --help
    from logtrain.training.setup import set_up

    files = read_run(folder)
    step = config.step or step_of_spike(files.events, config.spike)
    with Still():
        of_run = set_up(replace(trained, runs=str(folder.absolute().parent), name=folder.absolute().name))
        rerun = Rerun(of_run, step)
        recorded = {record["step"]: (record.get("loss"), record.get("grad_norm")) for record in files.steps}
        made = list(rerun.advance(step - 1))
        pieces = ranked(rerun.weigh(config.spike))
        lines = [f"step {step}, from the checkpoint of step {rerun.began_at}{same(made, recorded)}"]
        if config.without:
            named = {
                document_of(p): p for number in range(rerun.began_at, step) for p in places_in(rerun.train, number)
            }
            doomed = [find(text, named, rerun) for text in config.without]
            until = min(config.until or step + AFTER, rerun.train_step.total_steps)
            lines += compare(rerun, made, recorded, Rerun(of_run, step), doomed, until)
    if of_run.world.is_main:
        tell(pieces[: config.top or None], lines, config)
    of_run.world.close()
    return 0


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
    both = [own == other for own, other in pairs]
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
        f"; {sum(both)} of {len(both)} recorded steps are the same bit for bit: rerun on as many ranks as the run had"
    )


def is_near(own: float, recorded: object) -> bool:
    """Whether a recorded loss is the own one but for sums in float32."""
    return is_number(recorded) and math.isclose(own, recorded, rel_tol=FLOAT32)


def find(text: str, named: dict, rerun: "Rerun") -> "Document":
    """The document that a user names, among those of the rerun steps. Raises ValueError where there is none."""
    file, _, row = text.rpartition(":")
    for document, place in named.items():
        path, number, _ = place.split.origin(place.document)
        if (text.isdecimal() and place.document == int(text)) or (
            file and row.isdecimal() and number == int(row) and (path == file or path.endswith(f"/{file}"))
        ):
            return document
    raise ValueError(f"without = {text}: no such document in steps {rerun.began_at + 1} to the traced one")


def compare(
    rerun: "Rerun", made: list, recorded: dict, other: "Rerun", doomed: list["Document"], until: int
) -> list[str]:
    """The run with and without some documents, step by step."""
    whole = [*made, *rerun.advance(until)]
    without = list(other.advance(until, doomed))
    lines = [f"without {len(doomed)} documents, from step {rerun.began_at + 1}:{same(whole, recorded)}"]
    for (number, loss, norm), (_, other_loss, other_norm) in zip(whole, without, strict=True):
        change = f"loss {loss:.4f} -> {other_loss:.4f} ({other_loss - loss:+.4f})"
        lines.append(f"step {number}: {change}, gradient norm {norm:.3g} -> {other_norm:.3g}")
    losses = rerun.valid_loss(), other.valid_loss()
    if losses[0] is not None and losses[1] is not None:
        lines.append(f"held out after step {until}: {losses[0]:.6f} -> {losses[1]:.6f} ({losses[1] - losses[0]:+.6f})")
    return lines


def tell(pieces: list["Weighed"], lines: list[str], config: TraceConfig) -> None:
    """Print what was found."""
    if config.json:
        for piece in pieces:
            print(json.dumps({**piece._asdict(), "loss": piece.loss}))
        for line in lines:
            print(json.dumps({"told": line}))
        return
    for line in lines:
        print(line)
    total = sum(piece.summed_loss for piece in pieces) or 1.0
    headings = ["loss", "share", *(["gradient"] if config.spike else []), "targets", "document", "source", "begins"]
    rows = [headings]
    for piece in pieces:
        gradient = [f"{piece.grad_norm:.3g}"] if config.spike else []
        name = f"{Path(piece.file).name}:{piece.row}"
        share = f"{piece.summed_loss / total:.1%}"
        rows.append([f"{piece.loss:.4f}", share, *gradient, str(piece.targets), name, piece.source, piece.text[:60]])
    widths = [max(len(row[at]) for row in rows) for at in range(len(headings) - 1)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        print(printable("  ".join([*cells, row[-1]]), one_line=True))


if __name__ == "__main__":
    run(main)
