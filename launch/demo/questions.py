"""Questions about log lines, with answers that repeat the values of the line, so that a model has to read them."""

import re
import string
from collections.abc import Callable, Iterator
from random import Random
from typing import NamedTuple

from events import EVENTS, Event
from values import draw, kind_of

LEADS = (
    "",
    "You look after a {system} installation. ",
    "As a reliability engineer for {system}, please help me. ",
    "Imagine you are the on-call operator of {system}. ",
    "Here is a log line from {system}. ",
    "With your knowledge of {system} in mind: ",
)

# A task is some ways to ask and one function that answers, given the event with its values filled in (but for its log).
TEMPLATE_QUESTIONS = (
    "What is the template of the log '{log}'? Name its variables.",
    "Separate the constant part from the parameters in the log '{log}'.",
    "Please parse '{log}' into a template and its variables.",
)
GROK_QUESTIONS = (
    "Which grok pattern extracts the fields of the log '{log}'? Explain it.",
    "Write a grok pattern for '{log}' and give the reason for each part.",
    "How would you split the log '{log}' into fields with grok?",
)
ANOMALY_QUESTIONS = (
    "Does the log '{log}' indicate an anomaly? Give the reason.",
    "Is '{log}' normal or abnormal behaviour?",
    "Should an alarm be raised for the log '{log}'?",
)
MEANING_QUESTIONS = (
    "What does the log '{log}' mean?",
    "Please interpret the log '{log}' for a colleague.",
    "Explain what happened according to '{log}'.",
)
CAUSE_QUESTIONS = (
    "What is the root cause behind the log '{log}'?",
    "Why was '{log}' written?",
    "Find the most likely cause of the log '{log}'.",
)
SOLUTION_QUESTIONS = (
    "What should be done about the log '{log}'?",
    "Recommend a solution for the problem in '{log}'.",
    "How would you react to the log '{log}'?",
)


def sentence(clause: str) -> str:
    return clause[0].upper() + clause[1:] + "."


def numbered(lines: list[str]) -> str:
    return "\n".join(f"{i}. {line}" for i, line in enumerate(lines, 1))


def listed(values: dict[str, str]) -> str:
    return ", ".join(f"{field} is {value}" for field, value in values.items())


def with_fields(event: Event, literal: Callable[[str], str], field: Callable[[str], str]) -> str:
    parts = string.Formatter().parse(event.log)
    return "".join(literal(text) + (field(name) if name else "") for text, name, _, _ in parts)


def answer_template(event: Event, values: dict[str, str], system: str, rng: Random) -> str:
    template = with_fields(event, literal=str, field=lambda name: "<*>")
    variables = [f"{field} = {value} ({kind_of(field).noun})" for field, value in values.items()]
    return f"The template of this log is:\n\n`{template}`\n\nIts variables are:\n{numbered(variables)}"


def answer_grok(event: Event, values: dict[str, str], system: str, rng: Random) -> str:
    def escape(text: str) -> str:
        return re.sub(r"[\\.^$|?*+()\[\]{}]", r"\\\g<0>", text)  # a grok pattern is a regular expression

    pattern = with_fields(event, literal=escape, field=lambda name: f"%{{{kind_of(name).grok}:{name}}}")
    kinds = {name: kind_of(name) for name in values}
    reasons = [f"%{{{kinds[name].grok}:{name}}} captures the {kinds[name].noun} {values[name]}." for name in values]
    rest = "The rest of the pattern is constant text."
    return f"I would use this grok pattern:\n\n`{pattern}`\n\nRationale:\n{numbered(reasons)}\n{rest}"


def answer_anomaly(event: Event, values: dict[str, str], system: str, rng: Random) -> str:
    if event.is_fault:
        verdict = rng.choice(("Yes, this log indicates an anomaly.", "This is abnormal behaviour."))
        return f"{verdict} It shows that {event.says}. The likely cause: {event.why}."
    verdict = rng.choice(("No, this log does not indicate an anomaly.", "This is normal behaviour."))
    return f"{verdict} It only reports that {event.says}. No alarm is needed."


def answer_meaning(event: Event, values: dict[str, str], system: str, rng: Random) -> str:
    opening = rng.choice((f"This {system} log means that", "It says that"))
    weight = "It needs attention" if event.is_fault else "It is part of normal operation"
    return f"{opening} {event.says}. {weight}: {event.why}. In detail: {listed(values)}."


def answer_cause(event: Event, values: dict[str, str], system: str, rng: Random) -> str:
    opening = rng.choice(("The most likely cause is that", "The log was written because"))
    evidence = f"The evidence in the log: {listed(values)}."
    ending = "This should be investigated." if event.is_fault else "This is not a fault."
    return f"{sentence(event.says)} {opening} {event.why}. {evidence} {ending}"


def answer_solution(event: Event, values: dict[str, str], system: str, rng: Random) -> str:
    if not event.is_fault:
        return f"Nothing needs to be done. {sentence(event.says)} {sentence(event.why)} It is enough to keep the log."
    return f"{sentence(event.says)} I recommend these steps:\n{numbered([sentence(step) for step in event.do])}"


TASKS = (
    ("template", TEMPLATE_QUESTIONS, answer_template),
    ("grok pattern", GROK_QUESTIONS, answer_grok),
    ("anomaly", ANOMALY_QUESTIONS, answer_anomaly),
    ("meaning", MEANING_QUESTIONS, answer_meaning),
    ("root cause", CAUSE_QUESTIONS, answer_cause),
    ("solution", SOLUTION_QUESTIONS, answer_solution),
)


class Sample(NamedTuple):
    system: str
    task: str
    instruction: str
    log: str
    answer: str


def samples(count: int, seed: int) -> Iterator[Sample]:
    """Random samples: each draws a system, one of its events, values for it, and one question about its log line."""
    rng = Random(seed)
    for _ in range(count):
        system = rng.choice(list(EVENTS))
        event = rng.choice(EVENTS[system])
        fields = [name for _, name, _, _ in string.Formatter().parse(event.log) if name]
        values = {name: draw(kind_of(name), rng) for name in dict.fromkeys(fields)}
        log = event.log.format(**values)
        said = event._replace(
            says=event.says.format(**values),
            why=event.why.format(**values),
            do=tuple(step.format(**values) for step in event.do),
        )
        task, questions, answer = rng.choice(TASKS)
        instruction = rng.choice(LEADS).format(system=system) + rng.choice(questions).format(log=log)
        yield Sample(system, task, instruction, log, answer(said, values, system, rng))


def row(sample: Sample) -> dict[str, str]:
    """A sample as a row of NLPLog."""
    system, _, instruction, log, answer = sample
    return {"instruction": instruction, "log": log, "output": answer, "domain": system}


def chat(sample: Sample) -> dict[str, object]:
    """A sample as a conversation in ShareGPT's form, whose domain is its task."""
    turns = [{"from": "human", "value": sample.instruction}, {"from": "gpt", "value": sample.answer}]
    return {"conversations": turns, "domain": sample.task}
