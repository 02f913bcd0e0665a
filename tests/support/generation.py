"""Generators of small models, the answers they give, and those that transformers gives."""

from collections.abc import Iterable

import torch

from logtrain.generation.generator import Generator
from logtrain.generation.kv_cache import Chunk
from logtrain.generation.load import LoadedModel
from logtrain.generation.request import Answer, Request
from logtrain.generation.scheduler import Scheduler

CPU = torch.device("cpu")
LENGTHS = (37, 5, 1, 64, 12, 90, 2, 41)  # of prompts
NEW = 24  # tokens of an answer


def new_generator(loaded: LoadedModel, stop_ids: Iterable[int] = (), **options) -> Generator:
    """A generator of the bare model, which knows no chat template."""
    return Generator(loaded.model, loaded.folder.tokenizer, stop_ids, **options)


def answers(generator: Generator, prompts: list[list[int]], **changes) -> list[Answer]:
    """The answer to each prompt; `changes`: fields of the requests."""
    requests = [
        Request(**{"prompt": prompt, "max_new_tokens": NEW, "number": i, **changes}) for i, prompt in enumerate(prompts)
    ]
    return [answer for _, answer in sorted(generator.run(requests))]


def ids_of(generator: Generator, prompts: list[list[int]], **changes) -> list[list[int]]:
    """Token ids of the answer to each prompt."""
    return [answer.ids for answer in answers(generator, prompts, **changes)]


def transformers_answer(model, prompt: list[int], new: int, **options) -> list[int]:
    """Token ids that transformers' `generate` gives greedily."""
    ids = torch.tensor([prompt])
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False, pad_token_id=0, **options
    )
    return out[0, len(prompt) :].tolist()


class NoModel:
    """Stands in for a model of which only the bookkeeping matters; every answer is token 2 over and over."""

    def __init__(self):
        self.steps: list[list[tuple[int, int, int]]] = []

    def next_logits(self, chunks: list[Chunk]) -> torch.Tensor:
        self.steps.append([(chunk.first_slot, chunk.num_cached, len(chunk.tokens)) for chunk in chunks])
        return torch.nn.functional.one_hot(torch.full((len(chunks),), 2), 320).float()

    def copy(self, source: int, target: int, length: int) -> None:
        pass


def generator_without_model(
    loaded: LoadedModel, num_slots: int, *, max_sequences: int, step_tokens: int, keep_prefixes: bool = False
) -> tuple[Generator, NoModel]:
    """A generator whose steps compute nothing, with a cache of so many slots; `loaded` has its tokenizer."""
    generator, model = new_generator(loaded, max_sequences=max_sequences, step_tokens=step_tokens), NoModel()
    generator.cached, generator.scheduler = model, Scheduler(num_slots, max_sequences, step_tokens, keep_prefixes)
    return generator, model
