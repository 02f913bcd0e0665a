"""Answers are the same whatever is drafted, and come in fewer steps where drafts are right."""

import random

import pytest

from logtrain.generation.config import SamplingConfig
from logtrain.generation.load import LoadedModel, ModelFolder
from logtrain.generation.lookup import Lookup
from logtrain.generation.request import Request
from tests.support.generation import CPU, NEW, answers, ids_of, new_generator
from tests.support.synthetic import write_model

REQUESTS = {
    "greedy": {},
    "drawn": {"sampling": SamplingConfig(temperature=0.7, top_p=0.9)},
    "penalties": {"sampling": SamplingConfig(repetition_penalty=1.3, frequency_penalty=0.2)},
    "log-probabilities": {"logprobs": 3, "prompt_logprobs": True},
    "one token": {"max_new_tokens": 1},
    "two tokens": {"max_new_tokens": 2},
}


@pytest.fixture(scope="module")
def repeating(tmp_path_factory) -> LoadedModel:
    """A model that soon says the same over and over."""
    return ModelFolder(write_model(tmp_path_factory.mktemp("repeating"))).load(CPU)


def test_the_longest_run_that_stood_before_says_what_follows():
    lookup, ids = Lookup(), [7, 1, 2, 3, 4, 5, 6, 7, 8, 9, 7, 3, 4, 6, 20, 3, 4]
    assert lookup.drafts(ids, 9) == [6, 20], "after 3 4, where it last stood, two tokens"
    assert lookup.drafts(ids := [*ids, 21, 9, 1, 2, 3, 4], 9) == [5, 6, 7, 8], "after 1 2 3 4, four tokens"
    assert lookup.drafts(ids, 3) == [5, 6, 7]
    assert lookup.drafts(ids, 0) == []
    assert lookup.drafts([*ids, 9], 9) == [], "4 9 is new"
    assert lookup.drafts([*ids, 9, 1], 9) == [2, 3], "after 9 1"
    assert Lookup().drafts([5], 3) == Lookup().drafts([], 3) == []
    assert Lookup().drafts([5, 5, 5], 3) == [5, 5], "what repeats itself goes on doing so"
    eight = list(range(8))
    assert Lookup().drafts([*eight, 9, *eight], 99) == [9, *eight, 9, 0], "after eight tokens, eleven"


@pytest.mark.parametrize("changes", REQUESTS.values(), ids=REQUESTS)
@pytest.mark.parametrize("max_sequences", [1, 2])
def test_answers_are_those_without_drafts(loaded, repeating, prompts, changes, max_sequences):
    for model in (loaded, repeating):
        plain, drafting = (new_generator(model, max_sequences=max_sequences, drafting=on) for on in (False, True))
        for prompt in prompts:
            (found, logprobs), (expected, exact) = (told(one, prompt, changes) for one in (drafting, plain))
            assert found == expected
            assert logprobs == pytest.approx(exact, abs=1e-4)


def told(generator, prompt: list[int], changes: dict) -> tuple[tuple, list[float]]:
    """All that the events of a request say, and the log-probabilities."""
    generator.submit(Request(**{"prompt": prompt, "max_new_tokens": NEW, **changes}))
    texts, tops, logprobs, answer = [], [], [], None
    while not generator.scheduler.is_idle:
        for event in generator.step():
            texts.append(event.text)
            found = [*(event.prompt_logprobs or ()), *([event.logprob] if event.logprob else ())]
            tops += [(one.id, [id for id, _ in one.top]) for one in found]
            logprobs += [one.logprob for one in found]
            answer = event.answer
    return (texts, tops, answer), logprobs


def test_right_drafts_save_steps(repeating, prompts):
    steps = {}
    for drafting in (False, True):
        generator = new_generator(repeating, max_sequences=1, drafting=drafting)
        taken, next_logits = [], generator.cached.next_logits
        generator.cached.next_logits = lambda chunks, into=taken, call=next_logits: into.append(chunks) or call(chunks)
        ids_of(generator, prompts[:1], max_new_tokens=200)
        steps[drafting] = len(taken)
        assert max(len(chunk.tokens) for (chunk,) in taken[1:]) == (12 if drafting else 1)
    assert steps[False] == 200
    assert steps[True] < 100


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9, 1.0], ids="{:.0%} right".format)
def test_wrong_drafts_change_nothing(loaded, prompts, monkeypatch, share):
    """Drafts of which so many are right, up to the last token of the answer and beyond."""
    expected = ids_of(new_generator(loaded, drafting=False), prompts)
    truth = {tuple(prompt): [*prompt, *answer] for prompt, answer in zip(prompts, expected, strict=True)}
    draw = random.Random(7)

    def drafts(_: Lookup, ids: list[int], most: int) -> list[int]:
        whole = next(whole for prompt, whole in truth.items() if tuple(ids[: len(prompt)]) == prompt)
        right = [*whole, *[3] * most][len(ids) : len(ids) + most]
        return [id if draw.random() < share else draw.randrange(320) for id in right]

    monkeypatch.setattr(Lookup, "drafts", drafts)
    for max_sequences in (1, 2, 8):
        generator = new_generator(loaded, max_sequences=max_sequences, keep_prefixes=True)
        assert ids_of(generator, prompts) == expected
        longer = [[*truth[tuple(prompt)], 5] for prompt in prompts[:2]]
        again = answers(generator, longer)
        assert [answer.ids for answer in again] == ids_of(new_generator(loaded, drafting=False), longer)
        if max_sequences == 8:
            assert again[0].reused == len(prompts[0]) + NEW - 1, "what was drafted and wrong is not kept"
