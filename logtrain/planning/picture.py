"""A plan's picture: one block's forward and backward on its streams, and the memory alive over a step. The SVG has a
rectangle for each kernel and a line for the memory.
"""

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


def draw(path: Path, trace: Trace, timeline: Timeline, title: str) -> None:
    """Write a plan's picture to `path`, as SVG. Raises OSError."""
    block = middle_block(trace)
    elements = [heading(f"{title}: predicted, {block}", 24)]
    y = TOP
    for phase in ("forward", "backward"):
        span = span_of(trace, timeline, block, phase)
        if span:
            elements += lanes(trace.ops, timeline, span, y, phase)
        y += LANE * len(LANES) + 50
    elements += legend(y - 10)
    elements += memory_curve(trace, timeline, y + 40)
    svg = "\n".join(elements)
    size = f'width="{WIDTH + LEFT + 40}" height="{y + 320}"'
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


def lanes(ops: list[Op], timeline: Timeline, span: tuple[float, float], y: float, phase: str) -> list[str]:
    """A lane for each stream, with the operations that run within `span`."""
    begin, end = span
    scale = WIDTH / (end - begin)
    elements = [heading(f"{phase}: {1e3 * (end - begin):.2f} ms", y - 8)]
    for row, lane in enumerate(LANES):
        elements.append(f'<text x="8" y="{y + row * LANE + 20}">{lane}</text>')
    for number, op in enumerate(ops):
        start, stop = max(begin, timeline.start[number]), min(end, timeline.end[number])
        if stop <= start or op.stream not in LANES:
            continue
        colour = COLOURS["collective" if op.kind in COLLECTIVES else kernel_class(op)]
        x, width = LEFT + (start - begin) * scale, max(0.5, (stop - start) * scale)
        top = y + LANES.index(op.stream) * LANE
        label = f"{op.name} {op.module} {1e3 * (timeline.end[number] - timeline.start[number]):.3f} ms"
        elements.append(
            f'<rect x="{x:.1f}" y="{top}" width="{width:.1f}" height="{LANE - 6}" fill="{colour}" stroke="white" '
            f'stroke-width="0.4"><title>{escape(label)}</title></rect>'
        )
    return elements


def legend(y: float) -> list[str]:
    """What each colour means."""
    elements = []
    for i, (name, colour) in enumerate(COLOURS.items()):
        x = LEFT + i * 150
        elements.append(f'<rect x="{x}" y="{y - 10}" width="12" height="12" fill="{colour}"/>')
        elements.append(f'<text x="{x + 18}" y="{y}">{name}</text>')
    return elements


def memory_curve(trace: Trace, timeline: Timeline, y: float) -> list[str]:
    """GiB alive when each kernel of the compute stream ends; micro-batches in the middle are drawn once."""
    height = 220
    points = [(timeline.end[n], op.live) for n, op in enumerate(trace.ops) if op.stream == COMPUTE]
    last, most = points[-1][0], max(live for _, live in points)
    line = " ".join(f"{LEFT + WIDTH * t / last:.1f},{y + height - height * m / most:.1f}" for t, m in points)
    marks = [
        f'<text x="8" y="{y + height - height * share + 4}">{most * share / 2**30:.0f} GiB</text>'
        for share in (0, 0.5, 1)
    ]
    title = (
        f"memory of tensors over {len(trace.repeats)} micro-batches and the update (of {trace.accumulation} in a step)"
    )
    return [heading(title, y - 10), *marks, f'<polyline points="{line}" fill="none" stroke="#4878a8"/>']
