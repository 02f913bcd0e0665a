"""Scores of log parsing: lines -> their templates, in which <*> stands for whatever varies.

    tally([Parsed(true, predicted), ...])    what each true template contributes to these figures

    pa      parsing accuracy: share of the lines whose template is the true one, to the letter (Dai et al. 2020)
    ga      grouping accuracy: share of the lines whose predicted group (all lines of one predicted template) is the
            group of all lines of their true template (Zhu et al. 2019)
    fga     F1 of groups: 2 C / (P + G), with P predicted groups, G true ones, C that are both (Jiang et al. 2024)
    fta     F1 of templates: the same, where a predicted group is correct if all its lines have one true template and it
            has its text (Khan et al. 2022, Jiang et al. 2024)
    edit    normalised edit distance: mean over lines of Levenshtein's distance over the longer text's length; less is
            better

<*><*> is <*>, as often as it stands there, in true and predicted templates; of outer white space nothing is compared.
A line whose answer could not be read is wrong in each of these and at a distance of 1; all of these lines together are
one predicted group, as they would be had they been parsed as "".

Groups are those of one scope, which is a system. To the intervals a true template with all its lines is a cluster; a
predicted group counts in the one most of its lines are of, the first of equals.

Zhu et al. 2019, "Tools and benchmarks for automated log parsing"; Dai et al. 2020, "Logram"; Khan et al. 2022,
"Guidelines for assessing the accuracy of log message template identification techniques"; Jiang et al. 2024, "A
large-scale evaluation for log parsing techniques: how far are we?"

Legend: G true templates; 8 counts of each: lines, right ones, ones in right groups, summed distance, unread ones, true
and predicted groups, those that are both, predicted groups that are correct templates.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from rapidfuzz.distance import Levenshtein

from logtrain.evaluation.clusters import Tally, ratio

METRICS = {
    "parsing_pa": "Parsing PA",
    "parsing_ga": "Parsing GA",
    "parsing_fga": "Parsing FGA",
    "parsing_fta": "Parsing FTA",
    "parsing_edit": "Parsing edit distance",
    "parsing_unread": "Parsing, unread",
}
"""Titles of the figures, by their names."""
ADJACENT = re.compile(r"<\*>(?:<\*>)+")


class Parsed(NamedTuple):
    """A line's template, and what was said that it is."""

    true: str
    """The true template."""
    predicted: str | None
    """The predicted one; None where the answer could not be read."""
    scope: str = ""
    """The system of the line."""


def collapsed(template: str) -> str:
    """A template with each run of adjacent <*> as one, and without outer white space."""
    return ADJACENT.sub("<*>", template).strip()


def edit_distance(predicted: str, true: str) -> float:
    """Levenshtein's distance over the length of the longer text, 0 for two empty ones."""
    return Levenshtein.normalized_distance(predicted, true)


def tally(lines: Sequence[Parsed]) -> Tally:
    """The counts of each true template, in the order of their first lines."""
    trues = [(line.scope, collapsed(line.true)) for line in lines]
    said = [None if line.predicted is None else collapsed(line.predicted) for line in lines]
    groups: defaultdict[tuple[str, str | None], list[int]] = defaultdict(list)
    for i, line in enumerate(lines):
        groups[line.scope, said[i]].append(i)
    number = {true: g for g, true in enumerate(dict.fromkeys(trues))}
    sizes = Counter(trues)

    counts_GK = np.zeros((len(number), 8))
    counts_GK[:, 5] = 1
    for true, predicted in zip(trues, said, strict=True):
        distance = 1.0 if predicted is None else edit_distance(predicted, true[1])
        counts_GK[number[true], [0, 1, 3, 4]] += [1, predicted == true[1], distance, predicted is None]
    for (_, predicted), members in groups.items():
        (true, most), *others = Counter(trues[i] for i in members).most_common()
        is_pure = not others and predicted is not None
        is_group = is_pure and most == sizes[true]
        counts_GK[number[true], [2, 5, 6, 7]] += [most * is_group, 1, is_group, is_pure and predicted == true[1]]
    return Tally(counts_GK, figures, ("parsing_pa", "parsing_ga", "parsing_unread"))


def figures(sums: np.ndarray) -> Mapping[str, np.ndarray]:
    """The figures of sums of counts, float64 [..., 8]."""
    lines, right, grouped, distance, unread, groups, same_groups, same_templates = np.moveaxis(sums, -1, 0)
    return {
        "parsing_pa": ratio(right, lines),
        "parsing_ga": ratio(grouped, lines),
        "parsing_fga": ratio(2 * same_groups, groups),
        "parsing_fta": ratio(2 * same_templates, groups),
        "parsing_edit": ratio(distance, lines),
        "parsing_unread": ratio(unread, lines),
    }
