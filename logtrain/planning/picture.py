"""A plan's picture: one block's forward and backward on its streams, and the memory alive over a step. The SVG has a
rectangle for each kernel and a line for the memory.
"""

import math
from pathlib import Path
from xml.sax.saxutils import escape

from logtrain.planning.operation import COLLECTIVES, COMPUTE, Op
from logtrain.planning.timeline import Timeline, kernel_class
from logtrain.planning.trace import Trace

WIDTH, LANE, LEFT, TOP = 1200, 34, 130, 60
COLOURS = {
    "gemm": "#4878a8",
    "attention": "#c8553d",
    "elementwise": "#e0a458",
    "head": "#7a5195",
    "sharding copies": "#999999",
    "optimizer": "#5b8e7d",
    "collective": "#2f9e6e",
}
LANES = (COMPUTE, "gather copy-in", "all-gather", "reduce-scatter", "all-reduce")


def draw(path: Path, trace: Trace, timeline: Timeline, title: str, limit: float) -> None:
    """Write a plan's picture to `path`, as SVG. `limit`: bytes of memory that the GPU has. Raises OSError."""
    block = middle_block(trace)
    elements = [heading(f"{title}: predicted, {block}", 24)]
    y, kinds = TOP, set[str]()
    for phase in ("forward", "backward"):
        span = span_of(trace, timeline, block, phase)
        if span:
            drawn, height, found = lanes(trace.ops, timeline, span, y, phase)
            elements += drawn
            kinds |= found
            y += height + 70
    elements += legend(y - 20, kinds)
    elements += memory_curve(trace, timeline, y + 40, limit)
    svg = "\n".join(elements)
    size = f'viewBox="0 0 {WIDTH + LEFT + 40} {y + 320}" width="{WIDTH + LEFT + 40}" height="{y + 320}"'
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">\n'
        f'<rect width="100%" height="100%" fill="white"/>\n{svg}\n</svg>\n'
    )


def drawn_micro_batch(trace: Trace) -> int:
    """The number of a micro-batch from the middle of a step, where there is one; the first is 1."""
    return min(2, len(trace.repeats))


def middle_block(trace: Trace) -> str:
    """The name of the block in the middle of the model."""
    number = drawn_micro_batch(trace)
    names = [op.module for op in trace.ops if op.micro_batch == number and op.phase != "update" and "." in op.module]
    blocks = list(dict.fromkeys(names))
    return blocks[len(blocks) // 2]


def span_of(trace: Trace, timeline: Timeline, block: str, phase: str) -> tuple[float, float] | None:
    """When a block's forward or backward begins and ends, in seconds; None where it runs no kernel of its own."""
    own = [
        number
        for number, op in enumerate(trace.ops)
        if (op.micro_batch, op.module, op.phase) == (drawn_micro_batch(trace), block, phase)
        and op.stream == COMPUTE
        and not op.sharding
    ]
    return (timeline.start[own[0]], timeline.end[own[-1]]) if own else None


def heading(text: str, y: float) -> str:
    """A line of larger text."""
    return f'<text x="{LEFT}" y="{y}" font-size="15">{escape(text)}</text>'


def lanes(
    ops: list[Op], timeline: Timeline, span: tuple[float, float], y: float, phase: str
) -> tuple[list[str], float, set[str]]:
    """A lane for each stream on which operations run within `span`, above an axis of the time: (elements, height of the
    lanes, the kinds that occur).
    """
    begin, end = span
    scale = WIDTH / (end - begin)
    within = [
        (number, op)
        for number, op in enumerate(ops)
        if op.stream in LANES and min(end, timeline.end[number]) > max(begin, timeline.start[number])
    ]
    rows = [lane for lane in LANES if any(op.stream == lane for _, op in within)]
    elements = [heading(f"{phase}: {1e3 * (end - begin):.2f} ms", y - 8)]
    elements += [f'<text x="8" y="{y + row * LANE + 20}">{lane}</text>' for row, lane in enumerate(rows)]
    kinds = set()
    for number, op in within:
        start, stop = max(begin, timeline.start[number]), min(end, timeline.end[number])
        kind = "collective" if op.kind in COLLECTIVES else kernel_class(op)
        kinds.add(kind)
        x, width = LEFT + (start - begin) * scale, max(0.5, (stop - start) * scale)
        top, height = y + rows.index(op.stream) * LANE, LANE - 6
        label = f"{op.name} {op.module} {1e3 * (timeline.end[number] - timeline.start[number]):.3f} ms"
        elements.append(
            f'<rect x="{x:.1f}" y="{top}" width="{width:.1f}" height="{height}" fill="{COLOURS[kind]}" stroke="white" '
            f'stroke-width="0.4"><title>{escape(label)}</title></rect>'
        )
    height = LANE * len(rows)
    return elements + time_axis(end - begin, y + height, "ms", 1e3), height, kinds


def time_axis(seconds: float, y: float, unit: str, scale: float) -> list[str]:
    """An axis of the time from 0 to `seconds`, with marks at round numbers of a unit, of which a second has `scale`."""
    wanted = seconds * scale / 8
    power = 10 ** math.floor(math.log10(wanted))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= wanted)
    elements = [f'<line x1="{LEFT}" y1="{y}" x2="{LEFT + WIDTH}" y2="{y}" stroke="#999999"/>']
    for number in range(int(seconds * scale / step) + 1):
        x = LEFT + WIDTH * number * step / (seconds * scale)
        label = f"{number * step:g}" + (f" {unit}" if number == 0 else "")
        elements.append(f'<line x1="{x:.1f}" y1="{y}" x2="{x:.1f}" y2="{y + 4}" stroke="#999999"/>')
        elements.append(f'<text x="{x:.1f}" y="{y + 16}" text-anchor="middle" font-size="11">{label}</text>')
    return elements


def legend(y: float, kinds: set[str]) -> list[str]:
    """What the colour of each kind that occurs means."""
    elements = []
    for i, (name, colour) in enumerate((name, colour) for name, colour in COLOURS.items() if name in kinds):
        x = LEFT + i * 150
        elements.append(f'<rect x="{x}" y="{y - 10}" width="12" height="12" fill="{colour}"/>')
        elements.append(f'<text x="{x + 18}" y="{y}">{name}</text>')
    return elements


def memory_curve(trace: Trace, timeline: Timeline, y: float, limit: float) -> list[str]:
    """GiB alive when each kernel of the compute stream ends, below the `limit` in bytes; micro-batches in the middle
    are drawn once.
    """
    height = 200
    points = [(timeline.end[n], op.live) for n, op in enumerate(trace.ops) if op.stream == COMPUTE]
    last, peak = points[-1][0], max(live for _, live in points)
    most = 1.05 * max(peak, limit)
    line = " ".join(f"{LEFT + WIDTH * t / last:.1f},{y + height - height * m / most:.1f}" for t, m in points)
    marks = [
        f'<text x="{LEFT - 8}" y="{y + height - height * size / most + 4:.1f}" text-anchor="end">{size / 2**30:.0f} GiB'
        f"{word}</text>"
        for size, word in ((0, ""), (peak, ""), (limit, " there"))
        if size != peak or abs(peak - limit) > 0.06 * most
    ]
    at = y + height - height * limit / most
    marks.append(
        f'<line x1="{LEFT}" y1="{at:.1f}" x2="{LEFT + WIDTH}" y2="{at:.1f}" stroke="#c8553d" stroke-dasharray="6 4"/>'
    )
    title = (
        f"memory of tensors over {len(trace.repeats)} micro-batches and the update (of {trace.accumulation} in a step)"
    )
    curve = f'<polyline points="{line}" fill="none" stroke="#4878a8"/>'
    return [heading(title, y - 10), *marks, curve, *time_axis(last, y + height, "s", 1.0)]
