"""From logits to a token: the distribution is transformers', the draws follow it, and depend on nothing else."""

import itertools

import numpy as np
import pytest
import torch

from logtrain.generation.config import LEAST_TEMPERATURE, SamplingConfig
from logtrain.generation.sampling import distribution, draw, penalised, uniform

V = 60


def logits(rows: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, V, generator=generator) * 3


CONFIGS = [
    SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p)
    for temperature, top_k, top_p in itertools.product((0.3, 1.0, 2.5), (0, 1, 7, V + 5), (0.05, 0.8, 1.0))
]


def transformers_distribution(scores_V: torch.Tensor, config: SamplingConfig) -> torch.Tensor:
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    scores = TemperatureLogitsWarper(config.temperature)(None, scores_V[None])
    if config.top_k:
        scores = TopKLogitsWarper(config.top_k)(None, scores)
    if config.top_p < 1:
        scores = TopPLogitsWarper(config.top_p)(None, scores)
    return scores[0].softmax(-1)


def test_distributions_are_those_of_transformers_each_row_by_its_own_config():
    scores = logits(len(CONFIGS))
    scores[3, 5:9] = scores[3].max()  # equal logits at the edge of top-k
    ours = distribution(scores, CONFIGS)
    for row, scores_V, config in zip(ours, scores, CONFIGS, strict=True):
        theirs = transformers_distribution(scores_V, config)
        assert torch.equal(row > 0, theirs > 0), config
        torch.testing.assert_close(row, theirs, rtol=1e-5, atol=1e-7)


def test_the_repetition_penalty_is_that_of_transformers():
    from transformers import RepetitionPenaltyLogitsProcessor

    (scores,), ids = logits(1), [3, 8, 8, 59]
    seen = torch.zeros(V, dtype=torch.bool)
    seen[ids] = True
    for penalty in (0.7, 1.0, 1.3):
        theirs = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([ids]), scores[None].clone())[0]
        assert torch.equal(penalised(scores, seen, penalty), theirs)


@pytest.mark.parametrize("config", [CONFIGS[9 + 2], CONFIGS[2 * 9 + 7], SamplingConfig(temperature=1.0, top_p=0.9)])
def test_draws_have_the_frequencies_of_the_distribution(config):
    """Chi-square over the tokens expected at least five times, the others together."""
    draws = 20_000
    p_V = distribution(logits(1), [config])
    numbers = [uniform(seed=1, number=0, position=i) for i in range(draws)]
    counts = np.bincount(draw(p_V.expand(draws, V), numbers).numpy(), minlength=V)
    expected = p_V[0].double().numpy() * draws
    assert counts[expected == 0].sum() == 0
    often = expected >= 5
    pairs = [*zip(counts[often], expected[often], strict=True)]
    if (rest := expected[~often].sum()) > 0:
        pairs.append((counts[~often].sum(), max(rest, 1e-9)))
    square = sum((count - mean) ** 2 / mean for count, mean in pairs if mean >= 1)
    freedom = max(1, len(pairs) - 1)
    assert square < freedom + 4 * (2 * freedom) ** 0.5 + 4  # four deviations


def test_numbers_of_positions_requests_and_seeds_are_independent():
    near = np.array([[[uniform(s, n, p) for p in range(30)] for n in range(10)] for s in range(10)])
    assert len(np.unique(near)) == near.size
    assert abs(near.mean() - 0.5) < 4 / (12 * near.size) ** 0.5
    for axis in range(3):
        neighbours = np.corrcoef(np.delete(near, -1, axis).ravel(), np.delete(near, 0, axis).ravel())[0, 1]
        assert abs(neighbours) < 4 / near.size**0.5
    assert uniform(5, 6, 7) == uniform(5, 6, 7)


def test_the_least_temperature_is_that_of_the_likeliest_token():
    logits_SV = 100 * logits(3)
    p_SV = distribution(logits_SV, [SamplingConfig(temperature=LEAST_TEMPERATURE)] * 3)
    assert draw(p_SV, [0.0, 0.5, 1 - 2**-53]).tolist() == logits_SV.argmax(-1).tolist()


def test_a_draw_never_takes_what_has_no_probability():
    p_SV = torch.zeros(3, V)
    p_SV[:, 10] = p_SV[:, 20] = 0.5
    assert draw(p_SV, [0.0, 0.5, 1 - 2**-53]).tolist() == [10, 20, 20]


@pytest.mark.parametrize(
    "wrong", [{"temperature": -1.0}, {"temperature": float("nan")}, {"temperature": 1e-38}, {"top_k": -1},
              {"top_p": 0.0}, {"top_p": 1.5}, {"repetition_penalty": 0.0}, {"repetition_penalty": float("inf")},
              {"seed": -1}],
)  # fmt: skip
def test_what_cannot_be_sampled_by_is_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SamplingConfig(**wrong)
