"""A model writes its own old data: documents, or questions of users with its answers.

    writer = SampleWriter(config, folder, device)
    for sample in writer.write(range(0, 1000)): ...

Documents begin as prepared ones do, with BOS, or where a tokenizer has none after the token that ends a document.
A question is drawn after the header of a user's turn up to the turn's end, then the answer after the header that the
template writes for it (Magpie: Xu et al. 2024, arXiv:2406.08464).

A draw depends on (seed, number of the sample, position) alone, so a sample does not depend on those that are written
beside it, but for rounding: products of another number of sequences may differ in the last bit, and then a token where
its number lies as near to the border of two tokens.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from logtrain.data.shards import CONTEXT
from logtrain.generation.config import ReplayConfig
from logtrain.generation.generator import Generator
from logtrain.generation.load import ModelFolder
from logtrain.generation.request import Request
from logtrain.generation.sample_teacher import SampleTeacher, as_text
from logtrain.text.chat_template import TRIAL, ChatTemplate
from logtrain.text.template_source import template_of


class Sample(NamedTuple):
    """What a model wrote, without the ids around it."""

    number: int
    """By which, with the seed, its tokens were drawn."""
    question: list[int]
    """Ids of the question; [] for a document."""
    text: list[int]
    """Ids of the document or the answer; [] where the question had no end."""
    is_ended: bool
    """Whether the model ended it, and not `max_tokens`."""
    teacher: str = ""
    """What the model expected in the place of its tokens, as `sample_teacher.as_text` gives it; "" where that is not
    asked for.
    """


@dataclass(frozen=True)
class Frame:
    """The ids around what a model writes."""

    is_chat: bool
    """Whether it writes a question and an answer, and not a document."""
    prompt: list[int]
    """What the model begins after."""
    before: list[int]
    """What stands in the data before a document or a question."""
    between: list[int]
    """What stands between question and answer."""
    after: list[int]
    """What stands behind a document or an answer that is ended; it is learned."""
    stop_ids: frozenset[int]
    """The tokens that end what the model writes."""
    end_id: int
    """The token that stands for an end in the manifest."""

    def stored(self, sample: Sample) -> np.ndarray:
        """The tokens of a sample as they are in a shard, uint32: of a chat all but the answer is context."""
        context = [*self.before, *sample.question, *self.between] if self.is_chat else []
        learned = [*([] if self.is_chat else self.before), *sample.text, *(self.after if sample.is_ended else [])]
        return np.concatenate([np.array(context, np.uint32) | np.uint32(CONTEXT), np.array(learned, np.uint32)])

    @property
    def num_tokens(self) -> int:
        """Ids around a sample."""
        return len(self.before) + len(self.between) + len(self.after)


def frame_of(config: ReplayConfig, folder: ModelFolder) -> Frame:
    """What stands around the samples of a model. Raises ValueError for a chat template that cannot be trained on or
    whose turns cannot be cut out of its ids.
    """
    has_template = config.template or any(map(template_of, {folder.tokenizer.folder, folder.path}))
    if config.kind == "chats" or (config.kind == "auto" and has_template):
        return chat_frame(folder.template, folder.stop_ids)
    bos_id, end_id = folder.tokenizer.bos_id, folder.tokenizer.document_end()
    return Frame(
        is_chat=False,
        prompt=[end_id if bos_id is None else bos_id],
        before=[] if bos_id is None else [bos_id],
        between=[],
        after=[end_id],
        stop_ids=folder.stop_ids | {end_id},
        end_id=end_id,
    )


def chat_frame(template: ChatTemplate, stop_ids: frozenset[int]) -> Frame:
    """What a chat template writes around a question and an answer. `stop_ids`: further ends of an answer. Raises
    ValueError as `frame_of`.
    """
    end_id = template.check_trainable()
    question, answer = TRIAL[0].content, TRIAL[1].content
    before, _, rest = template.render(TRIAL[:2]).partition(question)
    between, _, after = rest.partition(answer)

    def ids(text: str) -> list[int]:
        return template.tokenizer.encode_with_spans(text, spelled=True).ids

    frame = [ids(text) for text in (before, question, between, answer, after)]
    if [id for part in frame for id in part] != template.encode(TRIAL[:2])[0]:
        raise ValueError(f"{template.where}: its marks share tokens with the turns between them; give another template")
    return Frame(
        is_chat=True,
        prompt=frame[0],
        before=frame[0],
        between=frame[2],
        after=frame[4],
        stop_ids=stop_ids | template.ends,
        end_id=end_id,
    )


class SampleWriter:
    """A model that writes samples on one device."""

    def __init__(self, config: ReplayConfig, folder: ModelFolder, frame: Frame, device: torch.device):
        """Reads the weights. Raises ValueError where they, or the cache, do not fit, or no sample can be as long as
        asked for.
        """
        self.sampling, self.max_tokens, self.frame = config.sampling, config.max_tokens, frame
        self.room = min(config.seq_len, folder.shape.max_positions) - frame.num_tokens - 1
        if self.room <= config.min_tokens * (1 + frame.is_chat):
            raise ValueError(
                f"seq_len = {config.seq_len}: leaves {max(0, self.room)} tokens beside the {frame.num_tokens} around "
                f"a sample, fewer than min_tokens = {config.min_tokens}; raise seq_len"
            )
        loaded = folder.load(device, config.max_sequences)
        self.generator = loaded.generator(config.memory, stop_ids=frame.stop_ids)
        top_k = config.teacher_top_k
        self.teacher = SampleTeacher(loaded.model, top_k, folder.tokenizer.vocab_size) if top_k else None

    def write(self, numbers: Iterable[int]) -> Iterator[Sample]:
        """The samples of these numbers, in the order in which they are completed."""
        generator, upcoming = self.generator, iter(numbers)
        under_way: dict[int, tuple[int, list[int] | None]] = {}  # request -> (number, its question or None)
        while True:
            while len(generator.scheduler.waiting) < generator.scheduler.max_sequences:
                if (number := next(upcoming, None)) is None:
                    break
                under_way[self.ask(generator, self.frame.prompt, 2 * number)] = number, None
            if generator.scheduler.is_idle:
                return
            for event in generator.step():
                if event.answer is None:
                    continue
                number, question = under_way.pop(event.request_id)
                ids, is_ended = event.answer.ids, event.answer.finish_reason == "stop"
                if not self.frame.is_chat:
                    yield self.taught(Sample(number, [], ids, is_ended))
                elif question is not None:
                    yield self.taught(Sample(number, question, ids, is_ended))
                elif is_ended and ids and len(ids) < self.room:
                    prompt = [*self.frame.prompt, *ids, *self.frame.between]
                    under_way[self.ask(generator, prompt, 2 * number + 1, len(ids))] = number, ids
                else:
                    yield Sample(number, ids, [], is_ended=False)

    def taught(self, sample: Sample) -> Sample:
        """The sample with what the model expected, if that is asked for."""
        if self.teacher is None:
            return sample
        stored_N = self.frame.stored(sample)
        return sample._replace(teacher=as_text(self.teacher.records(stored_N), stored_N))

    def ask(self, generator: Generator, prompt: Sequence[int], number: int, taken: int = 0) -> int:
        """Submit a request; `taken`: tokens of the room that the question has -> the request's id."""
        most = min(self.max_tokens, self.room - taken)
        return generator.submit(Request(prompt=prompt, max_new_tokens=most, sampling=self.sampling, number=number))
