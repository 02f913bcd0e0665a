"""The cross-entropy with a teacher's gradient: beside whole distributions in PyTorch, and its mean and variance over
all that the teacher could have drawn, without sampling.
"""

import pytest
import torch
from torch import Tensor

from logtrain.core.batch import IGNORE, Batch
from logtrain.model import distillation
from logtrain.model.distillation import Taught, taught_cross_entropy
from tests.support.llama import TINY, packed, random_documents, random_model, relative_difference

T, D, V = 23, 8, 40


def case(top_k: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Activations, the head's weight, the teacher's whole log-probabilities [T, V] and the ids of its likeliest."""
    generator = torch.Generator().manual_seed(seed)
    x_TD, weight_VD = (torch.randn(*size, generator=generator) for size in ((T, D), (V, D)))
    log_q_TV = (2 * torch.randn(T, V, generator=generator)).log_softmax(-1)
    return x_TD, weight_VD, log_q_TV, log_q_TV.topk(top_k).indices


def taught(log_q_TV: Tensor, ids_TK: Tensor, share: float) -> Taught:
    return Taught(ids_TK.int(), log_q_TV.gather(1, ids_TK), share)


def gradients(loss: Tensor, *inputs: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, inputs))


def leaves(*tensors: Tensor) -> list[Tensor]:
    return [tensor.clone().requires_grad_() for tensor in tensors]


@pytest.mark.parametrize("chunk", [7, 64])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_with_the_whole_vocabulary_it_is_torchs_divergence(monkeypatch, share, chunk):
    monkeypatch.setattr(distillation, "CHUNK", chunk)
    x_TD, weight_VD, log_q_TV, ids_TK = case(V)
    labels_T = torch.arange(T) % V
    labels_T[3:6] = IGNORE
    keep_T = labels_T != IGNORE
    x_TD, weight_VD = leaves(x_TD, weight_VD)
    found = taught_cross_entropy(x_TD, weight_VD, labels_T, taught(log_q_TV, ids_TK, share))
    log_p_TV = (x_TD @ weight_VD.T).log_softmax(-1)[keep_T]
    entropy = torch.nn.functional.nll_loss(log_p_TV, labels_T[keep_T], reduction="sum")
    divergence = torch.nn.functional.kl_div(log_p_TV, log_q_TV[keep_T], reduction="sum", log_target=True)
    torch.testing.assert_close(found, torch.stack((entropy, divergence, keep_T.sum().float())), rtol=1e-5, atol=1e-5)
    wanted = gradients((1 - share) * entropy + share * divergence, x_TD, weight_VD)
    for ours, theirs in zip(gradients(found[0], x_TD, weight_VD), wanted, strict=True):
        assert relative_difference(ours, theirs) < 1e-5


@pytest.mark.parametrize("top_k", [1, 5, V - 1])
@pytest.mark.parametrize("share", [0.3, 1.0])
def test_with_few_ids_it_is_the_formula(top_k, share):
    """By hand, one token of the text at a time."""
    x_TD, weight_VD, log_q_TV, ids_TK = case(top_k)
    labels_T = torch.randint(V, (T,), generator=torch.Generator().manual_seed(1))
    labels_T[:2] = ids_TK[:2, 0]
    x_TD, weight_VD = leaves(x_TD, weight_VD)
    found = taught_cross_entropy(x_TD, weight_VD, labels_T, taught(log_q_TV, ids_TK, share))
    entropy = divergence = objective = torch.zeros(())
    p_TV, q_TV = (x_TD @ weight_VD.T).softmax(-1), log_q_TV.exp()
    for p_V, q_V, ids_K, label in zip(p_TV, q_TV, ids_TK.tolist(), labels_T.tolist(), strict=True):
        rest = [id for id in range(V) if id not in ids_K]
        kl = sum(q_V[id] * (q_V[id] / p_V[id]).log() for id in ids_K)
        kl = kl + q_V[rest].sum() * (q_V[rest].sum() / p_V[rest].sum()).log()
        entropy, divergence = entropy - p_V[label].log(), divergence + kl
        of_teacher = -p_V[label].log()
        if label in ids_K:
            of_teacher = -sum(q_V[id] / q_V[ids_K].sum() * p_V[id].log() for id in ids_K)
        objective = objective + (1 - share) * -p_V[label].log() + share * of_teacher
    torch.testing.assert_close(found[:2], torch.stack((entropy, divergence)), rtol=1e-5, atol=1e-5)
    assert found[1] > 0
    wanted = gradients(objective, x_TD, weight_VD)
    for ours, theirs in zip(gradients(found[0], x_TD, weight_VD), wanted, strict=True):
        assert relative_difference(ours, theirs) < 1e-5


def of_every_label(share: float, top_k: int) -> tuple[Tensor, float]:
    """The mean gradient by the activations over all that the teacher could have drawn, and its variance (the trace)."""
    x_TD, weight_VD, log_q_TV, ids_TK = case(top_k)
    by_label = []
    for label in range(V):
        (x,) = leaves(x_TD)
        loss = taught_cross_entropy(x, weight_VD, torch.full((T,), label), taught(log_q_TV, ids_TK, share))[0]
        by_label += gradients(loss, x)
    of_VTD, q_VT1 = torch.stack(by_label), log_q_TV.exp().T[..., None]
    mean_TD = (q_VT1 * of_VTD).sum(0)
    return mean_TD, (q_VT1 * (of_VTD - mean_TD) ** 2).sum().item()


@pytest.mark.parametrize("top_k", [2, 4, 12, V])
def test_the_mean_gradient_is_that_of_the_cross_entropy_and_varies_less(top_k):
    plain, noise = of_every_label(0.0, top_k)
    variances = [noise]
    for share in (0.5, 1.0):
        mean, variance = of_every_label(share, top_k)
        assert relative_difference(mean, plain) < 1e-5
        variances.append(variance)
    assert variances[0] > variances[1] > variances[2]
    assert variances[2] < noise * {2: 0.8, 4: 0.7, 12: 0.3, V: 1e-9}[top_k]


def test_a_model_that_is_its_teacher_learns_nothing():
    """In float16, as it is stored, whose rounding is all that is left."""
    x_TD, weight_VD, *_ = case(4)
    (x_TD,) = leaves(x_TD)
    log_TV = (x_TD @ weight_VD.T).log_softmax(-1).detach()
    top = log_TV.topk(V)
    told = Taught(top.indices.int(), top.values.half(), 1.0)
    found = taught_cross_entropy(x_TD, weight_VD, top.indices[:, 0], told)
    assert 0 <= found[1].item() / T < 1e-5
    plain = taught_cross_entropy(x_TD, weight_VD, top.indices[:, 0], told._replace(share=0.0))
    small, usual = (gradients(of[0], x_TD)[0] for of in (found, plain))
    assert small.norm() < 1e-3 * usual.norm()


@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_nothing_is_lost_where_a_model_is_sure(scale):
    """All that a teacher has not told may have no probability left in fp32."""
    x_TD, weight_VD, log_q_TV, ids_TK = case(3)
    (x_TD,) = leaves(scale * x_TD)
    for labels_T in (ids_TK[:, 0], log_q_TV.argmin(-1)):
        found = taught_cross_entropy(x_TD, weight_VD, labels_T, taught(log_q_TV.half(), ids_TK, 1.0))
        assert found.isfinite().all() and gradients(found[0], x_TD)[0].isfinite().all()


def of_model(share: float, dtype: torch.dtype = torch.float32) -> tuple[Tensor, dict[str, Tensor], Batch]:
    """What a model with a teacher gives, and its gradients."""
    batch, llama = packed(random_documents([20, 7, 33], TINY.vocab_size)), random_model(TINY).to(dtype)
    batch.labels_T[3:9] = IGNORE
    log_TV = (3 * torch.randn(60, TINY.vocab_size, generator=torch.Generator().manual_seed(2))).log_softmax(-1)
    top = log_TV.topk(9)
    batch = batch._replace(teacher_TK=top.indices.int(), teacher_log_TK=top.values.half())
    found = llama(batch, teacher_share=share) if share else llama(batch)
    found.flatten()[0].backward()
    return found.detach(), {name: p.grad.float() for name, p in llama.named_parameters()}, batch


def test_a_model_gives_its_loss_and_another_gradient():
    (plain, gradient, batch), (found, other, _) = of_model(0.0), of_model(1e-6)
    torch.testing.assert_close(found[0], plain, rtol=1e-6, atol=0)
    assert found[2] == (batch.labels_T != IGNORE).sum()
    assert all(relative_difference(other[name], gradient[name]) < 1e-5 for name in gradient)
    whole = of_model(1.0)
    assert whole[0].tolist() == found.tolist()
    assert all(relative_difference(whole[1][name], gradient[name]) > 0.1 for name in gradient)


def test_bf16_is_as_near_as_bf16_is(monkeypatch):
    monkeypatch.setattr(distillation, "CHUNK", 16)
    (_, right, _), (_, found, _) = of_model(1.0), of_model(1.0, torch.bfloat16)
    (_, plain, _), (_, rough, _) = of_model(0.0), of_model(0.0, torch.bfloat16)
    for name in right:
        assert relative_difference(found[name], right[name]) < 2 * relative_difference(rough[name], plain[name])
