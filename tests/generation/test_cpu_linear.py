"""Linear layers in the layouts of oneDNN and FBGEMM give what plain ones give."""

from pathlib import Path

import pytest
import torch

from logtrain.generation.cpu_linear import (
    LOST,
    HalfLinear,
    PackedHead,
    PackedLinear,
    computed_rows,
    lossless_half,
    pack_linears,
)
from logtrain.generation.load import LoadedModel, ModelFolder
from logtrain.model.weights import read_model
from tests.support.generation import CPU, ids_of, new_generator
from tests.support.llama import packed


def published(folder) -> LoadedModel:
    """The model with its matrices as they are published, in fp32."""
    source = ModelFolder(folder)
    model = read_model(source.shape, source.open_weights(), CPU, torch.float32).requires_grad_(False)
    return LoadedModel(source, model, 8)


@pytest.mark.parametrize("is_bf16", [False, True])
def test_matrices_in_another_layout_give_the_same_answers_and_losses(folder, prompts, is_bf16):
    plain, loaded = published(folder), published(folder)
    if is_bf16:
        for parameter in (*plain.model.parameters(), *loaded.model.parameters()):
            parameter.copy_(parameter.bfloat16())
    pack_linears(loaded.model)
    assert isinstance(loaded.model.head, PackedHead)
    halves = sum(isinstance(module, HalfLinear) for module in loaded.model.modules())
    assert halves == (1 + 4 * plain.model.config.num_layers if is_bf16 else 0)
    expected = ids_of(new_generator(plain, plain.folder.stop_ids), prompts)
    assert ids_of(new_generator(loaded, loaded.folder.stop_ids), prompts) == expected
    row = packed([torch.tensor(prompt) for prompt in prompts])
    assert loaded.model(row).item() == pytest.approx(plain.model(row).item(), rel=1e-6)
    top = torch.randn(len(row.tokens_T), plain.model.config.vocab_size).log_softmax(-1).topk(4)
    taught = row._replace(teacher_TK=top.indices.int(), teacher_log_TK=top.values.half())
    for how in ({"of_sequences": True}, {"teacher_share": 0.5}):
        torch.testing.assert_close(loaded.model(taught, **how), plain.model(taught, **how), rtol=1e-6, atol=1e-6)


def test_matrices_are_stored_once(folder):
    """What is left as it is published: the norms, the embedding, and the head for its loss."""
    norms = {name for name, parameter in published(folder).model.named_parameters() if parameter.ndim == 1}
    left = {name for name, _ in ModelFolder(folder).load(CPU).model.named_parameters()}
    assert left == norms | {"embedding.weight", "head.weight"}


@pytest.mark.parametrize("tokens", [1, 2, 4, 9, 64, 65, 600])
@pytest.mark.parametrize("rows", [1, 47, 48, 97])
@pytest.mark.parametrize("is_half", [False, True])
def test_a_product_by_a_matrix_in_another_layout_is_the_product(tokens, rows, is_half):
    weight, x = torch.randn(rows, 20), torch.randn(tokens, 20)
    if is_half:
        weight = weight.bfloat16().float() * 2**-30
        half = lossless_half(weight)
        assert half
    found = HalfLinear(*half)(x) if is_half else PackedLinear(torch.nn.Parameter(weight))(x)
    assert found.is_contiguous()
    expected = x.double() @ weight.double().T
    own = (x @ weight.T - expected).abs().max()
    assert (found - expected).abs().max() <= 2 * own + 1e-6 * weight.abs().max()


def test_what_fp16_has_after_a_power_of_two_is_kept_without_loss_and_all_else_is_not():
    x = torch.randn(300, 300)
    for greatest in (1e-20, 1.0, 3e5, 1e20):
        weight = (x * greatest).bfloat16().float()
        half = lossless_half(weight)
        assert half and torch.equal(half[0] / half[1], weight) and half[0].abs().max() <= 2**15
    assert lossless_half(x) is None, "24 significant bits"
    weight = x.bfloat16().float()
    weight[0, 0] = 2**-40 * 1.5
    half = lossless_half(weight)
    assert half and 0 < (half[0] / half[1] - weight).abs().max() <= LOST * weight.abs().max()
    assert lossless_half(torch.zeros(2, 3)) is not None
    for wrong in (float("nan"), float("inf")):
        weight[0, 0] = wrong
        assert lossless_half(weight) is None


def test_few_rows_beyond_the_tokens_and_none_for_few_of_them():
    assert [computed_rows(tokens) for tokens in range(9)] == list(range(9))
    for tokens in range(9, 4097):
        assert tokens <= computed_rows(tokens) <= tokens * 5 / 4


@pytest.mark.parametrize("is_half", [False, True])
def test_products_of_all_numbers_of_tokens_take_little_memory(is_half):
    """oneDNN keeps a program of 0.55 MiB for each number of rows: 280 MiB, were there one for each of these."""
    linear = HalfLinear(torch.randn(64, 64), 1.0) if is_half else PackedLinear(torch.randn(64, 64))
    linear(torch.randn(1, 64))

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    before = resident()
    for tokens in range(1, 513):
        linear(torch.randn(tokens, 64))
    assert resident() - before < 40 << 20
