"""What a request changes in its logits, and the log-probabilities that it is told: by transformers' model."""

import math

import pytest
import torch

from logtrain.generation.config import SamplingConfig
from logtrain.generation.logits import LogitChanges
from logtrain.generation.request import Request
from tests.support.generation import CPU, answers, ids_of, new_generator
from tests.support.llama import load_transformers


@pytest.fixture(scope="module")
def theirs(folder):
    return load_transformers(folder)


def logprobs_by_transformers(theirs, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return theirs(torch.tensor([ids])).logits[0].log_softmax(-1)


@pytest.mark.parametrize("step_tokens", [4096, 64])  # 64: prompts are read in pieces
def test_logprobs_of_answers_and_prompts_are_those_of_the_model(loaded, theirs, prompts, step_tokens):
    generator = new_generator(loaded, step_tokens=step_tokens, max_sequences=8, keep_prefixes=True)
    for again in (False, True):  # what the cache has of a prompt gives no log-probabilities of it
        request_ids = {}
        for i, prompt in enumerate(prompts):
            request = Request(prompt=prompt, max_new_tokens=6, logprobs=i % 3, prompt_logprobs=i != 1)
            request_ids[generator.submit(request)] = i
        of_answer, of_prompt = [[] for _ in prompts], [None for _ in prompts]
        while not generator.scheduler.is_idle:
            for event in generator.step():
                i = request_ids[event.request_id]
                of_answer[i].append(event.logprob)
                of_prompt[i] = of_prompt[i] or event.prompt_logprobs
        for i, prompt in enumerate(prompts):
            told = [*(of_prompt[i] or []), *of_answer[i]]
            ids = [*prompt, *(logprob.id for logprob in of_answer[i])]
            start = 0 if i != 1 and len(prompt) > 1 else len(prompt) - 1
            assert [logprob.id for logprob in told] == ids[start + 1 :], (i, again)
            expected = logprobs_by_transformers(theirs, ids)[start:-1]
            for place, logprob in zip(expected, told, strict=True):
                assert logprob.logprob == pytest.approx(place[logprob.id].item(), abs=1e-4)
                values, best = place.topk(i % 3)
                assert [id for id, _ in logprob.top] == best.tolist()
                assert [value for _, value in logprob.top] == pytest.approx(values.tolist(), abs=1e-4)


def test_logprobs_are_those_before_penalties_and_temperature(loaded, theirs, prompts):
    sampling = SamplingConfig(temperature=3.0, repetition_penalty=1.5, frequency_penalty=1.0, seed=3)
    generator = new_generator(loaded)
    generator.submit(Request(prompt=prompts[0], max_new_tokens=5, sampling=sampling, logprobs=0, logit_bias={7: 2.0}))
    told = [event.logprob for _ in range(5) for event in generator.step()]
    ids = [*prompts[0], *(logprob.id for logprob in told)]
    expected = logprobs_by_transformers(theirs, ids)[len(prompts[0]) - 1 : -1]
    assert [t.logprob for t in told] == pytest.approx(
        [row[t.id].item() for row, t in zip(expected, told, strict=True)], abs=1e-4
    )


def test_penalties_count_the_answer_alone():
    request = Request(prompt=[1, 2], sampling=SamplingConfig(presence_penalty=0.5, frequency_penalty=0.25))
    changes = LogitChanges(request, [1, 2], 6, CPU)
    logits = torch.arange(6.0)
    changes.apply(logits, 9)
    assert logits.tolist() == [0, 1, 2, 3, 4, 5]
    for id in (4, 4, 0):
        changes.add(id)
    changes.apply(logits, 9)
    assert logits.tolist() == [-0.75, 1, 2, 3, 3.0, 5]


def test_a_bias_is_added_and_decides(loaded, prompts):
    (free,) = ids_of(new_generator(loaded), prompts[:1])
    (banned,) = ids_of(new_generator(loaded), prompts[:1], logit_bias={free[0]: -100.0})
    assert free[0] not in banned
    (forced,) = ids_of(new_generator(loaded), prompts[:1], logit_bias={5: 1e4})
    assert set(forced) == {5}
    with pytest.raises(ValueError, match="token id 999: the model has 320"):
        new_generator(loaded).submit(Request(prompt=[1], logit_bias={999: 1.0}))


@pytest.mark.parametrize("min_p", [0.0, 0.2, 1.0])
def test_min_p_is_that_of_transformers(min_p):
    from transformers import MinPLogitsWarper

    from logtrain.generation.sampling import distribution

    scores = torch.randn(4, 50, generator=torch.Generator().manual_seed(0)) * 3
    ours = distribution(scores, [SamplingConfig(temperature=1.0, min_p=min_p)] * 4)
    theirs = MinPLogitsWarper(min_p)(None, scores).softmax(-1) if min_p else scores.softmax(-1)
    torch.testing.assert_close(ours, theirs)


def test_stop_ids_of_a_request_end_it_alone(loaded, prompts):
    free = ids_of(new_generator(loaded), prompts[:2])
    generator = new_generator(loaded)
    first = generator.submit(Request(prompt=prompts[0], max_new_tokens=24, stop_ids=frozenset({free[0][3]})))
    generator.submit(Request(prompt=prompts[1], max_new_tokens=24))
    found = {}
    while not generator.scheduler.is_idle:
        found |= {event.request_id: event.answer for event in generator.step() if event.answer}
    assert found[first].ids == free[0][: free[0].index(free[0][3])] and found[first].finish_reason == "stop"
    assert found[first + 1].ids == free[1]


def test_perplexity_of_an_answer_is_what_its_logprobs_say(loaded, prompts):
    (answer,) = answers(new_generator(loaded), prompts[3:4])
    generator = new_generator(loaded)
    generator.submit(Request(prompt=[*prompts[3], *answer.ids], max_new_tokens=1, logprobs=1, prompt_logprobs=True))
    (event,) = generator.step()
    greedy = event.prompt_logprobs[len(prompts[3]) - 1 :]
    assert all(logprob.top[0] == (logprob.id, logprob.logprob) for logprob in greedy)
    assert math.fsum(logprob.logprob for logprob in greedy) < 0
