"""What a request asks for: the fields of OpenAI's API -> the prompts' token ids, and the generator's requests.

Prompts are written in one thread beside the event loop: a template renders one conversation at a time, and a long log
takes a tenth of a second.
"""

import asyncio
import dataclasses
import math
import secrets
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, cast

from logtrain.generation.config import LEAST_TEMPERATURE, SamplingConfig
from logtrain.generation.request import Request
from logtrain.serving.errors import ApiError
from logtrain.serving.served import ServedModel, ServedModels
from logtrain.text.chat_template import Turn
from logtrain.text.tokenizer import Tokenizer

Fields = Mapping[str, Any]
DEFAULT_COMPLETION = 16  # tokens of a completion, by OpenAI's API
MOST_PROMPT_TOKENS = 1 << 22  # of all prompts of a request together
MOST_CHARS = 64  # for each token of the context; logs have 2 to 4 characters a token
LEAST_TOP_P = 1e-9  # what a top_p of 0 means: the likeliest token


@dataclasses.dataclass(frozen=True)
class Asked:
    """What one HTTP request asks for."""

    model: ServedModel
    prompts: list[list[int]]
    n: int
    """Answers to each prompt."""
    requests: list[Request]
    """The answers to the first prompt, then those to the second."""
    is_streamed: bool
    with_usage: bool
    """Whether a stream ends with the number of tokens."""
    echoes: tuple[str, ...] | None = None
    """The text of each prompt, which is to stand before its answers; None where it is not wanted."""
    is_empty: bool = False
    """Whether no token of the answers is wanted."""

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of all prompts."""
        return sum(map(len, self.prompts))


class Asking:
    """Reads requests. max_new_tokens: the most tokens of an answer to a request that does not say."""

    def __init__(self, models: ServedModels, max_new_tokens: int):
        self.models, self.max_new_tokens = models, max_new_tokens
        self.thread = ThreadPoolExecutor(1, "prompts")

    async def run(self, function: Any, *arguments: Any) -> Any:
        """What a function returns that takes long, from the thread beside the event loop. Its ValueError becomes an
        ApiError.
        """
        try:
            return await asyncio.get_running_loop().run_in_executor(self.thread, function, *arguments)
        except ValueError as error:
            raise ApiError(400, str(error)) from None

    async def chat(self, fields: Fields) -> Asked:
        """What a request to /chat/completions asks for. Raises ApiError for what no model could answer."""
        model, turns = self.models.named(fields.get("model")), turns_of(fields["messages"])
        self.check_size(sum(len(turn.content) for turn in turns))
        prompt = await self.run(model.chat_template().prompt, turns)
        most = fields.get("max_completion_tokens", fields.get("max_tokens"))
        if most == 0:
            raise ApiError(400, "max_tokens = 0: an answer has at least one", param="max_tokens")
        top = fields.get("top_logprobs", 0)
        if top and not fields.get("logprobs"):
            raise ApiError(400, f"top_logprobs = {top}: only with logprobs = true", param="top_logprobs")
        ends = model.stop_ids | model.chat_template().ends
        logprobs = top if fields.get("logprobs") else None
        return self.asked(fields, model, [prompt], most or self.max_new_tokens, ends, {"logprobs": logprobs})

    async def completion(self, fields: Fields) -> Asked:
        """What a request to /completions asks for. Raises ApiError for what no model could answer."""
        model, given = self.models.named(fields.get("model")), fields["prompt"]
        texts = [given] if isinstance(given, str) else [text for text in given if isinstance(text, str)]
        self.check_size(max(map(len, texts), default=0))
        prompts = await self.run(prompts_of, given, self.models.tokenizer)
        most, echo = fields.get("max_tokens", DEFAULT_COMPLETION), bool(fields.get("echo"))
        if most == 0 and not echo:
            raise ApiError(400, "max_tokens = 0: only with echo = true", param="max_tokens")
        if echo and fields.get("stream"):
            raise ApiError(400, "echo = true: not with stream = true", param="echo")
        logprobs = fields.get("logprobs")
        more = {"logprobs": logprobs, "prompt_logprobs": echo and logprobs is not None}
        found = self.asked(fields, model, prompts, max(most, 1), model.stop_ids, more)
        echoes = await self.run(texts_of, fields["prompt"], prompts, self.models.tokenizer) if echo else None
        return dataclasses.replace(found, echoes=echoes, is_empty=most == 0)

    def check_size(self, num_chars: int) -> None:
        """Raises ApiError for a text that is far too long for the context, before it takes its time to be encoded."""
        if num_chars > (most := MOST_CHARS * self.models.context_size):
            message = f"a text of {num_chars:,} characters, more than the {most:,} that could ever fit; shorten it"
            raise ApiError(400, message, code="context_length_exceeded")

    def asked(
        self,
        fields: Fields,
        model: ServedModel,
        prompts: list[list[int]],
        most: int,
        ends: frozenset[int],
        more: dict[str, Any],
    ) -> Asked:
        """What both kinds of requests have in common. `more`: other fields of the generator's requests."""
        check_prompts(prompts, self.models)
        stop, n = fields.get("stop") or (), fields.get("n", 1)
        sampling = sampling_of(fields, model.sampling)
        kind = (fields.get("response_format") or {}).get("type", "text")
        try:
            requests = [
                Request(
                    prompt=prompt,
                    max_new_tokens=min(most, self.models.context_size),
                    sampling=sampling,
                    number=number,
                    stop=(stop,) if isinstance(stop, str) else tuple(stop),
                    stop_ids=ends | set(fields.get("stop_token_ids") or ()),
                    ignore_stop_ids=bool(fields.get("ignore_eos")),
                    adapter=model.adapter,
                    logit_bias=bias_of(fields.get("logit_bias") or {}),
                    json_object=kind == "json_object",
                    **more,
                )
                for prompt in prompts
                for number in range(n)
            ]
        except ValueError as error:
            raise ApiError(400, str(error)) from None
        usage = bool((fields.get("stream_options") or {}).get("include_usage"))
        return Asked(model, prompts, n, requests, bool(fields.get("stream")), usage)


def check_prompts(prompts: list[list[int]], models: ServedModels) -> None:
    """Raises ApiError for prompts that are too long, alone or together, and for ids that are no tokens."""
    longest, most = max(map(len, prompts)), models.context_size
    if longest >= most:
        message = f"a prompt of {longest:,} tokens, but prompt and answer have room for {most:,} together; shorten it"
        raise ApiError(400, message, code="context_length_exceeded")
    if (total := sum(map(len, prompts))) > MOST_PROMPT_TOKENS:
        raise ApiError(400, f"prompts of {total:,} tokens in one request; send them in several", param="prompt")
    if (highest := max(map(max, prompts))) >= models.tokenizer.vocab_size:
        raise ApiError(400, f"token id {highest}: the model has {models.tokenizer.vocab_size:,}", param="prompt")


def turns_of(messages: list[dict[str, Any]]) -> list[Turn]:
    """The turns of a chat: parts of a text are joined, and a developer's message is the system's."""
    turns = []
    for message in messages:
        content, role = message["content"], message["role"]
        text = content if isinstance(content, str) else "".join(part["text"] for part in content)
        role = "system" if role == "developer" else role
        turns.append(Turn(cast(Literal["system", "user", "assistant"], role), text))
    return turns


def prompts_of(prompt: Any, tokenizer: Tokenizer) -> list[list[int]]:
    """The token ids of each prompt of a completion. Raises ValueError for a text of no tokens."""
    is_one = isinstance(prompt, str) or isinstance(prompt[0], int | float)
    found = []
    for each in [prompt] if is_one else prompt:
        ids = encoded(each, tokenizer) if isinstance(each, str) else [int(id) for id in each]
        if not ids:
            raise ValueError("a prompt of no tokens; give some text")
        found.append(ids)
    return found


def texts_of(prompt: Any, prompts: list[list[int]], tokenizer: Tokenizer) -> tuple[str, ...]:
    """The text of each prompt, as it was given or as its ids decode."""
    given = [prompt] if isinstance(prompt, str) else prompt
    if isinstance(given[0], str):
        return tuple(given)
    return tuple(tokenizer.decode(ids, skip_special=False) for ids in prompts)


def encoded(text: str, tokenizer: Tokenizer) -> list[int]:
    """The ids of a text as a whole prompt: special tokens are recognised, and that which opens a document is put before
    it, if it is not there, as vLLM's server does. A sentencepiece model has no special tokens in texts.
    """
    try:
        ids = tokenizer.encode_with_spans(text, spelled=True).ids
    except ValueError:
        ids = tokenizer.encode(text)
    opens = [] if tokenizer.bos_id is None or ids[:1] == [tokenizer.bos_id] else [tokenizer.bos_id]
    return [*opens, *ids]


def sampling_of(fields: Fields, published: SamplingConfig) -> SamplingConfig:
    """How tokens are drawn: as the model's files say, but for what a request says."""
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
    given = {name: fields[name] for name in names if name in fields}
    if "top_k" in given:
        given["top_k"] = max(int(given["top_k"]), 0)  # vLLM's -1 is our 0
    if "top_p" in given:
        given["top_p"] = max(given["top_p"], LEAST_TOP_P)
    if "temperature" in given and given["temperature"] < LEAST_TEMPERATURE:
        given["temperature"] = 0.0
    seed = int(fields["seed"]) if "seed" in fields else secrets.randbits(62)
    return dataclasses.replace(published, **given, seed=seed % 2**63)


def bias_of(biases: Mapping[str, float]) -> dict[int, float]:
    """The biases by id. Raises ApiError for a key that is no id."""
    if bad := next((key for key in biases if not (key.isascii() and key.isdigit() and len(key) < 10)), None):
        raise ApiError(400, f"logit_bias: {bad[:50]!r} is no token id", param="logit_bias")
    return {int(key): float(bias) for key, bias in biases.items() if math.isfinite(bias)}
