"""The loss of each sequence of a batch, where the sum over all is not enough: of a validation's documents, of the two
answers of a pair.

    loss_s = sum over the labels t of sequence s of log sum_v exp(z_tv) - z_t,label

Logits never exist whole: they are computed chunk by chunk over the tokens, and once more in the backward, as a gradient
may weigh every sequence otherwise (`linear_cross_entropy` makes one that weighs all alike, in its forward).

Shapes in names: T tokens, D hidden size, V vocabulary, S sequences.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from logtrain.core.batch import IGNORE

CHUNK = 1024  # tokens: 525 MB of fp32 logits of Llama-3's vocabulary


def token_losses(x_TD: Tensor, weight_VD: Tensor, labels_T: Tensor) -> Tensor:
    """The loss of every token in nats, fp32 [T], 0 where there is no label."""
    chunks = zip(x_TD.split(CHUNK), labels_T.split(CHUNK), strict=True)
    return torch.cat([checkpoint(losses_of_chunk, x, weight_VD, labels, use_reentrant=False) for x, labels in chunks])


def losses_of_chunk(x_CD: Tensor, weight_VD: Tensor, labels_C: Tensor) -> Tensor:
    """The same of one chunk, fp32 [C], with its logits whole."""
    return F.cross_entropy((x_CD @ weight_VD.T).float(), labels_C, ignore_index=IGNORE, reduction="none")


def by_sequence(losses_T: Tensor, cu_seqlens: Tensor) -> Tensor:
    """The sums over each sequence, fp32 [S]; `cu_seqlens`: int32 [S + 1], where sequences begin, with T at the end,
    once or several times: sequences without tokens have the sum 0. The order of summation is always the same.
    """
    return torch.segment_reduce(losses_T, "sum", offsets=cu_seqlens.long(), axis=0, initial=0.0)
