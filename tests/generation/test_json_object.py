"""An answer that is to be a JSON object is one, whatever the model prefers, the tokens are, and the length allows."""

import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from logtrain.generation.config import SamplingConfig
from logtrain.generation.json_object import JsonAnswer, JsonGrammar, State, follow
from logtrain.generation.load import ModelFolder
from logtrain.generation.request import Request
from logtrain.text.tokenizer import Tokenizer
from tests.support.conversations import write_chat_model
from tests.support.generation import CPU, new_generator

LIKED = '{}[]",:\\ \n0123456789-.eEu+truefalsn'  # characters of JSON, in any order
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(-1e9, 1e9) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
OBJECTS = st.dictionaries(st.text(max_size=5), JSON, max_size=4)


@pytest.fixture(scope="module")
def chat_folder(tmp_path_factory) -> Path:
    return write_chat_model(tmp_path_factory.mktemp("chat"))


@pytest.fixture(scope="module")
def grammar(chat_folder) -> JsonGrammar:
    tokenizer = Tokenizer.load(chat_folder)
    return JsonGrammar(tokenizer, tokenizer.vocab_size + 7, CPU)


@given(OBJECTS, st.sampled_from([None, 1, 4]), st.booleans())
def test_every_object_is_followed_to_its_end_and_no_beginning_is_complete(value, indent, ascii):
    text = json.dumps(value, indent=indent, ensure_ascii=ascii)
    state = State()
    for i, char in enumerate(text):
        assert not (state.mode == "after" and not state.open), text[:i]
        assert len(text) - i >= state.left(), "more characters are thought to be needed than are"
        state = follow(state, char)
        assert state is not None, text[: i + 1]
    assert state.mode == "after" and not state.open and state.left() == 0


@given(st.text(LIKED, max_size=12))
@settings(max_examples=500)
def test_what_is_followed_to_an_end_is_what_json_reads(text):
    state = follow(State(), "{" + text)
    try:
        is_object = isinstance(json.loads("{" + text), dict)
    except ValueError:
        is_object = False
    ended = state is not None and state.mode == "after" and not state.open
    assert ended == is_object or (is_object and state is None and "\n\n" in text)


@given(st.integers(2, 90), st.integers(0, 2**31), st.floats(0, 30))
@settings(max_examples=60, deadline=None)
def test_random_wishes_become_an_object_within_the_length(grammar, length, seed, liking):
    """`liking`: how much the model wants the characters of JSON, in any order."""
    generator, answer, ids = torch.Generator().manual_seed(seed), JsonAnswer(grammar), []
    liked = torch.tensor([bool(set(piece) & set(LIKED)) for piece in grammar.pieces] + [False] * 7) * liking
    while not answer.is_complete:
        assert len(ids) < length, "no room was left to close it"
        logits = torch.randn(len(liked), generator=generator) * 3 + liked
        allowed = answer.allowed(length - len(ids), logits)
        assert allowed.any()
        ids.append(logits.masked_fill(~allowed, float("-inf")).argmax().item())
        answer.add(ids[-1])
    text = "".join(grammar.pieces[id] for id in ids)
    assert isinstance(json.loads(text), dict)


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_generated_answers_are_objects_beside_free_ones(chat_folder, temperature):
    generator = new_generator(ModelFolder(chat_folder).load(CPU), max_sequences=5)
    sampling = SamplingConfig(temperature=temperature)
    requests = [
        Request(prompt=[5, 6, i], max_new_tokens=most, json_object=i % 3 > 0, number=i, sampling=sampling)
        for i, most in enumerate((2, 3, 5, 8, 20, 40, 80, 3, 4))
    ]
    answers = dict(generator.run(requests))
    alone = new_generator(ModelFolder(chat_folder).load(CPU), max_sequences=1)  # its steps take drafts
    assert dict(alone.run(requests)) == answers
    for i, request in enumerate(requests):
        if request.json_object:
            assert isinstance(json.loads(answers[i].text), dict), answers[i].text
            assert answers[i].finish_reason == "stop" and len(answers[i].ids) <= request.max_new_tokens
    free = dict(new_generator(ModelFolder(chat_folder).load(CPU)).run(requests[::3]))
    assert [answers[i].text for i in (0, 3, 6)] == [free[i].text for i in range(3)]


def test_what_cannot_be_is_refused(chat_folder, loaded):
    with pytest.raises(ValueError, match="a JSON object takes at least 2 tokens"):
        new_generator(ModelFolder(chat_folder).load(CPU)).submit(
            Request(prompt=[5], max_new_tokens=1, json_object=True)
        )
    with pytest.raises(ValueError, match="no token for"):  # whole words are its tokens
        new_generator(loaded).submit(Request(prompt=[5], json_object=True))


@pytest.mark.parametrize("variable", ["LOGTRAIN_SMOLLM2", "LOGTRAIN_LLAMA3_TOKENIZER"])
def test_real_vocabularies(variable):
    if variable not in os.environ:
        pytest.skip(f"needs {variable} to name a model folder")
    tokenizer = Tokenizer.load(os.environ[variable])
    grammar = JsonGrammar(tokenizer, tokenizer.vocab_size, CPU)
    value = {"cause": "disk \u00e9\n \U0001f600 full", "lines": [3, -0.5e7, None, True], "more": {"a": {}}}
    for text in (json.dumps(value), json.dumps(value, indent=2), json.dumps(value, ensure_ascii=False)):
        answer = JsonAnswer(grammar)
        for id in tokenizer.encode(text):
            assert answer.allowed(400, torch.zeros(tokenizer.vocab_size))[id], (text, grammar.pieces[id])
            answer.add(id)
        assert answer.is_complete
