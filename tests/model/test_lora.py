"""What a model with adapters computes, and what it does not; how new adapters are drawn."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from logtrain.model import hf, llama
from logtrain.model.config import LoraConfig
from logtrain.model.flops import model_flops
from logtrain.model.llama import Llama
from logtrain.model.lora import InitialAdapters, add_adapters, num_adapter_parameters
from logtrain.model.weights import RandomWeights, empty_model, materialize
from tests.support.llama import CPU, logits, over_the_whole_row, packed, random_documents, relative_difference
from tests.support.lora import SHAPE, TARGETS, Products, adapted, seeds, trained, with_adapters
from tests.support.synthetic import read_model


def matrix_shapes(model: Llama) -> set[tuple[int, ...]]:
    own = {tuple(p.shape) for name, p in model.named_parameters() if p.ndim == 2 and "lora_" not in name}
    return own | {shape[::-1] for shape in own}


@pytest.mark.parametrize("kind", ["untied", "tied"])
@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_no_gradient_of_a_frozen_matrix_is_computed(folder_of, kind, recompute):
    row = packed(random_documents([90, 57], 320))
    seen = {}
    for name, model in (
        ("plain", read_model(folder_of(kind))),
        ("adapted", adapted(folder_of(kind), LoraConfig(rank=3, dropout=0.1))),
    ):
        for block in model.blocks:
            block.recompute = recompute
        with Products() as products:
            model(row._replace(seeds_T=seeds(147))).backward()
        seen[name] = matrix_shapes(model) & set(products.shapes)
    assert seen["adapted"] == set()
    assert len(seen["plain"]) >= 5  # qkv, out, gate_up, down and the head: it would be seen
    adapted_model = adapted(folder_of(kind), LoraConfig(rank=3))
    adapted_model(row).backward()
    assert {n for n, p in adapted_model.named_parameters() if p.grad is not None} == trained(adapted_model).keys()


def test_flops_are_those_of_model_flops(folder_of):
    """They are, but for the gradient of the first block's input, which nobody needs."""
    config = LoraConfig(rank=3)
    model, tokens = adapted(folder_of("untied"), config), 147
    with Products() as products:
        model(packed(random_documents([tokens], 320))).backward()
    qkv = model.blocks[0].attention.qkv
    unneeded = 2 * tokens * (qkv.weight.numel() + qkv.lora_A.numel())
    trained_parameters = num_adapter_parameters(model.config, config)
    assert products.flops + unneeded == model_flops(model.config, tokens, 0, trained_parameters)


@pytest.mark.parametrize("targets", TARGETS)
def test_adapters_are_fp32_on_a_frozen_model_of_the_compute_precision(folder_of, targets):
    config = LoraConfig(rank=3, targets=TARGETS[targets])
    model = adapted(folder_of("untied"), config, torch.bfloat16)
    own = {name: p for name, p in model.named_parameters() if "lora_" not in name}
    assert {p.dtype for p in own.values()} == {torch.bfloat16}
    assert {p.dtype for p in trained(model).values()} == {torch.float32}
    assert not trained(model).keys() & own.keys()
    # r (D + out) a layer: heads 8 x 6, key-value heads 2 x 6, 64 wide, 112 inner
    sizes = dict(
        zip(LoraConfig().targets, [64 + 48, 64 + 12, 64 + 12, 48 + 64, 64 + 112, 64 + 112, 112 + 64], strict=True)
    )
    assert num_adapter_parameters(model.config, config) == 2 * 3 * sum(sizes[target] for target in config.targets)
    assert num_adapter_parameters(model.config, config) == sum(p.numel() for p in trained(model).values())


def test_in_bf16_the_loss_is_near_that_of_fp32(folder_of):
    row, precisions = packed(random_documents([60, 30], 320)), (torch.float32, torch.bfloat16)
    models = [adapted(folder_of("untied"), LoraConfig(rank=3), precision) for precision in precisions]
    losses = [model(row) for model in models]
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=1e-2)
    for loss in losses:
        loss.backward()
    for ours, other in zip(*(model.parameters() for model in models), strict=True):
        if ours.requires_grad:
            assert ours.grad.dtype == other.grad.dtype == torch.float32
            assert relative_difference(other.grad, ours.grad) < 0.1  # 8 bits through 8 products


# ---- compiled


@pytest.mark.parametrize("recompute", ["none", "selective"])
def test_compiled_blocks_with_dropout_are_the_eager_ones_and_all_but_the_first_share_a_program(recompute, monkeypatch):
    """They compile without a break, and no product is recomputed. Attention is over the whole row: the reference for
    CPUs splits it on the host.
    """

    monkeypatch.setattr(llama, "attention", over_the_whole_row)
    shape, config = replace(SHAPE, vocab_size=131, intermediate_size=20, num_layers=4), LoraConfig(rank=3, dropout=0.3)
    model = empty_model(shape)
    add_adapters(model, config, torch.float32)
    materialize(model, CPU, InitialAdapters(RandomWeights(shape, 1), shape, config, 1))
    for parameter in trained(model).values():
        torch.nn.init.normal_(parameter, std=0.3)
    row = packed(random_documents([24], 131))

    def step() -> list[Tensor]:
        model.zero_grad()
        loss = model(row._replace(seeds_T=seeds(24)))
        loss.backward()
        return [loss.detach(), *(p.grad for p in model.parameters() if p.requires_grad)]

    expected = step()
    torch._dynamo.reset()
    counters.clear()
    for block in model.blocks:
        block.recompute = recompute
        block.forward = torch.compile(block.forward, backend="aot_eager", fullgraph=True)
    found = step()
    assert counters["stats"]["unique_graphs"] == 2  # the first block's input is no residual stream
    for mine, other in zip(found, expected, strict=True):
        assert relative_difference(mine, other) < 1e-6
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        step()
    done = Counter(event.name for event in profile.events())
    assert done["logtrain::adapter_outputs"] == done["logtrain::adapter_outputs_backward"] == 4 * 4  # matrices x blocks
    assert done["aten::addmm"] == 2 * 4 * 4 - 1  # with W; the first block's input wants no gradient
    assert done["aten::addmm_"] == 7 * 4  # within the last: dh of each adapter


# ---- new adapters


def test_new_adapters_add_nothing_and_are_drawn_as_pefts(folder_of):
    shape, config = hf.read_config(folder_of("untied")), LoraConfig(rank=64)
    weights = hf.Weights(folder_of("untied"), shape)
    one, two = (InitialAdapters(weights, shape, config, seed) for seed in (1, 2))
    model, row = with_adapters(folder_of("untied"), config, one), packed(random_documents([40], 320))
    assert torch.equal(logits(model, row), logits(read_model(folder_of("untied")), row))
    drawn = {name: tensor for name, tensor in trained(model).items() if name.endswith("lora_A")}
    for name, a in drawn.items():
        bound = a.shape[1] ** -0.5  # kaiming_uniform with a = sqrt(5)
        assert 0.98 * bound < a.abs().max() <= bound
        assert a.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
        assert abs(a.mean()) < 0.05 * bound
        first, second = (torch.cat(list(one.rows(name, *cut))) for cut in ((0, 5), (5, len(a))))
        assert torch.equal(torch.cat((first, second)), a)  # however it is cut over ranks
        assert not torch.equal(two.rows(name, 0, len(a))[0], a)
    heads = [a[:64, :48] for a in drawn.values()]
    assert not any(torch.equal(x, y) for i, x in enumerate(heads) for y in heads[:i])
