"""Linear layers on a CPU, with their matrices laid out as oneDNN wants them.

PyTorch computes a product in fp32 by MKL, which reads the matrix as it is. oneDNN reads one that it has laid out
anew, for which it takes less time at any number of tokens: of a single CPU core, for a matrix [3072, 576], 0.60 ms
instead of 1.00 for 8 tokens and 17 instead of 20 for 512; for [49152, 576] and 8 tokens 10 instead of 20. For one token
both take as long as the matrix takes to be read from memory.

Shapes in names: T tokens, D in features, O out features, V vocabulary.
"""

import torch
from torch import Tensor, nn

from logtrain.model.distillation import Taught
from logtrain.model.llama import Llama, LossHead


def computed_rows(num_tokens: int) -> int:
    """The rows with which a product of `num_tokens` tokens is computed: up to 8 as many, above that four numbers in
    each power of two, at most a quarter more.

    oneDNN makes a program for each number of rows and shape of matrix, and keeps the last thousand. One takes 0.55 MiB
    and 1 ms to make: answers that come and go would fill 500 MiB.
    """
    step = 1 << max(0, (num_tokens - 1).bit_length() - 3)
    return -(-num_tokens // step) * step


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


class PackedHead(LossHead):
    """A head that shares norm, matrix and loss with another one, and computes logits by a PackedLinear."""

    def __init__(self, head: LossHead):
        nn.Module.__init__(self)
        self.norm, self.weight = head.norm, head.weight
        self.product = PackedLinear(head.weight)

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
            block.set_submodule(path, PackedLinear(linear.weight))
    model.head = PackedHead(model.head)
