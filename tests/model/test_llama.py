"""The model against transformers' LlamaForCausalLM, and against itself: packed and alone, recomputed and not."""

from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention.varlen import varlen_attn
from torch.utils._python_dispatch import TorchDispatchMode

from logtrain.model import hf
from logtrain.model import llama as model
from logtrain.model.llama import Llama, LlamaConfig
from logtrain.model.weights import RandomWeights
from tests.support.llama import (
    TINY,
    gradients,
    load_transformers,
    logits,
    over_the_whole_row,
    packed,
    random_documents,
    random_model,
    relative_difference,
)
from tests.support.synthetic import LLAMA3_ROPE, read_model, write_model

# Beside transformers


@torch.no_grad()
def assert_same_logits(folder: Path, lengths: list[int]) -> None:
    """Documents in one packed row, beside transformers' logits of each alone."""
    theirs = load_transformers(folder)
    documents = random_documents(lengths, theirs.config.vocab_size)
    ours = logits(read_model(folder), packed(documents))
    expected = torch.cat([theirs(document[None]).logits[0] for document in documents])
    assert ours.dtype == torch.float32
    assert (ours - expected).abs().max() <= 2e-5 * expected.abs().max()


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("num_kv_heads", [1, 4, 8])
def test_logits_of_random_models(tmp_path, num_kv_heads, tied):
    """Positions reach past the 64 of the scaling's original training."""
    write_model(tmp_path, num_key_value_heads=num_kv_heads, tie_word_embeddings=tied, initializer_range=0.2)
    assert_same_logits(tmp_path, [200, 1, 7, 91])


@pytest.mark.parametrize(
    "rope", [{"rope_type": "default", "rope_theta": 10_000.0}, LLAMA3_ROPE], ids=["plain", "llama3"]
)
def test_logits_with_a_head_size_of_its_own(tmp_path, rope):
    """num_heads * head_dim need not be hidden_size."""
    write_model(tmp_path, head_dim=24, num_attention_heads=4, rope_parameters=rope, rms_norm_eps=1e-3)
    assert_same_logits(tmp_path, [300])


def test_logits_of_stories260k(shared):
    assert_same_logits(shared / "data/stories260k", [256, 30])


def test_logits_of_smollm2(smollm2):
    assert_same_logits(smollm2, [100, 28])


def test_stories260k_tells_the_same_story(shared):
    """Greedy text is the same when each token is ours after those before it: one forward shows it for all 256."""
    folder = shared / "data/stories260k"
    theirs = load_transformers(folder)
    bos = torch.tensor([[theirs.config.bos_token_id]])
    story = theirs.generate(bos, max_new_tokens=256, do_sample=False, eos_token_id=None, pad_token_id=0)[0]
    assert len(story) == 257
    assert len(set(story.tolist())) > 50  # a story, not one word for ever
    with torch.no_grad():
        assert torch.equal(logits(read_model(folder), packed([story[:-1]])).argmax(-1), story[1:])


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_loss_and_gradients_are_those_of_transformers(tmp_path, tied):
    write_model(tmp_path, tie_word_embeddings=tied)
    documents = random_documents([50, 13, 40], 320)
    theirs, expected = load_transformers(tmp_path), 0
    for document in documents:
        logits = theirs(document[None]).logits[0]
        expected = expected + F.cross_entropy(logits[:-1], document[1:], reduction="sum")
    expected.backward()

    ours = read_model(tmp_path)
    loss, by_name = gradients(ours, packed(documents))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    published = dict(hf.published_rows(ours.config, by_name.items()))
    their_gradients = {name: p.grad for name, p in theirs.named_parameters()}
    assert published.keys() == their_gradients.keys()
    for name, gradient in published.items():
        assert relative_difference(gradient, their_gradients[name]) <= 2e-6, name


# Packing


def test_a_packed_row_is_its_documents_alone():
    llama = random_model(TINY)
    documents = random_documents([60, 2, 33, 1, 90], TINY.vocab_size)
    loss, together = gradients(llama, packed(documents))
    alone = [gradients(llama, packed([document])) for document in documents]
    assert loss.item() == pytest.approx(sum(part.item() for part, _ in alone), rel=1e-6)
    for name, gradient in together.items():
        expected = sum(part[name].double() for _, part in alone)
        assert relative_difference(gradient, expected) <= 1e-6, name


def test_one_mask_over_the_whole_row_is_another_loss():
    llama = random_model(TINY)
    by_document = packed(random_documents([60, 33, 90], TINY.vocab_size))
    positions, cu_seqlens = torch.arange(183, dtype=torch.int32), torch.tensor([0, 183], dtype=torch.int32)
    whole_row = by_document._replace(positions_T=positions, cu_seqlens=cu_seqlens, max_seqlen=183)
    apart, seen = (logits(llama, row) for row in (by_document, whole_row))
    torch.testing.assert_close(apart[:60], seen[:60])  # the first document has nothing before it
    assert ((apart - seen).abs().amax(-1)[60:] > 1e-4).all()
    losses = [llama(row).item() for row in (by_document, whole_row)]
    assert losses[0] != pytest.approx(losses[1], rel=1e-6)


# Recomputation


class Operations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.count = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count[str(function.overloadpacket).removeprefix("aten.")] += 1
        return function(*args, **(kwargs or {}))


def operations_of_backward(llama: Llama, row) -> Counter:
    loss = llama(row)
    with Operations() as operations:
        loss.backward()
    return operations.count


def test_recomputation_changes_neither_loss_nor_gradients():
    llama = random_model(TINY)
    row = packed(random_documents([60, 33, 90], TINY.vocab_size))
    loss, expected = gradients(llama, row)
    for recompute in ("selective", "full"):
        for block in llama.blocks:
            block.recompute = recompute
        again, found = gradients(llama, row)
        assert again.item() == loss.item()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("layer", ["attention.qkv", "attention.out", "feed_forward.down"])
def test_recomputation_turns_what_is_made_again_and_nothing_twice(layer):
    """Between a kept product and what works on it in place stands a part that is not kept, as norms of queries and keys
    would be: the rotation of what that part gives is done again with it.
    """
    llama = random_model(TINY)
    for i, block in enumerate(llama.blocks):
        if i % 2 == 0:  # in one block the rotation is done again, in the next it is not
            block.get_submodule(layer).register_forward_hook(lambda module, inputs, output: F.silu(output))
    row = packed(random_documents([60, 33, 90], TINY.vocab_size))
    loss, expected = gradients(llama, row)
    for block in llama.blocks:
        block.recompute = "selective"
    again, found = gradients(llama, row)
    assert again.item() == loss.item()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("where", ["cpu", "gpu"])
def test_selective_recomputation_repeats_the_elementwise_work_alone(where, monkeypatch):
    """Operations are counted in the backward: a product that it repeats is one more `mm`. For the GPU they are those
    that its attention would do, on tensors without data.
    """
    attention = "_scaled_dot_product_flash_attention_for_cpu" if where == "cpu" else "torch_attn._varlen_attn"
    with torch.device("cpu" if where == "cpu" else "meta"):
        llama = Llama(TINY)
        row = packed(random_documents([60], 320)).to(llama.head.weight.device)
    if where == "gpu":
        monkeypatch.setattr(
            model,
            "attention",
            lambda q, k, v, seqlens, longest: varlen_attn(
                q, k, v, seqlens, seqlens, longest, longest, window_size=(-1, 0), enable_gqa=True
            ),
        )
    count = {}
    for recompute in ("none", "selective", "full"):
        for block in llama.blocks:
            block.recompute = recompute
        count[recompute] = operations_of_backward(llama, row)
    layers = TINY.num_layers
    for recompute, again in (("none", 0), ("selective", layers), ("full", layers)):
        assert count[recompute]["logtrain.swiglu"] == again
        assert count[recompute]["logtrain.rms_norm"] == bool(again)  # the first norm of all, which adds nothing
        assert count[recompute]["logtrain.add_rms_norm"] == max(0, 2 * again - 1)  # two norms a block
    for recompute, again in (("none", 0), ("selective", 0), ("full", layers)):
        assert count[recompute][attention] == again
        assert count[recompute]["mm"] == 2 * 4 * layers + 3 * again  # the last product's output nobody needs


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")  # PyTorch's compiler's
@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_compiled_blocks_recompute_to_the_same_loss_and_gradients(recompute, monkeypatch):
    """Attention is over the whole row: the reference for CPUs splits it on the host."""
    monkeypatch.setattr(model, "attention", over_the_whole_row)
    llama, row = random_model(TINY), packed(random_documents([60], TINY.vocab_size))
    loss, expected = gradients(llama, row)
    torch._dynamo.reset()
    for block in llama.blocks:
        block.recompute = recompute
        block.forward = torch.compile(block.forward, backend="aot_eager", fullgraph=True)
    again, found = gradients(llama, row)
    assert again.item() == pytest.approx(loss.item(), rel=1e-6)
    assert all(relative_difference(found[name], expected[name]) <= 1e-6 for name in expected)


def test_nothing_is_recomputed_or_kept_without_gradients():
    llama = random_model(TINY)
    row = packed(random_documents([60], TINY.vocab_size))
    expected = llama(row).item()
    for block in llama.blocks:
        block.recompute = "full"
    with torch.no_grad():
        loss = llama(row)
    assert loss.item() == expected
    assert not loss.requires_grad


# Sizes and initial values


@pytest.mark.parametrize("tied", [False, True])
def test_num_parameters_counts_what_there_is(tied):
    config = LlamaConfig(**{**vars(TINY), "tied": tied, "head_dim": 24})
    assert config.num_parameters == sum(p.numel() for p in Llama(config).parameters())


def test_random_weights_do_not_depend_on_how_they_are_cut():
    weights = RandomWeights(TINY, seed=1)
    for name, shape in weights.shapes.items():
        (whole,) = weights.rows(name, 0, shape[0])
        cuts = [0, shape[0] // 3, shape[0] // 2, shape[0]]
        parts = [part for a, b in pairwise(cuts) for part in weights.rows(name, a, b)]
        assert torch.equal(torch.cat(parts), whole)
        if len(shape) == 1:
            assert (whole == 1).all()
            continue
        into_residual = name.endswith(("attention.out.weight", "feed_forward.down.weight"))
        expected = 0.02 / (2 * TINY.num_layers) ** 0.5 if into_residual else 0.02
        assert whole.std().item() == pytest.approx(expected, rel=0.05)
        (other,) = RandomWeights(TINY, seed=2).rows(name, 0, shape[0])
        assert abs(torch.corrcoef(torch.stack((whole.flatten(), other.flatten())))[0, 1]) < 0.1
