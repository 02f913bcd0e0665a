"""LoRA beside PEFT: losses, gradients and files; what is computed and what is not; what dropout drops."""

import functools
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from logtrain.core.batch import Batch
from logtrain.data.config import LoaderConfig
from logtrain.data.loader import Loader, token_seeds
from logtrain.data.shards import Split
from logtrain.model import hf, llama
from logtrain.model import peft as adapter
from logtrain.model.config import LoraConfig
from logtrain.model.flops import model_flops
from logtrain.model.llama import Llama, LlamaConfig
from logtrain.model.lora import (
    GivenAdapters,
    InitialAdapters,
    LoraLinear,
    adapted_matrices,
    add_adapters,
    num_adapter_parameters,
)
from logtrain.model.weights import RandomWeights, empty_model, materialize
from logtrain_kernels.dropout import kept_reference, kept_scale
from tests.support.llama import (
    CPU,
    load_transformers,
    logits,
    over_the_whole_row,
    packed,
    random_documents,
    relative_difference,
)
from tests.support.lora import adapted, in_peft, trained, with_adapters
from tests.support.synthetic import edit_json, read_model, write_data, write_model

TARGETS = {
    "all": LoraConfig().targets,
    "q and down": ("q_proj", "down_proj"),
    "k, v, o and up": ("k_proj", "v_proj", "o_proj", "up_proj"),
}


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory) -> Callable[[str], Path]:
    """Models with fewer key-value heads than query heads, whose matrices are all of different shapes."""
    return functools.cache(
        lambda kind: write_model(
            tmp_path_factory.mktemp(kind), head_dim=6, tie_word_embeddings=kind == "tied", initializer_range=0.1
        )
    )


def with_context(batch: Batch) -> Batch:
    """The same, but every third target is none."""
    return batch._replace(labels_T=batch.labels_T.masked_fill(torch.arange(len(batch.labels_T)) % 3 == 0, -100))


# ---- beside PEFT


@pytest.fixture(scope="module")
def oracle(folder_of, tmp_path_factory) -> Callable:
    """(kind, targets, lengths) -> our config, documents, PEFT's loss, and its gradients by the names in its files."""

    @functools.cache
    def run(
        kind: str, targets: str, lengths: tuple[int, ...]
    ) -> tuple[LoraConfig, list[Tensor], float, dict[str, Tensor]]:
        config = LoraConfig(rank=3, alpha=5.0, targets=TARGETS[targets])
        theirs = in_peft(
            adapted(folder_of(kind), config), folder_of(kind), config, tmp_path_factory.mktemp("peft") / "a"
        )
        documents, loss = random_documents(list(lengths), 320), torch.zeros(())
        labels = with_context(packed(documents)).labels_T.split([len(document) for document in documents])
        for document, wanted in zip(documents, labels, strict=True):
            loss = loss + F.cross_entropy(theirs(document[None]).logits[0], wanted, ignore_index=-100, reduction="sum")
        loss.backward()
        found = {n.replace(".default", ""): p.grad for n, p in theirs.named_parameters() if p.grad is not None}
        return config, documents, loss.item(), found

    return run


def check_against_peft(case: tuple, recompute: str, folder: Path, at: Path) -> None:
    config, documents, expected, gradients = case
    ours = adapted(folder, config)
    for block in ours.blocks:
        block.recompute = recompute
    loss = ours(with_context(packed(documents)))
    loss.backward()
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    assert all(p.grad is None for p in ours.parameters() if not p.requires_grad)
    found = {name: p.grad for name, p in ours.named_parameters() if p.requires_grad}
    adapter.save(at, found, ours.config, config, "")
    by_name = load_file(at / adapter.WEIGHTS)
    assert by_name.keys() == gradients.keys()
    assert len(by_name) == 2 * 2 * len(config.targets)
    for name, gradient in by_name.items():
        assert relative_difference(gradient, gradients[name]) <= 5e-6, name


@pytest.mark.parametrize(
    ("kind", "targets", "recompute"), list(product(["untied", "tied"], TARGETS, ["none", "selective", "full"]))
)
def test_loss_and_gradients_are_pefts(folder_of, oracle, tmp_path, kind, targets, recompute):
    check_against_peft(oracle(kind, targets, (50, 13, 40)), recompute, folder_of(kind), tmp_path)


@pytest.mark.parametrize(("way", "recompute"), [("triton", "none"), ("triton", "selective")], indirect=["way"])
def test_loss_and_gradients_with_the_kernels_are_pefts(folder_of, oracle, tmp_path, way, recompute):
    check_against_peft(oracle("untied", "all", (9, 5)), recompute, folder_of("untied"), tmp_path)


@torch.no_grad()
@pytest.mark.parametrize("targets", TARGETS)
def test_our_adapter_gives_the_same_logits_in_peft(folder_of, tmp_path, targets):
    config = LoraConfig(rank=3, alpha=5.0, targets=TARGETS[targets])
    folder = folder_of("untied")
    ours = adapted(folder, config)
    document = random_documents([70], 320)[0]
    expected = in_peft(ours, folder, config, tmp_path / "adapter")(document[None]).logits[0]
    found, plain = (logits(model, packed([document])) for model in (ours, read_model(folder)))
    assert (found - expected).abs().max() <= 2e-5 * expected.abs().max()
    assert (found - plain).abs().max() > 1e-2 * plain.abs().max()  # the adapters do something


@torch.no_grad()
@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("kind", ["untied", "tied"])
def test_pefts_adapter_gives_the_same_logits_here(folder_of, tmp_path, kind, targets):
    import peft

    torch.manual_seed(3)
    settings = peft.LoraConfig(r=5, lora_alpha=7, lora_dropout=0.1, target_modules=list(TARGETS[targets]))
    theirs = peft.get_peft_model(load_transformers(folder_of(kind)), settings).eval()
    for name, parameter in theirs.named_parameters():
        if "lora_B" in name:
            parameter.normal_(std=0.1)
    theirs.save_pretrained(tmp_path)
    config, tensors = adapter.read(tmp_path, hf.read_config(folder_of(kind)))
    assert config == LoraConfig(rank=5, alpha=7, dropout=0.1, targets=TARGETS[targets])
    weights = hf.Weights(folder_of(kind), hf.read_config(folder_of(kind)))
    ours = with_adapters(folder_of(kind), config, GivenAdapters(weights, tensors))
    document = random_documents([70], 320)[0]
    expected = theirs(document[None]).logits[0]
    assert (logits(ours, packed([document])) - expected).abs().max() <= 2e-5 * expected.abs().max()


@pytest.mark.parametrize("targets", TARGETS)
def test_what_is_saved_reads_back_bit_for_bit(folder_of, tmp_path, targets):
    config = LoraConfig(rank=3, alpha=5.0, dropout=0.25, targets=TARGETS[targets])
    model = adapted(folder_of("untied"), config)
    adapter.save(tmp_path, trained(model), model.config, config, "base")
    again, tensors = adapter.read(tmp_path, model.config)
    assert again == config
    assert tensors.keys() == trained(model).keys()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in trained(model).items())


# ---- files of others


def edit_tensors(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / adapter.WEIGHTS)
    change(tensors)
    save_file(tensors, folder / adapter.WEIGHTS)


NAME = "base_model.model.model.layers.1.self_attn.k_proj.lora_{}.weight"
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (
        lambda f: f.rename(f.with_name("away")),
        "adapter_config.json: no such file; give a folder that PEFT",
    ),
    "no config": (lambda f: (f / adapter.CONFIG).unlink(), "adapter_config.json: no such file"),
    "no weights": (lambda f: (f / adapter.WEIGHTS).unlink(), "adapter_model.safetensors: no such file"),
    "config cut": (lambda f: (f / adapter.CONFIG).write_text('{"r": '), "damaged adapter"),
    "config not text": (lambda f: (f / adapter.CONFIG).write_bytes(b"\xff\xfe{}"), "damaged adapter"),
    "config not an object": (lambda f: (f / adapter.CONFIG).write_text("[]"), "expected a JSON object, found list"),
    "weights cut": (
        lambda f: (f / adapter.WEIGHTS).write_bytes((f / adapter.WEIGHTS).read_bytes()[:-5]),
        "damaged adapter",
    ),
    "weights empty": (lambda f: (f / adapter.WEIGHTS).write_bytes(b""), "damaged adapter"),
    "no rank": (lambda f: edit_json(f / adapter.CONFIG, r=None), "r = null, lora_alpha = 5.0, lora_dropout = 0.0; exp"),
    "rank as text": (lambda f: edit_json(f / adapter.CONFIG, r="3"), 'r = "3", '),
    "rank 0": (lambda f: edit_json(f / adapter.CONFIG, r=0), "r = 0, "),
    "no alpha": (lambda f: edit_json(f / adapter.CONFIG, lora_alpha=None), "lora_alpha = null"),
    "alpha 0": (lambda f: edit_json(f / adapter.CONFIG, lora_alpha=0), "alpha 0"),
    "rank of another adapter": (
        lambda f: edit_json(f / adapter.CONFIG, r=4),
        "self_attn.q_proj.lora_A.weight has shape [3, 64], model and rank ask for [4, 64]",
    ),
    "A of another width": (
        lambda f: edit_tensors(f, lambda t: t.update({NAME.format("A"): torch.zeros(3, 63)})),
        NAME.format("A") + " has shape [3, 63], model and rank ask for [3, 64]",
    ),
    "B of another height": (
        lambda f: edit_tensors(f, lambda t: t.update({NAME.format("B"): torch.zeros(48, 3)})),
        NAME.format("B") + " has shape [48, 3], model and rank ask for [12, 3]",
    ),
    "a tensor missing": (
        lambda f: edit_tensors(f, lambda t: t.pop(NAME.format("B"))),
        f"no tensor {NAME.format('B')}; an adapter of another model?",
    ),
    "more layers than the model": (
        lambda f: edit_tensors(f, lambda t: t.update({NAME.format("A").replace(".1.", ".2."): torch.zeros(3, 64)})),
        "unexpected tensor base_model.model.model.layers.2.self_attn.k_proj.lora_A.weight; an adapter of another",
    ),
    "another layer": (
        lambda f: edit_tensors(f, lambda t: t.update({"base_model.model.lm_head.lora_A.weight": torch.zeros(3, 64)})),
        "adapts lm_head; supported: q_proj, k_proj",
    ),
    "another tensor": (lambda f: edit_tensors(f, lambda t: t.update(x=torch.zeros(1))), "adapts x; supported: q_proj"),
    "another method": (
        lambda f: edit_json(f / adapter.CONFIG, peft_type="LOHA"),
        'peft_type = "LOHA" is not supported',
    ),
    "biases": (lambda f: edit_json(f / adapter.CONFIG, bias="all"), 'bias = "all" is not supported'),
    "rsLoRA": (lambda f: edit_json(f / adapter.CONFIG, use_rslora=True), "use_rslora = true is not supported"),
    "DoRA": (lambda f: edit_json(f / adapter.CONFIG, use_dora=True), "use_dora = true is not supported"),
    "ranks by layer": (lambda f: edit_json(f / adapter.CONFIG, rank_pattern={"k_proj": 4}), 'rank_pattern = {"k_proj"'),
    "alphas by layer": (lambda f: edit_json(f / adapter.CONFIG, alpha_pattern={"k_proj": 4}), 'alpha_pattern = {"k_pr'),
    "some layers": (
        lambda f: edit_json(f / adapter.CONFIG, layers_to_transform=[0]),
        "layers_to_transform = [0] is no",
    ),
    "whole modules": (lambda f: edit_json(f / adapter.CONFIG, modules_to_save=["lm_head"]), 'modules_to_save = ["lm_h'),
    "PiSSA": (lambda f: edit_json(f / adapter.CONFIG, init_lora_weights="pissa"), 'init_lora_weights = "pissa" is not'),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_wrong_with_an_adapter_is_one_line(folder_of, tmp_path, damage: str):
    config = LoraConfig(rank=3, alpha=5.0)
    model, folder = adapted(folder_of("untied"), config), tmp_path / "adapter"
    adapter.save(folder, trained(model), model.config, config, "")
    do, message = DAMAGES[damage]
    do(folder)
    with pytest.raises(ValueError) as caught:
        adapter.read(folder, model.config)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_peft_writes_of_features_not_in_use_is_accepted(folder_of, tmp_path):
    import peft

    settings = peft.LoraConfig(r=2, target_modules=["k_proj"], init_lora_weights="gaussian")
    peft.get_peft_model(load_transformers(folder_of("untied")), settings).save_pretrained(tmp_path)
    written = json.loads((tmp_path / adapter.CONFIG).read_text())
    assert set(adapter.UNSUPPORTED) - {"lora_bias"} <= written.keys()  # each is a name of PEFT's
    assert adapter.read(tmp_path, hf.read_config(folder_of("untied")))[0].targets == ("k_proj",)


# ---- what is computed


class Products(TorchDispatchMode):
    """What all matrix products cost, and the shapes of their results."""

    def __init__(self):
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []
        self.flops = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        out = operation(*args, **(kwargs or {}))
        if operation.overloadpacket in flop_registry:
            self.shapes += [tuple(x.shape) for x in (out if isinstance(out, tuple) else (out,))]
            self.flops += flop_registry[operation.overloadpacket](*args, **kwargs or {}, out_val=out)
        return out


def seeds(num_tokens: int, first: int = 0) -> Tensor:
    return torch.from_numpy(token_seeds(1309, 0, range(first, first + num_tokens), 1))


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
    """But for the gradient of the first block's input, which nobody needs."""
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
    """Without a break, and with no product recomputed. Attention over the whole row: the reference for CPUs splits it
    on the host.
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


# ---- dropout


def test_the_layer_with_its_gradients_is_the_plain_expression():
    """Of three adapters, of which the middle one is left out; what is dropped in the forward is so in the backward."""
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


SHAPE = LlamaConfig(
    vocab_size=1, hidden_size=16, intermediate_size=1, num_layers=1, num_heads=4, num_kv_heads=1, head_dim=4,
    norm_eps=1e-5, rope_theta=1e4, rope_scaling=None, max_positions=1, tied=False,
)  # fmt: skip


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
    """Masks over two epochs of a run; over more ranks and other batches the rows drop the same."""
    model = adapted(folder_of("untied"), LoraConfig(rank=3, dropout=0.3, targets=("q_proj", "o_proj", "up_proj")))
    salts = [layer.salt for layer in model.modules() if isinstance(layer, LoraLinear)]
    data = write_data(tmp_path / "d", folder_of("untied"), seq_len=32, lengths={"train": [32] * 8})

    def masks(world_size: int, rank: int, seed: int = 1309, rows_per_batch: int = 2) -> Tensor:
        """Of 16 tokens and features of each row and layer."""
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
