"""The language-model head and its cross-entropy in one operation that never holds all logits.

    z_t = W x_t        loss_t = log sum_v exp(z_tv) - z_t,label        loss = sum over the tokens that have a label
    dz_t = softmax(z_t) - onehot(label)      dx_t = W^T dz_t      dW = sum_t dz_t x_t^T

At T = 16,384 and V = 128,256 the logits are 4.2 GB in bf16, their gradient as much again. The gradients of a
cross-entropy are known as soon as its logits are, so the forward goes chunk by chunk over the tokens: three matrix
products, and between them one kernel that turns the chunk's logits into their gradient in place. The backward only
scales what the forward left. dW is summed over chunks in fp32.

Shapes in names: T tokens, C those of a chunk, D model width, V vocabulary.
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.flop_counter import flop_registry, shape_wrapper

from logtrain_kernels.cost import Cost, nbytes
from logtrain_kernels.device import on_gpu, uses_triton
from logtrain_kernels.language import constexpr

IGNORE = -100  # the label of a token that has no target
CHUNK_BYTES = 2**30  # of logits: 4,096 tokens of Llama-3 in bf16. Each chunk reads and writes the fp32 dW once: 1.4 ms
CHUNK_BYTES_ON_CPU = 2**27  # products of some hundred tokens are as fast as they get there
CACHED_BYTES = 2**20  # of fp32 logits for each thread: all passes over them but the first find them in the cache
TILE = 128  # rows of a GEMM tile: chunks are a multiple of it


def linear_cross_entropy_reference(x_TD: Tensor, weight_VD: Tensor, labels_T: Tensor) -> Tensor:
    """`linear_cross_entropy` in plain PyTorch, on whole logits."""
    logits_TV = (x_TD @ weight_VD.T).float()
    return F.cross_entropy(logits_TV, labels_T, ignore_index=IGNORE, reduction="sum")


def softmax_gradient_reference(logits_CV: Tensor, labels_C: Tensor, with_gradient: bool) -> Tensor:
    """`softmax_gradient_op` in plain PyTorch; fp32 logits are overwritten in any case.

    The normalizer is a sum of its own. PyTorch's softmax adds up a row in as few numbers as a register holds: with V =
    49,152 its sum is off by 7e-6, and as dz no longer sums to 0, gradients by 1e-4 (here 4e-6, as with log-sum-exp).
    """
    z_CV, ignored_C, V = logits_CV.float(), labels_C == IGNORE, logits_CV.shape[1]
    label_C1 = labels_C.clamp(0, V - 1)[:, None]
    z_CV.sub_(z_CV.amax(-1, keepdim=True).clamp_(min=torch.finfo(torch.float32).min))  # -inf - -inf is NaN
    z_label_C1 = z_CV.gather(1, label_C1)
    total_C1 = z_CV.exp_().sum(-1, keepdim=True)
    losses_C = (total_C1.log() - z_label_C1).squeeze(1)
    losses_C = losses_C.masked_fill((labels_C < 0) | (labels_C >= V), math.nan).masked_fill(ignored_C, 0)
    if with_gradient:
        z_CV.div_(total_C1).scatter_add_(1, label_C1, torch.full_like(total_C1, -1.0))
        z_CV[ignored_C] = 0
        if z_CV is not logits_CV:
            logits_CV.copy_(z_CV)
    return losses_C


# ---- Triton: a program takes a token and reads its logits twice: for the largest and the sum, then for the gradient


@triton.jit
def softmax_gradient(logits_CV, labels_C, losses_C, V, IGNORE: constexpr, GRADIENT: constexpr, BLOCK: constexpr):
    """Gives one token's loss and, if GRADIENT, turns its logits into their gradient."""
    token = tl.program_id(0).to(tl.int64)
    z_V, column = logits_CV + token * V, tl.arange(0, BLOCK)
    label = tl.load(labels_C + token)
    dtype = logits_CV.dtype.element_ty
    if label == IGNORE:
        tl.store(losses_C + token, 0.0)
        if GRADIENT:
            for start in range(0, V, BLOCK):
                tl.store(z_V + start + column, tl.zeros((BLOCK,), dtype), mask=start + column < V)
    else:
        # Read now: the reductions' barriers keep the writes below behind it. A label that is no token gives NaN.
        z_label = tl.load(z_V + label, mask=(label >= 0) & (label < V), other=float("nan")).to(tl.float32)
        largest, total = float("-inf"), 0.0
        # Three stages: the reductions need not wait for the next loads.
        for start in tl.range(0, V, BLOCK, num_stages=3):  # pyright: ignore[reportGeneralTypeIssues]
            z = tl.load(z_V + start + column, mask=start + column < V, other=float("-inf")).to(tl.float32)
            before, largest = largest, tl.maximum(largest, tl.max(z))
            shift = tl.where(largest == float("-inf"), 0.0, largest)  # a block of -inf alone: -inf - -inf is NaN
            total = total * tl.exp(before - shift) + tl.sum(tl.exp(z - shift))
        normalizer = largest + tl.log(total)
        tl.store(losses_C + token, normalizer - z_label)
        if GRADIENT:
            for start in range(0, V, BLOCK):
                at, inside = z_V + start + column, start + column < V
                p = tl.exp(tl.load(at, mask=inside, other=0.0).to(tl.float32) - normalizer)
                tl.store(at, tl.where(start + column == label, p - 1, p).to(dtype), mask=inside)


# A thread has 16 elements and 32 to 40 registers on sm_90, so that three programs share a processor, with 96 KiB on
# their way. The second loop is not pipelined: it would take 90 registers, and leave one program.
SOFTMAX_GRADIENT_LAUNCH = {"BLOCK": 8192, "num_warps": 16}


@torch.library.custom_op("logtrain::softmax_gradient_", mutates_args={"logits_CV"})
def softmax_gradient_op(logits_CV: Tensor, labels_C: Tensor, with_gradient: bool) -> Tensor:
    """-> each token's loss (fp32 [C], 0 where ignored); with_gradient turns the logits into their gradient."""
    assert logits_CV.is_contiguous(), "in place, so it cannot make a copy"
    C, V = logits_CV.shape
    losses_C = logits_CV.new_empty(C, dtype=torch.float32)
    if C:
        labels_C, launch = labels_C.contiguous(), SOFTMAX_GRADIENT_LAUNCH
        softmax_gradient[(C,)](logits_CV, labels_C, losses_C, V, IGNORE=IGNORE, GRADIENT=with_gradient, **launch)
    return losses_C


@softmax_gradient_op.register_fake
def _(logits_CV: Tensor, labels_C: Tensor, with_gradient: bool) -> Tensor:
    return logits_CV.new_empty(len(logits_CV), dtype=torch.float32)


def softmax_gradient_cost(logits_CV: Tensor, labels_C: Tensor, with_gradient: bool) -> Cost:
    """The cost of `softmax_gradient_op`: a row of logits (256 KiB) is read for its sum and again for the gradient, and
    4 x 132 rows do not fit L2.
    """
    logits = nbytes(logits_CV)
    return Cost(
        read=(1 + with_gradient) * logits + nbytes(labels_C), written=with_gradient * logits + 4 * len(labels_C)
    )


# ---- chunk by chunk; matrix products are PyTorch's, so that whatever counts FLOPs or memory sees them


def chunks(x_TD: Tensor, weight_VD: Tensor) -> Iterator[slice]:
    """Equal parts of the tokens, none with more than CHUNK_BYTES of logits."""
    num_bytes = CHUNK_BYTES if on_gpu(x_TD) else min(CHUNK_BYTES, CHUNK_BYTES_ON_CPU)
    num_tokens, most = len(x_TD), max(1, num_bytes // (len(weight_VD) * x_TD.element_size()))
    tile = TILE if most >= TILE else 1
    num_chunks = triton.cdiv(num_tokens, most // tile * tile)
    size = triton.cdiv(triton.cdiv(num_tokens, max(num_chunks, 1)), tile) * tile or 1
    return (slice(start, start + size) for start in range(0, num_tokens, size))


def losses_of(x_CD: Tensor, weight_VD: Tensor, labels_C: Tensor, with_gradient: bool) -> tuple[Tensor, Tensor]:
    """-> each token's loss, and the logits or their gradient [C, V]"""
    logits_CV = x_CD @ weight_VD.T
    if uses_triton(x_CD):
        return softmax_gradient_op(logits_CV, labels_C, with_gradient), logits_CV
    size = max(1, torch.get_num_threads() * CACHED_BYTES // (4 * len(weight_VD)))
    parts = zip(logits_CV.split(size), labels_C.split(size), strict=True)
    return torch.cat([softmax_gradient_reference(z, labels, with_gradient) for z, labels in parts]), logits_CV


def add_product(total_VD: Tensor | None, dlogits_CV: Tensor, x_CD: Tensor) -> Tensor:
    """total + dlogits^T x, in fp32; a total of None is 0."""
    if not on_gpu(x_CD):  # CPUs have no product of bf16 matrices that gives fp32
        if total_VD is not None and total_VD.dtype == x_CD.dtype:
            return total_VD.addmm_(dlogits_CV.T, x_CD)
        product_VD = (dlogits_CV.T @ x_CD).float()
        return product_VD if total_VD is None else total_VD.add_(product_VD)
    if total_VD is None:
        return torch.mm(dlogits_CV.T, x_CD, out_dtype=torch.float32)
    return torch.addmm(total_VD, dlogits_CV.T, x_CD, out_dtype=torch.float32, out=total_VD)


@shape_wrapper
def addmm_flop(_total, a_shape, b_shape, *_, out_shape=None, **__) -> int:
    """FLOPs of addmm and addmm_; torch 2.13's own count fails where `out_dtype` is given and does not know addmm_."""
    return 2 * a_shape[0] * a_shape[1] * b_shape[1]


flop_registry[torch.ops.aten.addmm] = flop_registry[torch.ops.aten.addmm_] = addmm_flop


class LinearCrossEntropy(torch.autograd.Function):
    """`linear_cross_entropy`, told which gradients are wanted."""

    @staticmethod
    def forward(ctx, x_TD: Tensor, weight_VD: Tensor, labels_T: Tensor, for_x: bool, for_weight: bool) -> Tensor:
        losses_T = x_TD.new_empty(len(x_TD), dtype=torch.float32)
        dx_TD, dw_VD = torch.empty_like(x_TD) if for_x else None, None
        for chunk in chunks(x_TD, weight_VD):
            x_CD = x_TD[chunk]
            losses_T[chunk], dlogits_CV = losses_of(x_CD, weight_VD, labels_T[chunk], for_x or for_weight)
            if dx_TD is not None:
                torch.mm(dlogits_CV, weight_VD, out=dx_TD[chunk])
            if for_weight:
                dw_VD = add_product(dw_VD, dlogits_CV, x_CD)
            del dlogits_CV  # before the next chunk's
        if for_weight and dw_VD is None:  # no token at all
            dw_VD = torch.zeros_like(weight_VD)
        ctx.save_for_backward(dx_TD, dw_VD)
        ctx.weight_dtype = weight_VD.dtype
        return losses_T.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx, dloss: Tensor) -> tuple[Tensor | None, ...]:
        dx_TD, dw_VD = ctx.saved_tensors  # scaled in place: a second backward finds them changed, and autograd refuses
        if dx_TD is not None:
            dx_TD.mul_(dloss)
        if dw_VD is not None:
            scaled_VD = dw_VD if dw_VD.dtype == ctx.weight_dtype else torch.empty_like(dw_VD, dtype=ctx.weight_dtype)
            dw_VD = torch.mul(dw_VD, dloss, out=scaled_VD)
        return dx_TD, dw_VD, None, None, None


# ---- what the model calls


def linear_cross_entropy(x_TD: Tensor, weight_VD: Tensor, labels_T: Tensor) -> Tensor:
    """Cross-entropy summed over the tokens whose label is not IGNORE: x [T, D] and the head's weight [V, D] in one
    dtype, fp32 or bf16, labels int64 [T] -> fp32 scalar, in nats; NaN if a label is neither IGNORE nor a token.

    Logits exist for one chunk of tokens at a time. A gradient that is not wanted (`torch.no_grad`, a frozen head) is
    not computed. The backward can run once.
    """
    wanted = torch.is_grad_enabled()
    return LinearCrossEntropy.apply(
        x_TD, weight_VD, labels_T, wanted and x_TD.requires_grad, wanted and weight_VD.requires_grad
    )


@torch.no_grad()
def token_losses(x_TD: Tensor, weight_VD: Tensor, labels_T: Tensor) -> Tensor:
    """Cross-entropy of each token, without gradient: inputs as of `linear_cross_entropy` -> fp32 [T], in nats, 0 where
    the label is IGNORE.
    """
    parts = [losses_of(x_TD[c], weight_VD, labels_T[c], False)[0] for c in chunks(x_TD, weight_VD)]
    return torch.cat(parts) if parts else x_TD.new_empty(0, dtype=torch.float32)
