"""What a judge's verdicts say: which of two models is preferred, by how much, and what of it position has decided.

Of a question, each order gives its winner 1, the other 0, and both a half for a tie or an unread verdict. Then

    preferred      the second model's mean over both orders and all questions: 0.5 is even
    bias           share of the questions whose verdicts both name the answer that is shown first, less the share whose
                   verdicts both name the second; a judge that says "first" without reading in a share b of its verdicts
                   has a bias of b. Ties count by halves.
    unbiased       0.5 + (preferred - 0.5) / (1 - |bias|): `preferred` by such a judge's other verdicts
    consistent     share of the questions of which both orders have the same winner, or both a tie
    agreement      of the questions with a winner, the share in which a score is higher for it; half where it is equal

Equal answers are ties in both orders. Intervals draw rows of the test set (clusters.py), as those of all scores do.

Zheng et al. 2023, "Judging LLM-as-a-judge with MT-bench and chatbot arena" (swapped orders, consistency).
"""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypedDict

import numpy as np
import orjson

from logtrain.core.atomic import write_file
from logtrain.core.origin import sealed_in
from logtrain.evaluation.clusters import Tally, by_cluster, figure_intervals, ratio
from logtrain.evaluation.intervals import Mean, bootstrap
from logtrain.evaluation.judge import Comparison, Judged
from logtrain.evaluation.results import MetricMean
from logtrain.evaluation.samples import SAMPLE_METRICS, Sample
from logtrain.evaluation.tasks import LESS_IS_BETTER

FOR_SECOND = {"first": 0.0, "second": 1.0, "tie": 0.5, "unread": 0.5}


class PairJudgement(TypedDict):
    """What a judge says of two models."""

    models: list[str]
    """[A, B]: `preferred` and `unbiased` above 0.5 are for B."""
    preferred: MetricMean
    bias: MetricMean
    unbiased: MetricMean
    consistent: MetricMean
    agreement: dict[str, MetricMean]
    """By the name of the score."""
    equal: int
    """Questions to which both gave the same answer."""
    unread: int
    """Verdicts out of which nothing could be read."""


class Judgement(TypedDict):
    """The whole of judge.json, which is for people and their programs; a report tells what is preferred."""

    judge: str
    """The judge's name at the server."""
    base_url: str
    pairs: list[PairJudgement]
    verdicts: int
    """Verdicts that were asked for, in this run and those before it."""
    prompt_tokens: int
    reply_tokens: int
    dollars: float | None
    """What these cost by the prices that were given; None without them."""


class QuestionVerdict(NamedTuple):
    """What the two orders say of one question."""

    row: int
    preferred: float
    """The second model's mean."""
    first: float
    """The mean of the answer that is shown first."""
    is_consistent: bool


def judged_pair(
    names: tuple[str, str], a: Sequence[Sample], b: Sequence[Sample], verdicts: Mapping[tuple, Judged]
) -> PairJudgement:
    """What the verdicts say of two models. `verdicts`: by (first, second, row, turn)."""
    found, equal, unread = [], 0, 0
    for sample in a:
        where = sample.question.row, sample.question.turn
        orders = [verdicts.get((*shown, *where)) for shown in (names, names[::-1])]
        equal += orders[0] is None
        one, other = ("tie" if each is None else each.verdict for each in orders)
        unread += (one == "unread") + (other == "unread")
        forward, swapped = FOR_SECOND[one], 1 - FOR_SECOND[other]
        first = ((1 - forward) + swapped) / 2  # who is second of the pair is shown first when swapped
        found.append(QuestionVerdict(where[0], (forward + swapped) / 2, first, forward == swapped))
    intervals = {name: as_mean(each, len(found)) for name, each in figure_intervals(tally(found)).items()}
    return {
        "models": list(names),
        "preferred": intervals["preferred"],
        "bias": intervals["bias"],
        "unbiased": intervals["unbiased"],
        "consistent": intervals["consistent"],
        "agreement": agreements(found, a, b),
        "equal": equal,
        "unread": unread,
    }


def tally(found: Sequence[QuestionVerdict]) -> Tally:
    """The counts of each row: questions, preferred, first and consistent ones."""
    counts_N4 = np.array([[1, one.preferred, one.first, one.is_consistent] for one in found], np.float64)
    return Tally(by_cluster(counts_N4, [one.row for one in found]), figures)


def figures(sums: np.ndarray) -> Mapping[str, np.ndarray]:
    """The figures of sums of counts, float64 [..., 4]."""
    questions, preferred, first, consistent = np.moveaxis(np.asarray(sums, np.float64), -1, 0)
    share, bias = ratio(preferred, questions), 2 * ratio(first, questions) - 1
    return {
        "preferred": share,
        "bias": bias,
        "unbiased": np.clip(0.5 + ratio(share - 0.5, 1 - abs(bias), empty=0.0), 0, 1),
        "consistent": ratio(consistent, questions),
    }


def agreements(found: Sequence[QuestionVerdict], a: Sequence[Sample], b: Sequence[Sample]) -> dict[str, MetricMean]:
    """How often each score is higher for the winner, by the score's name; only those that both answers have."""
    told: dict[str, list[float]] = {}
    for verdict, one, other in zip(found, a, b, strict=True):
        if verdict.preferred == 0.5:
            continue
        for name in SAMPLE_METRICS:
            of_one, of_other = one.scores.get(name), other.scores.get(name)
            if of_one is None or of_other is None:
                continue
            gain = (of_other - of_one) * (-1 if name in LESS_IS_BETTER else 1)
            wanted = verdict.preferred - 0.5
            told.setdefault(name, []).append(0.5 if gain == 0 else float((gain > 0) == (wanted > 0)))
    return {name: as_mean(bootstrap(values), len(values)) for name, values in told.items()}


def as_mean(found: Mean, n: int) -> MetricMean:
    """A mean as JSON has it."""
    assert found.mean is not None
    return {"mean": found.mean, "low": found.low, "high": found.high, "n": n}


def make_judgement(
    samples: Mapping[str, Sequence[Sample]],
    asked: Sequence[Comparison],
    verdicts: Mapping[str, Judged],
    judge: tuple[str, str],
    prices: tuple[float, float],
) -> Judgement:
    """The content of judge.json. `asked`: the comparisons, all of which have a verdict by their key. `judge`: its name
    and its server's address. `prices`: dollars for a million tokens of prompts and of replies.
    """
    used = [verdicts[one.key] for one in asked]
    by_place = {(one.first, one.second, one.row, one.turn): verdicts[one.key] for one in asked}
    tokens_in, tokens_out = sum(one.prompt_tokens for one in used), sum(one.reply_tokens for one in used)
    dollars = (tokens_in * prices[0] + tokens_out * prices[1]) / 1e6
    return {
        "judge": judge[0],
        "base_url": judge[1],
        "pairs": [
            judged_pair(names, samples[names[0]], samples[names[1]], by_place)
            for names in itertools.combinations(samples, 2)
        ],
        "verdicts": len(used),
        "prompt_tokens": tokens_in,
        "reply_tokens": tokens_out,
        "dollars": dollars if any(prices) else None,
    }


def write_judgement(folder: Path, judgement: Judgement) -> None:
    """Write judge.json, whole or not at all. Raises OSError."""
    file, facts = folder / "judge.json", orjson.loads(orjson.dumps(judgement))  # what is not finite is null
    write_file(file, sealed_in(file, "judge", facts))


def told(judgement: Judgement) -> list[str]:
    """What a judgement says, in lines for people."""
    lines = []
    for pair in judgement["pairs"]:
        a, b = pair["models"]
        lines.append(f"{b} preferred to {a}: {shown(pair['preferred'])} of {pair['preferred']['n']:,} questions")
        lines.append(f"  by verdicts that position does not decide: {shown(pair['unbiased'])}")
        lines.append(f"  the judge's bias to the answer shown first: {shown(pair['bias'])}")
        lines.append(f"  both orders have one winner: {shown(pair['consistent'])}")
        lines += [
            f"  {SAMPLE_METRICS[name]} is with the judge: {shown(mean)}" for name, mean in pair["agreement"].items()
        ]
        lines.append(f"  equal answers: {pair['equal']:,}; unread verdicts: {pair['unread']:,}")
    cost = "" if judgement["dollars"] is None else f", ${judgement['dollars']:,.4f}"
    tokens = f"{judgement['prompt_tokens']:,} + {judgement['reply_tokens']:,} tokens"
    return [*lines, f"{judgement['verdicts']:,} verdicts of {judgement['judge']}, {tokens}{cost}"]


def shown(mean: MetricMean) -> str:
    """A mean with its interval."""
    ends = "" if mean["low"] is None else f" ({mean['low']:.3f} to {mean['high']:.3f})"
    return f"{mean['mean']:.3f}{ends}"
