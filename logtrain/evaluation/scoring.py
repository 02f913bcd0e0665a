"""Scores of answers against references: what each measures, and over a whole test set in worker processes.

    score(prediction, reference)     every metric of METRICS, of one answer
    score_all(pairs, num_workers)    the same of many, in their order
    corpus_scores(pairs)             the metrics that exist only of a whole set

Of one answer, from 0 to 1 but for length_ratio; the published table is the mean over the test set of the first six:

    fuzzy          rapidfuzz's ratio: 2 * characters in common, in order, over the characters of both (indel similarity)
    bleu           sacrebleu's BLEU of this pair: 13a tokens, up to 4-grams, no smoothing, so 0 without a common 4-gram
    rouge1, rouge2 F1 of the unigrams and bigrams in common, as rouge_score counts them without its stemmer
    rougeL         F1 of the longest common subsequence (LCS) of the tokens
    rougeLsum      F1 of the union, line by line of the reference, of its LCSs with the prediction's lines
    exact_match    1 where both are the same characters once outer white space is stripped; nothing else is normalised
    length_ratio   the prediction's characters over the reference's; None where the reference has none
    json_valid     1 where the prediction is a JSON object or array; None where the reference is not: a number or a word
                   in quotes parses too, but is an answer in plain text. NaN is no JSON, nor is what stands in a
                   Markdown fence: the program that is to read the answer would stop at either.

ROUGE is computed here, in 2 ms for 600 tokens: rouge_score takes 0.2 s, for it fills two tables of m x n integers in
Python. The tests hold it to rouge_score's own results. Sources: Papineni et al. 2002 (BLEU), Lin 2004 (ROUGE),
Popovic 2015 (chrF), Hyyro 2004, "Bit-parallel LCS-length computation revisited" (a line of the LCS table as bits).
"""

import os
import re
from collections import Counter
from collections.abc import Sequence
from itertools import chain, pairwise
from multiprocessing.connection import Connection

import orjson
from rapidfuzz import fuzz
from rapidfuzz.distance import LCSseq
from sacrebleu.metrics import BLEU, CHRF

from logtrain.core.worker import Worker, wait

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
"""Names of what `score` gives, with their titles, in the order of the published table."""

CORPUS_METRICS = {"corpus_bleu": "Corpus BLEU", "chrf": "chrF"}

Pair = tuple[str, str]  # prediction, reference
Scores = dict[str, float | None]

SENTENCE_BLEU = BLEU(smooth_method="none", effective_order=False)
TOKEN = re.compile("[a-z0-9]+")  # of the text in lower case: what rouge_score's tokenizer leaves
REVERSED_BYTE = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))

CHUNK = 8  # pairs that a worker is sent at a time: 30 ms of work at 600 tokens, a sending takes 0.1 ms
CHARACTERS_PER_WORKER = 500_000  # of both texts: 0.4 s of work, as long as a worker takes to start


def score(prediction: str, reference: str) -> Scores:
    """Every metric of METRICS for one answer, in their order. Any two strings will do: empty ones, lone surrogates.

    `bleu` is what sacrebleu.sentence_bleu(prediction, [reference], smooth_method="none", use_effective_order=False)
    gives, over 100, and Hugging Face's evaluate with one pair (which fails where a text has no token).
    """
    # corpus_score of one pair is sentence_score without its advice, each time, to leave out the orders without a match.
    bleu = SENTENCE_BLEU.corpus_score([prediction], [[reference]]).score / 100
    return {
        "fuzzy": fuzz.ratio(prediction, reference) / 100,
        "bleu": bleu,
        **_rouge(prediction, reference),
        "exact_match": float(prediction.strip() == reference.strip()),
        "length_ratio": len(prediction) / len(reference) if reference else None,
        "json_valid": float(_is_json(prediction)) if _is_json(reference) else None,
    }


def corpus_scores(pairs: Sequence[Pair]) -> Scores:
    """BLEU and chrF of the whole set, from 0 to 1: sacrebleu's defaults (13a and exponential smoothing; chrF2, of
    characters only), over 100. Counts are summed over the set before they are divided, so long answers weigh more.
    None of an empty set.
    """
    if not pairs:
        return dict.fromkeys(CORPUS_METRICS)
    predictions, references = zip(*pairs, strict=True)
    bleu = BLEU(force=True)  # the same score; without it 100 answers that end in " ." bring a warning
    scores = (metric.corpus_score(predictions, [references]).score / 100 for metric in (bleu, CHRF()))
    return dict(zip(CORPUS_METRICS, scores, strict=True))


def _is_json(text: str) -> bool:
    try:
        return isinstance(orjson.loads(text), dict | list)
    except orjson.JSONDecodeError:
        return False


# ROUGE


def _rouge(prediction: str, reference: str) -> Scores:
    """Tokens by lines, once for all four: no token goes over the end of a line."""
    prediction_lines, reference_lines = (
        [TOKEN.findall(line) for line in text.lower().split("\n")] for text in (prediction, reference)
    )
    p, r = list(chain(*prediction_lines)), list(chain(*reference_lines))
    return {
        "rouge1": _f1((Counter(p) & Counter(r)).total(), len(p), len(r)),
        "rouge2": _f1((Counter(pairwise(p)) & Counter(pairwise(r))).total(), len(p) - 1, len(r) - 1),
        "rougeL": _f1(LCSseq.similarity(p, r), len(p), len(r)),
        "rougeLsum": _f1(_union_lcs(prediction_lines, reference_lines), len(p), len(r)),
    }


def _f1(hits: int, num_predicted: int, num_reference: int) -> float:
    if not hits:
        return 0.0
    precision, recall = hits / num_predicted, hits / num_reference
    return 2 * precision * recall / (precision + recall)


def _union_lcs(prediction_lines: list[list[str]], reference_lines: list[list[str]]) -> int:
    """Hits of ROUGE-Lsum: the reference's tokens that are in the LCS of their line with any line of the prediction, no
    token counted oftener than the prediction has it.

    Which of several LCSs is taken changes the union, so the choice is rouge_score's. Its table t[i][j] is the length of
    the LCS of the first i tokens of a reference line and the first j of a prediction line. From the ends backwards: at
    equal tokens both are taken; else j goes down where t[i][j] > t[i-1][j], and i where not.

    All lines of the reference are worked on at once. Column j of their tables is one integer, with a bit for each
    token where t rises from i - 1 to i, and a bit of 0 before and after each line. Two sums replace the loops over i:
    forwards, a carry runs up from a match to the next rise and ends between lines; backwards, with all bits in reverse
    order, a borrow runs to the first rise or match, which is where i stops going down.
    """
    match, size = {}, 1
    starts = ends = 0  # bits of the first and last tokens of the lines
    for line in filter(None, reference_lines):
        starts |= 1 << size
        for token in line:
            match[token] = match.get(token, 0) | (1 << size)
            size += 1
        size += 1
        ends |= 1 << size - 2
    num_bytes = -(-size // 8)

    def mirrored(bits: int) -> int:
        return int.from_bytes(bits.to_bytes(num_bytes, "big").translate(REVERSED_BYTE), "little")

    every = sum(match.values())
    match_back = {token: mirrored(bits) for token, bits in match.items()}
    every_back, first_back = mirrored(every), mirrored(ends)
    beyond_back = mirrored(starts >> 1)  # above the highest bit of each line

    union_back = 0
    for line in filter(None, prediction_lines):
        flat, columns = every, []  # flat: where t does not rise
        for token in line:
            hit = flat & match.get(token, 0)
            flat = ((flat + hit) | (flat ^ hit)) & every
            columns.append(mirrored(every ^ flat))
        left_back = every_back  # the bits of the tokens up to i
        for token, rises_back in zip(reversed(line), reversed(columns), strict=True):
            hits_back = match_back.get(token, 0)
            stops_back = ((rises_back | hits_back) & left_back) | beyond_back
            stop_back = stops_back & ~(stops_back - first_back)  # the lowest bit set of each line
            taken_back = stop_back & hits_back
            union_back |= taken_back
            left_back = (beyond_back - stop_back) & ~taken_back
    predicted = Counter(token for line in prediction_lines for token in line)
    return sum(min((union_back & bits).bit_count(), predicted[token]) for token, bits in match_back.items())


# Worker processes


def score_all(pairs: Sequence[Pair], num_workers: int = 0) -> list[Scores]:
    """`score` of every pair, in their order; the number of workers changes nothing but the time.

    num_workers: processes, 0 for one a core. No more are started than have work for as long as a start takes, and none
    for a single one. Raises ValueError where a worker dies.
    """
    num_characters = sum(map(len, (text for pair in pairs for text in pair)))
    num_workers = min(num_workers or len(os.sched_getaffinity(0)), num_characters // CHARACTERS_PER_WORKER)
    if num_workers < 2:
        return [score(*pair) for pair in pairs]
    starts = range(0, len(pairs), CHUNK)
    scores: dict[int, list[Scores]] = {}
    workers: list[Worker] = []
    try:
        workers.extend(Worker("logtrain.evaluation.scoring") for _ in range(num_workers))
        free, unsent = list(workers), iter(starts)
        while len(scores) < len(starts):
            while free and (start := next(unsent, None)) is not None:
                free.pop().send((start, pairs[start : start + CHUNK]))
            for worker in wait(workers):
                start, scored = worker.receive()
                scores[start] = scored
                free.append(worker)
    finally:
        for worker in workers:
            worker.stop()
    return [of_pair for start in starts for of_pair in scores[start]]


def work(connection: Connection) -> None:
    """A worker's: chunks in, their scores out."""
    while True:
        start, pairs = connection.recv()
        connection.send((start, [score(*pair) for pair in pairs]))
