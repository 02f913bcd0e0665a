"""Completions: prompts as text and ids, several at once, log-probabilities of the prompt, tokens of a text."""

import openai
import pytest
import torch

from logtrain.evaluation.config import AnswerConfig
from logtrain.generation.load import ModelFolder
from logtrain.generation.request import Request
from tests.support.generation import CPU, ids_of, new_generator

PROMPTS = ["error why", "disk Failed 10.0.0.1 \u00e9", "<|start|>user"]


def complete(server, **settings):
    return server.client.completions.create(**{"model": "tiny", "temperature": 0, "max_tokens": 12, **settings})


def encode(server, text: str) -> list[int]:
    return server.post("/tokenize", {"prompt": text})[1]["tokens"]


def test_prompts_of_every_kind_are_continued_by_the_generator(server, loaded):
    tokenizer = loaded.folder.tokenizer
    ids = [encode(server, text) for text in PROMPTS]
    expected = ids_of(new_generator(loaded, loaded.folder.stop_ids), ids, max_new_tokens=12)
    texts = [tokenizer.decode(answer) for answer in expected]
    assert [choice.text for choice in complete(server, prompt=PROMPTS).choices] == texts
    assert [choice.text for choice in complete(server, prompt=ids).choices] == texts
    assert [complete(server, prompt=prompt).choices[0].text for prompt in (PROMPTS[0], ids[1], [PROMPTS[2]])] == texts
    reply = complete(server, prompt=PROMPTS[:2], n=2, temperature=1, seed=1)
    assert [choice.index for choice in reply.choices] == [0, 1, 2, 3]
    assert reply.usage.prompt_tokens == len(ids[0]) + len(ids[1])
    pieces = list(complete(server, prompt=PROMPTS, stream=True))
    streamed = ["".join(c.text for p in pieces for c in p.choices if c.index == i) for i in range(3)]
    assert streamed == texts
    assert server.client.completions.create(model="tiny", prompt="a").usage.completion_tokens == 16


def test_texts_begin_with_the_token_that_opens_one_and_spell_special_tokens(server, loaded):
    tokenizer = loaded.folder.tokenizer
    assert encode(server, "why") == [tokenizer.bos_id, *tokenizer.encode("why")] == encode(server, "<|begin|>why")
    assert encode(server, "<|start|>")[1] == tokenizer.token_id("<|start|>")
    chat = server.post("/tokenize", {"messages": [{"role": "user", "content": "<|start|>"}]})[1]
    assert chat["tokens"].count(tokenizer.token_id("<|start|>")) == 2, "what a message spells is text"
    assert chat["count"] == len(chat["tokens"]) and chat["max_model_len"] == 4096
    for text in PROMPTS:
        assert server.post("/detokenize", {"tokens": encode(server, text)})[1] == {"prompt": f"<|begin|>{text}"}
    assert server.post("/detokenize", {"tokens": [10**6]})[0] == 400
    assert server.post("/tokenize", {})[0] == server.post("/tokenize", {"prompt": "a", "messages": []})[0] == 400


def test_an_echo_tells_the_log_probabilities_of_the_prompt(server, loaded):
    ids = encode(server, PROMPTS[1])
    with torch.no_grad():
        bare = ModelFolder(loaded.folder.path).load(CPU).model
        generator = new_generator(loaded)
        generator.submit(Request(prompt=ids, max_new_tokens=1, logprobs=2, prompt_logprobs=True))
        (event,) = generator.step()
    assert bare is not None
    for most in (0, 1):
        for prompt, text in ((PROMPTS[1], PROMPTS[1]), (ids, f"<|begin|>{PROMPTS[1]}")):
            (choice,) = complete(server, prompt=prompt, echo=True, logprobs=2, max_tokens=most).choices
            told = choice.logprobs
            assert choice.text.startswith(text) and (choice.text == text) == (most == 0)
            assert len(told.tokens) == len(told.text_offset) == len(told.top_logprobs) == len(ids) + most
            assert told.token_logprobs[0] is None and told.top_logprobs[0] is None
            expected = [logprob.logprob for logprob in event.prompt_logprobs]
            assert told.token_logprobs[1 : len(ids)] == pytest.approx(expected, abs=1e-4)
            assert all(token in top for token, top in zip(told.tokens[1:], told.top_logprobs[1:], strict=True))
    plain = complete(server, prompt=PROMPTS[0], echo=True)
    assert plain.choices[0].text == PROMPTS[0] + complete(server, prompt=PROMPTS[0]).choices[0].text
    assert plain.choices[0].logprobs is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": []}, "expected"),
        ({"prompt": ""}, None),
        ({"prompt": [""]}, None),
        ({"prompt": [[]]}, "items"),
        ({"prompt": [1, "a"]}, "A text, a list of token ids, or a list of either"),
        ({"prompt": [10**6]}, "token id 1000000: the model has"),
        ({"prompt": [-1]}, "expected 0"),
        ({"prompt": [1] * 4096}, "have room for 4,096"),
        ({"max_tokens": 0}, "only with echo"),
        ({"echo": True, "stream": True}, "not with stream"),
        ({"suffix": "b"}, "does not support"),
        ({"best_of": 3}, "does not support"),
        ({"prompt": ["a"] * 2000}, "2,000 answers in one request; 264 is the most"),
    ],
)
def test_mistakes(server, change, message):
    status, reply = server.post("/v1/completions", {"prompt": "a", **change})
    if message is None:  # the token that opens a text is a prompt
        assert status == 200 and reply["usage"]["prompt_tokens"] == 1
    else:
        assert status == 400 and message in reply["error"]["message"]


def test_an_evaluation_by_this_server_is_that_of_this_machine(server, models, loaded):
    """What evaluate sends: ids, or messages, with all its settings."""
    from logtrain.evaluation.remote import RemoteRequest, Server
    from logtrain.text.chat_template import Turn

    config, prompts = AnswerConfig(max_new_tokens=15), []
    turns = [(Turn("user", text),) for text in PROMPTS]
    for turn in turns:
        prompts.append(loaded.folder.template.prompt(turn))
    local = {
        number: answer.text
        for number, answer in loaded.generator(0.05).run(
            Request(prompt=prompt, max_new_tokens=15, number=i) for i, prompt in enumerate(prompts)
        )
    }
    for kind in ("ids", "messages"):
        requests = [
            RemoteRequest(prompt, turn, 15, config.sampling, i, stop_ids=loaded.folder.answer_ends)
            for i, (prompt, turn) in enumerate(zip(prompts, turns, strict=True))
        ]
        remote = dict(Server(f"{server.url}/v1", kind, 3).answers("tiny", requests))
        assert {number: answer.text for number, answer in remote.items()} == local


def test_an_unknown_model_is_refused(server):
    with pytest.raises(openai.NotFoundError):
        complete(server, model="other", prompt="a")
