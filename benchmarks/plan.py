"""The plan held against published figures: `python -m benchmarks.plan [--json] [ROW ...]`, five minutes on one core.

Every row of other systems that can be modelled goes through the recorder and the cost model that `logtrain.plan` uses,
in the configuration it was published for, with the constants of the GPU it ran on. Constants and ranges
are of microbenchmarks; FA1 and HOST of published.py were introduced when the rows of MPT were known to be too fast. The
rows of HELD_OUT were fixed before their errors were looked at.
What is not in the table stands below it, with the reason.
"""

import argparse
import json
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from benchmarks.peers import trace_peer
from benchmarks.published import HELD_OUT, NOT_MODELLED, ROWS, Row
from logtrain.planning.interval import Interval, step_interval
from logtrain.planning.timeline import breakdown, simulate

GIB = 2**30


@dataclass(frozen=True)
class Comparison:
    """A row's published figures beside the predicted ones, on one GPU."""

    name: str
    system: str
    published: float
    """tokens a second"""
    predicted: Interval
    """tokens a second"""
    error: float
    """of the speed, as a share of the published one"""
    published_gib: float | None
    allocated_gib: float
    reserved_gib: float
    memory_error: float | None
    """of the reserved memory, as a share of the published one"""
    step_seconds_by: dict[str, float]
    source: str
    note: str

    @property
    def inside(self) -> bool:
        """Whether the published speed lies in the predicted interval."""
        return self.predicted.holds(self.published)


def compare(name: str, row: Row) -> Comparison:
    """Trace and cost a row's step. Takes some ten seconds."""
    trace, gpu, workload = trace_peer(row.setting), row.costs, row.workload
    _, seconds_by = breakdown(trace.ops, trace.repeats, simulate(trace.ops, gpu, workload))
    speed = step_interval(trace.ops, trace.repeats, gpu, workload).per(trace.tokens * trace.accumulation)
    return Comparison(
        name=name,
        system=row.system,
        published=row.tokens_per_second,
        predicted=speed,
        error=speed.middle / row.tokens_per_second - 1,
        published_gib=row.memory_gib,
        allocated_gib=trace.peak.total / GIB,
        reserved_gib=trace.peak.reserved / GIB,
        memory_error=trace.peak.reserved / GIB / row.memory_gib - 1 if row.memory_gib else None,
        step_seconds_by=seconds_by,
        source=row.source,
        note=row.note,
    )


HEADING = (
    f"{'':53} {'tokens/s/GPU':>34} {'':>7} {'in?':>4}  {'memory, GiB':>19}\n"
    f"{'':53} {'published':>9} {'predicted':>24} {'error':>7} {'':>4}  {'published':>9} {'reserved':>9} {'error':>7}"
)


def table_line(row: Comparison) -> str:
    """A row of the table below HEADING."""
    memory = f"{'-':>9} {row.reserved_gib:9.1f} {'':>7}"
    if row.published_gib:
        memory = f"{row.published_gib:9.1f} {row.reserved_gib:9.1f} {row.memory_error:+7.1%}"
    mark = "*" if row.name in HELD_OUT else " "
    inside = "yes" if row.inside else "no"
    return f"{mark}{row.system:52} {row.published:9,.0f} {row.predicted!s:>24} {row.error:+7.1%} {inside:>4}  {memory}"


def summary(rows: list[Comparison], of: str) -> str:
    """Errors, bias and coverage of some rows; `of` names them."""
    errors = [row.error for row in rows]
    sizes = [abs(error) for error in errors]
    memory = [row.memory_error for row in rows if row.memory_error is not None]
    text = (
        f"{of}: {len(rows)} rows, median error {statistics.median(sizes):.1%}, worst {max(sizes):.1%}, bias (median) "
        f"{statistics.median(errors):+.1%}, {sum(row.inside for row in rows)} inside their intervals"
    )
    sizes = [abs(error) for error in memory]
    return text + (f"; memory: median {statistics.median(sizes):.1%}, worst {max(sizes):.1%}" if memory else "")


def closing_lines(rows: list[Comparison]) -> Iterator[str]:
    """What stands below the table: errors over all rows, what is not in it, and notes."""
    yield summary(rows, "all")
    held_out = [row for row in rows if row.name in HELD_OUT]
    if held_out and len(held_out) < len(rows):
        yield summary(held_out, "* held out")
        yield summary([row for row in rows if row.name not in HELD_OUT], "seen before the model was changed")
    for system, why in NOT_MODELLED.items():
        yield f"out: {system}: {why}"
    for note in sorted({row.note for row in rows if row.note}):
        yield f"note: {'; '.join(row.system for row in rows if row.note == note)}: {note}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", choices=[*ROWS, []], help="names of rows; none: all")
    parser.add_argument("--json", action="store_true", help="print one object a line instead of the table")
    arguments = parser.parse_args()
    if not arguments.json:
        print(HEADING)
    compared = []
    for name in arguments.rows or ROWS:
        compared.append(compare(name, ROWS[name]))
        print(json.dumps(asdict(compared[-1])) if arguments.json else table_line(compared[-1]), flush=True)
    if not arguments.json:
        print("", *closing_lines(compared), sep="\n")


if __name__ == "__main__":
    main()
