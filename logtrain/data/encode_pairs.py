"""Pairs of answers -> tokens: of a prompt with two answers two documents, the one with the chosen answer first.

Only the answers are targets. A pair stays whole: one that is longer than a row, both documents together, is left out
and counted, for a row holds both.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from logtrain.data.encode import DROPPED, TOO_LONG, WHOLE
from logtrain.data.encode_chat import ChatEncoder, Sample
from logtrain.text.chat_template import ChatTemplate, Turn


@dataclass(frozen=True)
class PairEncoder(ChatEncoder):
    """An item is the turns of a prompt, then the chosen and the rejected answer."""

    def samples_of(self, turns: Sequence[Turn], template: ChatTemplate) -> tuple[tuple[int, int, int], list[Sample]]:
        """Both documents, or none where they do not fit into a row. Raises ValueError for answers that are the same."""
        *prompt, chosen, rejected = turns
        samples = [Sample(*template.encode([*prompt, answer], "last")) for answer in (chosen, rejected)]
        if samples[0].ids == samples[1].ids:
            raise ValueError("chosen and rejected are the same once the chat template has written them")
        length, targets = (sum(counts) for counts in zip(*((len(s.ids), s.num_targets) for s in samples), strict=True))
        if length <= self.seq_len:
            return (WHOLE, length, targets), samples
        return (TOO_LONG if self.too_long == "error" else DROPPED, length, targets), []
