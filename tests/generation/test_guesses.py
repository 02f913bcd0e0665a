"""Guesses change no answer, save steps, and are made only where they take next to no time."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logtrain.generation.config import SamplingConfig
from logtrain.generation.generator import Generator
from logtrain.generation.guesses import FREE_TOKENS, LOOKED_FOR, guess
from logtrain.generation.load import ModelFolder
from logtrain.generation.request import Event, Request
from logtrain.text.chat_template import ChatTemplate, Turn
from tests.support.generation import CPU, generator_without_model, ids_of, new_generator


@given(st.lists(st.integers(1, 3), min_size=1, max_size=40), st.integers(0, 9))
def test_what_followed_the_last_tokens_where_they_last_stood(ids, most):
    expected = []
    for number in LOOKED_FOR:
        places = [at for at in range(number, len(ids)) if ids[at - number : at] == ids[-number:]]
        if places and most:
            expected = list(ids)
            for _ in range(most):  # what stands so many tokens before
                expected.append(expected[places[-1] - len(ids)])
            expected = expected[len(ids) :]
            break
    assert guess(ids, most) == expected


SAMPLINGS = [
    SamplingConfig(),
    SamplingConfig(temperature=0.2),
    SamplingConfig(temperature=1.0, top_k=3, repetition_penalty=0.8),
    SamplingConfig(presence_penalty=-0.5, frequency_penalty=0.2),
]


def told(generator: Generator, prompts: list[list[int]], sampling: SamplingConfig) -> tuple[list[list[Event]], int]:
    """The events of each request, and how many steps there were. At first the prompts are asked; then each is, with
    what stood in the cache after its answer, twice over.
    """
    found, steps = [], 0
    for asked in (prompts, [2 * prompt for prompt in prompts]):
        ids = {}
        for i, prompt in enumerate(asked):
            request = Request(
                prompt=prompt, max_new_tokens=60, number=i, sampling=sampling, logprobs=1, stop=("w5 w6",)
            )
            ids[generator.submit(request)] = len(found)
            found.append([])
        while not generator.scheduler.is_idle:
            for event in generator.step():
                found[ids[event.request_id]].append(event)
            steps += 1
    return found, steps


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=range(len(SAMPLINGS)))
@pytest.mark.parametrize("at_once", [1, 3])
def test_answers_log_probabilities_and_later_questions_are_as_without(loaded, prompts, sampling, at_once):
    options = {"max_sequences": at_once, "keep_prefixes": True}
    (found, steps), (expected, plain_steps) = (
        told(new_generator(loaded, loaded.folder.stop_ids, guesses=guesses, **options), prompts, sampling)
        for guesses in (True, False)
    )
    for events, plain in zip(found, expected, strict=True):
        assert [event._replace(logprob=None) for event in events] == [event._replace(logprob=None) for event in plain]
        for one, other in zip(events, plain, strict=True):
            assert (one.logprob is None) == (other.logprob is None)
            assert one.logprob is None or one.logprob.logprob == pytest.approx(other.logprob.logprob, abs=1e-3)
    if not sampling.temperature:
        assert steps < plain_steps, "guesses that save nothing prove nothing"


@pytest.mark.slow(60)
def test_smollm2_answers_real_questions_as_without_in_fewer_steps(smollm2, shared):
    rows = json.loads((shared / "data" / "loglm" / "loglm_instruction_2632.json").read_text(encoding="utf-8"))[
        3:2000:500
    ]
    loaded = ModelFolder(smollm2).load(CPU)
    template = ChatTemplate.load(loaded.folder.tokenizer)
    prompts = [template.prompt([Turn("user", f"{row['instruction']}\n{row['input']}")]) for row in rows]
    found = []
    for guesses in (True, False):
        generator, steps = new_generator(loaded, loaded.folder.stop_ids, max_sequences=1, guesses=guesses), []
        next_logits = generator.cached.next_logits
        generator.cached.next_logits = lambda chunks, steps=steps, of=next_logits: steps.append(1) or of(chunks)
        found.append((ids_of(generator, prompts, max_new_tokens=60), len(steps)))
    (answers, steps), (expected, plain_steps) = found
    assert answers == expected
    assert steps < 0.8 * plain_steps, (steps, plain_steps)


def test_so_many_guesses_as_are_free_and_none_beside_many_requests_or_a_prompt(loaded):
    for requests, expected in ((1, FREE_TOKENS), (2, FREE_TOKENS // 2), (3, 2), (4, 1), (8, 1)):
        generator, model = generator_without_model(loaded, 1000, max_sequences=8, step_tokens=64)
        for _ in range(requests):
            generator.submit(Request(prompt=[3, 2, 2, 2, 2], max_new_tokens=33))
        while not generator.scheduler.is_idle:
            generator.step()
        assert {count for _, _, count in model.steps[1]} == {expected}, requests
        assert len(model.steps) == 1 + -(-32 // expected)
    generator, model = generator_without_model(loaded, 1000, max_sequences=2, step_tokens=8)
    generator.submit(Request(prompt=[2, 2, 2], max_new_tokens=50))
    generator.submit(Request(prompt=[3] * 20, max_new_tokens=2))
    for _ in range(3):
        generator.step()
    assert [step[0][2] for step in model.steps] == [3, 1, 1], "a prompt is being read"
