"""Every metric of the log tasks a second time, from its definition alone, to hold the package's own against.

Written without sight of the package's, as plainly as possible: loops, sets and dictionaries, to be read by eye. Where a
definition leaves a choice open, the choice is in the docstring, and is the package's. An answer that could not be read
is None, and so is a figure that is not defined. 0 / 0 is 0 unless said otherwise.

Sources of the definitions. PA and GA: Zhu et al., "Tools and Benchmarks for Automated Log Parsing" (ICSE-SEIP 2019)
and Dai et al., "Logram" (TSE 2020). FTA: Khan et al., "Guidelines for Assessing the Accuracy of Log Message Template
Identification Techniques" (ICSE 2022). FGA: Jiang et al., "A Large-Scale Evaluation for Log Parsing Techniques"
(ISSTA 2024). MCC: Matthews (1975). Exact match and token F1: Rajpurkar et al., SQuAD (EMNLP 2016). Root causes: Xu et
al., OpenRCA (ICLR 2025). Kappa: Cohen (1960).
"""

from __future__ import annotations

import itertools
import math
import re
import string
from datetime import datetime


def share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def harmonic(precision: float, recall: float) -> float:
    return share(2 * precision * recall, precision + recall)


# Parsing. `answers` holds a template or None for each line, `truths` the true template of each.


def one_wildcard(template: str) -> str:
    """The template with adjacent wildcards made one. Choice: with a space between they are two variables, as the
    definitions compare token by token; white space at the ends does not count."""
    while "<*><*>" in template:
        template = template.replace("<*><*>", "<*>")
    return template.strip()


def groups(keys: list[tuple[str, str | None]]) -> dict[tuple[str, str | None], set[int]]:
    """The numbers of the lines of each system and template."""
    lines_of: dict[tuple[str, str | None], set[int]] = {}
    for line, key in enumerate(keys):
        lines_of.setdefault(key, set()).add(line)
    return lines_of


def parsing(answers: list[str | None], truths: list[str], systems: list[str]) -> dict[str, float]:
    """PA, GA, FGA, FTA, the mean normalised edit distance and the share of unreadable answers.

    PA: share of the lines with the true template. GA: share of the lines whose group of lines is exactly the group of
    their true template. FGA: precision is the share of predicted groups that are exactly a true one, recall the share
    of true groups that were found. FTA: a predicted template is correct if all its lines have one true template, and
    the texts are equal; precision is by predicted templates, recall by true ones.

    Edit distance: Levenshtein's over characters, by the longer text's length, the mean over lines; 0 is best.

    Choices: all five look at templates with adjacent wildcards made one, truth and answer alike, and two templates of a
    system that are then equal are one group. A line without a readable answer is wrong and its distance is 1; all of
    them in a system are one predicted group, which is never exact and never a correct template.
    """
    predicted = [(system, answer and one_wildcard(answer)) for system, answer in zip(systems, answers, strict=True)]
    true = [(system, one_wildcard(truth)) for system, truth in zip(systems, truths, strict=True)]
    predicted_groups, true_groups = groups(predicted), groups(true)

    exact_lines = well_grouped_lines = 0
    distance = 0.0
    for mine, right in zip(predicted, true, strict=True):
        if mine[1] is None:
            distance += 1
            continue
        exact_lines += mine == right
        well_grouped_lines += predicted_groups[mine] == true_groups[right]
        distance += normalised_distance(mine[1], right[1])

    exact_groups = correct_templates = 0
    for key, lines in predicted_groups.items():
        if key[1] is not None:
            exact_groups += any(lines == of_a_true_one for of_a_true_one in true_groups.values())
            correct_templates += {true[line] for line in lines} == {key}

    def f1(correct: int) -> float:
        return harmonic(share(correct, len(predicted_groups)), share(correct, len(true_groups)))

    return {
        "pa": share(exact_lines, len(true)),
        "ga": share(well_grouped_lines, len(true)),
        "fga": f1(exact_groups),
        "fta": f1(correct_templates),
        "edit": share(distance, len(true)),
        "unread": share(answers.count(None), len(true)),
    }


DISTANCES: dict[tuple[str, str], float] = {}


def normalised_distance(one: str, other: str) -> float:
    """Levenshtein's distance by the longer one's length. Choice: 0 for two empty texts. Answers are remembered."""
    if (one, other) not in DISTANCES:
        DISTANCES[one, other] = share(levenshtein(one, other), max(len(one), len(other)))
    return DISTANCES[one, other]


def levenshtein(one: str, other: str) -> int:
    """The least number of characters inserted, deleted or replaced: the whole table, row by row, of what is left
    without equal beginnings and ends, which cost nothing."""
    while one and other and one[0] == other[0]:
        one, other = one[1:], other[1:]
    while one and other and one[-1] == other[-1]:
        one, other = one[:-1], other[:-1]
    above = list(range(len(other) + 1))
    for i, mine in enumerate(one, start=1):
        row = [i]
        for j, theirs in enumerate(other, start=1):
            row.append(min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (mine != theirs)))
        above = row
    return above[-1]


# Anomaly detection. True is abnormal, which is the positive class; an answer is True, False or None.


def anomaly(answers: list[bool | None], truths: list[bool]) -> dict[str, float | None]:
    """Precision, recall and F1 of abnormal, MCC, balanced accuracy, accuracy and the share of unreadable answers.

    Choices: an unreadable answer is wrong, so it counts as the other class than the true one: as a false alarm on a
    normal line, as a miss on an abnormal one. Without an abnormal line there is no precision, recall and F1; with lines
    of one class alone there is no MCC and no balanced accuracy. MCC is 0 where only one class is answered.
    """
    tp = fp = tn = fn = 0
    for answer, truth in zip(answers, truths, strict=True):
        taken = (not truth) if answer is None else answer
        tp += taken and truth
        fp += taken and not truth
        tn += not taken and not truth
        fn += not taken and truth
    precision, recall, specificity = share(tp, tp + fp), share(tp, tp + fn), share(tn, tn + fp)
    below = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    mcc = (tp * tn - fp * fn) / math.sqrt(below) if below else 0.0
    any_abnormal, both = tp + fn > 0, tp + fn > 0 and tn + fp > 0
    return {
        "precision": precision if any_abnormal else None,
        "recall": recall if any_abnormal else None,
        "f1": harmonic(precision, recall) if any_abnormal else None,
        "mcc": mcc if both else None,
        "balanced": (recall + specificity) / 2 if both else None,
        "accuracy": share(tp + tn, len(truths)),
        "unread": share(answers.count(None), len(truths)),
    }


def commonest(truths: list) -> object:
    """The commonest truth, with whose figures as every answer a model's are compared. Choice: the first of equals."""
    best = truths[0]
    for truth in truths:
        if truths.count(truth) > truths.count(best):
            best = truth
    return best


# Diagnosis. A label of a closed set, or None.


def diagnosis(answers: list[str | None], truths: list[str]) -> dict[str, float]:
    """Accuracy, the mean over labels of each label's F1, and the share of unreadable answers.

    Choices: the mean is over the labels that are true or answered somewhere: of another one of the closed set F1 would
    be 0 / 0. An unreadable answer is wrong: a miss of the true label and a false alarm of none.
    """
    f1s = []
    for label in {*truths, *answers} - {None}:
        hits = sum(answer == label == truth for answer, truth in zip(answers, truths, strict=True))
        f1s.append(harmonic(share(hits, answers.count(label)), share(hits, truths.count(label))))
    right = sum(answer == truth for answer, truth in zip(answers, truths, strict=True))
    return {
        "accuracy": share(right, len(truths)),
        "macro_f1": share(sum(f1s), len(f1s)),
        "unread": share(answers.count(None), len(truths)),
    }


# Questions about logs, as SQuAD scores them.


def squad_words(text: str) -> list[str]:
    """Lower case, without ASCII punctuation, without the articles a, an, the, by white space, in this order."""
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def exact_match(answer: str | None, reference: str) -> float:
    """1 if the words are the same in the same order, else 0. Choice: an unreadable answer is wrong."""
    return float(answer is not None and squad_words(answer) == squad_words(reference))


def token_f1(answer: str | None, reference: str) -> float:
    """F1 of the words in common, each as often as it stands in both. As SQuAD 2.0: where one side has no words, 1 if
    the other has none either, else 0. Choice: an unreadable answer is wrong."""
    if answer is None:
        return 0.0
    given, wanted = squad_words(answer), squad_words(reference)
    if not given or not wanted:
        return float(given == wanted)
    left, common = list(wanted), 0
    for word in given:
        if word in left:
            left.remove(word)
            common += 1
    return harmonic(common / len(given), common / len(wanted))


# Root causes, as OpenRCA scores them.


def root_cause(answer: list[dict[str, str]] | None, truth: list[dict[str, str]]) -> dict[str, float]:
    """The share of the points of a row that the answer gets, and whether it gets all.

    Each field of each true failure (`component`, `reason`, `time`) is a point. Component and reason must be the same
    text, the time (YYYY-MM-DD HH:MM:SS) at most 60 s away. The answer's failures may stand in any order: the best one
    counts. With more or fewer failures than the truth, or none readable, it gets no point. Choice: fields that are not
    asked for do not count for or against; OpenRCA's rounding to two decimals is left away.
    """
    points = sum(len(failure) for failure in truth)
    best = 0
    if answer is not None and len(answer) == len(truth):
        for order in itertools.permutations(answer):
            got = 0
            for given, wanted in zip(order, truth, strict=True):
                for field, value in wanted.items():
                    got += field in given and point(field, given[field], value)
            best = max(best, got)
    return {"score": share(best, points), "solved": float(points > 0 and best == points)}


def point(field: str, given: str, wanted: str) -> bool:
    if field != "time":
        return given == wanted
    try:
        apart = datetime.strptime(given, "%Y-%m-%d %H:%M:%S") - datetime.strptime(wanted, "%Y-%m-%d %H:%M:%S")
    except ValueError:
        return False
    return abs(apart.total_seconds()) <= 60


# Grounding: what an answer names, in the log.


def entities(text: str) -> set[str]:
    """The addresses, paths, numbers and identifiers of a text: its words of certain characters with a digit or a slash.

    Choices: a word is what stands between white space, quotes, brackets, commas, semicolons and equals signs, without
    punctuation at its end or a colon or dot at its start. It is an entity if it holds a digit, an underscore between
    letters, or is a path: a slash followed by a letter. Plain words of letters are none.
    """
    found = set()
    for word in re.split(r"[\s\"'`()\[\]{}<>,;=|]+", text):
        word = word.strip(".:!?*")
        path = re.search(r"(^|[\w.~])/[A-Za-z_.]", word)
        if any(character.isdigit() for character in word) or re.search(r"[A-Za-z]_[A-Za-z]", word) or path:
            found.add(word)
    return found


def stands_in(entity: str, text: str) -> bool:
    """Whether the entity stands in the text by itself: with no letter, digit or underscore directly beside it where
    the entity's own end is one, and not as part of a number or address with dots (1.2.3.4 does not stand in 1.2.3.45,
    nor 2.3 in 1.2.3)."""
    return re.search(rf"(?<![\w])(?<!\d\.){re.escape(entity)}(?![\w])(?!\.\d)", text) is not None


def grounding(answer: str, log: str, reference: str | None = None) -> dict[str, float | None]:
    """The share of the answer's entities that stand in the log, and of the reference's that stand in the answer.

    Choices: an entity counts once however often it is named; the share of none is None.
    """
    return grounding_of(entities(answer), log, None if reference is None else entities(reference), answer)


def grounding_of(named: set[str], log: str, wanted: set[str] | None, answer: str) -> dict[str, float | None]:
    """As `grounding`, of entities that are known."""

    def share_in(which: set[str] | None, text: str) -> float | None:
        return sum(stands_in(entity, text) for entity in which) / len(which) if which else None

    return {"grounded": share_in(named, log), "recall": share_in(wanted, answer)}


# Agreement of two people.


def kappa(one: list[str], other: list[str]) -> float | None:
    """Cohen's kappa: agreement beyond chance, by its largest possible value. None for no rows, and where both gave one
    and the same label throughout, for which the definition says 0 / 0."""
    if not one:
        return None
    count = len(one)
    agree = sum(a == b for a, b in zip(one, other, strict=True)) / count
    chance = sum(one.count(label) / count * (other.count(label) / count) for label in set(one) | set(other))
    return None if chance == 1 else (agree - chance) / (1 - chance)
