"""What OpenAI's own client gets from the server: the generator's answers, whole, in pieces, and with all fields."""

import json

import openai
import pytest

from logtrain.generation.load import ModelFolder
from logtrain.generation.request import Request
from logtrain.text.chat_template import Turn
from tests.support.generation import CPU
from tests.support.serving import QUESTION


def local_answer(folder, messages=QUESTION, **settings):
    """What a generator answers in this process, of the model or of an adapter that is merged into it."""
    loaded = ModelFolder(folder).load(CPU)
    prompt = loaded.folder.template.prompt([Turn(m["role"], m["content"]) for m in messages])
    settings = {"max_new_tokens": 20, **settings}
    ((_, answer),) = loaded.generator(0.05).run([Request(prompt=prompt, **settings)])
    return prompt, answer


def joined(stream) -> tuple[str, str, list]:
    """(text, finish reason, pieces) of a stream of one answer."""
    pieces = list(stream)
    choices = [choice for piece in pieces for choice in piece.choices]
    assert choices[0].delta.role == "assistant"
    reasons = [choice.finish_reason for choice in choices]
    assert all(reason is None for reason in reasons[:-1])
    return "".join(choice.delta.content or "" for choice in choices), reasons[-1], pieces


def test_answers_are_the_generators_whole_and_streamed_of_the_model_and_its_adapters(server, models):
    texts = {}
    for name, folder in (("tiny", "tiny"), ("a1", "adapter1"), ("a2", "adapter2")):
        prompt, expected = local_answer(models.folder / folder)
        reply = server.chat(model=name)
        (choice,) = reply.choices
        assert (choice.message.content, choice.finish_reason) == (expected.text, expected.finish_reason)
        assert choice.message.role == "assistant" and reply.model == name and reply.object == "chat.completion"
        tokens = len(expected.ids)
        assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (len(prompt), tokens)
        assert reply.usage.total_tokens == len(prompt) + tokens
        text, reason, pieces = joined(server.chat(model=name, stream=True, stream_options={"include_usage": True}))
        assert (text, reason) == (expected.text, expected.finish_reason)
        assert pieces[-1].usage.completion_tokens == tokens and not pieces[-1].choices
        assert all(piece.usage is None for piece in pieces[:-1]) and len({piece.id for piece in pieces}) == 1
        texts[name] = text
    assert len(set(texts.values())) == 3
    assert all(piece.usage is None for piece in joined(server.chat(stream=True))[2])


def test_content_in_parts_and_a_developers_message(server, models):
    parts = [{"type": "text", "text": "why error"}, {"type": "text", "text": " 10.0.0.1?"}]
    assert server.chat(messages=[{"role": "user", "content": parts}]).choices[0].message.content == (
        server.chat().choices[0].message.content
    )
    _, expected = local_answer(models.folder / "tiny", [{"role": "system", "content": "Be short."}, *QUESTION])
    reply = server.chat(messages=[{"role": "developer", "content": "Be short."}, *QUESTION])
    assert reply.choices[0].message.content == expected.text


def test_length_and_stop(server):
    free = server.chat().choices[0].message.content
    for name in ("max_tokens", "max_completion_tokens"):
        reply = server.chat(**{"max_tokens": None, name: 3})
        assert (reply.usage.completion_tokens, reply.choices[0].finish_reason) == (3, "length")
        assert free.startswith(reply.choices[0].message.content)
    for stop in (free[7:9], [free[7:9], "not there"]):
        for stream in (False, True):
            reply = server.chat(stop=stop, stream=stream)
            text, reason = joined(reply)[:2] if stream else (reply.choices[0].message.content, "stop")
            assert (text, reason) == (free[: free.index(free[7:9])], "stop")


def test_several_answers_are_drawn_by_the_seed(server):
    drawn = {"n": 3, "temperature": 1.2, "seed": 5, "top_p": 0.9, "extra_body": {"top_k": 40, "min_p": 0.01}}
    reply = server.chat(**drawn)
    texts = [choice.message.content for choice in reply.choices]
    assert [choice.index for choice in reply.choices] == [0, 1, 2] and len(set(texts)) == 3
    assert [choice.message.content for choice in server.chat(**drawn).choices] == texts
    assert [choice.message.content for choice in server.chat(**{**drawn, "seed": 6}).choices] != texts
    assert reply.usage.completion_tokens == 60 and reply.usage.prompt_tokens < 40, "the prompt counts once"
    streamed = ["", "", ""]
    for piece in server.chat(**drawn, stream=True):
        for choice in piece.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == texts
    free = [server.chat(temperature=1.2).choices[0].message.content for _ in range(2)]
    assert free[0] != free[1], "without a seed each request draws anew"


def test_penalties_and_bias_change_the_answer(server):
    plain = server.chat().choices[0].message.content
    for change in (
        {"frequency_penalty": 2.0},
        {"presence_penalty": 2.0},
        {"extra_body": {"repetition_penalty": 1.5}},
    ):
        assert server.chat(**change).choices[0].message.content != plain, change
    (id,) = server.post("/tokenize", {"prompt": "u"})[1]["tokens"][-1:]
    assert server.chat(logit_bias={str(id): 100}).choices[0].message.content == "u" * 20


def test_logprobs_are_of_the_tokens_of_the_answer(server, models):
    _, expected = local_answer(models.folder / "tiny")
    reply = server.chat(logprobs=True, top_logprobs=3)
    told = reply.choices[0].logprobs.content
    tokenizer = ModelFolder(models.folder / "tiny").tokenizer
    text = b"".join(bytes(token.bytes) for token in told).decode(errors="replace")
    assert text.replace("<|header|>", "") == expected.text, "special tokens are told, but are no text"
    assert [token.token for token in told] == [tokenizer.decode([id], False) for id in expected.ids]
    for token in told:
        assert len(token.top_logprobs) == 3 and token.top_logprobs[0].logprob == token.logprob <= 0
    pieces = joined(server.chat(logprobs=True, stream=True))[2]
    streamed = [t for p in pieces for c in p.choices if c.logprobs for t in c.logprobs.content]
    assert [(t.token, t.logprob) for t in streamed] == [(t.token, t.logprob) for t in told]
    assert all(token.top_logprobs == [] for token in streamed)


@pytest.mark.parametrize("length", [2, 5, 40])
def test_a_json_object_is_one(server, length):
    for seed in range(3):
        settings = {"response_format": {"type": "json_object"}, "temperature": 1.0, "seed": seed, "max_tokens": length}
        reply = server.chat(**settings)
        assert isinstance(json.loads(reply.choices[0].message.content), dict)
        assert reply.choices[0].finish_reason == "stop"
        assert joined(server.chat(**settings, stream=True))[0] == reply.choices[0].message.content


def test_a_conversation_is_not_read_again(server):
    chat = [{"role": "user", "content": "error why disk Failed because " * 20}]
    first = server.chat(messages=chat)
    chat += [{"role": "assistant", "content": first.choices[0].message.content}, {"role": "user", "content": "why?"}]
    usage = server.chat(messages=chat).usage
    assert usage.prompt_tokens_details.cached_tokens >= first.usage.prompt_tokens - 1
    assert usage.prompt_tokens - usage.prompt_tokens_details.cached_tokens < 80


def test_models_are_listed(server):
    assert [model.id for model in server.client.models.list()] == ["tiny", "a1", "a2"]
    assert server.client.models.retrieve("a2").id == "a2"
    with pytest.raises(openai.NotFoundError, match="the models are tiny, a1, a2"):
        server.client.models.retrieve("a3")
    with pytest.raises(openai.NotFoundError, match="no model 'gpt' here") as error:
        server.chat(model="gpt")
    assert error.value.body == {
        "message": "there is no model 'gpt' here; the models are tiny, a1, a2",
        "type": "not_found_error",
        "param": "model",
        "code": "model_not_found",
    }


MISTAKES = [
    ({"messages": []}, "messages", "0 items; expected 1"),
    ({"messages": [{"role": "user"}]}, "messages[0].content", "missing"),
    ({"messages": [{"role": "robot", "content": "a"}]}, "messages[0].role", "expected one of"),
    ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content", "expected a string or an array"),
    ({"messages": [*QUESTION, *QUESTION]}, None, "turn 1 (user) comes after user"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc"}}]}]},
     "messages[0].content[0].type", "expected one of"),
    ({"temperature": 3}, "temperature", "expected 0 to 2"),
    ({"temperature": True}, "temperature", "expected a number"),
    ({"top_p": "a"}, "top_p", "expected a number"),
    ({"n": 0}, "n", "expected 1 to 128"),
    ({"n": 1.5}, "n", "expected an integer"),
    ({"stop": ["a"] * 17}, "stop", "17 items"),
    ({"stop": ""}, "stop", "0 characters"),
    ({"max_tokens": 0}, "max_tokens", "at least one"),
    ({"top_logprobs": 2}, "top_logprobs", "only with logprobs = true"),
    ({"logit_bias": {"a": 1}}, "logit_bias", "no token id"),
    ({"logit_bias": {"999999": 1}}, None, "token id 999999"),
    ({"tools": [{"type": "function"}]}, "tools", "does not support it"),
    ({"response_format": {"type": "json_schema"}}, "response_format.type", "expected one of"),
    ({"response_format": {"type": "json_object"}, "max_tokens": 1}, None, "takes at least 2 tokens"),
    ({"messages": [{"role": "user", "content": "why " * 5000}]}, None, "have room for 4,096 together"),
    ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0].content", "surrogate"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "param", "message"), MISTAKES)
def test_a_mistake_is_an_error_that_says_what_and_where(server, change, param, message):
    status, reply = server.post("/v1/chat/completions", {"messages": QUESTION, **change})
    assert status == 400 and reply["error"]["param"] == param and message in reply["error"]["message"], reply
    assert reply["error"]["type"] == "invalid_request_error" and len(reply["error"]["message"]) < 400
    stream = server.post("/v1/chat/completions", {"messages": QUESTION, **change, "stream": True})
    assert stream == (status, reply), "a stream that cannot begin has its status, too"


def test_unknown_and_empty_fields_are_ignored_as_by_vllm(server):
    plain = server.chat().choices[0].message.content
    more = {"colour": "red", "tools": [], "user": "me", "metadata": {"a": 1}, "stop": None, "n": None, "logprobs": None}
    status, reply = server.post(
        "/v1/chat/completions", {"messages": QUESTION, "temperature": 0, "max_tokens": 20, **more}
    )
    assert (status, reply["choices"][0]["message"]["content"]) == (200, plain)
