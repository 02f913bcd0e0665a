"""Scores equal the reference libraries' and those by hand."""

import itertools
import json
import logging
import math
import random
import re

import hypothesis
import hypothesis.strategies as st
import pytest
import sacrebleu
from rapidfuzz.distance import Indel
from rouge_score.rouge_scorer import RougeScorer

from logtrain.evaluation.scoring import CORPUS_METRICS, METRICS, corpus_scores, score
from tests.support.scored_texts import SPECIAL, WORDS

ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")
ORACLE = RougeScorer(ROUGE, use_stemmer=False)


def check(prediction: str, reference: str) -> None:
    """Every score against the library that defines it."""
    scores = score(prediction, reference)
    assert list(scores) == list(METRICS)
    for name, of_library in ORACLE.score(reference, prediction).items():
        if scores[name] is None:
            tokens = re.findall("[a-z0-9]+", reference.lower())
            few = 2 * len("".join(tokens)) < sum(map(str.isalnum, reference)) or not tokens
            assert few or (name == "rouge2" and len(tokens) < 2), name
        else:
            assert scores[name] == pytest.approx(of_library.fmeasure, rel=0, abs=1e-12), name
    logging.getLogger("sacrebleu").setLevel(logging.ERROR)
    bleu = sacrebleu.sentence_bleu(prediction, [reference], smooth_method="none", use_effective_order=False)
    if scores["bleu"] is None:
        best = sacrebleu.sentence_bleu(reference, [reference], smooth_method="none", use_effective_order=False)
        assert best.score == bleu.score == 0
    else:
        assert scores["bleu"] == pytest.approx(bleu.score / 100, rel=0, abs=1e-12)
    indel = Indel.normalized_similarity(prediction, reference)
    assert scores["fuzzy"] == pytest.approx(indel, rel=0, abs=1e-12)
    assert all(value is None or (0 <= value <= 1 + 1e-12 or name == "length_ratio") for name, value in scores.items())


def test_by_hand():
    """The F1s and precisions written out."""
    scores = score("the cat sat on the mat", "the cat sat on a mat")
    assert scores["fuzzy"] == pytest.approx(2 * 19 / (22 + 20))  # "the" is "a"
    assert scores["bleu"] == pytest.approx((5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25)
    assert scores["rouge1"] == pytest.approx(5 / 6)
    assert scores["rouge2"] == pytest.approx(3 / 5)
    assert scores["rougeL"] == scores["rougeLsum"] == pytest.approx(5 / 6)
    short = score("the cat sat on", "the cat sat on a mat")
    assert short["bleu"] == pytest.approx(math.exp(1 - 6 / 4))  # all n-grams right, the brevity penalty alone
    assert short["rougeL"] == pytest.approx(2 * 1 * (4 / 6) / (1 + 4 / 6))
    assert score("the cat sat", "the cat sat")["bleu"] is None  # no 4-gram
    assert score("the cat", "the cat sat on a mat")["bleu"] == 0  # the answer has none, and might have

    # One line of the reference against two of the prediction: a LCS of each, b c and d, three of four tokens.
    lines = score("b c x\nd y", "a b c d")
    assert lines["rougeL"] == pytest.approx(2 * (3 / 5) * (3 / 4) / (3 / 5 + 3 / 4))
    assert score("d y\nb c x", "a b c d")["rougeL"] == pytest.approx(2 * (2 / 5) * (2 / 4) / (2 / 5 + 2 / 4))
    assert score("d y\nb c x", "a b c d")["rougeLsum"] == lines["rougeLsum"] == lines["rougeL"]


def test_the_choice_among_longest_common_subsequences():
    """Of `a b` and `b a`, each of length 1, the union depends on which one is taken: it must be the library's."""
    assert score("b a\na c", "a b")["rougeLsum"] == pytest.approx(2 * 1 / (4 + 2))  # a, a: with b once it would be 2
    assert score("b a\nb c", "a b")["rougeLsum"] == pytest.approx(2 * 2 / (4 + 2))  # a, b
    check("b a\na c", "a b")
    check("b a\nb c", "a b")


# A few tokens, so that they repeat and many subsequences are equally long, on one line or on many.
tied_texts = st.lists(st.sampled_from(["a", "b", "c", "dd", "E", ".", "\n", "\r"]), max_size=60).map(" ".join)
log_texts = st.lists(st.sampled_from([*WORDS, "\n", "\n\n", "é", "ﬁ", "\u212a", "İ"]), max_size=50).map(" ".join)
any_texts = st.text(st.characters(), max_size=60)  # lone surrogates and control characters among them


@hypothesis.settings(max_examples=600)
@hypothesis.given(tied_texts, tied_texts)
def test_ties(prediction, reference):
    check(prediction, reference)


@hypothesis.settings(max_examples=300)
@hypothesis.given(st.one_of(log_texts, any_texts), st.one_of(log_texts, any_texts))
def test_any_two_texts(prediction, reference):
    check(prediction, reference)


@pytest.mark.parametrize(
    ("reference", "without"),
    [
        ("\u78c1\u76d8\u5df2\u6ee1", {"bleu", *ROUGE}),  # Chinese
        ("\u0434\u0438\u0441\u043a sda1 \u043f\u043e\u043b, \u0434\u0430", set(ROUGE)),  # Russian
        ("yes", {"bleu", "rouge2"}),
        ("disk is full", {"bleu"}),
        ("the disk is full", set()),
        ("\u00dcber die Platte sda1 ist voll", set()),
        ("...", {"bleu", *ROUGE}),
    ],
)
def test_what_a_metric_cannot_score_has_no_score(reference, without):
    """Of equal texts none may score 0."""
    scores = score(reference, reference)
    assert {name for name, value in scores.items() if value is None} - {"json_valid"} == without
    assert all(value == pytest.approx(1) for name, value in scores.items() if value is not None)
    assert corpus_scores([(reference, reference)])["chrf"] == pytest.approx(1)
    assert (corpus_scores([(reference, reference)])["corpus_bleu"] is None) == ("bleu" in without)


def test_special_texts():
    """Every one with every one: 900 pairs."""
    for prediction, reference in itertools.product(SPECIAL, repeat=2):
        check(prediction, reference)


def test_real_answers(shared):
    """Each against the next: 700 of a few lines, a hundred JSON objects, long ones with lists and code."""
    rows = json.loads((shared / "data/loglm/loglm_instruction_2632.json").read_text())
    chats = json.loads((shared / "data/chat/json_analysis_val.json").read_text())
    long = json.loads((shared / "data/formats/sharegpt_chat_val_mini.json").read_text())
    answers, objects, essays = (
        [text for text in dict.fromkeys(texts) if text]
        for texts in (
            (row["output"] for row in rows[:1200]),
            (turn["value"] for chat in chats for turn in chat["conversations"] if turn["from"] == "gpt"),
            (turn["value"] for chat in long for turn in chat["conversations"] if turn["from"] == "gpt"),
        )
    )
    essays = sorted(essays, key=lambda text: -text.count("\n"))[:12]
    assert len(answers) > 500 and len(objects) > 50 and min(map(len, essays)) > 1000
    for texts in (answers[:701], objects, essays):
        for pair in itertools.pairwise(texts):
            check(*pair)
    assert all(score(text, text)["json_valid"] == 1 for text in objects)


def test_long_texts():
    """The library needs 0.1 s for a million of its table's cells, twice: the longest are held against themselves."""
    words = random.Random(0).choices([*WORDS, *(f"w{i}" for i in range(300))], k=5000)
    check(" ".join(words[:150]), " ".join(words))
    check("\n".join(words[1000:1800]), " ".join(words[900:1700]))
    text = "\n".join(" ".join(words[i : i + 9]) for i in range(0, 5000, 9))
    for long in (" ".join(words), text):
        assert [score(long, long)[name] for name in (*ROUGE, "fuzzy", "bleu")] == pytest.approx([1] * 6)
    shuffled = text.split("\n")
    random.Random(1).shuffle(shuffled)
    scores = score("\n".join(shuffled), text)
    assert scores["rougeLsum"] == scores["rouge1"] == 1 > scores["rougeL"] > 0  # lines count, their order does not


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ('{"a": 1}', '{"b": [2]}', 1.0),
        (' [1, "x"]\n', "[]", 1.0),
        ("", "{}", 0.0),
        ("Here it is: {}", "{}", 0.0),
        ('{"a": 1', "{}", 0.0),
        ("{'a': 1}", "{}", 0.0),
        ('{"a": NaN}', "{}", 0.0),
        ('```json\n{"a": 1}\n```', '{"a": 1}', 0.0),
        ("42", "{}", 0.0),
        ('"\ud800"', "{}", 0.0),
        ("[" * 100_000, "{}", 0.0),
        ("{}", "plain text", None),
        ("{}", "", None),
        ("42", "42", None),
        ("{}", '```json\n{"a": 1}\n```', None),
        ("{}", "[" * 100_000, None),
    ],
)
def test_json_valid(prediction, reference, expected):
    assert score(prediction, reference)["json_valid"] == expected


def test_exact_match_and_length_ratio():
    assert score(" disk full\n", "disk full")["exact_match"] == 1
    assert score("Disk full", "disk full")["exact_match"] == 0
    assert score("disk  full", "disk full")["exact_match"] == 0
    assert score("\u00e9", "e\u0301")["exact_match"] == 0  # the same to the eye: nothing is normalised
    assert score("", " \n")["exact_match"] == 1
    assert score("日志", "disk")["length_ratio"] == 0.5
    assert score("", "disk")["length_ratio"] == 0
    assert score("disk", "")["length_ratio"] is None


def test_titles_are_those_of_the_published_table():
    assert list(METRICS.values())[:6] == ["Fuzzy", "BLEU", "R-1", "R-2", "R-L", "R-Lsum"]
    assert not METRICS.keys() & CORPUS_METRICS.keys()


def test_of_a_whole_set():
    """Sums over the set before the division, which is neither the mean of the answers nor free of smoothing."""
    pairs = [("the cat sat on the mat", "the cat sat on a mat"), ("a dog", "a cat"), ("", "x")]
    scores = corpus_scores(pairs)
    # 1-grams 5 + 1 of 6 + 2, 2-grams 3 of 5 + 1, 3-grams 2 of 4, 4-grams 1 of 3; 8 tokens for 9
    assert scores["corpus_bleu"] == pytest.approx(math.exp(1 - 9 / 8) * (6 / 8 * 3 / 6 * 2 / 4 * 1 / 3) ** 0.25)
    predictions, references = zip(*pairs, strict=True)
    assert scores["chrf"] == pytest.approx(sacrebleu.corpus_chrf(predictions, [references]).score / 100, abs=1e-12)
    assert list(scores) == list(CORPUS_METRICS)
    # Without a 3-gram or a 4-gram in common: a half of one is assumed, then a quarter.
    smoothed = corpus_scores([("a b c d e", "a b x d e")])["corpus_bleu"]
    assert smoothed == pytest.approx((4 / 5 * 2 / 4 * (1 / 2) / 3 * (1 / 4) / 2) ** 0.25)
    assert corpus_scores([("a b c d", "a b c d")]) == {"corpus_bleu": pytest.approx(1), "chrf": 1}
    assert corpus_scores([]) == {"corpus_bleu": None, "chrf": None}
    assert corpus_scores([("", "")]) == {"corpus_bleu": None, "chrf": 0}


def test_scores_come_without_advice(caplog):
    """sacrebleu's logger warns of a BLEU of one answer, and of a hundred answers that end in a period by itself."""
    with caplog.at_level(logging.WARNING, "sacrebleu"):
        score("disk full .", "disk full .")
        corpus_scores([("disk full .", "disk full .")] * 100)
        assert caplog.records == []
        sacrebleu.sentence_bleu("disk", ["disk"], use_effective_order=False)
        assert caplog.records
