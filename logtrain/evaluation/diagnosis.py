"""Scores of diagnosis: the one of a closed set of labels, as of causes or components, that a log calls for.

    tally([Diagnosed(truth, said), ...], clusters)    what each cluster contributes to these figures

    accuracy    share of right answers
    macro_f1    mean over the labels that are true or said somewhere of 2 TP / (2 TP + FP + FN), each against the rest;
                0 for one that is said and never true, as in scikit-learn
    unread      share of the answers that could not be read

An answer that could not be read is wrong: its true label is missed, and no other is falsely said.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from logtrain.evaluation.clusters import Tally, by_cluster, ratio

METRICS = {
    "diagnosis_accuracy": "Diagnosis accuracy",
    "diagnosis_macro_f1": "Diagnosis macro-F1",
    "diagnosis_unread": "Diagnosis, unread",
}
"""Titles of the figures, by their names."""


class Diagnosed(NamedTuple):
    """What a row is, and what was said of it."""

    truth: str
    """The true label."""
    said: str | None
    """The label that was said; None where the answer could not be read."""


def tally(rows: Sequence[Diagnosed], clusters: Sequence[Hashable], labels: Iterable[str] = ()) -> Tally:
    """The counts of each cluster: unread answers, then of each label how often it is true, said, and both. `labels`:
    further ones to count, so that two models are counted alike.
    """
    occurring = (*(row.truth for row in rows), *labels, *(row.said for row in rows if row.said is not None))
    number = {label: i for i, label in enumerate(dict.fromkeys(occurring))}
    counts_N3L = np.zeros((len(rows), 3, len(number)))
    for i, (truth, said) in enumerate(rows):
        counts_N3L[i, 0, number[truth]] = 1
        if said is not None:
            counts_N3L[i, 1, number[said]] = 1
        counts_N3L[i, 2, number[truth]] = said == truth
    unread_N1 = np.array([[row.said is None] for row in rows], np.float64).reshape(-1, 1)
    counts_NK = np.concatenate([unread_N1, counts_N3L.reshape(len(rows), -1)], 1)
    return Tally(by_cluster(counts_NK, clusters), figures, ("diagnosis_accuracy", "diagnosis_unread"))


def figures(sums: np.ndarray) -> Mapping[str, np.ndarray]:
    """The figures of sums of counts, float64 [..., 1 + 3 L]."""
    unread = sums[..., 0]
    true_L, said_L, both_L = np.moveaxis(sums[..., 1:].reshape(*sums.shape[:-1], 3, -1), -2, 0)
    f1_L = ratio(2 * both_L, true_L + said_L, empty=0.0)
    return {
        "diagnosis_accuracy": ratio(both_L.sum(-1), true_L.sum(-1)),
        "diagnosis_macro_f1": ratio(f1_L.sum(-1), (true_L + said_L > 0).sum(-1)),
        "diagnosis_unread": ratio(unread, true_L.sum(-1)),
    }
