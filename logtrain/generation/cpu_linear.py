"""Linear layers on a CPU, with their matrices laid out for products in fp32 that take less time than PyTorch's own.

What is published in bf16, as Llama-3.1 is, is kept in fp16 without loss (`lossless_half`), half as many bytes, from
which FBGEMM makes fp32 again while it multiplies. A step of few tokens takes as long as the matrices take to be read.
All others are laid out by oneDNN. Of a single CPU core, for matrices [3072, 576] that no cache holds, in ms:

    tokens       1     4     8    16    64   512
    FBGEMM     0.4   0.6   1.1   1.1   4.7    28
    oneDNN     1.1   1.5   1.9   2.2   5.4    30

Shapes in names: T tokens, D in features, O out features, V vocabulary.
"""

import torch
from torch import Tensor, nn

from logtrain.model.distillation import Taught
from logtrain.model.llama import Llama, LossHead


def computed_rows(num_tokens: int) -> int:
    """The rows with which oneDNN computes a product of `num_tokens` tokens: up to 8 as many, above that one of four
    numbers in each power of two, at most a quarter more.

    oneDNN makes a program for each number of rows and shape of matrix, and keeps the last thousand. One takes 0.55 MiB
    and 1 ms to make: 1 to 512 tokens by one matrix left 298 MiB behind, and leave 19 so.
    """
    step = 1 << max(0, (num_tokens - 1).bit_length() - 3)
    return -(-num_tokens // step) * step


LOST = 2**-32  # of a matrix's greatest element, beside which fp32 itself loses 2**-24 of it


def lossless_half(weight_OD: Tensor) -> tuple[Tensor, float] | None:
    """The matrix times a power of two, fp32 [O, D] with elements that fp16 has, and that power. None if an element
    would lose more than `LOST`, as those do that have more than the 11 significant bits of fp16; bf16 has 8.
    """
    greatest = weight_OD.abs().max()
    scale = 2.0 ** (15 - int(torch.frexp(greatest).exponent))  # the greatest becomes at most 2**15; fp16 ends at 65,504
    half_OD = (weight_OD * scale).half().float()
    lost = (half_OD / scale - weight_OD).abs().max()
    return (half_OD, scale) if lost <= LOST * greatest else None


class HalfLinear(nn.Module):
    """A linear layer that has its matrix in fp16, in FBGEMM's layout alone, and computes in fp32 without gradients."""

    def __init__(self, half_OD: Tensor, scale: float):
        """What `lossless_half` gives."""
        super().__init__()
        self.packed, self.scale = torch.ops.quantized.linear_prepack_fp16(half_OD, None), scale
        self.is_wide = half_OD.shape[0] > half_OD.shape[1]

    def forward(self, x_TD: Tensor) -> Tensor:
        """The product [T, O] of x_TD with the transposed matrix. Of x_TD and it, the smaller is unscaled: by a power of
        two, which rounds neither.
        """
        if self.is_wide:
            return torch.ops.quantized.linear_dynamic_fp16(x_TD * (1 / self.scale), self.packed)
        return torch.ops.quantized.linear_dynamic_fp16(x_TD, self.packed).mul_(1 / self.scale)


class PackedLinear(nn.Module):
    """A linear layer that has its matrix in oneDNN's layout alone, of which there are no gradients."""

    def __init__(self, weight_OD: Tensor):
        super().__init__()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight_OD.detach())

    def forward(self, x_TD: Tensor) -> Tensor:
        """The product [T, O] of x_TD with the transposed matrix."""
        T = len(x_TD)
        if beyond := computed_rows(T) - T:
            x_TD = nn.functional.pad(x_TD, (0, 0, 0, beyond))
        return torch.ops.mkldnn._linear_pointwise(x_TD, self.packed, None, "none", [], "")[:T]


def packed_linear(weight_OD: Tensor) -> nn.Module:
    """The layer that computes products with a matrix in the least time."""
    has_fbgemm = torch.backends.quantized.engine in ("x86", "fbgemm")
    half = lossless_half(weight_OD) if has_fbgemm else None
    return HalfLinear(*half) if half else PackedLinear(weight_OD)


class PackedHead(LossHead):
    """A head that shares norm, matrix and loss with another one, and computes logits by a packed layer."""

    def __init__(self, head: LossHead):
        nn.Module.__init__(self)
        self.norm, self.weight = head.norm, head.weight
        self.product = packed_linear(head.weight.detach())

    def forward(
        self,
        x_TD: Tensor,
        residual_TD: Tensor,
        labels_T: Tensor | None,
        of_each_token: bool = False,
        taught: Taught | None = None,
    ) -> Tensor:
        """The losses, or without labels the logits [T, V], as `LossHead.forward` gives them."""
        if labels_T is not None:
            return super().forward(x_TD, residual_TD, labels_T, of_each_token, taught)
        return self.product(self.norm(x_TD, residual_TD)[1])


def pack_linears(model: Llama) -> None:
    """Replace every linear layer of a model on the CPU, and its head, by a packed one. It computes and takes no more
    training. Where PyTorch was built without oneDNN, nothing is changed.
    """
    if not torch.backends.mkldnn.is_available():
        return
    for block in model.blocks:
        for path in ("attention.qkv", "attention.out", "feed_forward.gate_up", "feed_forward.down"):
            linear = block.get_submodule(path)
            assert isinstance(linear, nn.Linear)
            block.set_submodule(path, packed_linear(linear.weight.detach()))
    model.head = PackedHead(model.head)
