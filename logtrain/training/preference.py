"""The loss of direct preference optimisation (DPO; Rafailov et al. 2023, arXiv:2305.18290, equation 7):

    h = beta ((log p(chosen) - log r(chosen)) - (log p(rejected) - log r(rejected)))
    loss = -(1 - e) log sigmoid(h) - e log sigmoid(-h)          e: label smoothing (Mitchell 2023, conservative DPO)

p is the model, r the reference; a log-probability is the sum over an answer's tokens. beta times a difference of two is
the reward of an answer, and h the margin of a pair.

Letters in names: S sequences of a micro-batch, P pairs of it.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from logtrain.core.batch import Batch
from logtrain.model.llama import Llama
from logtrain.training.preference_config import PreferenceConfig

MEASURES = ("margin", "accuracy", "chosen_reward", "rejected_reward")


class LogProbabilities(NamedTuple):
    """What a model finds of the pairs of a micro-batch."""

    of_answers_P2: Tensor
    """fp32, in nats: the log-probabilities of the chosen and of the rejected answer."""
    is_pair_P: Tensor
    """bool: False in the place of a pair in a micro-batch that has none."""


def log_probabilities(model: Llama, batch: Batch) -> LogProbabilities:
    """The log-probabilities of both answers of each pair."""
    assert batch.pairs_P3 is not None, "the batch was not loaded as pairs"
    losses_S = model(batch, of_sequences=True)
    sequences_P2 = batch.pairs_P3[:, :2]
    return LogProbabilities(-losses_S[sequences_P2.clamp(min=0)], sequences_P2[:, 0] >= 0)


class Preference:
    """The loss of a micro-batch of pairs, as an objective of `TrainStep`."""

    def __init__(self, config: PreferenceConfig):
        self.beta, self.smoothing = config.beta, config.label_smoothing

    def __call__(self, model: Llama, batch: Batch) -> Tensor:
        """fp32 [5]: sums over the pairs of what `of_each` gives."""
        return self.of_each(model, batch).sum(1)

    def of_each(self, model: Llama, batch: Batch) -> Tensor:
        """fp32 [5, P]: of each pair the loss, which alone has a gradient, and MEASURES: the margin, 1 where it is above
        0, the rewards of the chosen and of the rejected answer; 0 in the place of a pair.
        """
        found, is_pair_P = log_probabilities(model, batch)
        assert batch.reference_P2 is not None
        rewards_P2 = self.beta * (found - batch.reference_P2)
        margin_P = rewards_P2[:, 0] - rewards_P2[:, 1]
        loss_P = -(1 - self.smoothing) * F.logsigmoid(margin_P) - self.smoothing * F.logsigmoid(-margin_P)
        with torch.no_grad():
            measured_4P = torch.stack((margin_P, (margin_P > 0).float(), *rewards_P2.unbind(1)))
        return torch.where(is_pair_P, torch.cat((loss_P[None], measured_4P)), 0.0)
