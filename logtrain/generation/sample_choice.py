"""Which of the samples that a model wrote are kept: in the order of their numbers, until there are tokens enough. So
the choice depends neither on the number of ranks nor on when each sample was completed.

What is left out, by reason:

    unfinished question   a question without an end, or without a word
    too short             a document or an answer of fewer than `min_tokens`
    special token         one that stands where no text has it
    repeats               more than `max_repeated` of its runs of RUN tokens stood in it before: loops, which small
                          models fall into (Holtzman et al. 2019, arXiv:1904.09751)
    duplicate             the same text, or question, as one before, but for numbers, names and times (text/masked.py)
"""

from collections import Counter
from collections.abc import Mapping

import numpy as np

from logtrain.data.twins import Twins
from logtrain.generation.config import ReplayConfig
from logtrain.generation.sample_teacher import from_text
from logtrain.generation.self_replay import Frame, Sample
from logtrain.text.tokenizer import Tokenizer

RUN = 8
HOPELESS = 200  # samples after which there must be a kept one among 50
KEY = b"replay"  # of hashes that are compared with each other alone


class SampleChoice:
    """The choice so far. kept: the stored tokens of each kept sample, by its number. teachers: what the model expected
    of each, with `teacher_top_k`. num_seen: samples that it has decided on. dropped: the others, by reason.
    """

    def __init__(self, config: ReplayConfig, frame: Frame, tokenizer: Tokenizer):
        self.config, self.frame, self.tokenizer = config, frame, tokenizer
        self.special = frozenset(tokenizer.special_tokens().values())
        self.kept: dict[int, np.ndarray] = {}
        self.teachers: dict[int, np.ndarray] = {}
        self.dropped: Counter[str] = Counter()
        self.num_seen = self.num_tokens = 0
        self.seen: set[int] = set()  # hashes of masked texts

    @property
    def is_complete(self) -> bool:
        """Whether there are tokens enough."""
        return self.num_tokens >= self.config.num_tokens

    def extend(self, samples: Mapping[int, Sample]) -> None:
        """Decide on the samples from the next number on, as far as they are there without a gap. Raises ValueError
        where next to none of many can be kept.
        """
        while not self.is_complete and (sample := samples.get(self.num_seen)):
            self.num_seen += 1
            if reason := self.reason(sample):
                self.dropped[reason] += 1
            else:
                stored_N = self.kept[sample.number] = self.frame.stored(sample)
                self.num_tokens += len(stored_N)
                if top_k := self.config.teacher_top_k:
                    self.teachers[sample.number] = from_text(sample.teacher, stored_N, top_k)
            if self.num_seen >= HOPELESS and len(self.kept) * 50 < self.num_seen:
                change = "raise" if self.dropped["duplicate"] * 2 > self.num_seen else "lower"
                raise ValueError(
                    f"of {self.num_seen:,} samples {len(self.kept)} can be kept ({self.told()}); {change} "
                    f"sampling.temperature or sampling.top_p, or look whether the model is whole"
                )

    def reason(self, sample: Sample) -> str:
        """Why a sample is left out, "" if it is kept."""
        if self.frame.is_chat and (not sample.text or not self.tokenizer.decode(sample.question).strip()):
            return "unfinished question"
        if len(sample.text) < self.config.min_tokens or not self.tokenizer.decode(sample.text).strip():
            return "too short"
        if self.special.intersection(sample.question + sample.text):
            return "special token"
        if repeated_share(sample.text) > self.config.max_repeated:
            return "repeats"
        twin = int(Twins.of([self.tokenizer.decode(sample.question or sample.text)], KEY).hashes_I[0])
        if twin in self.seen:
            return "duplicate"
        self.seen.add(twin)
        return ""

    def next_end(self, num_ranks: int) -> int:
        """The number before which samples should be drawn next: as many as the tokens that are missing may take, by
        those so far, and a few for every rank.
        """
        per_sample = self.num_tokens / self.num_seen if self.num_tokens else self.config.max_tokens
        missing = self.config.num_tokens - self.num_tokens
        return self.num_seen + int(1.05 * missing / per_sample) + 4 * num_ranks

    def told(self) -> str:
        """The samples that are left out, in words."""
        return ", ".join(f"{reason} {count:,}" for reason, count in self.dropped.most_common()) or "none left out"


def repeated_share(ids: list[int]) -> float:
    """The share of the runs of RUN tokens in a sample that stood in it before; 0 where it has but one."""
    if len(ids) <= RUN:
        return 0.0
    runs = np.lib.stride_tricks.sliding_window_view(np.array(ids, np.uint32), RUN)
    return 1 - len(np.unique(runs, axis=0)) / len(runs)
