"""Answers in the shapes of OpenAI's API: whole ones, pieces of a stream, log-probabilities and usage."""

import time
import uuid
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from logtrain.generation.request import Event, TokenLogprob
from logtrain.serving.asking import Asked
from logtrain.text.tokenizer import Tokenizer

Object = dict[str, Any]


class Mark(NamedTuple):
    """How far an answer had come."""

    num_chars: int = 0
    num_logprobs: int = 0


@dataclass
class Gathered:
    """One answer as far as it has come."""

    text: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: str | None = None
    num_tokens: int = 0
    num_reused: int = 0

    @property
    def mark(self) -> Mark:
        """How far it has come."""
        return Mark(len(self.text), len(self.logprobs))

    def add(self, event: Event) -> None:
        """Go on by an event."""
        self.text += event.text
        self.num_tokens += 1
        if event.logprob:
            self.logprobs.append(event.logprob)
        if event.prompt_logprobs:
            self.prompt_logprobs = event.prompt_logprobs
        if event.answer:
            self.finish_reason, self.num_reused = event.answer.finish_reason, event.answer.reused
            self.num_tokens = len(event.answer.ids)


class Replies:
    """The reply to one request, which both kinds of requests make in their own shape."""

    prefix, whole_object, piece_object = "", "", ""

    def __init__(self, asked: Asked, tokenizer: Tokenizer):
        self.asked, self.tokenizer = asked, tokenizer
        self.answers = [Gathered() for _ in asked.requests]
        self.id, self.created = f"{self.prefix}-{uuid.uuid4().hex}", int(time.time())

    def whole(self) -> Object:
        """The reply to a request that is not streamed."""
        choices = [self.choice(index) for index in range(len(self.answers))]
        return {**self.head(self.whole_object), "choices": choices, "usage": self.usage()}

    def first(self) -> list[Object]:
        """The pieces of a stream before the first token."""
        return []

    def piece(self, index: int, since: Mark) -> Object:
        """The piece by which an answer grew."""
        choice = self.choice(index, since)
        return {
            **self.head(self.piece_object),
            "choices": [choice],
            **({"usage": None} if self.asked.with_usage else {}),
        }

    def last(self) -> list[Object]:
        """The pieces after all answers are complete."""
        if not self.asked.with_usage:
            return []
        return [{**self.head(self.piece_object), "choices": [], "usage": self.usage()}]

    def head(self, kind: str) -> Object:
        """The fields that all objects begin with."""
        return {"id": self.id, "object": kind, "created": self.created, "model": self.asked.model.name}

    def usage(self) -> Object:
        """How many tokens there were. Answers to the same prompt count it once."""
        asked, answers = self.asked, self.answers
        completion = 0 if asked.is_empty else sum(answer.num_tokens for answer in answers)
        reused = sum(answer.num_reused for answer in answers[:: asked.n])
        return {
            "prompt_tokens": asked.num_prompt_tokens,
            "completion_tokens": completion,
            "total_tokens": asked.num_prompt_tokens + completion,
            "prompt_tokens_details": {"cached_tokens": reused},
        }

    def choice(self, index: int, since: Mark | None = None) -> Object:
        """An answer as a whole, or the piece by which it grew."""
        raise NotImplementedError

    def piece_of(self, id: int) -> str:
        """The text of one token; half a character is a replacement character."""
        return self.tokenizer.decode([id], skip_special=False)


class ChatReplies(Replies):
    """Replies of /chat/completions."""

    prefix, whole_object, piece_object = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def first(self) -> list[Object]:
        delta = {"role": "assistant", "content": ""}
        usage = {"usage": None} if self.asked.with_usage else {}
        return [
            {
                **self.head(self.piece_object),
                "choices": [{"index": index, "delta": delta, "logprobs": None, "finish_reason": None}],
                **usage,
            }
            for index in range(len(self.answers))
        ]

    def choice(self, index: int, since: Mark | None = None) -> Object:
        answer, start = self.answers[index], since or Mark()
        content, told = answer.text[start.num_chars :], answer.logprobs[start.num_logprobs :]
        if since is None:
            body: Object = {"message": {"role": "assistant", "content": content, "refusal": None}}
        else:
            body = {"delta": {"content": content} if content or told else {}}
        logprobs = {"content": [self.told(token) for token in told], "refusal": None}
        has_logprobs = self.asked.requests[index].logprobs is not None and (told or since is None)
        return {
            "index": index,
            **body,
            "logprobs": logprobs if has_logprobs else None,
            "finish_reason": answer.finish_reason,
        }

    def told(self, token: TokenLogprob) -> Object:
        """A token with its log-probability and those of the likeliest at its place."""
        return {
            **self.spelled(token.id, token.logprob),
            "top_logprobs": [self.spelled(id, logprob) for id, logprob in token.top],
        }

    def spelled(self, id: int, logprob: float) -> Object:
        """A token and its log-probability."""
        return {"token": self.piece_of(id), "bytes": list(self.tokenizer.token_bytes(id)), "logprob": finite(logprob)}


class CompletionReplies(Replies):
    """Replies of /completions."""

    prefix, whole_object, piece_object = "cmpl", "text_completion", "text_completion"

    def choice(self, index: int, since: Mark | None = None) -> Object:
        answer, request, start = self.answers[index], self.asked.requests[index], since or Mark()
        text, told = answer.text[start.num_chars :], answer.logprobs[start.num_logprobs :]
        offset, ids = start.num_chars, []
        if self.asked.is_empty:
            text, told = "", []
        if self.asked.echoes is not None:
            text = self.asked.echoes[index // self.asked.n] + text
            told = [*answer.prompt_logprobs, *told]
            ids = list(request.prompt[:1])  # the first token of a prompt has nothing before it that would predict it
        has_logprobs = request.logprobs is not None
        finish = "length" if self.asked.is_empty else answer.finish_reason
        logprobs = self.told(ids, told, offset) if has_logprobs else None
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}

    def told(self, ids: list[int], tokens: list[TokenLogprob], offset: int) -> Object:
        """Log-probabilities as lists. `ids`: tokens before them that have none. `offset`: where the first token is."""
        pieces = [*map(self.piece_of, ids), *(self.piece_of(token.id) for token in tokens)]
        tops = [{self.piece_of(id): finite(value) for id, value in token.top} for token in tokens]
        for token, top in zip(tokens, tops, strict=True):
            if top:  # OpenAI's API tells the token itself, too, whether or not it is among the likeliest
                top.setdefault(self.piece_of(token.id), finite(token.logprob))
        offsets = []
        for piece in pieces:
            offsets.append(offset)
            offset += len(piece)
        return {
            "tokens": pieces,
            "token_logprobs": [*(None for _ in ids), *(finite(token.logprob) for token in tokens)],
            "top_logprobs": [*(None for _ in ids), *tops],
            "text_offset": offsets,
        }


def finite(logprob: float) -> float:
    """A log-probability as JSON can hold it, of a token that is impossible, too; OpenAI's API calls it -9999."""
    return max(logprob, -9999.0)
