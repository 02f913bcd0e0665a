"""Linear layers in oneDNN's layout give what plain ones give."""

from pathlib import Path

import pytest
import torch

from logtrain.generation.cpu_linear import PackedHead, PackedLinear, computed_rows
from logtrain.generation.load import LoadedModel, ModelFolder
from logtrain.model.weights import read_model
from tests.support.generation import CPU, ids_of, new_generator
from tests.support.llama import packed


@pytest.fixture(scope="module")
def plain(folder) -> LoadedModel:
    """The model with its matrices as they are published."""
    source = ModelFolder(folder)
    model = read_model(source.shape, source.open_weights(), CPU, torch.float32).requires_grad_(False)
    return LoadedModel(source, model, 8)


def test_matrices_in_another_layout_give_the_same_answers_and_losses(folder, plain, prompts):
    loaded = ModelFolder(folder).load(CPU, 8)
    assert isinstance(loaded.model.head, PackedHead)
    expected = ids_of(new_generator(plain, plain.folder.stop_ids), prompts)
    assert ids_of(new_generator(loaded, loaded.folder.stop_ids), prompts) == expected
    row = packed([torch.tensor(prompt) for prompt in prompts])
    assert loaded.model(row).item() == pytest.approx(plain.model(row).item(), rel=1e-6)
    top = torch.randn(len(row.tokens_T), plain.model.config.vocab_size).log_softmax(-1).topk(4)
    taught = row._replace(teacher_TK=top.indices.int(), teacher_log_TK=top.values.half())
    for how in ({"of_sequences": True}, {"teacher_share": 0.5}):
        torch.testing.assert_close(loaded.model(taught, **how), plain.model(taught, **how), rtol=1e-6, atol=1e-6)


def test_matrices_are_stored_once(folder, plain):
    """What is left as it is published: the norms, the embedding, and the head for its loss."""
    norms = {name for name, parameter in plain.model.named_parameters() if parameter.ndim == 1}
    left = {name for name, _ in ModelFolder(folder).load(CPU).model.named_parameters()}
    assert left == norms | {"embedding.weight", "head.weight"}


@pytest.mark.parametrize("tokens", [1, 2, 4, 9, 64, 65, 600])
@pytest.mark.parametrize("rows", [1, 47, 48, 97])
def test_a_product_by_a_matrix_in_another_layout_is_the_product(tokens, rows):
    weight, x = torch.nn.Parameter(torch.randn(rows, 20)), torch.randn(tokens, 20)
    found = PackedLinear(weight)(x)
    assert found.is_contiguous()
    expected = x.double() @ weight.detach().double().T
    own = (x @ weight.detach().T - expected).abs().max()
    assert (found - expected).abs().max() <= 2 * own + 1e-6


def test_few_rows_beyond_the_tokens_and_none_for_few_of_them():
    assert [computed_rows(tokens) for tokens in range(9)] == list(range(9))
    for tokens in range(9, 4097):
        assert tokens <= computed_rows(tokens) <= tokens * 5 / 4


def test_products_of_all_numbers_of_tokens_take_little_memory():
    """oneDNN keeps a program of 0.55 MiB for each number of rows: 280 MiB, were there one for each of these."""
    linear = PackedLinear(torch.randn(64, 64))
    linear(torch.randn(1, 64))

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    before = resident()
    for tokens in range(1, 513):
        linear(torch.randn(tokens, 64))
    assert resident() - before < 40 << 20
