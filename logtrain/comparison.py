"""What answers say of the models that gave them: every score with its interval, every difference with its own.

scores.json

    data          the questions: file, its sha256, how many of each task
    models        NAME -> {metrics, corpus, tasks, perplexity, ...}
    differences   [{models: [A, B], metrics, tasks}]    B less A, over the same questions

A metric is {mean, low, high, n}; a difference {difference, low, high, n, significant, p}. Nothing in it depends on when
or how fast it was made.
"""

import itertools
from collections.abc import Mapping, Sequence

from logtrain.intervals import bootstrap_all, paired_all
from logtrain.scoring import METRICS, Scores, corpus_scores

TITLES = {**METRICS, "stopped": "Stopped"}
"""Of every score of a sample. stopped: 1 where the answer ended by itself, 0 where it was cut."""

PUBLISHED = list(METRICS)[:6]  # the metrics of the published table


def metrics_of(samples: Sequence[Scores]) -> dict[str, dict]:
    return {
        name: {"mean": mean, "low": low, "high": high, "n": used}
        for name, (mean, low, high, used) in bootstrap_all(columns(samples)).items()
        if used
    }


def differences_of(a: Sequence[Scores], b: Sequence[Scores]) -> dict[str, dict]:
    """b less a."""
    return {
        name: {"difference": difference, "low": low, "high": high, "n": used, "significant": significant, "p": p}
        for name, (difference, low, high, used, significant, p) in paired_all(columns(b), columns(a)).items()
        if used
    }


def columns(samples: Sequence[Scores]) -> dict[str, list[float | None]]:
    return {name: [sample[name] for sample in samples] for name in TITLES}


def compare(
    scores: Mapping[str, Sequence[Scores]],
    pairs: Mapping[str, Sequence[tuple[str, str]]],
    tasks: Sequence[str],
) -> dict:
    """{"models", "differences"} of models' scores of the same samples; `pairs`: (prediction, reference) of these.

    `tasks`: of each sample; each kind is also looked at alone, where there are several.
    """
    kinds = sorted(set(tasks)) if len(set(tasks)) > 1 else []

    def of_kind(samples: Sequence, kind: str) -> list:
        return [sample for sample, task in zip(samples, tasks, strict=True) if task == kind]

    models = {
        name: {
            "metrics": metrics_of(samples),
            "corpus": corpus_scores(pairs[name]),
            "tasks": {kind: metrics_of(of_kind(samples, kind)) for kind in kinds},
        }
        for name, samples in scores.items()
    }
    differences = [
        {
            "models": [a, b],
            "metrics": differences_of(scores[a], scores[b]),
            "tasks": {kind: differences_of(of_kind(scores[a], kind), of_kind(scores[b], kind)) for kind in kinds},
        }
        for a, b in itertools.combinations(scores, 2)
    ]
    return {"models": models, "differences": differences}
