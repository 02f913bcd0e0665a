"""Every request is answered, none lies where another does, and what was read before is not read again."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from logtrain.generation.kv_cache import slot_bytes
from logtrain.generation.request import Request
from tests.support.generation import NEW, generator_without_model, ids_of, new_generator


@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(1, 12)), min_size=1, max_size=25),
    st.integers(42, 120),
    st.integers(1, 6),
    st.booleans(),
)
@settings(max_examples=60)
def test_no_slot_is_two_requests_and_every_request_is_answered(loaded, sizes, num_slots, max_sequences, keep_prefixes):
    generator, model = generator_without_model(
        loaded, num_slots, max_sequences=max_sequences, step_tokens=8, keep_prefixes=keep_prefixes
    )
    scheduler = generator.scheduler
    for length, new in sizes:
        generator.submit(Request(prompt=[3] * length, max_new_tokens=new))
    begun, answered = [], {}
    while not scheduler.is_idle:
        for event in generator.step():
            if event.answer:
                answered[event.request_id] = event.answer.ids
        held = sorted((s.first_slot, s.first_slot + s.num_slots) for s in (*scheduler.running, *scheduler.kept))
        assert all(start >= 1 and stop <= num_slots + 1 for start, stop in held)
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(held))
        assert len(scheduler.running) <= max_sequences
        begun += [state.request_id for state in scheduler.running if state.request_id not in begun]
    assert answered == {request_id: [2] * new for request_id, (_, new) in enumerate(sizes, 1)}
    assert begun == sorted(begun), "first come, first served"
    for step in model.steps:
        assert sum(count for _, _, count in step) <= 8


def test_answers_go_on_while_a_long_prompt_is_read(loaded):
    generator, model = generator_without_model(loaded, 1000, max_sequences=2, step_tokens=8)
    generator.submit(Request(prompt=[3], max_new_tokens=50))
    generator.submit(Request(prompt=[3] * 100, max_new_tokens=2))
    for _ in range(12):
        generator.step()
    assert model.steps[1:12] == [[(1, read, 1), (52, 7 * read, 7)] for read in range(1, 12)]


def test_a_chat_reads_only_what_is_new(loaded, prompts, monkeypatch):
    first, question = prompts[3], prompts[4]
    plain = new_generator(loaded)
    (answer,) = ids_of(plain, [first])
    second = [*first, *answer, *question]
    (expected,) = ids_of(plain, [second])
    chat = new_generator(loaded, keep_prefixes=True)
    assert ids_of(chat, [first]) == [answer]
    lengths = []
    next_logits = chat.cached.next_logits
    monkeypatch.setattr(chat.cached, "next_logits", lambda c: lengths.append(len(c[0].tokens)) or next_logits(c))
    assert ids_of(chat, [second]) == [expected]
    assert lengths[0] == len(question) + 1, "all but the first answer's last token, which was never put in"


def test_a_chat_grows_where_it_is_when_the_cache_has_no_second_run(loaded, prompts, monkeypatch):
    """Its beginning moves up or down, or stays; what is kept of other requests makes room first."""
    plain = new_generator(loaded)
    memory = slot_bytes(loaded.model.config, torch.float32) * 200
    chat = new_generator(loaded, memory=memory, max_sequences=1, keep_prefixes=True)
    ids_of(chat, [prompts[0]], max_new_tokens=8)
    said, read, starts = list(prompts[1]), [], []
    next_logits = chat.cached.next_logits
    monkeypatch.setattr(chat.cached, "next_logits", lambda c: read.append(c[0]) or next_logits(c))
    for new in (8, 60, 60, 8):
        read.clear()
        (answer,) = ids_of(chat, [said], max_new_tokens=new)
        assert answer == ids_of(plain, [said], max_new_tokens=new)[0]
        starts.append((read[0].first_slot, read[0].num_cached))
        said += [*answer, 7, 8, 9]
    num_cached = [0, 5 + 7, 5 + 8 + 3 + 59, 5 + 8 + 3 + 60 + 3 + 59]
    assert starts == list(zip([45, 57, 1, 1], num_cached, strict=True))
    assert len(chat.scheduler.kept) == 1


@pytest.mark.parametrize("steps", [1, 3, 20])
def test_what_was_read_of_a_cancelled_request_is_not_read_again(loaded, prompts, steps):
    """Cancelled in its prompt, which takes 9 steps, or in its answer."""
    prompt = prompts[3] + prompts[0][:6]
    (expected,) = ids_of(new_generator(loaded), [prompt])
    chat = new_generator(loaded, max_sequences=1, step_tokens=8, keep_prefixes=True)
    request_id = chat.submit(Request(prompt=prompt))
    for _ in range(steps):
        chat.step()
    chat.cancel(request_id)
    assert not chat.scheduler.running
    chat.submit(Request(prompt=prompt, max_new_tokens=NEW))
    chat.admit()
    assert chat.scheduler.running[0].num_cached == min(8 * steps, len(prompt) - 1)
    answer = next(event.answer for _ in range(100) for event in chat.step() if event.answer)
    assert answer.ids == expected


def test_questions_on_one_log_that_are_asked_at_once_read_it_once(loaded, prompts):
    log = [*prompts[5], *prompts[3]]
    asked = [[*log, *question] for question in (prompts[1], prompts[4], prompts[0])]
    expected = ids_of(new_generator(loaded), asked)
    generator = new_generator(loaded, keep_prefixes=True, max_sequences=4)
    answers = dict(generator.run(Request(prompt=prompt, max_new_tokens=NEW) for prompt in asked))
    assert [answers[i].ids for i in range(3)] == expected
    assert [answers[i].reused for i in range(3)] == [0, len(log), len(log)]


def test_a_chat_keeps_its_slots_once(loaded, prompts):
    """Its earlier turns are in the later ones."""
    generator, chat = new_generator(loaded, keep_prefixes=True), list(prompts[0])
    for _ in range(4):
        ((_, answer),) = generator.run([Request(prompt=chat, max_new_tokens=9)])
        chat = [*chat, *answer.ids, *prompts[1]]
        assert len(generator.scheduler.kept) == 1
