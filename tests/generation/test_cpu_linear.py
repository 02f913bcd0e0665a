"""Linear layers in tiles give what plain ones give."""

import pytest
import torch

from logtrain.generation.cpu_linear import SmallBatchHead, SmallBatchLinear
from logtrain.generation.load import ModelFolder
from tests.support.generation import CPU, ids_of, new_generator
from tests.support.llama import packed


def test_matrices_laid_out_for_several_sequences_give_the_same_answers_and_losses(folder, loaded, prompts):
    tiled = ModelFolder(folder).load(CPU, 8)
    assert isinstance(tiled.model.head, SmallBatchHead)
    expected = ids_of(new_generator(loaded, loaded.folder.stop_ids), prompts)
    assert ids_of(new_generator(tiled, tiled.folder.stop_ids), prompts) == expected
    row = packed([torch.tensor(prompt) for prompt in prompts])
    assert tiled.model(row).item() == pytest.approx(loaded.model(row).item(), rel=1e-6)
    top = torch.randn(len(row.tokens_T), loaded.model.config.vocab_size).log_softmax(-1).topk(4)
    taught = row._replace(teacher_TK=top.indices.int(), teacher_log_TK=top.values.half())
    for how in ({"of_sequences": True}, {"teacher_share": 0.5}):
        torch.testing.assert_close(tiled.model(taught, **how), loaded.model(taught, **how), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("tokens", [1, 4, 64, 65])
@pytest.mark.parametrize("rows", [1, 47, 48, 97])
def test_a_product_in_tiles_is_the_product(tokens, rows):
    weight, x = torch.nn.Parameter(torch.randn(rows, 20, dtype=torch.float64)), torch.randn(tokens, 20).double()
    found = SmallBatchLinear(weight)(x)
    assert found.is_contiguous()
    torch.testing.assert_close(found, x @ weight.T, rtol=1e-12, atol=1e-12)
