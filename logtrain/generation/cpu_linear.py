"""Matrices that few tokens are multiplied with on a CPU: the last tokens of the sequences of a batch.

MKL takes up to twice as long for such a product as the matrix takes to come from memory. Cut into blocks of rows that
lie end to end, transposed, it is a batched product of small matrices, which does not: on 2 cores 0.55 ms, not 0.86, for
8 tokens and [3072, 576], and 6.8, not 17.4, for [49152, 576]. For a single token, or for a thousand, MKL is faster, so
the matrix is there twice, 4 bytes a parameter more.

Shapes in names: T tokens, D in features, O out features, B blocks, n rows of a block.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from logtrain.model.llama import Llama, LossHead

FEW = range(4, 65)  # tokens
ROWS = 48  # of a block: 32 to 64 are about as fast, and this divides the sizes of many models


class BlockedLinear(nn.Module):
    def __init__(self, weight: nn.Parameter):
        super().__init__()
        self.weight = weight  # [O, D]
        padded = F.pad(weight.detach(), (0, 0, 0, -len(weight) % ROWS))
        self.blocks_BDn = padded.unflatten(0, (-1, ROWS)).transpose(1, 2).contiguous()

    def forward(self, x_TD: Tensor) -> Tensor:
        if len(x_TD) not in FEW:
            return F.linear(x_TD, self.weight)
        y_TO = (x_TD @ self.blocks_BDn).transpose(0, 1).flatten(1)
        return y_TO if y_TO.shape[1] == len(self.weight) else y_TO[:, : len(self.weight)].contiguous()


class BlockedHead(nn.Module):
    """In the place of a head, which keeps its norm and its loss."""

    def __init__(self, head: LossHead):
        super().__init__()
        self.head, self.product = head, BlockedLinear(head.weight)

    def forward(self, x_TD: Tensor, residual_TD: Tensor, labels_T: Tensor | None) -> Tensor:
        if labels_T is not None:
            return self.head(x_TD, residual_TD, labels_T)
        return self.product(self.head.norm(x_TD, residual_TD)[1])


def use_blocked_linears(model: Llama) -> None:
    """Make a whole model on the CPU fast for few tokens, in place."""
    for of_layer in model.blocks:
        for path in ("attention.qkv", "attention.out", "feed_forward.gate_up", "feed_forward.down"):
            of_layer.set_submodule(path, BlockedLinear(of_layer.get_submodule(path).weight))
    model.head = BlockedHead(model.head)
