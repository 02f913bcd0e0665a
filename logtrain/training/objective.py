"""What the steps of a run make smaller, which its settings decide: all that makes its steps, or makes them again, asks
here.
"""

import torch.nn.functional as F
from torch import Tensor

from logtrain.core.batch import Batch
from logtrain.model.llama import Llama
from logtrain.training.config import RunConfig
from logtrain.training.preference import Preference
from logtrain.training.step import Objective, cross_entropy


class Distillation:
    """The cross-entropy; on text with a teacher's distribution with the gradient of model/distillation.py."""

    def __init__(self, share: float):
        """`share`: of the teacher, from 0 to 1."""
        self.share = share

    def __call__(self, model: Llama, batch: Batch) -> Tensor:
        """fp32 [3]: sums over the targets of the cross-entropy and, over those with a teacher, of the divergence from
        it, in nats, and of 1.
        """
        if batch.teacher_TK is None:
            return F.pad(model(batch)[None], (0, 2))
        return model(batch, teacher_share=self.share)


def objective_of(config: RunConfig) -> Objective:
    """The objective of a run."""
    if config.trains_on == "pairs":
        return Preference(config.dpo)
    return Distillation(config.trainer.replay_kl) if config.trainer.replay_kl else cross_entropy
