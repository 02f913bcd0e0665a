"""What the dropout of adapters drops, and when."""

import pytest
import torch
from torch import Tensor, nn

from logtrain.data.config import LoaderConfig
from logtrain.data.loader import Loader
from logtrain.data.shards import Split
from logtrain.model.config import LoraConfig
from logtrain.model.lora import LoraLinear, adapted_matrices
from logtrain_kernels.dropout import kept_reference, kept_scale
from tests.support.llama import packed, random_documents, relative_difference
from tests.support.lora import SHAPE, TARGETS, Products, adapted, seeds
from tests.support.synthetic import write_data


def test_the_layer_with_its_gradients_is_the_plain_expression():
    """Of three adapters the middle one is left out; what is dropped in the forward is so in the backward."""
    config = LoraConfig(rank=3, alpha=5.0, dropout=0.4, targets=("q_proj", "v_proj"))
    matrix, width = adapted_matrices(SHAPE, config)["attention.qkv"], 16
    columns = {target: span.columns for target, span in matrix.spans.items()}
    assert columns == {"q_proj": slice(0, 16), "v_proj": slice(20, 24)}
    layer = LoraLinear(nn.Linear(width, 24, bias=False), "x", matrix, config, [seeds(30)])
    x, dy, weight, a, b = (torch.randn(n, m) for n, m in ((30, 16), (30, 24), (24, 16), (6, 16), (20, 3)))
    for name, tensor in (("weight", weight), ("lora_A", a), ("lora_B", b)):
        setattr(layer, name, nn.Parameter(tensor, requires_grad=name != "weight"))
    x64, a64, b64 = (t.double().requires_grad_() for t in (x, a, b))
    dropped = x64 * kept_reference(seeds(30), layer.salt, layer.drop, width) * kept_scale(layer.drop)
    added = torch.zeros(30, 24, dtype=torch.float64)
    added[:, :16] += dropped @ a64[:3].T @ b64[:16].T
    added[:, 20:] += dropped @ a64[3:].T @ b64[16:].T
    expected = x64 @ weight.double().T + 5 / 3 * added
    expected.backward(dy.double())
    y = layer(x.requires_grad_())
    y.backward(dy)
    assert relative_difference(y, expected) < 1e-6
    for mine, theirs in ((x, x64), (layer.lora_A, a64), (layer.lora_B, b64)):
        assert relative_difference(mine.grad, theirs.grad) < 1e-6
    assert layer.weight.grad is None
    assert (dropped == 0).double().mean() == pytest.approx(0.4, abs=0.1)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("targets", TARGETS)
def test_recomputation_changes_neither_loss_nor_gradients_nor_costs_a_product(folder_of, dropout, targets):
    config, row = LoraConfig(rank=3, dropout=dropout, targets=TARGETS[targets]), packed(random_documents([64, 64], 320))
    found, products = {}, {}
    for recompute in ("none", "selective", "full"):
        model = adapted(folder_of("untied"), config)
        for block in model.blocks:
            block.recompute = recompute
        with Products() as products[recompute]:
            loss = model(row._replace(seeds_T=seeds(128)))
            loss.backward()
        found[recompute] = loss.item(), {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    for recompute in ("selective", "full"):
        assert found[recompute][0] == found["none"][0]
        assert all(torch.equal(found[recompute][1][name], grad) for name, grad in found["none"][1].items())
    assert products["selective"].flops == products["none"].flops < products["full"].flops


def test_nothing_is_dropped_without_gradients(folder_of):
    row = packed(random_documents([64, 64], 320))
    seeded = row._replace(seeds_T=seeds(128))
    plain, dropping = (adapted(folder_of("untied"), LoraConfig(rank=3, dropout=share)) for share in (0.0, 0.3))
    with torch.no_grad():
        assert torch.equal(dropping(seeded), plain(row))
        assert torch.equal(dropping(row), plain(row))  # no seeds are wanted
    assert not torch.equal(dropping(seeded), plain(row))
    with pytest.raises(AssertionError, match="no seeds to draw dropout from"):
        dropping(row)


def test_every_row_layer_and_epoch_drops_its_own(folder_of, tmp_path):
    """The masks are those of two epochs of a run; over more ranks and other batches the rows drop the same."""
    model = adapted(folder_of("untied"), LoraConfig(rank=3, dropout=0.3, targets=("q_proj", "o_proj", "up_proj")))
    salts = [layer.salt for layer in model.modules() if isinstance(layer, LoraLinear)]
    data = write_data(tmp_path / "d", folder_of("untied"), seq_len=32, lengths={"train": [32] * 8})

    def masks(world_size: int, rank: int, seed: int = 1309, rows_per_batch: int = 2) -> Tensor:
        """Which of 16 tokens and features of each row and layer are kept."""
        config = LoaderConfig(seq_len=32, rows_per_step=4, rows_per_batch=rows_per_batch)
        loader = Loader(Split.open(data), config, seed=seed, pad_id=1, rank=rank, world_size=world_size)
        found = []
        for step in range(2 * loader.steps_per_epoch):
            for batch in loader.at(step).batches:
                for seeds_T in batch.seeds_T.split(32):
                    found += [kept_reference(seeds_T[:16], salt, 19661, 16).flatten() for salt in salts]
        return torch.stack(found)

    whole = masks(1, 0)
    assert len(whole) == 2 * 8 * 2 * 3  # epochs x rows x blocks x matrices
    assert len(whole.unique(dim=0)) == len(whole)
    for others in ([masks(2, rank) for rank in (0, 1)], [masks(1, 0, rows_per_batch=4)]):
        assert torch.equal(torch.cat(others).unique(dim=0), whole.unique(dim=0))
    other = masks(1, 0, seed=1310)
    assert len(torch.cat((whole, other)).unique(dim=0)) == 2 * len(whole)


def test_a_row_drops_the_same_whatever_is_beside_it(folder_of):
    """The gradients of two rows at once are the sum of theirs alone."""
    model = adapted(folder_of("untied"), LoraConfig(rank=3, dropout=0.3))
    documents = random_documents([40, 40], 320)

    def gradients(which: list[int]) -> dict[str, Tensor]:
        model.zero_grad()
        seeds_T = torch.cat([seeds(40, first=40 * i) for i in which])
        model(packed([documents[i] for i in which])._replace(seeds_T=seeds_T)).backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}

    first, second, both, turned = (gradients(which) for which in ([0], [1], [0, 1], [1, 0]))
    for name in both:
        assert relative_difference(both[name], first[name] + second[name]) < 1e-5
        assert relative_difference(both[name], turned[name]) < 1e-5
