"""`--choose alpha`: losses are those of the blended models, the chosen one has the lowest, and all of it is told."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from logtrain.data.shards import CONTEXT, Split
from logtrain.evaluation import blend_choice
from logtrain.evaluation.intervals import paired
from tests.entries.test_blend import SHAPE, another
from tests.support.llama import load_transformers
from tests.support.program import Program
from tests.support.synthetic import change_manifest, write_data, write_model
from tests.support.training import train

ALPHAS = ["0", "0.4", "1"]


@pytest.fixture(scope="module")
def case(tmp_path_factory) -> SimpleNamespace:
    """A model, one that was trained on a set, and two sets, of which one has context and documents beyond a row."""
    folder = tmp_path_factory.mktemp("choice")
    model = write_model(folder / "model", **SHAPE)
    sets = {
        name: write_data(folder / name, model, seq_len=32, seed=seed, context=context,
                         lengths={"train": [24] * 60, "valid": [20, 70, 9, 33, 2, 31]})
        for name, seed, context in (("domain", 1, 0.0), ("general", 2, 0.3))
    }  # fmt: skip
    flags = ["--name", "run", "--model", str(model), "--data", str(sets["domain"]), "--runs", str(folder)]
    flags += ["--loader.seq_len", "32", "--loader.rows_per_step", "4", "--trainer.epochs", "3", "--optim.lr", "1e-2"]
    assert train(flags) == 0
    named = [f"{name}={path}" for name, path in sets.items()]
    words = [
        str(model),
        str(folder / "run" / "export"),
        "--kind",
        "interpolate",
        "--choose",
        "alpha",
        "--alphas",
        *ALPHAS,
    ]
    return SimpleNamespace(folder=folder, model=model, sets=sets, words=[*words, "--sets", *named])


def losses_of(folder: Path, data: Path) -> tuple[np.ndarray, int]:
    """The summed loss of each document of a valid split by transformers, cut into rows as for training; all targets."""
    model, split = load_transformers(folder), Split.open(data, "valid")
    found, targets = [], 0
    for document in range(split.num_documents):
        stored, summed = split.read(document, 0, int(split.lengths[document])), 0.0
        for start in range(0, max(1, len(stored) - 1), 31):
            piece = torch.from_numpy(stored[start : start + 32].astype(np.int64))
            ids, labels = piece & (CONTEXT - 1), piece[1:].where(piece[1:] < CONTEXT, -100)
            with torch.no_grad():
                summed += F.cross_entropy(model(ids[None]).logits[0, :-1], labels, reduction="sum").item()
            targets += int((labels != -100).sum())
        found.append(summed)
    return np.array(found), targets


def test_the_losses_are_those_of_the_blended_models_and_the_lowest_is_chosen(case, tmp_path, capsys):
    assert train([*case.words, "--output", str(tmp_path / "out")], "logtrain.blend") == 0
    said = capsys.readouterr().out
    told = json.loads((tmp_path / "out" / "choice.json").read_text())
    assert told["alphas"] == [0.0, 0.4, 1.0]
    for alpha in ALPHAS:
        flags = [*case.words[:2], "--kind", "interpolate", "--alpha", alpha, "--output", str(tmp_path / alpha)]
        assert train(flags, "logtrain.blend") == 0
    means = []
    for name, data in case.sets.items():
        losses = [losses_of(tmp_path / alpha, data) for alpha in ALPHAS]
        targets = losses[0][1]
        assert (told["sets"][name]["documents"], told["sets"][name]["targets"]) == (6, targets)
        means.append([summed.sum() / targets for summed, _ in losses])
        np.testing.assert_allclose(told["sets"][name]["loss"], means[-1], rtol=1e-5)
        by_hand = paired(losses[1][0] * 6 / targets, losses[0][0] * 6 / targets)
        ours = told["sets"][name]["minus_alpha_0"][1]
        np.testing.assert_allclose([ours["difference"], ours["low"], ours["high"]], by_hand[:3], rtol=1e-3)
    objective = np.mean(means, axis=0)
    np.testing.assert_allclose(told["objective"], objective, rtol=1e-5)
    assert told["alpha"] == [0.0, 0.4, 1.0][objective.argmin()]
    chosen = load_transformers(tmp_path / f"{told['alpha']:g}").state_dict()
    found = load_transformers(tmp_path / "out").state_dict()
    assert all(torch.equal(found[key], chosen[key]) for key in chosen)
    assert re.search(
        rf"alpha = {told['alpha']:g}: the lowest of 3 .*\n  domain: loss .*6 documents, 95% intervals\n", said
    )
    assert (tmp_path / "out" / "choice.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "out" / "lineage.json").read_text())["config"]["chosen_by"] == ["domain", "general"]


def test_the_picture_says_of_how_many_documents_it_is(case, monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr(blend_choice, "png_bytes", lambda figure: drawn.append(figure) or b"")
    assert train([*case.words, "--documents", "3", "--output", str(tmp_path / "out")], "logtrain.blend") == 0
    axes = drawn[0].axes
    assert axes[0].get_title(loc="left").startswith("loss on domain: 3 documents, 28 targets\n")
    assert axes[1].get_title(loc="left").startswith("loss on general: 3 documents")
    told = json.loads((tmp_path / "out" / "choice.json").read_text())
    np.testing.assert_allclose(axes[0].lines[0].get_ydata(), told["sets"]["domain"]["loss"])


def test_two_ranks_choose_what_one_does(case, tmp_path):
    two = Program([*case.words, "--output", str(tmp_path / "two")], tmp_path / "log", ranks=2, entry="logtrain.blend")
    assert train([*case.words, "--output", str(tmp_path / "one")], "logtrain.blend") == 0
    assert two.wait() == [0, 0], two.output.read_text()
    one, other = (json.loads((tmp_path / name / "choice.json").read_text()) for name in ("one", "two"))
    assert one["alpha"] == other["alpha"]
    for name in case.sets:
        np.testing.assert_allclose(one["sets"][name]["loss"], other["sets"][name]["loss"], rtol=1e-6)


def test_mistakes_are_one_line(case, tmp_path):
    out, plain = ["--output", str(tmp_path / "out")], case.words[:2]
    other = write_data(
        tmp_path / "other", write_model(tmp_path / "m", vocab_size=40), seq_len=32, lengths={"valid": [9] * 3}
    )
    pairs = write_data(tmp_path / "pairs", case.model, seq_len=32, lengths={"valid": [9] * 4})
    change_manifest(pairs, settings={"seq_len": 32, "seed": 0, "format": "dpo"})
    for flags, message in (
        (["--choose", "alpha"], "choose = alpha: needs --sets NAME=FOLDER, and --kind interpolate or residual"),
        ([*case.words[2:6], "--sets", "a"], "sets = a: expected NAME=FOLDER, each name once"),
        ([*case.words[2:6], "--alphas", "1", "--sets", "a=b"], "alphas = \\(1.0,\\): expected two values or more"),
        ([*case.words[2:6], "--sets", f"a={other}"], "was prepared with another tokenizer than that of"),
        ([*case.words[2:6], "--sets", f"a={tmp_path}"], "not a prepared folder"),
        ([*case.words[2:6], "--sets", f"a={pairs}"], "pairs of answers, of which the rejected ones would count too"),
        ([*case.words[2:], "--alpha", "0.7"], "alpha = 0.7: not read, for --choose alpha finds it"),
        ([*case.words[2:6], "--alphas", "0", "nan", "--sets", "a=b"], "alphas"),
        ([*case.words[2:], "--documents", "1"], "documents = 1: expected 0, or 2 or more, for an interval"),
    ):
        with pytest.raises(ValueError, match=message):
            train([*plain, *flags, *out], "logtrain.blend")
        assert not (tmp_path / "out").exists()
    assert another(case.model, tmp_path / "x", 1).exists()
