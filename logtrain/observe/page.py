"""The page of one or several runs: a single file to watch, read, send and print, without a script in it."""

import base64
import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2

from logtrain.core.atomic import write_file
from logtrain.core.origin import read_sealed_in
from logtrain.core.untrusted import read_own
from logtrain.observe.charts import Chart, charts_of, draw, png_bytes, svg_bytes
from logtrain.observe.goodput import account, clock
from logtrain.observe.run_files import Line, RunFiles, as_table, differing, is_number
from logtrain.observe.state import state_of

TEMPLATE = Path(__file__).with_name("report.html.jinja")
STAGE_COLORS = {
    "step": "#3f9c6b",
    "start": "#8a96a3",
    "load": "#b4bdc7",
    "data wait": "#d9822b",
    "validation": "#2f6fb0",
    "checkpoint": "#8e5ea2",
    "export": "#5aa5c9",
    "lost": "#b9423f",
    "idle": "#e3e7ec",
}
MOST_EVENTS = 1000
# A plan's figure, its title, its unit, and the same of the records.
PLANNED = (
    ("tokens_per_second_per_gpu", "tokens a second and GPU", "tokens_per_second_per_gpu"),
    ("step_seconds", "seconds a step", "step_seconds"),
    ("reserved_memory_gib", "memory, GiB", "peak_memory_gib"),
    ("mfu_causal", "MFU", "mfu"),
)


def write_report(runs: Sequence[RunFiles], output: Path, pictures: Path | None = None) -> None:
    """Write the page to `output` and, with `pictures`, every chart as a PNG into that folder. Raises OSError."""
    charts = charts_of(runs)
    if pictures:
        pictures.mkdir(parents=True, exist_ok=True)
        names = ", ".join(run.name for run in runs)
        for chart in charts:
            title = f"{names[:60]}: {chart.title} ({counted(runs)})"
            write_file(pictures / f"{chart.name}.png", png_bytes(draw(chart, title, (7, 4))))
    write_file(output, page(runs, charts).encode())


def page(runs: Sequence[RunFiles], charts: Sequence[Chart]) -> str:
    """The text of the page."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    several = len(runs) > 1
    states = [state_of(run) for run in runs]
    facts = {
        "title": (f"{len(runs)} runs: " if several else "") + ", ".join(run.name for run in runs),
        "subtitle": f"as of {datetime.now().astimezone():%Y-%m-%d %H:%M:%S %Z}; " + counted(runs),
        "is_running": any(state.word == "running" for state in states),
        "several": several,
        "summary_headings": ["", *(run.name for run in runs)],
        "summary": summary(runs),
        "charts": [
            {"name": chart.name, "title": chart.title, "picture": base64.b64encode(svg_bytes(draw(chart))).decode()}
            for chart in charts
        ],
        "events": events(runs),
        "times": [of_time(run) for run in runs if run.attempts],
        "predicted": predicted(runs),
        "data": data_rows(runs),
        "forgotten": [row for run in runs for row in forgotten(run)],
        "exports": [export_row(run) for run in runs if run.export],
        "evaluations": evaluations(runs),
        "differing": [[key, *map(setting, values)] for key, values in differing(list(runs)).items()] if several else [],
        "differing_headings": ["", *(run.name for run in runs)],
        "configs": [(run.name, [[key, setting(value)] for key, value in run.config.items()]) for run in runs],
    }
    facts["problems"] = [f"{run.name}: {problem}" for run in runs for problem in run.problems]  # those of above, too
    titles = {
        "summary": "summary", "charts": "charts", "events": "events", "times": "time", "predicted": "plan",
        "data": "data", "forgotten": "forgetting", "exports": "export",
    }  # fmt: skip
    contents = [(anchor, anchor) for key, anchor in titles.items() if facts[key] or key == "events"]
    contents += [(f"evaluation-{i}", "evaluation") for i, _ in enumerate(facts["evaluations"], 1)]
    contents.append(("settings", "settings"))
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(contents=contents, **facts)


def counted(runs: Sequence[RunFiles]) -> str:
    """How much the pictures are of."""
    steps = sum(len(run.steps) for run in runs)
    most = max((run.last.get("step", 0) for run in runs), default=0)
    return f"{steps:,} records, up to step {most:,}"


def number(value: Any, form: str = ".4f") -> str:
    """A figure in words; a dash where there is none."""
    return format(value, form) if is_number(value) else "-"


def setting(value: Any) -> str:
    """The value of a setting as it would be given."""
    if isinstance(value, list):
        return " ".join(map(str, value))
    return {True: "true", False: "false", None: "-"}.get(value, str(value)) if not is_number(value) else f"{value:g}"


def summary(runs: Sequence[RunFiles]) -> list[list[str]]:
    """Rows of figures with a column for each run."""
    states = [state_of(run) for run in runs]
    accounts = [account(run.attempts) if run.attempts else None for run in runs]
    rows = [
        ["state", *(state.told for state in states)],
        ["model", *(Path(str(run.config.get("model", ""))).name or "-" for run in runs)],
        ["step", *(state.progress for state in states)],
        ["tokens trained on", *(number(run.last.get("tokens"), ",.0f") for run in runs)],
        ["loss", *(number(run.last.get("loss")) for run in runs)],
    ]
    for name in dict.fromkeys(name for run in runs for name in run.validations):
        rows.append([f"held out: {name}", *(held_out(run.validations.get(name, [])) for run in runs)])
    rows += [
        ["tokens a second", *(number(run.last.get("tokens_per_second"), ",.0f") for run in runs)],
        ["time", *(clock(each.wall) if each else "-" for each in accounts)],
        ["of it in steps that count", *(f"{each.goodput:.1%}" if each else "-" for each in accounts)],
    ]
    if any(each and each.price for each in accounts):
        rows.append(["cost", *(f"${each.dollars:.2f}" if each else "-" for each in accounts)])
    rows.append(["devices", *(devices(run) for run in runs)])
    return rows


def devices(run: RunFiles) -> str:
    """What a run is on."""
    if not run.attempts:
        return "-"
    last = run.attempts[-1]
    return f"{last.devices} x {last.device if last.device != 'rank' else 'rank without a GPU'}, {last.host}"


def held_out(records: Sequence[Line]) -> str:
    """The first, the best and the last loss of a validation set."""
    losses = [(r["valid_loss"], r.get("step")) for r in records if is_number(r.get("valid_loss"))]
    if not losses:
        return "-"
    best = min(losses)
    told = f"{losses[0][0]:.4f} → {losses[-1][0]:.4f}"
    return told if best == losses[-1] else f"{told} (best {best[0]:.4f} at step {best[1]})"


def events(runs: Sequence[RunFiles]) -> list[list[str]]:
    """The last events of all runs, in order of time."""
    found = [(event, run) for run in runs for event in run.events if is_number(event.get("time"))]
    found.sort(key=lambda pair: pair[0]["time"])
    return [
        [
            moment(event["time"]),
            str(event.get("step", "")),
            str(event.get("kind", "")),
            f"{run.name}: {event.get('text', '')}" if len(runs) > 1 else str(event.get("text", "")),
        ]
        for event, run in found[-MOST_EVENTS:]
    ]


def moment(seconds: float) -> str:
    """A time of day, with the date."""
    try:
        return f"{datetime.fromtimestamp(seconds).astimezone():%m-%d %H:%M:%S}"
    except (OverflowError, OSError, ValueError):
        return "-"


def of_time(run: RunFiles) -> Mapping[str, Any]:
    """Where the time of a run went."""
    found = account(run.attempts)
    parts = [
        {"percent": f"{100 * spent / max(found.wall, 1e-9):.3f}", "color": STAGE_COLORS[name],
         "told": f"{name} {clock(spent)} ({spent / max(found.wall, 1e-9):.1%})"}
        for name in STAGE_COLORS if (spent := found.seconds[name]) > 0
    ]  # fmt: skip
    attempts = [
        [moment(each.began), f"{each.devices} on {each.host}", str(each.resumed_at), clock(each.last - each.began),
         each.ended or ("running" if at == len(run.attempts) - 1 and state_of(run).word == "running" else "killed")]
        for at, each in enumerate(run.attempts)
    ]  # fmt: skip
    return {"name": run.name, "parts": parts, "lines": found.told(), "attempts": attempts}


def predicted(runs: Sequence[RunFiles]) -> list[list[str]]:
    """The figures of a plan beside those that were measured, of each run that has one (plan.json)."""
    rows = []
    for run in runs:
        for key, title, measured in PLANNED:
            values = [r[measured] for r in run.steps[1:] or run.steps if is_number(r.get(measured))]
            if is_number(run.plan.get(key)) and values:
                median = sorted(values)[len(values) // 2]
                label = f"{run.name}: {title}" if len(runs) > 1 else title
                ratio = f"{median / run.plan[key]:.3f}" if run.plan[key] else "-"
                rows.append([label, f"{run.plan[key]:,.4g}", f"{median:,.4g}", ratio])
    return rows


def data_rows(runs: Sequence[RunFiles]) -> list[list[str]]:
    """What the manifests of the runs' data count, where the data are on this machine."""
    rows = []
    for run in runs:
        given = run.config.get("data", "")
        several = given if isinstance(given, list) else [f"={given}"]
        named = [text.partition("=")[2] for text in several if isinstance(text, str)]
        for folder in filter(None, named):
            if not os.path.isfile(Path(folder) / "manifest.json"):
                continue
            facts = run.attempt(lambda folder=folder: read_own(Path(folder) / "manifest.json"), {})
            for split, counts in as_table(facts.get("splits")).items():
                figures = (number(as_table(counts).get(key), ",.0f") for key in ("documents", "tokens", "targets"))
                rows.append([run.name, folder, split, *figures])
    return rows


def forgotten(run: RunFiles) -> list[list[str]]:
    """Each validation set before and after a run, with the interval of its change, and the run's forget budget."""
    budget, sets = run.forgetting.get("budget"), run.forgetting.get("sets")
    within = {True: "within", False: "not within"}.get(run.forgetting.get("is_within"))  # type: ignore[arg-type]
    kept = f"{within} a budget of {number(budget, '.2%')}" if within else "-"
    rows = []
    for one in map(as_table, sets if isinstance(sets, list) else []):
        losses = [number(one.get(key)) for key in ("before", "after")]
        change = f"{number(one.get('low'), '+.4f')} to {number(one.get('high'), '+.4f')}"
        told = f"{one.get('name')} ({one.get('role')})" if one.get("role") else str(one.get("name"))
        if one.get("measure", "loss") != "loss":
            told += f", {one['measure']}"
        rows.append([run.name, told, *losses, change, number(one.get("rise"), "+.2%"), kept])
    return rows


def export_row(run: RunFiles) -> list[str]:
    """The proof of an export."""
    losses = (number(run.export.get(key), ".6f") for key in ("exported_loss", "live_loss"))
    return [run.name, str(run.export.get("dtype", "-")), *losses, number(run.export.get("difference"), "+.1e")]


def evaluations(runs: Sequence[RunFiles]) -> list[Mapping[str, Any]]:
    """The means of evaluations beside the runs that have one of their exports among the models."""
    exports = {str((run.folder / "export").absolute()) for run in runs}
    found = []
    for file in sorted({file for run in runs for file in run.folder.absolute().parent.glob("*/scores.json")}):
        scores = runs[0].attempt(lambda file=file: read_sealed_in(file, "scores"), {})
        models = {name: as_table(model) for name, model in as_table(scores.get("models")).items()}
        if not any(str(model.get("path", "")).rstrip("/") in exports for model in models.values()):
            continue
        metrics = dict.fromkeys(name for model in models.values() for name in as_table(model.get("metrics")))
        means = [[name, *(mean_of(model, name) for model in models.values())] for name in metrics]
        questions = as_table(scores.get("data")).get("questions")
        told = f"{number(questions, ',.0f')} questions; {file.parent / 'compare.html'} has the answers"
        if (judge := file.with_name("judge.json")).is_file():
            judgement = runs[0].attempt(lambda judge=judge: read_sealed_in(judge, "judge"), {})
            told += "".join(f"; {line}" for line in judged(judgement))
        found.append({"name": file.parent.name, "told": told, "headings": ["", *models], "means": means})
    return found


def judged(judgement: Line) -> list[str]:
    """Which of every two models a judge prefers, and by how much: 0.5 is even."""
    found, pairs = [], judgement.get("pairs")
    for pair in map(as_table, pairs if isinstance(pairs, list) else []):
        models = pair.get("models")
        a, b = models if isinstance(models, list) and len(models) == 2 else ("-", "-")
        found.append(f"{judgement.get('judge')} prefers {b} to {a}: {told(pair, 'preferred')}")
    return found


def mean_of(model: Line, name: str) -> str:
    """A model's mean of a metric with its interval."""
    return told(as_table(model.get("metrics")), name)


def told(means: Line, name: str) -> str:
    """A mean with its interval."""
    score = as_table(means.get(name))
    if not is_number(score.get("mean")):
        return "-"
    has_interval = is_number(score.get("low")) and is_number(score.get("high"))
    ends = f" ({score['low']:.3f} to {score['high']:.3f})" if has_interval else ""
    return f"{score['mean']:.4f}{ends}"
