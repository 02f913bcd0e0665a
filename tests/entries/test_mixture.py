"""A run on several prepared folders: shares, losses by source, resumption, and what is refused, each in one line."""

import random
import re

import pytest

from tests.support.ranks import Ranks
from tests.support.synthetic import write_data, write_model
from tests.support.training import records, train

pytestmark = pytest.mark.slow

SEQ_LEN = 32
MIX = {"logs": 0.7, "general": 0.1, "chat": 0.2}
# In 60 steps the source with the smallest share is in its third epoch, logs in its seventeenth.
NUM_STEPS = pytest.mark.parametrize("steps", [60, pytest.param(200, marks=pytest.mark.trial("200 steps of 7 ranks"))])


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixture")
    model = write_model(folder / "model")
    for number, name in enumerate(MIX):
        lengths = [5 + (i * 7 + number) % 11 for i in range(60)]
        write_data(folder / name, model, seq_len=SEQ_LEN, lengths={"train": lengths, "valid": lengths[:6]}, seed=number)
    return folder


def flags(case, runs, steps: int = 12, **mix: float) -> list[str]:
    found = [
        "--name",
        "run",
        "--model",
        str(case / "model"),
        "--runs",
        str(runs),
        "--data",
        *(f"{name}={case / name}" for name in MIX),
    ]
    for name, share in (mix or MIX).items():
        found += [f"--mix.{name}", str(share)]
    found += ["--loader.seq_len", str(SEQ_LEN), "--loader.rows_per_step", "10", "--trainer.max_steps", str(steps)]
    return [
        *found,
        "--trainer.epochs",
        "20",
        "--trainer.log_every",
        "1",
        "--trainer.save_every",
        "5",
        "--optim.lr",
        "1e-3",
    ]


def test_losses_and_tokens_of_every_source_are_told_and_add_up(case, tmp_path, capsys):
    assert train(flags(case, tmp_path)) == 0
    found = records(tmp_path / "run")
    assert len(found) == 12
    for before, record in zip([None, *found], found, strict=False):
        assert sum(record[f"tokens.{name}"] for name in MIX) == record["tokens"]
        assert sum(record[f"targets.{name}"] for name in MIX) == record["targets"]
        targets = {name: record[f"targets.{name}"] - (before[f"targets.{name}"] if before else 0) for name in MIX}
        summed = sum(targets[name] * (record[f"loss.{name}"] or 0) for name in MIX)
        assert summed / sum(targets.values()) == pytest.approx(record["loss"], rel=1e-5)
    shares = [found[-1][f"tokens.{name}"] / found[-1]["tokens"] for name in MIX]
    assert shares == pytest.approx(list(MIX.values()), abs=0.03)  # of 120 rows
    told = capsys.readouterr().out
    assert all(f"source {name}: {found[-1][f'tokens.{name}']:,} tokens" in told for name in MIX)
    sets = [record["set"] for record in records(tmp_path / "run", "valid_loss")]
    assert sets[:3] == list(MIX)


def test_every_validation_tells_the_change_since_the_start(case, tmp_path):
    assert train([*flags(case, tmp_path), "--trainer.stop_after", "5"]) == 75
    assert train([*flags(case, tmp_path), "--resume", "auto"]) == 0
    found = records(tmp_path / "run", "valid_loss")
    start = {record["set"]: record["valid_loss"] for record in found if record["step"] == 0}
    assert [record["set"] for record in found if record["step"] == 12] == list(MIX)
    for record in found:
        assert record["delta"] == pytest.approx(record["valid_loss"] - start[record["set"]], abs=1e-12)
    assert all(record["delta"] < 0 for record in found if record["step"] == 12)


def long(case, runs, steps: int, lr: str) -> list[str]:
    """Flags of a run of so many steps of 8 rows."""
    flags_of_it = [*flags(case, runs, steps), "--loader.rows_per_step", "8", "--optim.lr", lr]
    return [*flags_of_it, "--trainer.epochs", "200", "--trainer.save_every", "200", "--trainer.valid_every", "200"]


def told(runs) -> list[list]:
    """What every record tells of the run's rows and losses, bit for bit."""
    keys = ["loss", "tokens", *(f"{kind}.{name}" for kind in ("loss", "tokens", "targets") for name in MIX)]
    return [[record[key] for key in keys] for record in records(runs / "run")]


@NUM_STEPS
def test_a_run_resumed_at_random_steps_has_the_losses_of_an_unbroken_one(case, tmp_path, steps):
    assert train(long(case, tmp_path / "whole", steps, "1e-3")) == 0
    of_part = long(case, tmp_path, steps, "1e-3")
    for stop in sorted(random.Random(7).sample(range(1, steps), 3)):
        assert train([*of_part, "--trainer.stop_after", str(stop), "--resume", "auto"]) == 75
    assert train([*of_part, "--resume", "auto"]) == 0
    assert len(told(tmp_path)) == steps
    assert told(tmp_path) == told(tmp_path / "whole")


@NUM_STEPS
def test_all_steps_are_the_same_on_1_2_and_4_ranks(case, ranks: Ranks, tmp_path, steps):
    """Bit for bit, at a rate of 0: the weights of ranks that learn differ by the rounding of summed gradients."""
    for size in (1, 2, 4):
        assert ranks.run(size, train, long(case, tmp_path / str(size), steps, "0")) == [0] * size
    one, two, four = (told(tmp_path / str(size)) for size in (1, 2, 4))
    assert len(one) == steps
    assert len({losses[0] for losses in one}) == steps  # no two steps have the same rows
    assert one == two == four


def test_a_source_of_less_than_a_row_a_step_has_its_loss_at_every_record(case, tmp_path):
    """Its rows are in few steps, and the steps of records may never be among these."""
    few = {"logs": 0.96, "general": 0.02, "chat": 0.02}
    assert (
        train(
            [
                *flags(case, tmp_path, steps=40, **few),
                "--trainer.log_every",
                "20",
                "--trainer.save_every",
                "20",
                "--trainer.valid_every",
                "20",
            ]
        )
        == 0
    )
    found = records(tmp_path / "run")
    assert {20, 40} <= {record["step"] for record in found}
    assert all(record[f"loss.{name}"] > 0 for record in found if record["step"] % 20 == 0 for name in few)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: [*f, "--mix.logs", "0.8"], "mix has the sum 1.1"),
        (lambda f: [*f, "--mix.logs", "0"], "mix.logs = 0.0 must be above 0 and below 1"),
        (lambda f: [*f, "--mix.other", "0.1"], "mix names logs, general, chat, other, data logs, general, chat"),
        (lambda f: [*f, "--loader.rows_per_batch", "2"], "with several sources a micro-batch is one row"),
        (lambda f: [*f, "--data", "logs=none", "general=none"], "mix names logs, general, chat, data logs, general"),
        (lambda f: [*f, "--data", "logs", "general"], "data = 'logs': expected NAME=FOLDER"),
        (lambda f: [*f, "--data", "one"], "data = 'one' is a single folder; leave mix out"),
        (lambda f: [*f, "--data", "logs=a", "logs=b", "chat=c"], "each name once"),
    ],
)
def test_a_mixture_that_does_not_add_up_is_refused_in_one_line(case, tmp_path, change, words):
    with pytest.raises(ValueError, match=re.escape(words)) as error:
        train(change(flags(case, tmp_path)))
    assert len(str(error.value).splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_source_of_another_tokenizer_and_one_without_documents_are_refused(case, tmp_path):
    other = write_model(tmp_path / "other", vocab_size=300)
    write_data(tmp_path / "foreign", other, seq_len=SEQ_LEN, lengths={"train": [9, 9], "valid": [9]})
    write_data(tmp_path / "empty", case / "model", seq_len=SEQ_LEN, lengths={"valid": [9]})
    for name, words in (("foreign", "another tokenizer"), ("empty", "no documents in split 'train'")):
        data = [f"logs={case / 'logs'}", f"general={tmp_path / name}", f"chat={case / 'chat'}"]
        with pytest.raises(ValueError, match=words):
            train([*flags(case, tmp_path), "--data", *data])
