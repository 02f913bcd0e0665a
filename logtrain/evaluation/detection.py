"""Scores of anomaly detection: lines or sequences that are abnormal, the positive class, or normal.

    tally([Verdict(is_abnormal, said), ...], clusters)    what each cluster contributes to these figures

    accuracy            share of right answers, which a constant answer can have, too: see `majority`
    precision, recall   of the abnormal: TP / (TP + FP), 0 where nothing is called abnormal; TP / (TP + FN)
    f1                  2 TP / (2 TP + FP + FN)
    mcc                 (TP TN - FP FN) / sqrt((TP + FP)(TP + FN)(TN + FP)(TN + FN)), 0 where only one class is said
    balanced            balanced accuracy: mean of TP / (TP + FN) and TN / (TN + FP)
    unread              share of the answers that could not be read

An answer that could not be read is wrong: a missed anomaly where the truth is abnormal, else a false alarm. Without an
abnormal row there is no precision, recall and F1; without rows of both classes no MCC and no balanced accuracy.

Of rows that are normal in 0.93, "normal" as every answer has an accuracy of 0.93, an F1 of 0, an MCC of 0 and a
balanced accuracy of 0.5: the majority's figures stand beside a model's (tasks.py).

Matthews 1975 (MCC); Chicco and Jurman 2020, "The advantages of the MCC over F1 score and accuracy".
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from logtrain.evaluation.clusters import Tally, by_cluster, ratio

METRICS = {
    "anomaly_accuracy": "Anomaly accuracy",
    "anomaly_precision": "Anomaly precision",
    "anomaly_recall": "Anomaly recall",
    "anomaly_f1": "Anomaly F1",
    "anomaly_mcc": "Anomaly MCC",
    "anomaly_balanced": "Anomaly balanced accuracy",
    "anomaly_unread": "Anomaly, unread",
}
"""Titles of the figures, by their names."""


class Verdict(NamedTuple):
    """What a row is, and what was said of it."""

    is_abnormal: bool
    """The truth."""
    said: bool | None
    """Whether it was called abnormal; None where the answer could not be read."""


def tally(verdicts: Sequence[Verdict], clusters: Sequence[Hashable]) -> Tally:
    """The counts of true and false positives and negatives of each cluster. `clusters`: that of each row."""
    counts = []
    for is_abnormal, said in verdicts:
        called = not is_abnormal if said is None else said
        is_right, is_wrong = called == is_abnormal, called != is_abnormal
        counts.append(
            [called and is_right, called and is_wrong, not called and is_wrong, not called and is_right, said is None]
        )
    counts_GK = by_cluster(np.array(counts, np.float64).reshape(-1, 5), clusters)
    return Tally(counts_GK, figures, ("anomaly_accuracy", "anomaly_unread"))


def figures(sums: np.ndarray) -> Mapping[str, np.ndarray]:
    """The figures of sums of TP, FP, FN, TN and unread answers, float64 [..., 5]."""
    tp, fp, fn, tn, unread = np.moveaxis(np.asarray(sums, np.float64), -1, 0)
    abnormal, normal = tp + fn, tn + fp
    has_abnormal, has_both = abnormal > 0, (abnormal > 0) & (normal > 0)
    mcc = ratio(tp * tn - fp * fn, np.sqrt((tp + fp) * abnormal * normal * (tn + fn)), empty=0.0)
    return {
        "anomaly_accuracy": ratio(tp + tn, abnormal + normal),
        "anomaly_precision": np.where(has_abnormal, ratio(tp, tp + fp, empty=0.0), np.nan),
        "anomaly_recall": ratio(tp, abnormal),
        "anomaly_f1": np.where(has_abnormal, ratio(2 * tp, 2 * tp + fp + fn), np.nan),
        "anomaly_mcc": np.where(has_both, mcc, np.nan),
        "anomaly_balanced": (ratio(tp, abnormal) + ratio(tn, normal)) / 2,
        "anomaly_unread": ratio(unread, abnormal + normal),
    }
