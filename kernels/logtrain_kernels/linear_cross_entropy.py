"""The language-model head and its cross-entropy in one operation that never holds all logits.

    z_t = W x_t        loss_t = log sum_v exp(z_tv) - z_t,label        loss = sum over the tokens that have a label
    dz_t = softmax(z_t) - onehot(label)      dx_t = W^T dz_t      dW = sum_t dz_t x_t^T

At T = 8,192 and V = 128,256 the logits are 4.2 GB in fp32, their gradient as much again. The gradients of a
cross-entropy are known as soon as its logits are, so the forward goes chunk by chunk over the tokens and leaves dx
and dW behind; the backward only scales them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

IGNORE = -100  # the label of a token that has no target
CHUNK_LOGITS = 2048 * 128_256  # logits of a chunk: 1 GiB in fp32; 2,048 tokens keep Llama-3's head GEMM efficient


def linear_cross_entropy_reference(x_TD: Tensor, weight_VD: Tensor, labels_T: Tensor) -> Tensor:
    logits_TV = (x_TD @ weight_VD.T).float()
    return F.cross_entropy(logits_TV, labels_T, ignore_index=IGNORE, reduction="sum")


def chunk_loss(logits_CV: Tensor, labels_C: Tensor, with_gradient: bool) -> Tensor:
    """Summed loss of a chunk (fp32 scalar); with_gradient turns the logits into their gradient in place."""
    is_target_C = labels_C != IGNORE
    safe_C1 = labels_C.clamp(min=0)[:, None]
    normalizer_C1 = logits_CV.logsumexp(-1, keepdim=True)
    loss = ((normalizer_C1 - logits_CV.gather(1, safe_C1)).squeeze(1) * is_target_C).sum()
    if with_gradient:
        logits_CV.sub_(normalizer_C1).exp_()
        logits_CV.scatter_add_(1, safe_C1, torch.full_like(normalizer_C1, -1.0))
        logits_CV.mul_(is_target_C[:, None])
    return loss


class ChunkedLinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_TD: Tensor, weight_VD: Tensor, labels_T: Tensor, with_gradient: bool) -> Tensor:
        num_tokens, chunk = len(x_TD), max(1, CHUNK_LOGITS // len(weight_VD))
        loss = torch.zeros((), dtype=torch.float32, device=x_TD.device)
        if with_gradient:
            grad_x_TD = torch.empty_like(x_TD)
            grad_weight_VD = torch.zeros_like(weight_VD, dtype=torch.float32)
        for start in range(0, num_tokens, chunk):
            x_CD, labels_C = x_TD[start : start + chunk], labels_T[start : start + chunk]
            logits_CV = (x_CD @ weight_VD.T).float()
            loss += chunk_loss(logits_CV, labels_C, with_gradient)
            if with_gradient:
                dlogits_CV = logits_CV.to(x_TD.dtype)
                torch.mm(dlogits_CV, weight_VD, out=grad_x_TD[start : start + chunk])
                if x_TD.dtype == torch.float32:
                    grad_weight_VD.addmm_(dlogits_CV.T, x_CD)
                else:
                    grad_weight_VD += dlogits_CV.T @ x_CD
        if with_gradient:
            ctx.save_for_backward(grad_x_TD, grad_weight_VD.to(weight_VD.dtype))
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_x_TD, grad_weight_VD = ctx.saved_tensors
        return grad_x_TD * grad_loss, grad_weight_VD * grad_loss, None, None


def linear_cross_entropy(x_TD: Tensor, weight_VD: Tensor, labels_T: Tensor) -> Tensor:
    """Cross-entropy summed over the tokens whose label is not IGNORE: x [T, D], head [V, D], labels int64 [T] -> fp32
    scalar, in nats.

    Logits exist for one chunk of tokens at a time. Where no gradient is wanted (`torch.no_grad`), none is computed.
    """
    with_gradient = torch.is_grad_enabled() and (x_TD.requires_grad or weight_VD.requires_grad)
    return ChunkedLinearCrossEntropy.apply(x_TD, weight_VD, labels_T, with_gradient)
