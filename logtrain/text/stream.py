"""Ids -> text, token by token, for someone who reads along.

What is given out is never taken back: half a character waits for its other bytes, and text that may turn out to begin a
stop string waits until that is decided.
"""

from collections.abc import Sequence

from logtrain.text.token_bytes import REPLACEMENT
from logtrain.text.tokenizer import Tokenizer


class TextStream:
    """The text of one answer, as its ids come.

    ids: all that were added. text: all that has been given out. stopped: whether a stop string came, which is no part
    of the text.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()):
        self.tokenizer, self.stop = tokenizer, tuple(stop)
        self.ids: list[int] = []
        self.text, self.stopped = "", False
        self._held = ""
        self._start = self._read = 0  # ids before `read` are text already; those from `start` decide how more decodes

    def add(self, id: int) -> str:
        """Returns the text that one more token completes, "" while it waits."""
        self.ids.append(id)
        return self._give(self._decode(final=False), final=False)

    def end(self) -> str:
        """Returns the text that was still waiting; no token follows."""
        return self._give(self._decode(final=True), final=True)

    def _decode(self, final: bool) -> str:
        """Returns the text of the ids that are none yet, decoded from a few ids back: a tokenizer may write a word
        otherwise at the start than after another.
        """
        before = self.tokenizer.decode(self.ids[self._start : self._read])
        after = self.tokenizer.decode(self.ids[self._start :])
        if after.endswith(REPLACEMENT) and not final:
            return ""
        if len(after) > len(before):  # not after a special token, which is no text
            self._start = self._read
        self._read = len(self.ids)
        return after[len(before) :]

    def _give(self, text: str, final: bool) -> str:
        """Returns the part of what waited and of `text` that no stop string can begin in; the rest waits."""
        if self.stopped:
            return ""
        text = self._held + text
        # The one complete first, as when the text is read character by character: whatever a token brings at once.
        found = min(((at + len(stop), at) for stop in self.stop if (at := text.find(stop)) >= 0), default=None)
        self.stopped = found is not None
        ready = found[1] if found else len(text) if final else len(text) - self._may_be_stop(text)
        given, self._held = text[:ready], text[ready:]
        self.text += given
        return given

    def _may_be_stop(self, text: str) -> int:
        """Returns how many characters at the end of the text may begin a stop string."""
        longest = max(map(len, self.stop), default=1) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self.stop):
                return length
        return 0
