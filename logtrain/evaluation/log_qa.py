"""Scores of short answers to questions about logs, as SQuAD has them (Rajpurkar et al. 2016).

    exact    1 where both texts are equal once normalised
    f1       harmonic mean of the shares of the answer's and of the reference's words that the other has, each as often
             as it is there; where one has no word, 1 if both have none, else 0

Normalised: lower case, without ASCII punctuation and the words a, an and the, words apart by one space. So 10.0.0.1 is
10001, in both. An answer that could not be read, a blank one, is wrong.
"""

import re
import string
from collections import Counter

from logtrain.evaluation.scoring import Scores

METRICS = {"logqa_exact": "QA exact", "logqa_f1": "QA F1", "logqa_unread": "QA, unread"}
"""Titles of the scores, by their names."""
ARTICLES = re.compile(r"\b(?:a|an|the)\b")
WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def scores(said: str | None, reference: str) -> Scores:
    """The scores of one answer. `said`: None where it could not be read."""
    if said is None:
        return {"logqa_exact": 0.0, "logqa_f1": 0.0, "logqa_unread": 1.0}
    ours, theirs = normalised(said), normalised(reference)
    return {"logqa_exact": float(ours == theirs), "logqa_f1": token_f1(ours, theirs), "logqa_unread": 0.0}


def normalised(text: str) -> str:
    """A text as it is compared."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(WITHOUT_PUNCTUATION)).split())


def token_f1(said: str, reference: str) -> float:
    """The F1 of the words of two normalised texts."""
    ours, theirs = said.split(), reference.split()
    if not ours or not theirs:
        return float(ours == theirs)
    return 2 * sum((Counter(ours) & Counter(theirs)).values()) / (len(ours) + len(theirs))
