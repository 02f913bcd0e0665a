"""Linear layers on a CPU for a few tokens at once, as a decoding step has them: one token of each sequence.

MKL takes up to twice as long for such a product as it takes to read the matrix from memory. With the matrix cut into
transposed tiles of rows that lie end to end, it is a batched product of small matrices, which takes no longer than the
reading: on 2 cores, for 8 tokens, 0.55 ms instead of 0.86 for a matrix [3072, 576], and 6.8 instead of 17.4 for
[49152, 576]. For a single token, or for a thousand, MKL is faster. So the matrix is stored both ways, which takes 4
bytes a parameter more.

Shapes in names: T tokens, D in features, O out features, G tiles, n rows of a tile.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from logtrain.model.distillation import Taught
from logtrain.model.llama import Llama, LossHead

SMALL_BATCHES = range(4, 65)  # numbers of tokens for which tiles are faster
TILE_ROWS = 48  # 32 to 64 are about as fast, and this divides the sizes of many models


class SmallBatchLinear(nn.Module):
    """A linear layer that stores its matrix a second time in tiles, for batches of few tokens."""

    def __init__(self, weight: Tensor):
        super().__init__()
        self.weight = weight  # [O, D]
        filled_up = F.pad(weight.detach(), (0, 0, 0, -len(weight) % TILE_ROWS))
        self.tiles_GDn = filled_up.unflatten(0, (-1, TILE_ROWS)).transpose(1, 2).contiguous()

    def forward(self, x_TD: Tensor) -> Tensor:
        """The product [T, O] of x_TD with the transposed matrix."""
        if len(x_TD) not in SMALL_BATCHES:
            return F.linear(x_TD, self.weight)
        y_TO = (x_TD @ self.tiles_GDn).transpose(0, 1).flatten(1)
        return y_TO if y_TO.shape[1] == len(self.weight) else y_TO[:, : len(self.weight)].contiguous()


class SmallBatchHead(LossHead):
    """A head that shares norm, matrix and loss with another one, and computes logits by a SmallBatchLinear."""

    def __init__(self, head: LossHead):
        nn.Module.__init__(self)
        self.norm, self.weight = head.norm, head.weight
        self.product = SmallBatchLinear(head.weight)

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


def use_small_batch_linears(model: Llama) -> None:
    """Replace every linear layer of a model on the CPU, and its head, by one that is fast for few tokens."""
    for block in model.blocks:
        for path in ("attention.qkv", "attention.out", "feed_forward.gate_up", "feed_forward.down"):
            linear = block.get_submodule(path)
            assert isinstance(linear, nn.Linear)
            block.set_submodule(path, SmallBatchLinear(linear.weight))
    model.head = SmallBatchHead(model.head)
