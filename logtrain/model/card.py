"""Model cards: README.md with the hub's metadata, so that a model says elsewhere what it is and what it was made of."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from logtrain.core.origin import read_sealed_in
from logtrain.core.printable import printable
from logtrain.model.base import CARD, Base

Relation = Literal["finetune", "adapter", "merge"]
LIBRARY = {"finetune": "transformers", "merge": "transformers", "adapter": "peft"}


class DataLine(NamedTuple):
    """Prepared data that a model was trained on."""

    name: str
    """Names of the files that it was made of."""
    kind: str
    """documents or chats."""
    documents: int
    """Number of documents or conversations."""
    tokens: int
    """Number of tokens."""
    sha256: str
    """Fingerprint of the prepared folder."""


class Score(NamedTuple):
    """A result on a test set."""

    dataset: str
    """Name of the test set."""
    metric: str
    """Name of the metric."""
    value: float
    """Its value."""


def write_card(
    folder: Path,
    title: str,
    relation: Relation,
    base: Base,
    *,
    others: Sequence[Base] = (),
    data: Sequence[DataLine] = (),
    recipe: str = "",
    scores: Sequence[Score] = (),
) -> None:
    """Write the card of a model or an adapter. `others`: models besides `base` that it was made from. `recipe`: the
    settings of its run, as TOML.
    """
    bases = [base, *others]
    facts: dict[str, Any] = {
        "base_model": [each.name for each in bases] if others else base.name,
        "base_model_relation": relation,
        "library_name": LIBRARY[relation],
        "pipeline_tag": "text-generation",
        "tags": ["logtrain", *(["lora"] if relation != "finetune" else [])],
    }
    facts |= {"license": base.license} if base.license else {}
    facts |= {"model-index": model_index(title, scores)} if scores else {}
    # JSON is YAML; a value on each line can be read by both.
    header = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in facts.items()]
    made_from = ", ".join(f"`{line(each.name)}` (weights {each.sha256[:16]})" for each in bases)
    body = [f"# {line(title)}", f"Made by logtrain from {made_from}."]
    if data:
        rows = [f"| {line(of.name)} | {of.kind} | {of.documents:,} | {of.tokens:,} | {of.sha256[:16]} |" for of in data]
        head = ["## Data", "", "| files | kind | number | tokens | fingerprint |", "|--|--|--|--|--|"]
        body.append("\n".join([*head, *rows]))
    if scores:
        rows = [f"| {line(score.dataset)} | {score.metric} | {score.value:.4f} |" for score in scores]
        body.append("\n".join(["## Results", "", "| test set | metric | value |", "|--|--|--|", *rows]))
    if recipe:
        body.append(f"## Recipe\n\n```toml\n{recipe.strip()}\n```")
    text = "\n".join(["---", *header, "---", ""]) + "\n\n".join(body) + "\n"
    (folder / CARD).write_text(text, encoding="utf-8")


def model_index(title: str, scores: Sequence[Score]) -> list[dict[str, Any]]:
    """Results in the form in which the hub reads them."""
    by_set: dict[str, list[Score]] = {}
    for score in scores:
        by_set.setdefault(score.dataset, []).append(score)
    results = [
        {
            "task": {"type": "text-generation"},
            "dataset": {"name": name, "type": name},
            "metrics": [{"type": one.metric, "name": one.metric, "value": one.value} for one in of_set],
        }
        for name, of_set in by_set.items()
    ]
    return [{"name": title, "results": results}]


def read_scores(named: str) -> list[Score]:
    """Reads the scores of a model from NAME=FILE, the scores.json of an evaluation; [] for "". Raises ValueError for
    another file, or a model that was not evaluated.
    """
    if not named:
        return []
    name, _, file = named.partition("=")
    try:
        facts = read_sealed_in(Path(file), "scores")
    except ValueError as error:
        raise ValueError(f"{error}; give NAME=FILE, the scores.json of an evaluation") from None
    try:
        metrics, path = facts["models"][name]["metrics"], facts["data"]["path"]
        return [Score(Path(path).name, metric, float(of["mean"])) for metric, of in metrics.items()]
    except (LookupError, TypeError, ValueError, AttributeError):
        raise ValueError(f"{file}: no scores of a model {name[:80]!r}; give NAME=FILE as in the evaluation") from None


def line(text: str) -> str:
    """A text on one line of a table."""
    return printable(text, one_line=True).replace("|", "\\|").replace("`", "'")
