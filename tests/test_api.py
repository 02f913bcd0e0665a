"""`import logtrain` as a notebook has it: docs/api.md runs, and its numbers are transformers' and the commands'."""

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch
from transformers import AutoTokenizer

import logtrain
from logtrain import prepare
from logtrain.core.batch import Batch
from tests.support import ROOT
from tests.support.evaluation import write_chat_model
from tests.support.llama import load_transformers
from tests.support.training import records, train

PAGE = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
TEXTS = ["why error disk", "because 10.0.0.1", "Failed sshd[24499]: error é"]


@pytest.fixture(scope="module")
def case(tmp_path_factory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("api")
    model, rows = write_chat_model(folder / "model", 0.3), folder / "rows.jsonl"
    rows.write_text("\n".join(json.dumps({"text": f"why error {i} because disk {i * i}"}) for i in range(1200)))
    flags = ["--input", str(rows), "--tokenizer", str(model), "--output", str(folder / "data"), "--seq_len", "512"]
    prepare.main([*flags, "--valid_fraction", "0.1", "--workers", "1"])
    return SimpleNamespace(folder=folder, model=model, data=folder / "data")


def settings(case: SimpleNamespace, **changes) -> logtrain.RunConfig:
    loader, optim = logtrain.LoaderConfig(seq_len=512, rows_per_step=4), logtrain.OptimConfig(lr=1e-3)
    same = {"name": "notebook", "model": str(case.model), "data": str(case.data), "loader": loader, "optim": optim}
    return logtrain.RunConfig(**{**same, "trainer": logtrain.TrainerConfig(max_steps=3), **changes})


def test_the_page_runs(case, monkeypatch, capsys):
    """As it stands, but for the names of the folders."""
    monkeypatch.chdir(case.folder)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    code = code.replace("SmolLM2-135M-Instruct", str(case.model)).replace("data/logs", str(case.data))
    names: dict = {}
    exec(code, names)
    text = names["model"].tokenizer.decode((names["first"] & 0x7FFFFFFF).tolist())
    assert re.search(r"why error \d+ because disk \d+", text), "a document as it was prepared"
    assert names["facts"].step == 3
    assert "difference" in capsys.readouterr().out
    before, after = (names[name].losses(TEXTS) for name in ("model", "trained"))
    assert before != after


def test_every_name_is_on_the_page_or_belongs_to_what_is():
    named = set(re.findall(r"logtrain\.(\w+)", PAGE))
    results = {"Answer", "ExportResult", "Model", "ParallelConfig", "Split", "StepFacts"}  # not made by the caller
    assert named - {"core"} | results == set(logtrain.api.__all__)
    assert set(logtrain.api.__all__) == logtrain.API
    assert set(dir(logtrain)) >= logtrain.API
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        logtrain.nothing  # noqa: B018


def test_importing_it_imports_nothing():
    code = "import sys; from logtrain import prepare; assert 'torch' not in sys.modules; from logtrain import load"
    subprocess.run([sys.executable, "-c", code + "; assert 'torch' in sys.modules"], cwd=ROOT, check=True)


def test_logits_losses_and_answers_are_transformers(case):
    model, theirs = logtrain.load(case.model, "cpu"), load_transformers(case.model)
    for text, loss, logits_TV in zip(TEXTS, model.losses(TEXTS), model.logits(TEXTS), strict=True):
        ids = torch.tensor([model.encode(text)])
        expected = theirs(ids, labels=ids)
        torch.testing.assert_close(logits_TV, expected.logits[0], rtol=1e-4, atol=1e-5)
        assert loss == pytest.approx(expected.loss.item(), rel=1e-5)
    for text, answer in zip(TEXTS, model.generate(TEXTS, max_new_tokens=9), strict=True):
        ids = torch.tensor([model.encode(text)])
        expected = theirs.generate(ids, max_new_tokens=9, do_sample=False, pad_token_id=0)[0, ids.shape[1] :].tolist()
        assert answer.ids == [id for id in expected if id not in model.folder.stop_ids]


def test_the_module_has_all_parameters_and_their_gradients(case):
    """Also on a CPU, where a model that only answers has its matrices in another layout."""
    llama = logtrain.load(case.model, "cpu").llama.requires_grad_(True)
    parameters = dict(llama.named_parameters())
    assert sum(p.numel() for p in parameters.values()) == llama.config.num_parameters
    ids, positions = torch.arange(9), torch.arange(9, dtype=torch.int32)
    loss = llama(Batch(ids, ids.roll(-1), positions, torch.tensor([0, 9]).int(), 9))
    assert all(gradient.abs().sum() > 0 for gradient in torch.autograd.grad(loss, list(parameters.values())))


def test_a_chat_is_answered_through_the_template_and_a_seed_repeats(case):
    model, theirs = logtrain.load(case.model, "cpu"), load_transformers(case.model)
    chat = [logtrain.Turn("user", "why")]
    (greedy,) = model.generate([chat], max_new_tokens=9)
    tokenizer = AutoTokenizer.from_pretrained(case.model)
    ids = tokenizer.apply_chat_template([chat[0]._asdict()], add_generation_prompt=True, return_tensors="pt")[
        "input_ids"
    ]
    expected = theirs.generate(ids, max_new_tokens=9, do_sample=False, pad_token_id=0)[0, ids.shape[1] :].tolist()
    assert greedy.ids == [id for id in expected if id not in model.folder.answer_ends]
    hot = {seed: logtrain.SamplingConfig(temperature=1.0, seed=seed) for seed in (1, 2)}
    drawn = {seed: model.generate([chat] * 4, max_new_tokens=9, sampling=hot[seed]) for seed in hot}
    assert drawn[1] != drawn[2]
    assert drawn[1] == model.generate([chat] * 4, max_new_tokens=9, sampling=hot[1])
    assert len({answer.text for answer in drawn[1]}) > 1
    with pytest.raises(ValueError, match="a text of 1 tokens has none to predict"):
        model.losses([""])


def test_training_is_the_commands_twice_in_one_process(case, tmp_path):
    flags = ["--name", "run", "--model", str(case.model), "--data", str(case.data), "--runs", str(tmp_path)]
    flags += ["--loader.seq_len", "512", "--loader.rows_per_step", "4", "--optim.lr", "1e-3"]
    assert train([*flags, "--trainer.max_steps", "3", "--trainer.log_every", "1"]) == 0
    expected = [(r["step"], r["loss"], r["grad_norm"], r["lr"], r["tokens"]) for r in records(tmp_path / "run")]
    valid = [record["valid_loss"] for record in records(tmp_path / "run", "valid_loss")]
    for folder in ("first", "second"):
        training = logtrain.Training(settings(case))
        losses, tokens, made = [training.valid_losses()["valid"]], 0, []
        for _ in range(training.total_steps):
            facts = training.step()
            tokens += facts.tokens
            made.append((facts.step, facts.loss, facts.grad_norm, facts.lr, tokens))
        losses.append(training.valid_losses()["valid"])
        assert made == expected
        assert losses == valid
        with pytest.raises(ValueError, match=r"all 3 steps are made; raise trainer\.epochs"):
            training.step()
        training.export(tmp_path / folder)
        export = (tmp_path / folder / "model.safetensors").read_bytes()
        assert export == (tmp_path / "run" / "export" / "model.safetensors").read_bytes()


def test_both_at_once_do_not_disturb_each_other(case):
    one, other = logtrain.Training(settings(case)), logtrain.Training(settings(case, seed=7))
    alternating = [(one.step().loss, other.step().loss) for _ in range(3)]
    assert [logtrain.Training(settings(case)).step().loss for _ in range(1)] == [alternating[0][0]]
    again = logtrain.Training(settings(case, seed=7))
    assert [again.step().loss for _ in range(3)] == [loss for _, loss in alternating]


@pytest.fixture(scope="module")
def model(case) -> logtrain.Model:
    return logtrain.load(case.model, "cpu")


untyped: Any = logtrain  # what a notebook has, where nobody checks types
USER, ASSISTANT = untyped.Turn("user", "why"), untyped.Turn("assistant", "because")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda case: untyped.load(case.folder / "none"), "none/config.json: no such file"),
        (lambda case: untyped.load(None), "path = None: expected the path of a folder"),
        (lambda case: untyped.load(""), "path = '': expected the path of a folder"),
        (lambda case: untyped.load(case.model, "gpu"), "device = 'gpu': expected auto, cpu, cuda or cuda:N; this"),
        (lambda case: untyped.load(case.model, "cuda:99"), "device = 'cuda:99': expected auto, cpu, cuda or cuda:N"),
        (lambda case: untyped.load(case.model, None), "device = None: expected auto, cpu"),
        (lambda case: untyped.open_data(None), "folder = None: expected the path of a folder"),
        (lambda case: untyped.open_data(case.data, "test"), "no documents in split 'test'"),
        (lambda case: untyped.open_data(case.data).read(10**6, 0, 1), "document 1000000: "),
        (lambda case: untyped.open_data(case.data).read(-1, 0, 1), "document -1: "),
        (lambda case: untyped.open_data(case.data).read(0, 0, 10**6), "tokens 0 to 1000000 of document 0: it has "),
        (lambda case: untyped.Training(settings(case, dtype="bfloat16", valid=("x",))), "expected NAME=FOLDER"),
        (lambda case: untyped.Training(None), "config = None: expected a logtrain.RunConfig"),
        (lambda case: settings(case, model=None), "model = None: expected a string"),
        (lambda case: settings(case, recompute="selectiv"), "recompute = 'selectiv': expected one of \"none\", "),
        (lambda case: settings(case, init="rand"), 'init = \'rand\': expected one of "pretrained", "random"'),
        (lambda case: settings(case, dtype="float16"), "dtype = 'float16': expected one of \"auto\", "),
        (lambda case: settings(case, valid="x=y"), "valid = 'x=y': expected a list, each item a string"),
        (lambda case: settings(case, trainer=None), "trainer = None: expected a TrainerConfig"),
        (lambda case: settings(case, mix={"a": "b"}), "mix.a = 'b': expected a number"),
        (lambda case: settings(case, seed=1.5), "seed = 1.5: expected an integer"),
        (lambda case: untyped.LoaderConfig(attention="documents"), "loader.attention = 'documents': expected one of "),
        (lambda case: untyped.LoraConfig(targets=("qproj",)), "lora.targets = ('qproj',): expected a list, each"),
        (lambda case: untyped.OptimConfig(schedule="step"), "optim.schedule = 'step': expected one of \"cosine\", "),
        (lambda case: untyped.OptimConfig(lr="1e-3"), "optim.lr = '1e-3': expected a number"),
        (lambda case: untyped.TrainerConfig(epochs=True), "trainer.epochs = True: expected an integer"),
        (lambda case: untyped.SamplingConfig(top_k=None), "top_k = None: expected an integer"),
    ],
)
def test_a_mistake_is_one_line(case, wrong, words):
    with pytest.raises(ValueError, match=re.escape(words)) as error:
        wrong(case)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda model: model.losses("a text"), "texts = 'a text': expected a list of strings"),
        (lambda model: model.losses([None]), "texts = [None]: expected a list of strings"),
        (lambda model: model.losses(["why " * 3000]), "tokens: the model knows"),
        (lambda model: model.logits("a text"), "texts = 'a text': expected a list of strings"),
        (lambda model: model.logits(["why " * 3000]), "tokens: the model knows"),
        (lambda model: model.generate("a text"), "prompts = 'a text': expected a list, each item a string or a list"),
        (lambda model: model.generate(None), "prompts = None: expected a list"),
        (lambda model: model.generate([USER]), "a prompt is Turn(role='user', content='why'): expected a string or a"),
        (lambda model: model.generate([[USER._asdict()]]), "turn 0 is {'role': 'user', 'content': 'why'}: expected"),
        (lambda model: model.generate([[]]), "no turns"),
        (lambda model: model.generate([[USER, ASSISTANT]]), "turn 1 (assistant) is the last; a question ends with a"),
        (lambda model: model.generate([[untyped.Turn("bot", "why")]]), "turn 0 (bot) comes first"),
        (lambda model: model.generate([[untyped.Turn("user", None)]]), "turn 0 is Turn(role='user', content=None)"),
        (lambda model: model.generate(["why"], stop="ab"), "stop = 'ab': expected a list of strings"),
        (lambda model: model.generate(["why"], max_new_tokens="9"), "max_new_tokens = '9'"),
        (lambda model: model.generate(["why"], sampling=0.5), "sampling = 0.5"),
    ],
)
def test_a_mistake_with_a_model_is_one_line(model, wrong, words):
    with pytest.raises(ValueError, match=re.escape(words)) as error:
        wrong(model)
    assert "\n" not in str(error.value)


def test_values_from_python_get_the_type_of_their_field():
    optim = untyped.OptimConfig(lr=1, weight_decay=numpy.float64(0.5))
    assert (type(optim.lr), type(optim.weight_decay)) == (float, float)
    assert untyped.LoraConfig(rank=2, targets=["q_proj"]).targets == ("q_proj",)


def test_an_export_replaces_an_export_and_nothing_else(case, tmp_path, monkeypatch):
    training, folder = untyped.Training(settings(case)), tmp_path / "mine"
    (folder / "thesis").mkdir(parents=True)
    (folder / "thesis" / "text").write_text("words")
    with pytest.raises(ValueError, match="mine: holds thesis, which no export has; choose another folder"):
        training.export(folder)
    assert (folder / "thesis" / "text").read_text() == "words"
    training.export(tmp_path / "export")
    training.export(tmp_path / "export")
    (tmp_path / "export" / "notes.md").write_text("words")
    with pytest.raises(ValueError, match=r"export: holds notes\.md, which no export has"):
        training.export(tmp_path / "export")
    assert (tmp_path / "export" / "notes.md").read_text() == "words"
    (tmp_path / "other.json").write_text('{"a": 1}')
    with pytest.raises(ValueError, match=r"other\.json: in the way of the export's report"):
        training.export(tmp_path / "other")
    assert (tmp_path / "other.json").read_text() == '{"a": 1}'
    (tmp_path / "file").write_text("words")
    monkeypatch.chdir(tmp_path)
    for wrong, words in (
        (".", "the working folder"),
        ("..", "working folder"),
        ("file", "not a folder"),
        (None, "None"),
    ):
        with pytest.raises(ValueError, match=words):
            training.export(wrong)


def test_types_are_known_to_a_checker():
    """The stub beside logtrain/__init__.py names what logtrain/api.py does."""
    assert "from logtrain.api import *" in Path(ROOT / "logtrain/__init__.pyi").read_text()
