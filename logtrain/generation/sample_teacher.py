"""What a model expects in the place of each token of a sample that it wrote: its teacher's distribution, when it is
trained on the sample later. Stored are the K likeliest tokens and their log-probabilities at temperature 1, whatever
the sample was drawn at.

A sample goes through the model alone, from its first stored token on, as a row of the training shows it. So the numbers
depend neither on the samples beside it nor on the number of ranks.

Letters in names: N tokens of a sample, C those of a chunk, V vocabulary, K outcomes that are stored. Tokens
are uint32 as they are stored, records of the dtype teacher_dtype(K) (data/shards.py).
"""

import base64

import numpy as np
import torch

from logtrain.core.batch import Batch
from logtrain.data.shards import CONTEXT, teacher_dtype
from logtrain.model.llama import Llama

CHUNK = 512  # tokens: 263 MB of fp32 logits of Llama-3's vocabulary, beside a cache that takes most of a GPU


class SampleTeacher:
    """A model that tells what it expects."""

    def __init__(self, model: Llama, top_k: int, vocab_size: int):
        """`vocab_size`: the tokenizer's; a model may have more outputs, which no token has."""
        self.model, self.top_k, self.vocab_size = model, top_k, vocab_size

    @torch.inference_mode()
    def records(self, stored_N: np.ndarray) -> np.ndarray:
        """`teacher_dtype(K)` [N] for tokens as they are stored."""
        device = self.model.embedding.weight.device
        tokens = torch.from_numpy((stored_N & (CONTEXT - 1)).astype(np.int64)).to(device)
        positions = torch.arange(len(tokens), dtype=torch.int32, device=device)
        bounds = torch.tensor([0, len(tokens)], dtype=torch.int32, device=device)
        x_ND, residual_ND = self.model.decode(Batch(tokens, None, positions, bounds, len(tokens)))
        records_N, is_target_N = no_records(len(tokens), self.top_k), targets(stored_N)
        for start in range(0, len(tokens) - 1, CHUNK):
            end = min(start + CHUNK, len(tokens) - 1)
            logits_CV = self.model.head(x_ND[start:end], residual_ND[start:end], None).float()
            top = logits_CV[:, : self.vocab_size].topk(self.top_k)
            log_CK = (top.values - logits_CV.logsumexp(-1, keepdim=True)).clamp_(torch.finfo(torch.float16).min, 0)
            found = records_N[start + 1 : end + 1]  # a record stands beside the token that is predicted
            found["ids"], found["log_probabilities"] = top.indices.cpu().numpy(), log_CK.half().cpu().numpy()
        records_N[~is_target_N] = no_records(1, self.top_k)
        return records_N


def no_records(length: int, top_k: int) -> np.ndarray:
    """The records of tokens that are not predicted."""
    records_N = np.zeros(length, teacher_dtype(top_k))
    records_N["log_probabilities"] = -np.inf
    return records_N


def targets(stored_N: np.ndarray) -> np.ndarray:
    """bool [N]: which tokens of a sample are predicted."""
    is_target_N = stored_N < CONTEXT
    is_target_N[:1] = False
    return is_target_N


def as_text(records_N: np.ndarray, stored_N: np.ndarray) -> str:
    """The records of the tokens that are predicted, for a journal."""
    return base64.b64encode(records_N[targets(stored_N)].tobytes()).decode()


def from_text(text: str, stored_N: np.ndarray, top_k: int) -> np.ndarray:
    """The records [N] of which `as_text` made this. Raises ValueError for what was not made of this sample."""
    is_target_N, records_N = targets(stored_N), no_records(len(stored_N), top_k)
    content = base64.b64decode(text, validate=True)
    if len(content) != np.count_nonzero(is_target_N) * records_N.itemsize:
        raise ValueError("a sample's teacher is of other tokens; delete the folder of samples to start anew")
    records_N[is_target_N] = np.frombuffer(content, records_N.dtype)
    return records_N
