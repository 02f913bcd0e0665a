"""Adapters beside PEFT: losses, gradients, and files both ways."""

import functools
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from logtrain.core.batch import Batch
from logtrain.model import hf
from logtrain.model import peft as adapter
from logtrain.model.config import LoraConfig
from logtrain.model.lora import GivenAdapters
from tests.support.llama import load_transformers, logits, packed, random_documents, relative_difference
from tests.support.lora import TARGETS, adapted, in_peft, trained, with_adapters
from tests.support.synthetic import read_model


def with_context(batch: Batch) -> Batch:
    """The batch without every third target."""
    return batch._replace(labels_T=batch.labels_T.masked_fill(torch.arange(len(batch.labels_T)) % 3 == 0, -100))


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
