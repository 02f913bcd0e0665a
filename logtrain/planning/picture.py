"""A plan drawn: one block's forward and backward on its streams, and the memory alive over a step. SVG by hand: a
rectangle a kernel, a line for the memory.
"""

from pathlib import Path
from xml.sax.saxutils import escape

from logtrain.planning.cost import Timeline, part
from logtrain.planning.operation import COLLECTIVES, COMPUTE, Op
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
    micro_batch = min(2, len(trace.repeats))
    middle = [n for n, op in enumerate(trace.ops) if op.micro_batch == micro_batch and op.phase != "update"]
    blocks = [trace.ops[n].module for n in middle if "." in trace.ops[n].module]
    block = sorted(set(blocks), key=blocks.index)[len(set(blocks)) // 2]
    parts = [heading(f"{title}: predicted, {block}", 24)]
    y = TOP
    for phase in ("forward", "backward"):
        own = [n for n in middle if trace.ops[n].module == block and trace.ops[n].phase == phase]
        own = [n for n in own if trace.ops[n].stream == COMPUTE and not trace.ops[n].sharding]
        if own:
            span = timeline.start[own[0]], timeline.end[own[-1]]
            parts += lanes(trace.ops, timeline, span, y, phase)
        y += LANE * len(LANES) + 50
    parts += legend(y - 10)
    parts += memory_curve(trace, timeline, y + 40)
    svg = "\n".join(parts)
    size = f'width="{WIDTH + LEFT + 40}" height="{y + 320}"'
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">\n'
        f'<rect width="100%" height="100%" fill="white"/>\n{svg}\n</svg>\n'
    )


def heading(text: str, y: float) -> str:
    return f'<text x="{LEFT}" y="{y}" font-size="15">{escape(text)}</text>'


def lanes(ops: list[Op], timeline: Timeline, span: tuple[float, float], y: float, phase: str) -> list[str]:
    begin, end = span
    scale = WIDTH / (end - begin)
    parts = [heading(f"{phase}: {1e3 * (end - begin):.2f} ms", y - 8)]
    for row, lane in enumerate(LANES):
        parts.append(f'<text x="8" y="{y + row * LANE + 20}">{lane}</text>')
    for number, op in enumerate(ops):
        start, stop = max(begin, timeline.start[number]), min(end, timeline.end[number])
        if stop <= start or op.stream not in LANES:
            continue
        colour = COLOURS["collective" if op.kind in COLLECTIVES else part(op)]
        x, width = LEFT + (start - begin) * scale, max(0.5, (stop - start) * scale)
        top = y + LANES.index(op.stream) * LANE
        label = f"{op.name} {op.module} {1e3 * (timeline.end[number] - timeline.start[number]):.3f} ms"
        parts.append(
            f'<rect x="{x:.1f}" y="{top}" width="{width:.1f}" height="{LANE - 6}" fill="{colour}" stroke="white" '
            f'stroke-width="0.4"><title>{escape(label)}</title></rect>'
        )
    return parts


def legend(y: float) -> list[str]:
    parts = []
    for i, (name, colour) in enumerate(COLOURS.items()):
        x = LEFT + i * 150
        parts.append(f'<rect x="{x}" y="{y - 10}" width="12" height="12" fill="{colour}"/>')
        parts.append(f'<text x="{x + 18}" y="{y}">{name}</text>')
    return parts


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
