"""Guesses how an answer goes on by what stood before in prompt and answer (prompt lookup): answers about logs repeat
the words of the log, and their own.

Guessed tokens are put through the model in one step with the last token. After each of them the next token is chosen
from the logits, by the same draw as without guesses. A guess that is the chosen token saves its step; what follows one
that is not is thrown away. So no guess changes an answer, as far as the last bits of a step of more tokens allow it.

Shapes in names: T tokens.
"""

from collections.abc import Sequence
from itertools import cycle, islice

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

FREE_TOKENS = 6
"""Tokens of a step that a CPU computes while it reads the matrices: 6 of SmolLM2-135M take 1.03 times as long as one
(one thread), 8 take 1.2 times."""
LOOKED_FOR = (2, 1)
"""How many of the last tokens are looked for: first two, then one. Of reference answers about logs, a step gets 1.30
tokens with both and 1.19 with three and two."""


def guess(ids: Sequence[int], most: int) -> list[int]:
    """Up to `most` token ids: those that followed the last ones of `ids` where these stood the last time before. If
    that is less than `most` tokens ago, they are taken over and over. [] if they never stood before.
    """
    ids_T = np.array(ids, dtype=np.int32)
    for number in LOOKED_FOR if most > 0 else ():
        if len(ids_T) > number:
            is_there_T = (sliding_window_view(ids_T[:-1], number) == ids_T[-number:]).all(1)
            if len(places := is_there_T.nonzero()[0]):
                after = int(places[-1]) + number
                return list(islice(cycle(ids_T[after : after + most].tolist()), most))
    return []
