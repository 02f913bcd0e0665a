"""Lets a model behind an OpenAI-compatible server say which of two answers is better, in both orders.

    judge/verdicts.jsonl    an object for each verdict as it comes: the prompt, the reply, what was read from it, tokens

A judge prefers what stands first, or last, so each pair is shown twice with its answers swapped; what position alone
decides then shows, and counts for nobody (judgement.py). Two answers that are equal are a tie that nobody is asked for.
Each object has a hash of the rest of it and a key of all that decides it, by which a judgement goes on.
"""

import hashlib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from logtrain.core.sealed_lines import add, adding, parsed, read_sealed_lines
from logtrain.core.untrusted import read_bytes
from logtrain.evaluation.config import JudgeConfig
from logtrain.evaluation.extraction import after_mark, label, spoken
from logtrain.evaluation.remote import RemoteRequest, Server
from logtrain.evaluation.samples import Sample
from logtrain.text.chat_template import Turn

WORDS = {"1": "first", "2": "second", "tie": "tie", "first": "first", "second": "second", "equal": "tie"}
WITH_REFERENCE = "An expert's answer:\n<reference>\n{reference}\n</reference>\n\n"
PROMPT = """Two assistants were asked about a log. Say which answer helps the person who asked more: it is right, \
names what the log shows, leaves out nothing that matters and invents nothing. Length and style alone do not \
count, nor does which answer comes first.

<question>
{question}
</question>

{with_reference}<answer_1>
{first}
</answer_1>

<answer_2>
{second}
</answer_2>

Give your reasons in two or three sentences, then end with one line: "Verdict: 1", "Verdict: 2" or "Verdict: tie"."""
PLACE = re.compile(r"\{(question|reference|with_reference|first|second)\}")


class Judged(NamedTuple):
    """A verdict on a pair of answers in one order."""

    key: str
    """Hash of the judge, its settings and the prompt."""
    first: str
    """The model whose answer was shown first."""
    second: str
    """The other."""
    row: int
    turn: int
    prompt: str
    reply: str
    verdict: str
    """What was read from the reply: first, second, tie or unread."""
    prompt_tokens: int
    reply_tokens: int


class Comparison(NamedTuple):
    """A pair of answers in one order, to be judged."""

    key: str
    first: str
    second: str
    row: int
    turn: int
    prompt: str


def comparisons(config: JudgeConfig, samples: Mapping[str, Sequence[Sample]]) -> list[Comparison]:
    """Every two models' answers to each question that differ, in both orders. `samples`: those of each model by its
    name, in one order. Raises ValueError for a prompt without a place for an answer.
    """
    template = prompt_template(config)
    settings = f"{config.model} {config.max_new_tokens} {config.stop} {config.sampling}"
    found = []
    for one, other in itertools.combinations(samples, 2):
        for a, b in zip(samples[one], samples[other], strict=True):
            if a.answer.output.strip() == b.answer.output.strip():
                continue
            for names, first, second in (((one, other), a, b), ((other, one), b, a)):
                prompt = written(template, config.reference, first, second)
                key = hashlib.sha256(f"{settings}\n{prompt}".encode("utf-8", "surrogatepass")).hexdigest()
                found.append(Comparison(key, *names, a.question.row, a.question.turn, prompt))
    return found


def prompt_template(config: JudgeConfig) -> str:
    """The text that a prompt is written from. Raises ValueError where it has no place for an answer."""
    if not config.prompt:
        return PROMPT
    template = read_bytes(Path(config.prompt)).decode(errors="replace")
    if missing := {"question", "first", "second"} - set(PLACE.findall(template)):
        raise ValueError(
            f"{config.prompt}: has no {{{min(missing)}}}; {{question}}, {{first}} and {{second}} are needed"
        )
    return template


def written(template: str, with_reference: bool, first: Sample, second: Sample) -> str:
    """The prompt that shows two answers. What stands in braces in these stays as it is."""
    question = "\n\n".join(turn.content for turn in first.question.turns)
    reference = first.question.reference if with_reference else ""
    texts = {"question": question, "reference": reference, "first": first.answer.output, "second": second.answer.output}
    texts["with_reference"] = WITH_REFERENCE.replace("{reference}", reference) if with_reference else ""
    return PLACE.sub(lambda place: texts[place[1]], template)


def read_verdict(reply: str) -> str:
    """What a judge's reply says on the line of its last "Verdict:": first, second, tie, or unread."""
    return label(after_mark(spoken(reply), ("verdict",)), WORDS) or "unread"


def ask(config: JudgeConfig, missing: Sequence[Comparison], file: Path) -> Iterator[Judged]:
    """Have comparisons judged, each verdict written to `file` before it is yielded, in the order in which they come.
    Raises ValueError as `Server.answers` does.
    """
    server = Server(config.base_url, "messages", config.concurrency, is_checked=False)
    requests = (
        RemoteRequest((), [Turn("user", one.prompt)], config.max_new_tokens, config.sampling, number, config.stop)
        for number, one in enumerate(missing)
    )
    with adding(file) as stream:
        for number, answer in server.answers(config.model, requests):
            one = missing[number]
            tokens = answer.prompt_tokens or 0, answer.tokens or 0
            judged = Judged(*one, answer.text, read_verdict(answer.text), *tokens)
            add(stream, judged._asdict())
            yield judged


def read_verdicts(file: Path) -> dict[str, Judged]:
    """The verdicts in a file by their keys. A torn one is not there, a changed one raises ValueError."""
    found: dict[str, Judged] = {}
    for number, facts in read_sealed_lines(file, "and it is asked again", is_made_again=True):
        judged = parsed(Judged, facts, f"{file} line {number}")
        found.setdefault(judged.key, judged)
    return found
