"""The loss of pairs and its gradients: beside the paper's formula in plain PyTorch, beside TRL's, on two ranks."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from logtrain.core.config import load
from logtrain.data.pairs import PairLoader, PairSplit
from logtrain.data.shards import CONTEXT, Split
from logtrain.dpo import DpoConfig
from logtrain.model.hf_layout import published_tensors
from logtrain.training.preference import MEASURES, Preference
from logtrain.training.preference_config import PreferenceConfig
from logtrain.training.reference import give_references
from logtrain.training.setup import set_up
from logtrain.training.sharding import full_tensors
from logtrain.training.step import TrainStep
from tests.support.evaluation import write_chat_model
from tests.support.llama import load_transformers, relative_difference
from tests.support.pairs import make_pairs, prepare_pairs
from tests.support.ranks import Ranks
from tests.support.synthetic import read_model

BETA = 0.3


@pytest.fixture(scope="module")
def case(tmp_path_factory) -> SimpleNamespace:
    """A model, another as its reference, and pairs; the reference's log-probabilities by transformers."""
    folder = tmp_path_factory.mktemp("preference")
    model, reference = write_chat_model(folder / "model", 0.3), write_chat_model(folder / "reference", 0.25)
    with pytest.MonkeyPatch.context() as patched:
        data = prepare_pairs(folder, model, make_pairs(30), patched, "--valid_fraction", "0.2")
    split = PairSplit(Split.open(data))
    with torch.no_grad():
        theirs = load_transformers(reference)
        reference_D2 = [[answer(theirs, half).item() for half in split.halves(d)] for d in range(split.num_documents)]
    return SimpleNamespace(folder=folder, model=model, data=data, split=split, reference_D2=np.float32(reference_D2))


def answer(model: LlamaForCausalLM, stored: np.ndarray) -> torch.Tensor:
    """The log-probability of what is to be predicted of one sequence, by whole logits."""
    stored_T = torch.from_numpy(stored.astype(np.int64))
    ids_T, is_target_T = stored_T & (CONTEXT - 1), stored_T < CONTEXT
    log_T = model(ids_T[None]).logits[0, :-1].log_softmax(-1).gather(1, ids_T[1:, None])[:, 0]
    return log_T[is_target_T[1:]].sum()


def by_the_paper(case: SimpleNamespace, model: LlamaForCausalLM, smoothing: float) -> tuple[torch.Tensor, list[float]]:
    """The summed loss of all pairs by equation 7 of Rafailov et al., with the measures."""
    loss, sums = torch.zeros(()), np.zeros(4)
    for pair in range(case.split.num_documents):
        reference = case.reference_D2[pair]
        chosen, rejected = (
            BETA * (answer(model, half) - float(reference[i])) for i, half in enumerate(case.split.halves(pair))
        )
        margin = chosen - rejected
        loss = loss - (1 - smoothing) * torch.log(1 / (1 + torch.exp(-margin)))
        loss = loss - smoothing * torch.log(1 / (1 + torch.exp(margin)))
        sums += [margin.item(), float(margin.item() > 0), chosen.item(), rejected.item()]
    return loss, sums.tolist()


def published(gradients: dict[str, torch.Tensor], shape) -> dict[str, torch.Tensor]:
    """Gradients by their published names."""
    found = {}
    for name, parts in published_tensors(shape).items():
        rows = gradients[name].split([part.shape[0] for part in parts])
        found |= {part.name: of_part for part, of_part in zip(parts, rows, strict=True)}
    return found


def ours(case: SimpleNamespace, smoothing: float) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """What the objective gives of all pairs, in packed rows, and the gradients of its loss."""
    config = load(DpoConfig, ["--name", "x", "--model", "x", "--data", "x", "--loader.seq_len", "96"]).loader
    loader = PairLoader(case.split, config.with_rows_per_step(4), seed=1, pad_id=0)
    loader.reference_D2 = case.reference_D2
    model, objective = read_model(case.model), Preference(PreferenceConfig(beta=BETA, label_smoothing=smoothing))
    sums = torch.zeros(5)
    for step in range(loader.steps_per_epoch):
        for batch in loader.at(step).batches:
            found = objective(model, batch)
            found[0].backward()
            sums += found.detach()
    return sums, published({name: p.grad for name, p in model.named_parameters()}, model.config)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_loss_measures_and_gradients_are_the_papers(case, smoothing):
    theirs = load_transformers(case.model)
    loss, measures = by_the_paper(case, theirs, smoothing)
    loss.backward()
    found, gradients = ours(case, smoothing)
    torch.testing.assert_close(found, torch.tensor([loss.item(), *measures]), rtol=1e-5, atol=1e-5)
    for name, parameter in theirs.named_parameters():
        assert relative_difference(gradients[name], parameter.grad) < 1e-5, name


def test_loss_and_gradients_are_those_of_trl(case, tmp_path):
    trl = pytest.importorskip("trl", reason="the oracle TRL is not installed")
    from datasets import Dataset
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(case.model, pad_token="<|end_of_text|>")
    rows = Dataset.from_list([{"prompt": "why", "chosen": " disk", "rejected": " error"}])
    args = trl.DPOConfig(output_dir=str(tmp_path), beta=BETA, report_to="none", use_cpu=True, bf16=False,
                         gradient_checkpointing=False, precompute_ref_log_probs=False)  # fmt: skip
    theirs = load_transformers(case.model)
    reference = load_transformers(case.folder / "reference")
    trainer = trl.DPOTrainer(theirs, reference, args=args, train_dataset=rows, processing_class=tokenizer)
    chosen, rejected = zip(*(case.split.halves(pair) for pair in range(case.split.num_documents)), strict=True)
    sequences = [torch.from_numpy(each.astype(np.int64)) for each in (*chosen, *rejected)]
    padded = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=-1)
    inputs = {
        "input_ids": torch.where(padded < 0, 0, padded & (CONTEXT - 1)),
        "attention_mask": (padded >= 0).long(),
        "completion_mask": ((padded >= 0) & (padded < CONTEXT)).long(),
    }
    loss = trainer._compute_loss(trainer.model, inputs, return_outputs=False)
    trainer.model.zero_grad()
    loss.backward()
    found, gradients = ours(case, 0.0)
    count = case.split.num_documents
    assert abs(found[0].item() / count - loss.item()) <= 1e-5 * loss.item()
    for name, parameter in trainer.model.named_parameters():
        assert relative_difference(gradients[name] / count, parameter.grad) < 1e-5, name


def first_step(flags: list[str]) -> tuple[dict[str, torch.Tensor], list[float], np.ndarray]:
    """On the ranks that there are: the first step's gradients, its loss and measures over all, and the reference."""
    run = set_up(load(DpoConfig, flags))
    model = run.build_model(run.initial_weights())
    give_references(run, model, is_new=True)
    with torch.no_grad():
        for parameter in model.parameters():  # so that the model is not its reference any more
            if parameter.requires_grad:
                parameter.mul_(1.1)
    found = {}

    class Recorder:
        param_groups = ()

        def step(self):
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.data.copy_(parameter.grad)
            found.update((name, full.detach().clone()) for name, full in full_tensors(model))

        def zero_grad(self):
            pass

    objective = Preference(run.config.dpo)
    step = run.data.train.at(0)
    result = TrainStep(model, Recorder(), run.config.optim, 0.0, 1, run.world, objective)(step, 0)
    sums = run.world.sum(torch.cat((result.summed_loss[None], result.measures_M))).tolist()
    reference = run.data.train.reference_D2
    run.world.close()
    return found, [*sums, float(step.targets)], reference


@pytest.mark.slow
def test_two_ranks_sum_what_one_has(case, ranks: Ranks, tmp_path):
    flags = ["--name", "run", "--model", str(case.model), "--data", str(case.data), "--loader.seq_len", "96"]
    flags += ["--loader.rows_per_step", "4", "--lora.rank", "0", "--runs", str(tmp_path)]
    results = []
    for size in (1, 2):
        results.append(ranks.run(size, first_step, flags)[0])
        for file in case.data.glob("reference-*"):
            file.unlink()  # so that two ranks compute it, too
    (one, sums_1, reference_1), (two, sums_2, reference_2) = results
    assert sums_1 == pytest.approx(sums_2, rel=1e-5)
    assert sums_1[-1] >= 4
    np.testing.assert_allclose(reference_1, reference_2, rtol=1e-6)
    assert all(relative_difference(two[name], one[name]) < 1e-5 for name in one)
    assert len(sums_1) == 2 + len(MEASURES)
