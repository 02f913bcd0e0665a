"""The loss of each sequence, and its gradient where sequences weigh differently, beside PyTorch on whole logits."""

import torch
import torch.nn.functional as F

from logtrain.core.batch import IGNORE
from logtrain.model import sequence_losses
from tests.support.llama import TINY, logits, packed, random_documents, random_model, relative_difference


def test_losses_and_gradients_are_those_of_whole_logits(monkeypatch):
    """In several chunks, with context and padded bounds."""
    monkeypatch.setattr(sequence_losses, "CHUNK", 16)
    batch, llama = packed(random_documents([20, 7, 33], TINY.vocab_size)), random_model(TINY)
    assert batch.labels_T is not None
    batch.labels_T[3:9] = IGNORE
    weights_S = torch.tensor([0.3, -1.7, 2.0, 5.0, 5.0])  # the last two have no tokens

    def of_whole_logits() -> torch.Tensor:
        losses_T = F.cross_entropy(logits(llama, batch), batch.labels_T, ignore_index=IGNORE, reduction="none")
        return torch.stack([part.sum() for part in losses_T.split([20, 7, 33])])

    found_S = llama(batch, of_sequences=True)
    torch.testing.assert_close(found_S[:3], of_whole_logits(), rtol=1e-6, atol=1e-6)
    assert found_S[3:].tolist() == [0.0, 0.0]
    torch.testing.assert_close(found_S.sum(), llama(batch), rtol=1e-6, atol=1e-6)
    gradients = []
    for losses_S in (found_S, of_whole_logits()):
        llama.zero_grad()
        (losses_S * weights_S[: len(losses_S)]).sum().backward()
        gradients.append({name: p.grad.clone() for name, p in llama.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert all(relative_difference(gradients[0][name], gradients[1][name]) < 1e-5 for name in gradients[0])
