"""The cross-entropy of tokens that a teacher wrote, with a gradient that knows what else it could have written.

Of each token the teacher q has told the probabilities of K ids. p is the model, y the label, w the teacher's share:

    objective = -(1 - w) log p_y - w sum over the K ids of (q_k / q_K) log p_k      y among the K, q_K = sum of q_k
              = -log p_y                                                          y none of the K
    d objective / d z_v = p_v - t_v        t: the weights of the logarithms above

Where y was drawn from q, w = 1 takes in the place of the cross-entropy its mean over all that y could have been as far
as the teacher has told. So the mean gradient is that of the cross-entropy for every w and K, and its variance is less
the greater w is (Rao-Blackwell). A tail that is not told is learned from the tokens drawn of it, so that it is not
forgotten. With K = V and w = 1 the objective is KL(q || p) over the vocabulary, but for a constant (Hinton et al. 2015,
arXiv:1503.02531).

How far p has gone from q is told by the divergence over K + 1 outcomes, all that is not told as one:

    KL = sum over k of q_k log(q_k / p_k) + q_rest log(q_rest / p_rest)

As for `linear_cross_entropy` the gradient is known in the forward, chunk by chunk over the tokens, and logits never
exist whole. Nothing waits for the device.

Shapes in names: T tokens, C those of a chunk, D hidden size, V vocabulary, K ids that the teacher told.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from logtrain.core.batch import IGNORE
from logtrain_kernels.linear_cross_entropy import add_product

CHUNK = 1024  # tokens: with Llama-3's vocabulary 0.5 GB of fp32 logits and twice 0.26 in bf16, as the plain loss takes
LEAST = 1e-7  # of the rest's probability, which is 1 less the others in fp32


class Taught(NamedTuple):
    """What a teacher tells of tokens, and how much it counts."""

    ids_TK: Tensor
    """The likeliest ids, int32, each once in a row."""
    log_TK: Tensor
    """Their log-probabilities, float16, in nats."""
    share: float
    """w, from 0 to 1."""


def taught_cross_entropy(x_TD: Tensor, weight_VD: Tensor, labels_T: Tensor, taught: Taught) -> Tensor:
    """fp32 [3]: sums over the tokens with a label of the cross-entropy in nats, which has the gradient of the
    objective, and without gradients of KL in nats and of 1. The backward can run once.
    """
    wanted = torch.is_grad_enabled()
    for_x, for_weight = wanted and x_TD.requires_grad, wanted and weight_VD.requires_grad
    return TaughtCrossEntropy.apply(x_TD, weight_VD, labels_T, taught, for_x, for_weight)


class TaughtCrossEntropy(torch.autograd.Function):
    """`taught_cross_entropy`, told which gradients are wanted."""

    @staticmethod
    def forward(
        ctx, x_TD: Tensor, weight_VD: Tensor, labels_T: Tensor, taught: Taught, for_x: bool, for_weight: bool
    ) -> Tensor:
        sums_3T = x_TD.new_empty((3, len(x_TD)), dtype=torch.float32)
        dx_TD, dw_VD = torch.empty_like(x_TD) if for_x else None, None
        for start in range(0, len(x_TD), CHUNK):
            chunk = slice(start, start + CHUNK)
            told = Taught(taught.ids_TK[chunk], taught.log_TK[chunk], taught.share)
            sums_3T[:, chunk], gradient_CV = of_logits((x_TD[chunk] @ weight_VD.T).float(), labels_T[chunk], told)
            dlogits_CV = gradient_CV.to(x_TD.dtype)
            del gradient_CV
            if dx_TD is not None:
                torch.mm(dlogits_CV, weight_VD, out=dx_TD[chunk])
            if for_weight:
                dw_VD = add_product(dw_VD, dlogits_CV, x_TD[chunk])
        ctx.save_for_backward(dx_TD, dw_VD)
        ctx.weight_dtype = weight_VD.dtype
        return sums_3T.sum(1)

    @staticmethod
    @once_differentiable
    def backward(ctx, dsums: Tensor) -> tuple[Tensor | None, ...]:
        dx_TD, dw_VD = ctx.saved_tensors  # scaled in place: a second backward finds them changed, and autograd refuses
        dx_TD = None if dx_TD is None else dx_TD.mul_(dsums[0])
        dw_VD = None if dw_VD is None else dw_VD.mul_(dsums[0]).to(ctx.weight_dtype)
        return dx_TD, dw_VD, None, None, None, None


def of_logits(logits_CV: Tensor, labels_C: Tensor, taught: Taught) -> tuple[Tensor, Tensor]:
    """fp32 logits -> (fp32 [3, C]: cross-entropy, KL and 1 of each token, 0 without a label; the gradient of the
    objective by the logits, in their place).
    """
    ids_CK, label_C1 = taught.ids_TK.long(), labels_C.clamp(min=0)[:, None]
    z_CV = logits_CV.sub_(logits_CV.amax(-1, keepdim=True))
    z_CK, z_C1 = z_CV.gather(1, ids_CK), z_CV.gather(1, label_C1)
    total_C1 = z_CV.exp_().sum(-1, keepdim=True)
    q_CK = taught.log_TK.float().exp()
    told_C1 = q_CK.sum(-1, keepdim=True)
    kl_C = divergence(q_CK, z_CK - total_C1.log(), has_rest=ids_CK.shape[1] < z_CV.shape[1])
    is_label_C1 = (labels_C != IGNORE)[:, None]
    share_C1 = taught.share * (is_label_C1 & (ids_CK == label_C1).any(-1, keepdim=True))
    gradient_CV = z_CV.mul_(is_label_C1 / total_C1).scatter_add_(1, label_C1, share_C1 - is_label_C1.float())
    gradient_CV.scatter_add_(1, ids_CK, -share_C1 * q_CK / told_C1.clamp(min=LEAST))
    sums_3C = torch.stack(((total_C1.log() - z_C1)[:, 0], kl_C, torch.ones_like(kl_C)))
    return sums_3C.masked_fill(~is_label_C1[:, 0], 0), gradient_CV


def divergence(q_CK: Tensor, log_p_CK: Tensor, has_rest: bool) -> Tensor:
    """KL over K + 1 outcomes (L in names), fp32 [C], of probabilities that are made to have the sum 1, whatever the
    rounding of what is stored. `has_rest`: whether there are more than K.
    """
    told_C1 = q_CK.sum(-1, keepdim=True)
    q_rest_C1 = (1 - told_C1).clamp(min=0) if has_rest else torch.zeros_like(told_C1)
    p_rest_C1 = (1 - log_p_CK.exp().sum(-1, keepdim=True)).clamp(min=LEAST)
    q_CL = torch.cat((q_CK, q_rest_C1), 1) / (told_C1 + q_rest_C1)
    return (torch.xlogy(q_CL, q_CL) - q_CL * torch.cat((log_p_CK, p_rest_C1.log()), 1)).sum(-1)
