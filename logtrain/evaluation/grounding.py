"""Whether what an answer names stands in the log, without a judge: by its addresses, paths, numbers, identifiers and
references to lines, as text/entities.py finds them.

    grounded    share of the answer's entities that the question, which holds the log, has; None where it names none
    recalled    share of the reference's entities that the answer names; None where the reference names none

Equal ones count once, and are grounded if each mention is. An answer that names nothing invents nothing: `recalled`
says what it left out, and neither says whether the sentence around a right address is true.
"""

from collections.abc import Iterable, Sequence

from logtrain.evaluation.scoring import Scores
from logtrain.text.chat_template import Turn
from logtrain.text.entities import Entity, check

METRICS = {"grounded": "Grounded", "recalled": "Recalled"}
"""Titles of the scores, by their names."""


def scores(answer: str, turns: Sequence[Turn], reference: str) -> Scores:
    """The scores of one answer. `turns`: the question."""
    log = "\n".join(turn.content for turn in turns)
    return {
        "grounded": share_known(check(answer, log)),
        "recalled": share_known(named_by(answer, entity) for entity in check(reference, answer)),
    }


def share_known(entities: Iterable[Entity]) -> float | None:
    """The share of different entities that are known; None where there are none."""
    known: dict[tuple[str, str], bool] = {}
    for entity in entities:
        key = entity.kind, entity.text.lower()
        known[key] = known.get(key, True) and entity.known
    return sum(known.values()) / len(known) if known else None


def named_by(answer: str, entity: Entity) -> Entity:
    """An entity of the reference; one that names a line is known if the answer names it, too."""
    return entity if entity.kind != "line" else entity._replace(known=entity.text.lower() in answer.lower())
