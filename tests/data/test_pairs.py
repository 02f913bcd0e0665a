"""Pairs of answers from rows to batches: each stays whole, sees nothing else, and is there once an epoch."""

import json
import random

import numpy as np
import pytest

from logtrain.data.config import LoaderConfig
from logtrain.data.conversations import row_pair
from logtrain.data.lines import BadRow
from logtrain.data.pairs import PairLoader, PairSplit, has_pairs
from logtrain.data.shards import CONTEXT, Split
from logtrain.text.chat_template import ChatTemplate, Turn
from logtrain.text.tokenizer import Tokenizer
from tests.support.chats import write_tokenizer
from tests.support.pairs import make_pairs, prepare_pairs

TURNS = (Turn("user", "q"), Turn("assistant", "good"), Turn("assistant", "bad"))
GOOD, BAD = {"role": "assistant", "content": "good"}, {"role": "assistant", "content": "bad"}
ASKED = {"role": "user", "content": "q"}
FORMS = {
    "texts": {"prompt": "q", "chosen": "good", "rejected": "bad"},
    "messages": {"prompt": [{"role": "user", "content": "q"}], "chosen": [GOOD], "rejected": [BAD]},
    "a turn": {"prompt": [{"role": "user", "content": "q"}], "chosen": GOOD, "rejected": BAD},
    "sharegpt": {
        "conversations": [{"from": "human", "value": "q"}],
        "chosen": {"from": "gpt", "value": "good"},
        "rejected": {"from": "gpt", "value": "bad"},
    },
    "whole chats": {"chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]},
    "whole chats and their question": {"prompt": "q", "chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]},
    "whole chats and their turns": {"prompt": [ASKED], "chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_row_is_a_prompt_and_two_answers(form):
    assert row_pair(FORMS[form]) == (TURNS, "")
    with_system = row_pair({**FORMS[form], "system": "be brief", "domain": "logs"})
    assert with_system == ((Turn("system", "be brief"), *TURNS), "logs")


BAD_ROWS = {
    "no prompt": ({"chosen": "a", "rejected": "b"}, 'no "prompt"'),
    "no rejected": ({"prompt": "q", "chosen": "a"}, 'no "rejected"'),
    "equal": ({"prompt": "q", "chosen": "a", "rejected": "a"}, "chosen and rejected are the same"),
    "an answer of a user": (
        {**FORMS["messages"], "chosen": [{"role": "user", "content": "x"}]},
        '"chosen" has the turns user, not one of an assistant',
    ),
    "answered already": (
        {**FORMS["messages"], "prompt": [{"role": "user", "content": "q"}, GOOD]},
        "turn 1 (assistant) is the last; a question ends with a turn of the user",
    ),
    "other questions": (
        {"chosen": [ASKED, GOOD], "rejected": [ASKED | {"content": "why?"}, BAD]},
        "chosen and rejected are not answers to the same turns",
    ),
    "another prompt": (
        {"prompt": "why?", "chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]},
        '"prompt" is not what chosen and rejected begin with',
    ),
    "unread": ({**FORMS["texts"], "score": "9.5 of 10"}, 'no rule reads "score"'),
}


@pytest.mark.parametrize("mistake", BAD_ROWS)
def test_a_bad_row_says_why(mistake):
    row, message = BAD_ROWS[mistake]
    with pytest.raises(BadRow) as raised:
        row_pair(row)
    assert message in str(raised.value)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def split(tokenizer, tmp_path, monkeypatch) -> PairSplit:
    return PairSplit(Split.open(prepare_pairs(tmp_path, tokenizer, make_pairs(120), monkeypatch)))


def test_both_answers_follow_the_same_prompt_and_alone_are_targets(split, tokenizer):
    template, rows = ChatTemplate.load(Tokenizer.load(tokenizer)), make_pairs(120)
    assert has_pairs(split.manifest)
    for pair in range(split.num_documents):
        row = rows[split.origin(pair)[1]]
        for stored, answer in zip(split.halves(pair), (row["chosen"], row["rejected"]), strict=True):
            ids, is_target = template.encode([Turn("user", row["prompt"]), Turn("assistant", answer)])
            assert (stored & (CONTEXT - 1)).tolist() == ids
            assert (stored < CONTEXT).tolist() == is_target.tolist()


def test_pairs_that_do_not_fit_are_left_out_and_counted(tokenizer, tmp_path, monkeypatch, capsys):
    rows = make_pairs(40)
    for row in rows[:3]:
        row["rejected"] = " ".join(["error"] * 200)
    output = prepare_pairs(tmp_path, tokenizer, rows, monkeypatch, "--valid_fraction", "0", "--too_long", "drop")
    assert "dropped" in capsys.readouterr().out
    assert json.loads((output / "report.json").read_text())["conversations"]["dropped"]["conversations"] == 3
    kept = PairSplit(Split.open(output))
    assert kept.num_documents == 37
    assert {kept.origin(pair)[1] for pair in range(37)} == set(range(3, 40))
    with pytest.raises(ValueError, match=r"pairs.json row 0: .* tokens, more than seq_len"):
        prepare_pairs(tmp_path / "strict", tokenizer, rows, monkeypatch, "--too_long", "error")
    with pytest.raises(
        ValueError,
        match=r"their pairs, both answers together, have more than .* or choose: --too_long drop, which leaves",
    ):
        prepare_pairs(tmp_path / "auto", tokenizer, rows, monkeypatch)
    with pytest.raises(ValueError, match=r"^no pair fits in seq_len = 96 tokens; give a greater --seq_len$"):
        prepare_pairs(tmp_path / "none", tokenizer, rows[:3], monkeypatch, "--too_long", "drop")
    with pytest.raises(ValueError, match="format = dpo trains on the two answers of a pair whole"):
        prepare_pairs(tmp_path / "cut", tokenizer, rows, monkeypatch, "--too_long", "truncate_content")


def test_the_held_out_pairs_are_whole_and_not_trained_on(split):
    held = PairSplit(Split.open(split.folder, "valid"))
    assert held.num_documents > 0
    rows = [{part.origin(pair)[1] for pair in range(part.num_documents)} for part in (split, held)]
    assert not rows[0] & rows[1]
    assert len(rows[0] | rows[1]) == split.num_documents + held.num_documents == 120


@pytest.mark.parametrize(("ranks", "rows_per_batch"), [(1, 1), (2, 2)])
def test_a_batch_holds_pairs_whole_which_see_nothing_else(split, ranks, rows_per_batch):
    config = LoaderConfig(seq_len=96, rows_per_step=4, rows_per_batch=rows_per_batch)
    loaders = [PairLoader(split, config, seed=3, pad_id=0, rank=rank, world_size=ranks) for rank in range(ranks)]
    reference_D2 = np.random.default_rng(0).normal(size=(split.num_documents, 2)).astype(np.float32)
    seen, counted, attended = [], 0, 0
    for step in range(loaders[0].steps_per_epoch):
        for loader in loaders:
            loader.reference_D2 = reference_D2
            found = loader.at(step)
            for batch in found.batches:
                bounds = batch.cu_seqlens.tolist()
                pairs = [pair for pair in batch.pairs_P3.tolist() if pair[0] >= 0]
                for place, (chosen, rejected, number) in enumerate(pairs):
                    assert batch.reference_P2[place].tolist() == reference_D2[number].tolist()
                    for sequence, stored in zip((chosen, rejected), split.halves(number), strict=True):
                        span = slice(bounds[sequence], bounds[sequence + 1])
                        assert batch.tokens_T[span].tolist() == (stored & (CONTEXT - 1)).tolist()
                        assert batch.positions_T[span].tolist() == list(range(len(stored)))
                        labels = batch.labels_T[span].tolist()
                        assert labels[-1] == -100
                        assert labels[:-1] == [-100 if id & CONTEXT else id for id in stored[1:].tolist()]
                        attended += len(stored) * (len(stored) + 1) // 2
                    assert bounds[chosen] // 96 == (bounds[rejected + 1] - 1) // 96  # in one row
                seen += [number for *_, number in pairs]
        counted += found.targets
    assert sorted(seen) == list(range(split.num_documents))
    assert counted == split.num_documents
    totals = [loaders[0].at(step).attention_pairs for step in range(loaders[0].steps_per_epoch)]
    assert sum(totals) == attended


def test_a_row_without_a_mask_and_documents_that_are_no_pairs_are_refused(split):
    with pytest.raises(ValueError, match="an answer would see the other one of its pair"):
        PairLoader(split, LoaderConfig(seq_len=96, rows_per_step=1, attention="row"), seed=0, pad_id=0)
    odd = Split.open(split.folder, "train")
    odd._documents[0] = odd._documents[0][1:]
    odd._first_document = [0, len(odd._documents[0])]
    with pytest.raises(ValueError, match=r"documents in train, no pairs; prepare it again"):
        PairSplit(odd)


@pytest.mark.parametrize("count", [2, 60])
def test_both_answers_of_a_pair_are_held_out_or_trained_on(count, tokenizer, tmp_path, monkeypatch):
    """Also where all are twins, so that the hash of the text as it is decides, and one pair is held out."""
    rows = [{"prompt": f"is {i} well", "chosen": "yes it is", "rejected": "no it is not"} for i in range(count)]
    output = prepare_pairs(tmp_path, tokenizer, rows, monkeypatch)
    sides = [PairSplit(Split.open(output, name)) for name in ("train", "valid")]
    found = [{side.origin(pair)[1] for pair in range(side.num_documents)} for side in sides]
    assert [len(found[0]), len(found[1])] == [count - 1, 1] and found[0] | found[1] == set(range(count))


def test_no_pair_that_is_held_out_of_few_has_a_near_twin_in_training(tokenizer, tmp_path, monkeypatch):
    random_ = random.Random(3)
    words = [["".join(random_.choices("bcdfghjk", k=5)) for _ in range(40)] for _ in range(16)]
    texts = [[*of, last] for number, of in enumerate(words) for last in ("then", "there")[: 1 + (number > 1)]]
    random_.shuffle(texts)
    rows = [{"prompt": " ".join(text), "chosen": f"yes {text[0]}", "rejected": "no"} for text in texts]
    output = prepare_pairs(tmp_path, tokenizer, rows, monkeypatch, "--seq_len", "2048")
    sides = [PairSplit(Split.open(output, name)) for name in ("train", "valid")]
    trained, held = ({tuple(texts[side.origin(pair)[1]][:-1]) for pair in range(side.num_documents)} for side in sides)
    assert held and not trained & held
    assert json.loads((output / "report.json").read_text())["held_out"]["near_twins"] == 0


def test_pairs_that_are_twins_of_too_many_are_trained_on(tokenizer, tmp_path, monkeypatch):
    """60 of 100, where half may be held out: whatever their hash."""
    random_ = random.Random(5)
    others = [" ".join("".join(random_.choices("bcdfghjk", k=5)) for _ in range(20)) for _ in range(40)]
    for word in ("one", "two", "three", "four", "five"):
        prompts = [*(f"{word} {number}" for number in range(60)), *others]
        rows = [{"prompt": prompt, "chosen": "yes", "rejected": "no"} for prompt in prompts]
        flags = ("--valid_fraction", "0.5", "--seq_len", "1024")
        held = PairSplit(Split.open(prepare_pairs(tmp_path / word, tokenizer, rows, monkeypatch, *flags), "valid"))
        assert {held.origin(pair)[1] < 60 for pair in range(held.num_documents)} == {False}


def test_answers_that_the_template_makes_the_same_are_a_bad_row(tokenizer, tmp_path, monkeypatch):
    """They taught nothing, and a step's loss was a mean over them, too."""
    rows = make_pairs(8)
    rows[3]["rejected"] = f"{rows[3]['chosen']}\n "
    with pytest.raises(ValueError, match=r"pairs.json row 3: chosen and rejected are the same once the chat template"):
        prepare_pairs(tmp_path, tokenizer, rows, monkeypatch)
    output = prepare_pairs(tmp_path / "skip", tokenizer, rows, monkeypatch, "--bad_rows", "skip")
    splits = json.loads((output / "report.json").read_text())["splits"]
    assert sum(of_split["documents"] for of_split in splits.values()) == 2 * 7
