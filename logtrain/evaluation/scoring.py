"""Scores of answers against references.

    score(prediction, reference)     every metric of METRICS for one answer
    score_all(pairs, num_workers)    the same for many answers, in worker processes
    corpus_scores(pairs)             the metrics of a whole test set

The metrics of one answer range from 0 to 1, but for length_ratio; the published table has the means of the first six
over the test set:

    fuzzy          rapidfuzz's ratio: twice the length of the longest common subsequence over the length of both texts
    bleu           sacrebleu's BLEU of the pair: 13a tokens, 4-grams, no smoothing, so 0 without a common 4-gram; None
                   where the reference has less than 4 tokens, for no answer to it could have more than 0
    rouge1, rouge2, rougeL, rougeLsum    rouge_score's F1s without its stemmer: see rouge.py; None where its tokens, of
                   a to z and 0 to 9, are less than half of the reference's letters and digits, as in Chinese, and
                   rouge2 also where they are less than two
    exact_match    1 where both texts are equal once outer white space is stripped; nothing else is normalised
    length_ratio   the prediction's characters over the reference's; None where the reference has none
    json_valid     1 where the prediction is a JSON object or array; None where the reference is neither. A number or a
                   word in quotes parses too, but is an answer in plain text. NaN is no JSON, and neither is JSON in a
                   Markdown fence, because a program that reads the answer would stop at either.

Sources: Papineni et al. 2002 (BLEU), Lin 2004 (ROUGE), Popovic 2015 (chrF).
"""

import os
from collections.abc import Sequence
from itertools import islice
from multiprocessing.connection import Connection
from typing import NamedTuple

import orjson
from rapidfuzz import fuzz
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

from logtrain.core.worker import Worker, wait
from logtrain.evaluation.rouge import TOKEN, rouge, warn_without_cpp

METRICS = {
    "fuzzy": "Fuzzy",
    "bleu": "BLEU",
    "rouge1": "R-1",
    "rouge2": "R-2",
    "rougeL": "R-L",
    "rougeLsum": "R-Lsum",
    "exact_match": "Exact",
    "length_ratio": "Length",
    "json_valid": "JSON",
}
"""The titles of the scores that `score` gives, by their names, in the order of the published table."""

PUBLISHED = tuple(METRICS)[:6]
"""The metrics of the published table."""

CORPUS_METRICS = {"corpus_bleu": "Corpus BLEU", "chrf": "chrF"}

Scores = dict[str, float | None]

ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")
TOKENIZE = Tokenizer13a()
SENTENCE_BLEU = BLEU(smooth_method="none", effective_order=False)

CHUNK = 8  # pairs that a worker gets at a time: 30 ms of work for 600 tokens each, where sending takes 0.1 ms
CHARACTERS_PER_WORKER = 500_000  # characters of both texts: 0.4 s of work, as long as a worker takes to start


class Pair(NamedTuple):
    """The two texts that a score compares."""

    prediction: str
    """The model's answer."""
    reference: str
    """The right answer."""


def score(prediction: str, reference: str) -> Scores:
    """Every metric of METRICS for one answer, in their order. Any two strings will do, also empty ones and lone
    surrogates.

    `bleu` is sacrebleu.sentence_bleu(prediction, [reference], smooth_method="none", use_effective_order=False) over
    100, which is also the result of Hugging Face's evaluate for one pair (it fails where a text has no token).
    """
    of_rouge: Scores = {**rouge(prediction, reference)}
    if is_beyond_rouge(reference):
        of_rouge = dict.fromkeys(ROUGE)
    if sum(1 for _ in islice(TOKEN.finditer(reference.lower()), 2)) < 2:
        of_rouge["rouge2"] = None
    # corpus_score of one pair equals sentence_score, which would advise each time to leave out orders without a match.
    bleu = SENTENCE_BLEU.corpus_score([prediction], [[reference]]).score / 100
    return {
        "fuzzy": fuzz.ratio(prediction, reference) / 100,
        "bleu": None if is_beyond_bleu(reference) else bleu,
        **of_rouge,
        "exact_match": float(prediction.strip() == reference.strip()),
        "length_ratio": len(prediction) / len(reference) if reference else None,
        "json_valid": float(is_json(prediction)) if is_json(reference) else None,
    }


def is_beyond_bleu(reference: str) -> bool:
    """Whether a reference has no 4-gram of sacrebleu's 13a tokens, so that every answer has a BLEU of 0."""
    return len(reference.split()) < 4 and len(TOKENIZE(reference.rstrip()).split()) < 4


def is_beyond_rouge(reference: str) -> bool:
    """Whether most letters and digits of a reference, or all text in it, are no tokens to ROUGE."""
    if reference.isascii():
        return bool(reference.strip()) and not TOKEN.search(reference.lower())
    seen = sum(map(len, TOKEN.findall(reference.lower())))
    return not seen or 2 * seen < sum(map(str.isalnum, reference))


def is_json(text: str) -> bool:
    """Whether a text is a JSON object or array."""
    try:
        return isinstance(orjson.loads(text), dict | list)
    except orjson.JSONDecodeError:
        return False


def corpus_scores(pairs: Sequence[Pair]) -> Scores:
    """BLEU and chrF of the whole set by sacrebleu's defaults (13a tokens and exponential smoothing; chrF2 of characters
    alone), over 100, so from 0 to 1. Counts are summed over the set before they are divided, so long answers weigh
    more. The scores of an empty set are None, and BLEU where no reference has 4 tokens.
    """
    if not pairs:
        return dict.fromkeys(CORPUS_METRICS)
    predictions, references = zip(*pairs, strict=True)
    bleu = BLEU(force=True)  # force changes no score; without it 100 answers that end in " ." cause a warning
    scores = (metric.corpus_score(predictions, [references]).score / 100 for metric in (bleu, CHRF()))
    found: Scores = dict(zip(CORPUS_METRICS, scores, strict=True))
    return found | ({"corpus_bleu": None} if all(map(is_beyond_bleu, references)) else {})


# ---- worker processes


def score_all(pairs: Sequence[Pair], num_workers: int = 0) -> list[Scores]:
    """`score` of every pair, in their order; the number of workers changes nothing but the time.

    `num_workers`: the number of processes, or 0 for one on each core. Only as many are started as have work for longer
    than their start takes; work for less than two is done in this process. Raises ValueError where a worker dies.
    """
    warn_without_cpp()
    num_characters = sum(len(prediction) + len(reference) for prediction, reference in pairs)
    num_workers = min(num_workers or len(os.sched_getaffinity(0)), num_characters // CHARACTERS_PER_WORKER)
    if num_workers < 2:
        return [score(*pair) for pair in pairs]
    starts = range(0, len(pairs), CHUNK)
    scores: dict[int, list[Scores]] = {}
    workers: list[Worker] = []
    try:
        workers.extend(Worker("logtrain.evaluation.scoring") for _ in range(num_workers))
        idle, unsent = list(workers), iter(starts)
        while len(scores) < len(starts):
            while idle and (start := next(unsent, None)) is not None:
                idle.pop().send((start, pairs[start : start + CHUNK]))
            for worker in wait(workers):
                start, scored = worker.receive()
                scores[start] = scored
                idle.append(worker)
    finally:
        for worker in workers:
            worker.stop()
    return [of_pair for start in starts for of_pair in scores[start]]


def work(connection: Connection) -> None:
    """Score the chunks that come over the connection, until the parent has gone; this runs in a worker process."""
    while True:
        start, pairs = connection.recv()
        connection.send((start, [score(*pair) for pair in pairs]))
