"""One run, however it is spread: over ranks, micro-batches and replicas it is the run that a plain loop makes.

The plain loop is transformers' model and torch's AdamW on one document at a time; nothing of the trainer, of FSDP or
of the packed rows is in it.
"""

import functools
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaForCausalLM

from logtrain.data.config import LoaderConfig
from logtrain.data.loader import Loader
from logtrain.data.shards import CONTEXT, Split
from logtrain.model.hf_layout import published_tensors, read_config
from tests.support.ranks import Ranks
from tests.support.synthetic import write_data, write_model
from tests.support.training import compiled_is_slow, first_gradients, records, train

pytestmark = pytest.mark.slow

SEQ_LEN, ROWS_PER_STEP, STEPS, LR = 48, 8, 10, 3e-3
# No matrix has a multiple of 4 rows; with 9 rows the fourth rank holds nothing of some.
UNTIED = {
    "vocab_size": 131,
    "hidden_size": 30,
    "intermediate_size": 53,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
}
MODELS = {"untied": UNTIED, "tied": {**UNTIED, "hidden_size": 9, "head_dim": 4, "tie_word_embeddings": True}}


@pytest.fixture(scope="module")
def case_of(tmp_path_factory) -> Callable[[str], SimpleNamespace]:
    return functools.cache(lambda name: make_case(tmp_path_factory.mktemp(name), MODELS[name]))


def make_case(folder: Path, shape: dict) -> SimpleNamespace:
    """A model, its data, the flags of a run of 10 steps, and that run in the plain loop."""
    model = write_model(folder / "model", **shape)
    lengths = np.random.default_rng(5).integers(2, 70, 82).tolist()  # some are longer than a row
    data = write_data(
        folder / "data", model, seq_len=SEQ_LEN, lengths={"train": lengths, "valid": lengths[:9]}, context=0.2
    )
    flags = ["--model", str(model), "--data", str(data), "--runs", str(folder), "--optim.lr", str(LR)]
    flags += ["--loader.seq_len", str(SEQ_LEN), "--loader.rows_per_step", str(ROWS_PER_STEP)]
    flags += ["--trainer.epochs", "2", "--trainer.max_steps", str(STEPS), "--trainer.log_every", "1"]
    return SimpleNamespace(folder=folder, model=model, flags=flags, plain=plain_run(model, data))


def plain_run(model_folder: Path, data: Path) -> SimpleNamespace:
    """10 steps of training on the documents of each step's rows, one by one."""
    split = Split.open(data)
    loader = Loader(split, LoaderConfig(seq_len=SEQ_LEN, rows_per_step=ROWS_PER_STEP), seed=1309, pad_id=1)
    per_epoch = loader.steps_per_epoch
    assert per_epoch < STEPS < 2 * per_epoch, "the 10 steps are to reach into a second epoch"
    numbers = {len(loader.rows(step)) for step in range(STEPS)}
    assert numbers == {7, 8}, "some steps are to have a row less, so that a rank has an empty one"
    model = LlamaForCausalLM.from_pretrained(model_folder, dtype=torch.float32, attn_implementation="eager")
    matrices = [p for p in model.parameters() if p.ndim == 2]
    norms = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": norms, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LR, fused=False, foreach=False)
    losses, norms, first_gradients = [], [], None
    for step in range(STEPS):
        summed, targets = torch.zeros(()), 0
        pieces = [piece for row in loader.rows(step) for piece in row.epoch.pieces_of(row.number)]
        for document, start, length in pieces:
            stored = torch.from_numpy(split.read(document, start, start + length).astype(np.int64))
            ids, is_target = stored % CONTEXT, stored < CONTEXT
            logits = model(ids[None]).logits[0]
            labels = torch.where(is_target, ids, -100)[1:]
            summed += F.cross_entropy(logits[:-1], labels, ignore_index=-100, reduction="sum")
            targets += int(is_target[1:].sum())
        (summed / targets).backward()
        first_gradients = first_gradients or {n: p.grad.clone() for n, p in model.named_parameters()}
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item())
        losses.append(summed.item() / targets)
        warmup = math.ceil(0.1 * STEPS)
        progress = max(0, step - warmup) / (STEPS - 1 - warmup)
        for group in optimizer.param_groups:
            group["lr"] = LR * min((step + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * progress))
        optimizer.step()
        optimizer.zero_grad()
    return SimpleNamespace(losses=losses, grad_norms=norms, gradients=first_gradients)


SPREADS = {  # ranks, flags
    "1 rank, 8 micro-batches": (1, ["--loader.rows_per_batch", "1"]),
    "1 rank, 1 micro-batch": (1, ["--loader.rows_per_batch", "8"]),
    "2 ranks, 4 micro-batches": (2, ["--loader.rows_per_batch", "1", "--recompute", "selective"]),
    "4 ranks, 2 micro-batches": (4, ["--loader.rows_per_batch", "1", "--recompute", "full"]),
    "4 ranks, 1 micro-batch": (4, ["--loader.rows_per_batch", "2", "--parallel.no_reshard_after_forward"]),
    "2 ranks, nothing gathered ahead": (2, ["--loader.rows_per_batch", "2", "--parallel.prefetch", "0"]),
    "2 ranks, all gathered ahead": (2, ["--loader.rows_per_batch", "2", "--parallel.prefetch", "9"]),
    "2 ranks, compiled": (2, ["--loader.rows_per_batch", "4", "--compile", "--recompute", "selective"]),
    "2 x 2 ranks, 2 micro-batches": (4, ["--loader.rows_per_batch", "1", "--parallel.shard_ranks", "2"]),
    "2 whole copies, 4 micro-batches": (2, ["--loader.rows_per_batch", "1", "--parallel.shard_ranks", "1"]),
}
RUNS = [("untied", spread) for spread in SPREADS]
RUNS += [("tied", "4 ranks, 1 micro-batch"), ("tied", "2 x 2 ranks, 2 micro-batches")]
RUNS += [("tied", "2 whole copies, 4 micro-batches")]


@pytest.mark.parametrize(("model", "spread"), [compiled_is_slow(*run) for run in RUNS])
def test_every_spread_gives_the_plain_loops_run(case_of, ranks: Ranks, model: str, spread: str):
    case, (size, flags) = case_of(model), SPREADS[spread]
    if "--compile" in flags and not shutil.which("g++"):
        pytest.skip("torch.compile needs a C++ compiler on a CPU")
    assert ranks.run(size, train, [*case.flags, "--name", spread, *flags]) == [0] * size
    found = records(case.folder / spread)
    assert [record["step"] for record in found] == list(range(1, STEPS + 1))
    np.testing.assert_allclose([record["loss"] for record in found], case.plain.losses, rtol=2e-6)
    np.testing.assert_allclose([record["grad_norm"] for record in found], case.plain.grad_norms, rtol=2e-6)


def test_gradients_summed_in_bf16_move_the_losses_by_less_than_a_thousandth(case_of, ranks: Ranks):
    case = case_of("untied")
    flags = [*case.flags, "--name", "bf16 sums", "--parallel.reduce_dtype", "bfloat16"]
    assert ranks.run(4, train, flags) == [0] * 4
    losses = [record["loss"] for record in records(case.folder / "bf16 sums")]
    np.testing.assert_allclose(losses, case.plain.losses, rtol=1e-3)
    assert max(abs(a / b - 1) for a, b in zip(losses, case.plain.losses, strict=True)) > 1e-6  # it did something


@pytest.mark.parametrize("model", MODELS)
def test_gradients_of_a_step_are_the_plain_loops(case_of, ranks: Ranks, model: str):
    case = case_of(model)
    flags = [*case.flags, "--name", "gradients", "--trainer.max_grad_norm", "0", "--parallel.shard_ranks", "2"]
    found = ranks.run(4, first_gradients, flags)[0]
    parts = published_tensors(read_config(case.model))
    assert found.keys() == parts.keys()
    for name, gradient in found.items():
        wanted = torch.cat([case.plain.gradients[part.name] for part in parts[name]])
        assert gradient.shape == wanted.shape
        assert (gradient - wanted).abs().max() <= 1e-5 * wanted.abs().max(), name
