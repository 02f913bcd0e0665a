"""Answers beside transformers' `generate`, and the same whatever the batch, the chunks and the room."""

import dataclasses
import json

import pytest
import torch

from logtrain.generation.config import SamplingConfig
from logtrain.generation.cpu_linear import PackedHead
from logtrain.generation.kv_cache import slot_bytes
from logtrain.generation.load import ModelFolder
from logtrain.generation.request import Answer, Request
from logtrain.text.chat_template import ChatTemplate, Turn
from tests.support.generation import CPU, LENGTHS, NEW, answers, ids_of, new_generator, transformers_answer
from tests.support.llama import load_transformers, random_documents
from tests.support.synthetic import write_model

DRAWN = SamplingConfig(temperature=1.0, top_k=50, top_p=0.95, repetition_penalty=1.2)


# Beside transformers


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kv_heads", [1, 2, 8])
def test_greedy_answers_are_those_of_transformers(tmp_path, kv_heads, tied):
    folder = write_model(
        tmp_path, num_key_value_heads=kv_heads, tie_word_embeddings=tied, initializer_range=0.3, eos_token_id=[1, 7]
    )
    theirs, ours = load_transformers(folder), ModelFolder(folder).load(CPU)
    assert ours.folder.stop_ids == {1, 7}
    prompts = [document.tolist() for document in random_documents(list(LENGTHS), 320)]
    expected = [transformers_answer(theirs, prompt, NEW) for prompt in prompts]
    assert len({tuple(answer) for answer in expected}) == len(expected), "they say nothing if they are all the same"
    found = answers(new_generator(ours, ours.folder.stop_ids), prompts)
    for answer, ids in zip(found, expected, strict=True):
        stopped = ids[-1] in ours.folder.stop_ids
        assert answer.ids == (ids[:-1] if stopped else ids)
        assert answer.finish_reason == ("stop" if stopped else "length")
        assert answer.text == ours.folder.tokenizer.decode(answer.ids)


def test_greedy_answers_under_a_repetition_penalty_are_those_of_transformers(folder, loaded, prompts):
    theirs = load_transformers(folder)
    expected = [transformers_answer(theirs, p, NEW, repetition_penalty=1.3, eos_token_id=None) for p in prompts]
    sampling = SamplingConfig(repetition_penalty=1.3)
    assert ids_of(new_generator(loaded), prompts, sampling=sampling) == expected


def test_a_trained_model_tells_the_story_that_it_tells_in_transformers(shared):
    folder = shared / "data" / "stories260k"
    ours, prompt = ModelFolder(folder).load(CPU), "Once upon a time"
    ids = [ours.folder.tokenizer.bos_id, *ours.folder.tokenizer.encode(prompt)]
    expected = transformers_answer(load_transformers(folder), ids, 256, eos_token_id=None)
    (answer,) = answers(new_generator(ours), [ids], max_new_tokens=256)
    assert answer.ids == expected


def test_smollm2_answers_fifty_real_questions_as_in_transformers(smollm2, shared):
    """In ragged batches of 8, 200 new tokens each: the prompts of log instructions."""
    rows = json.loads((shared / "data" / "loglm" / "loglm_instruction_2632.json").read_text(encoding="utf-8"))[::53]
    ours, theirs = ModelFolder(smollm2).load(CPU, 8), load_transformers(smollm2)
    template = ChatTemplate.load(ours.folder.tokenizer)
    prompts = [template.prompt([Turn("user", f"{row['instruction']}\n{row['input']}")]) for row in rows]
    assert len(prompts) == 50
    torch.set_num_threads(2)
    try:
        generator = new_generator(ours, ours.folder.stop_ids, max_sequences=8)
        found = ids_of(generator, prompts, max_new_tokens=200)
        for first in range(0, len(prompts), 8):
            batch = prompts[first : first + 8]
            longest = max(map(len, batch))
            ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in batch])
            mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in batch])
            out = theirs.generate(ids, attention_mask=mask, max_new_tokens=200, do_sample=False, pad_token_id=0)
            for answer, row in zip(found[first : first + 8], out[:, longest:].tolist(), strict=True):
                ended = next((i for i, id in enumerate(row) if id in ours.folder.stop_ids), len(row))
                assert answer == row[:ended]
    finally:
        torch.set_num_threads(1)


# The same answers whatever else happens


@pytest.mark.parametrize("sampling", [SamplingConfig(), DRAWN], ids=["greedy", "drawn"])
def test_answers_do_not_depend_on_batch_chunks_or_room(loaded, prompts, sampling):
    alone = [
        ids_of(new_generator(loaded, loaded.folder.stop_ids), [p], sampling=sampling, number=i)[0]
        for i, p in enumerate(prompts)
    ]
    size = slot_bytes(loaded.model.config, torch.float32)
    for options in (
        {},
        {"max_sequences": 3},
        {"max_sequences": 1},
        {"step_tokens": 8, "max_sequences": 8},
        {"step_tokens": 11, "max_sequences": 4},
        {"memory": size * (max(LENGTHS) + NEW)},  # room for the longest alone
        {"memory": size * 200, "keep_prefixes": True},
    ):
        generator = new_generator(loaded, loaded.folder.stop_ids, **options)
        assert ids_of(generator, prompts, sampling=sampling) == alone, options
        assert ids_of(generator, prompts[::-1], sampling=sampling, number=0)[-1] == alone[0], options


def test_a_long_prompt_is_read_in_chunks_as_at_once(tmp_path):
    folder = write_model(tmp_path, max_position_embeddings=8192, num_hidden_layers=1, initializer_range=0.3)
    loaded = ModelFolder(folder).load(CPU)
    (prompt,) = random_documents([5000], 320)
    expected = transformers_answer(load_transformers(folder), prompt.tolist(), 4, eos_token_id=None)
    for step_tokens in (4999, 700):
        generator = new_generator(loaded, max_sequences=1, step_tokens=step_tokens)
        assert ids_of(generator, [prompt.tolist()], max_new_tokens=4) == [expected]


def test_a_request_joins_the_running_batch_and_changes_nothing(loaded, prompts):
    generator = new_generator(loaded)
    expected = ids_of(generator, prompts[:2], max_new_tokens=12)
    first = generator.submit(Request(prompt=prompts[0], max_new_tokens=12))
    found = {}
    for number in range(20):
        if number == 5:
            second = generator.submit(Request(prompt=prompts[1], max_new_tokens=12))
        found |= {event.request_id: (number, event.answer.ids) for event in generator.step() if event.answer}
    assert found == {first: (11, expected[0]), second: (5 + 11, expected[1])}


def test_draws_differ_between_seeds_and_requests_and_repeat(loaded, prompts):
    generator, same = new_generator(loaded), [prompts[0]] * 3
    sampling = SamplingConfig(temperature=1.5)
    first = ids_of(generator, same, sampling=sampling)
    assert len({tuple(ids) for ids in first}) == 3
    assert ids_of(generator, same, sampling=sampling) == first
    other = ids_of(generator, same, sampling=dataclasses.replace(sampling, seed=2))
    assert not {tuple(ids) for ids in first} & {tuple(ids) for ids in other}


# Ends


def test_an_answer_ends_at_a_stop_id_a_stop_string_or_its_length(loaded, prompts):
    generator = new_generator(loaded)
    (whole,) = answers(generator, prompts[:1])
    assert (len(whole.ids), whole.finish_reason) == (NEW, "length")
    at = next(i for i in range(4, NEW) if whole.ids[i] not in whole.ids[:i])
    (stopped,) = answers(new_generator(loaded, [whole.ids[at]]), prompts[:1])
    assert stopped == Answer(whole.ids[:at], loaded.folder.tokenizer.decode(whole.ids[:at]), "stop")
    word = loaded.folder.tokenizer.decode([whole.ids[at]])
    (cut,) = answers(generator, prompts[:1], stop=(f" {word} ",))
    assert cut.finish_reason == "stop"
    assert cut.text == whole.text[: whole.text.index(f" {word} ")]
    (ignoring,) = answers(new_generator(loaded, [whole.ids[at]]), prompts[:1], ignore_stop_ids=True)
    assert ignoring == whole


def test_an_answer_ends_where_the_model_knows_no_more_positions(loaded):
    most = loaded.model.config.max_positions
    (answer,) = answers(new_generator(loaded), [[5] * (most - 3)], max_new_tokens=10)
    assert (len(answer.ids), answer.finish_reason) == (3, "length")


def test_events_are_the_answer_in_pieces(loaded, prompts):
    generator = new_generator(loaded)
    (expected,) = answers(generator, prompts[:1])
    request_id, events = generator.submit(Request(prompt=prompts[0], max_new_tokens=NEW)), []
    while not generator.scheduler.is_idle:
        events += generator.step()
    assert {event.request_id for event in events} == {request_id}
    assert "".join(event.text for event in events) == expected.text
    assert [event.answer for event in events] == [None] * (NEW - 1) + [expected]


def test_a_run_that_is_ended_early_leaves_nothing_behind(loaded, prompts):
    generator = new_generator(loaded, max_sequences=2)
    run = generator.run(Request(prompt=prompt, max_new_tokens=4 + 3 * i) for i, prompt in enumerate(prompts[:5]))
    assert next(run)[0] == 0
    assert generator.scheduler.running
    run.close()
    assert generator.scheduler.is_idle
    assert len(answers(generator, prompts[:2])) == 2


def test_logits_that_are_not_finite_are_named(tmp_path, prompts):
    """A draw among NaNs would be an id that the model does not have."""
    loaded = ModelFolder(write_model(tmp_path)).load(CPU)
    loaded.model.head.weight[5] = float("nan")
    loaded.model.head = PackedHead(loaded.model.head)
    for temperature in (0.0, 1.0):
        with pytest.raises(ValueError, match="logits are not finite"):
            answers(new_generator(loaded), prompts[:2], sampling=SamplingConfig(temperature=temperature))


def test_a_request_that_can_never_be_answered_is_refused(loaded):
    generator = new_generator(loaded, memory=slot_bytes(loaded.model.config, torch.float32) * 100)
    for request, message in (
        ({"prompt": [1] * 512}, "a prompt of 512 tokens: the model knows 512 positions"),
        ({"prompt": [1] * 90, "max_new_tokens": 11}, "an answer of up to 11 take .* room for 100 tokens in all"),
        ({"prompt": [1, 320], "max_new_tokens": 5}, "token id 320: the model has 320"),
        ({"prompt": []}, "a prompt of no tokens"),
        ({"prompt": [1], "max_new_tokens": 0}, "max_new_tokens = 0"),
        ({"prompt": [1], "stop": ("",)}, "an empty stop string"),
    ):
        with pytest.raises(ValueError, match=message):
            generator.submit(Request(**request))
    with pytest.raises(ValueError, match="step_tokens = 8"):
        new_generator(loaded, max_sequences=9, step_tokens=8)
    assert not generator.scheduler.waiting
