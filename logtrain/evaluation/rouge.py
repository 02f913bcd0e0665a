"""ROUGE (Lin 2004) of one answer: the F1s that the package rouge_score gives without its stemmer.

    rouge1, rouge2    unigrams and bigrams in common
    rougeL            the longest common subsequence (LCS) of the tokens
    rougeLsum         for each line of the reference, the union of its LCSs with the lines of the prediction

rouge_score takes 0.2 s for 600 tokens, because it fills two tables with a cell for each pair of tokens in Python; this
takes 1 ms. The tests compare the results with those of rouge_score.
"""

import functools
import logging
import re
from collections import Counter
from collections.abc import Sequence
from itertools import chain, pairwise

from rapidfuzz.distance import LCSseq

try:
    from logtrain import _rouge

    if not hasattr(_rouge, "union_lcs_hits"):
        raise ImportError(f"{_rouge.__file__} is of another version")
except ImportError:
    _rouge = None

USES_CPP = _rouge is not None
TOKEN = re.compile("[a-z0-9]+")  # a token of the text in lower case, as rouge_score's tokenizer has them


def rouge(prediction: str, reference: str) -> dict[str, float]:
    """The scores "rouge1", "rouge2", "rougeL" and "rougeLsum", each from 0 to 1, and 0 where a text has no token."""
    prediction_lines, reference_lines = token_ids(prediction, reference)
    p, r = list(chain(*prediction_lines)), list(chain(*reference_lines))
    return {
        "rouge1": f1((Counter(p) & Counter(r)).total(), len(p), len(r)),
        "rouge2": f1((Counter(pairwise(p)) & Counter(pairwise(r))).total(), len(p) - 1, len(r) - 1),
        "rougeL": f1(LCSseq.similarity(p, r), len(p), len(r)),
        "rougeLsum": f1(union_lcs_hits(prediction_lines, reference_lines), len(p), len(r)),
    }


@functools.cache  # so that it warns once
def warn_without_cpp() -> None:
    """Log a warning if scoring is slow; on import the worker processes of scoring.py would repeat it."""
    if not USES_CPP:
        logging.getLogger(__name__).warning(
            "the C++ part of ROUGE is not built: ROUGE-Lsum is computed in Python, about 100 times slower; "
            "to build it, install a C++17 compiler and then this package again"
        )


def f1(hits: int, num_predicted: int, num_reference: int) -> float:
    """The harmonic mean of precision (hits / num_predicted) and recall (hits / num_reference); 0 without a hit."""
    if not hits:
        return 0.0
    precision, recall = hits / num_predicted, hits / num_reference
    return 2 * precision * recall / (precision + recall)


def token_ids(*texts: str) -> list[list[list[int]]]:
    """The tokens of each text, line by line, as numbers that are equal for equal tokens."""
    ids: dict[str, int] = {}
    return [
        [[ids.setdefault(token, len(ids)) for token in TOKEN.findall(line)] for line in text.lower().split("\n")]
        for text in texts
    ]


def union_lcs_hits(prediction: list[list[int]], reference: list[list[int]]) -> int:
    """The number of tokens of the reference that are in an LCS of their line with any line of the prediction; a token
    counts at most as often as the prediction has it. Both are lines of token ids. The extension in C++ is used if it is
    built.
    """
    return (_rouge.union_lcs_hits if _rouge else union_lcs_hits_reference)(prediction, reference)


def union_lcs_hits_reference(prediction: list[list[int]], reference: list[list[int]]) -> int:
    """`union_lcs_hits` in Python, with results equal to those of csrc/rouge.cpp."""
    hits, unused = 0, Counter(chain(*prediction))
    for line in reference:
        taken = {i for predicted in prediction for i in lcs(line, predicted)}
        for token in (line[i] for i in taken):
            hits += unused[token] > 0
            unused[token] -= 1
    return hits


def lcs(reference: Sequence[int], prediction: Sequence[int]) -> list[int]:
    """The indices in the reference of the tokens of an LCS; of several LCSs it is the one that rouge_score chooses."""
    m, n = len(reference), len(prediction)
    length = [[0] * (n + 1) for _ in range(m + 1)]  # of the LCS of the first i tokens and the first j
    for i in range(1, m + 1):
        for j in range(1, n + 1):
            if reference[i - 1] == prediction[j - 1]:
                length[i][j] = length[i - 1][j - 1] + 1
            else:
                length[i][j] = max(length[i - 1][j], length[i][j - 1])
    found, i, j = [], m, n
    while i > 0 and j > 0:
        if reference[i - 1] == prediction[j - 1]:
            i, j = i - 1, j - 1
            found.append(i)
        elif length[i][j - 1] > length[i - 1][j]:
            j -= 1
        else:
            i -= 1
    return found
