"""What a request changes in its logits before a token is chosen, and the log-probabilities that it is told.

In this order: the repetition penalty, the presence and frequency penalties of OpenAI's API, the bias of single tokens,
and the tokens that a JSON object does not allow.

Shapes in names: S sequences, T tokens, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from logtrain.generation.json_object import JsonAnswer
from logtrain.generation.request import Request, TokenLogprob
from logtrain.generation.sampling import penalised


class LogitChanges:
    """The changes of one request, with what they need to know of its tokens so far."""

    def __init__(self, request: Request, prompt: Sequence[int], vocab_size: int, device: torch.device):
        """`prompt`: ids that the repetition penalty applies to from the start."""
        self.sampling = request.sampling
        self.seen_V = self.count_V = self.bias_V = None
        if self.sampling.repetition_penalty != 1:
            self.seen_V = torch.zeros(vocab_size, dtype=torch.bool, device=device)
            self.seen_V[list(prompt)] = True
        if self.sampling.presence_penalty or self.sampling.frequency_penalty:
            self.count_V = torch.zeros(vocab_size, device=device)
        if request.logit_bias:
            self.bias_V = torch.zeros(vocab_size, device=device)
            for id, bias in request.logit_bias.items():
                self.bias_V[id] = bias
        self.json: JsonAnswer | None = None

    @property
    def are_none(self) -> bool:
        """Whether the logits stay as they are."""
        return self.seen_V is None and self.count_V is None and self.bias_V is None and self.json is None

    def apply(self, logits_V: Tensor, remaining: int) -> None:
        """Change fp32 logits [V] in place. `remaining`: the tokens that the answer may still have."""
        if self.seen_V is not None:
            logits_V.copy_(penalised(logits_V, self.seen_V, self.sampling.repetition_penalty))
        if self.count_V is not None:
            logits_V -= self.sampling.frequency_penalty * self.count_V
            logits_V -= self.sampling.presence_penalty * (self.count_V > 0)
        if self.bias_V is not None:
            logits_V += self.bias_V
        if self.json is not None:
            logits_V.masked_fill_(~self.json.allowed(remaining, logits_V), float("-inf"))

    def add(self, id: int) -> None:
        """Take note of a token by which the answer grew."""
        if self.seen_V is not None:
            self.seen_V[id] = True
        if self.count_V is not None:
            self.count_V[id] += 1
        if self.json is not None:
            self.json.add(id)


def token_logprobs(logits_TV: Tensor, ids: Sequence[int], num_top: int) -> list[TokenLogprob]:
    """The log-probability of each token of `ids` by the logits at its place, of any float dtype, with the `num_top`
    likeliest there.
    """
    logprobs_TV = logits_TV.float().log_softmax(-1)
    index_T1 = torch.tensor(ids, device=logits_TV.device)[:, None]
    chosen = logprobs_TV.gather(1, index_T1)[:, 0].tolist()
    values_Tk, top_Tk = logprobs_TV.topk(min(num_top, logits_TV.shape[1]))
    tops = zip(top_Tk.tolist(), values_Tk.tolist(), strict=True)
    return [
        TokenLogprob(id, logprob, list(zip(*top, strict=True)))
        for id, logprob, top in zip(ids, chosen, tops, strict=True)
    ]
