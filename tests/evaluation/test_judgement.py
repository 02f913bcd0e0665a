"""A judge's preference and its bias are recovered, whatever the bias; what it is shown and what is read."""

import random

import numpy as np
import pytest

from logtrain.evaluation.clusters import figure_intervals, figures_of
from logtrain.evaluation.config import JudgeConfig
from logtrain.evaluation.judge import Judged, comparisons, read_verdict
from logtrain.evaluation.judgement import FOR_SECOND, QuestionVerdict, judged_pair, make_judgement, tally
from logtrain.text.chat_template import Turn
from tests.support.samples import make_sample


def verdict_of(rng: random.Random, truth: str, bias: float) -> str:
    """What a judge says who names the first (bias > 0) or the second answer without reading, else the truth."""
    if rng.random() < abs(bias):
        return "first" if bias > 0 else "second"
    return truth


def question(rng: random.Random, preference: float, ties: float, bias: float) -> QuestionVerdict:
    """Both orders' verdicts on a question whose better answer is the second model's with this probability."""
    is_tie, is_b = rng.random() < ties, rng.random() < preference
    forward = FOR_SECOND[verdict_of(rng, "tie" if is_tie else "second" if is_b else "first", bias)]
    swapped = 1 - FOR_SECOND[verdict_of(rng, "tie" if is_tie else "first" if is_b else "second", bias)]
    return QuestionVerdict(
        rng.getrandbits(40), (forward + swapped) / 2, (1 - forward + swapped) / 2, forward == swapped
    )


@pytest.mark.parametrize(("preference", "bias"), [(0.5, 0.0), (0.7, 0.3), (0.8, -0.4), (0.35, 0.6)])
def test_preference_and_bias_lie_in_their_intervals(preference, bias, fewer_resamples):
    rng, held = random.Random(f"{preference} {bias}"), {"unbiased": [], "bias": []}
    truth = {"unbiased": 0.8 * preference + 0.2 * 0.5, "bias": bias}
    for _ in range(100):
        found = figure_intervals(tally([question(rng, preference, 0.2, bias) for _ in range(80)]))
        for name, value in truth.items():
            held[name].append(found[name].low <= value <= found[name].high)
    assert np.mean(held["bias"]) >= 0.9 and np.mean(held["unbiased"]) >= 0.9, {k: np.mean(v) for k, v in held.items()}


def test_a_preference_that_is_not_corrected_would_be_too_even():
    rng = random.Random(4)
    found = figures_of(tally([question(rng, 0.9, 0, 0.5) for _ in range(5000)]))
    assert found["preferred"] == pytest.approx(0.5 + 0.4 * 0.5, abs=0.02)
    assert found["unbiased"] == pytest.approx(0.9, abs=0.02)
    assert found["consistent"] == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("The first is right.\nVerdict: 1", "first"),
        ("Verdict: 1 was my thought, but\n**Verdict:** 2", "second"),
        ("Verdict: tie", "tie"),
        ("Verdict: answer 2.", "second"),
        ("Answer 1 is better", "unread"),
        ("Verdict: neither", "unread"),
        ("", "unread"),
    ],
)
def test_a_verdict_is_read_from_its_line(reply, verdict):
    assert read_verdict(reply) == verdict


def samples(outputs: list[str], score: float = 1.0) -> list:
    return [
        make_sample({"fuzzy": score}, row=row, turns=[Turn("user", f"why {{first}} {row}")], prediction=text)
        for row, text in enumerate(outputs)
    ]


def test_pairs_are_shown_in_both_orders_and_equal_ones_not_at_all():
    config = JudgeConfig(run="r", base_url="http://x/v1", model="m")
    of = {"a": samples(["x {second}", "same"]), "b": samples(["y", "same"])}
    one, other = comparisons(config, of)
    assert (one.first, one.second, other.first, other.second) == ("a", "b", "b", "a")
    assert "<answer_1>\nx {second}\n</answer_1>\n\n<answer_2>\ny\n</answer_2>" in one.prompt
    assert "<answer_1>\ny\n</answer_1>\n\n<answer_2>\nx {second}\n</answer_2>" in other.prompt
    assert one.key != other.key and "why {first} 0" in one.prompt and "<reference>\nx\n" in one.prompt
    (hidden, _) = comparisons(JudgeConfig(run="r", base_url="http://x/v1", model="m", reference=False), of)
    assert "<reference>" not in hidden.prompt


def test_figures_by_hand():
    """b wins rows 0 and 1 in both orders, row 2 goes to what is shown first, row 3 has equal answers."""
    a, b = samples(["p", "p", "p", "p"], 0.2), samples(["q", "q", "q", "p"], 0.6)
    said = {("a", "b"): ["second", "second", "first"], ("b", "a"): ["first", "first", "first"]}
    verdicts = {
        (*names, row, 1): Judged("k", *names, row, 1, "", "", verdict, 10, 2)
        for names, of_rows in said.items()
        for row, verdict in enumerate(of_rows)
    }
    found = judged_pair(("a", "b"), a, b, verdicts)
    assert found["preferred"]["mean"] == (1 + 1 + 0.5 + 0.5) / 4
    assert found["bias"]["mean"] == 1 / 4
    assert found["unbiased"]["mean"] == pytest.approx(0.5 + 0.25 / 0.75)
    assert found["consistent"]["mean"] == 3 / 4
    assert (found["agreement"]["fuzzy"]["mean"], found["agreement"]["fuzzy"]["n"], found["equal"]) == (1, 2, 1)
    config = JudgeConfig(run="r", base_url="http://x/v1", model="m")
    asked = comparisons(config, {"a": a, "b": b})
    by_key = {one.key: verdicts[one.first, one.second, one.row, one.turn] for one in asked}
    whole = make_judgement({"a": a, "b": b}, asked, by_key, ("m", "u"), (2.0, 10.0))
    assert (whole["verdicts"], whole["prompt_tokens"], whole["reply_tokens"]) == (6, 60, 12)
    assert whole["dollars"] == pytest.approx((60 * 2 + 12 * 10) / 1e6)
