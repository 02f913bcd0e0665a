"""The tasks of a synthesis, from a TOML file: chat.toml and nlplog.toml, or a file of your own in the same form.

    role = "..."              what the teacher is, its system message
    [tasks.NAME]
    form = "text"             what an answer is, see below
    ask = ["...", "..."]      what the row asks, one of these at random
    teacher = "..."           what the teacher is told
    least_chars, most_chars   bounds of an answer, of each in a chat of several turns
    schema = {...}            of an answer in JSON (json_schema.py)

    text      the answer, as it is, is the row's
    json      an object by the schema, which, written on one line, is the row's answer
    turns     an object {turns: [{question, answer}, ...]} of as many turns as least_turns and most_turns allow, which
              are the row's; the first question has the log, and none of `ask` is needed

{system}, {log}, {question}, {schema} stand for the system's name, the log's lines, the row's question and the schema.
"""

import hashlib
import random
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from logtrain.core.kinds import held, kinds_of
from logtrain.core.untrusted import nearest, read_bytes
from logtrain.synthesis.chunks import Chunk
from logtrain.synthesis.config import SynthesiseConfig
from logtrain.synthesis.json_schema import check_schema, spelled
from logtrain.text.chat_template import Turn

Form = Literal["text", "json", "turns"]
MAX_FILE_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Task:
    """A kind of row."""

    name: str
    """Its name in the file."""
    form: Form = "text"
    """What an answer is."""
    teacher: str
    """What the teacher is told."""
    ask: tuple[str, ...] = ()
    """What a row asks, one of these at random."""
    least_chars: int = 40
    """The fewest characters of an answer."""
    most_chars: int = 8000
    """The most characters of an answer."""
    least_turns: int = 2
    """The fewest turns of a chat."""
    most_turns: int = 5
    """The most turns of a chat."""
    schema: dict[str, Any] = field(default_factory=dict)
    """The schema of an answer in JSON."""

    def __post_init__(self):
        for key, kind in kinds_of(type(self)).items():
            if key != "schema":
                object.__setattr__(self, key, held(key, getattr(self, key), kind))
        if self.form == "turns":
            object.__setattr__(self, "schema", turns_schema(self))
        if (self.form == "json") and not self.schema:
            raise ValueError("schema: missing; form json needs one")
        if self.schema:
            check_schema(self.schema)
        if not self.ask and self.form != "turns":
            raise ValueError("ask: none given; write what the row asks")
        if not 0 < self.least_chars <= self.most_chars or not 0 < self.least_turns <= self.most_turns:
            raise ValueError("least_chars and most_chars, least_turns and most_turns: expected 0 < least <= most")


@dataclass(frozen=True)
class Prompts:
    """The tasks of a file."""

    role: str
    tasks: tuple[Task, ...]
    sha256: str
    """of the file"""
    path: str

    def question(self, task: Task, chunk: Chunk, seed: str) -> str:
        """What the row asks, without the log; "" where the teacher makes it."""
        if not task.ask:
            return ""
        words = random.Random(seed).choice(task.ask)
        return filled(words, {"{system}": chunk.system, "{log}": chunk.text})

    def turns(self, task: Task, chunk: Chunk, question: str) -> tuple[Turn, Turn]:
        """What the teacher is asked."""
        marks = {"{system}": chunk.system, "{question}": question, "{log}": chunk.text}
        if task.schema:
            marks["{schema}"] = spelled(task.schema)
        return Turn("system", filled(self.role, marks)), Turn("user", filled(task.teacher, marks))


def turns_schema(task: Task) -> dict[str, Any]:
    """The schema of a chat of several turns."""
    text = {"type": "string", "minLength": 1, "maxLength": task.most_chars}
    turn = {"type": "object", "properties": {"question": text, "answer": text}, "required": ["question", "answer"]}
    turns = {"type": "array", "items": turn, "minItems": task.least_turns, "maxItems": task.most_turns}
    return {"type": "object", "properties": {"turns": turns}, "required": ["turns"]}


def filled(text: str, marks: dict[str, str]) -> str:
    """The text with each mark replaced, in one pass: what a log has in the form of a mark stays."""
    found, at = [], 0
    while True:
        start, mark = min(((text.find(mark, at), mark) for mark in marks if text.find(mark, at) >= 0), default=(-1, ""))
        if start < 0:
            return "".join([*found, text[at:]])
        found += text[at:start], marks[mark]
        at = start + len(mark)


def read_prompts(config: SynthesiseConfig) -> Prompts:
    """The tasks that a config takes. Raises ValueError, with file and task, for a file that is wrong."""
    own = Path(__file__).with_name("nlplog.toml" if config.rows == "nlplog" else "chat.toml")
    path = Path(config.prompts) if config.prompts else own
    content = read_bytes(path, MAX_FILE_BYTES)
    try:
        facts = tomllib.loads(content.decode())
    except ValueError as error:  # of UTF-8, too
        raise ValueError(f"{path}: not TOML: {error}") from None
    if not isinstance(facts.get("role"), str) or not isinstance(facts.get("tasks"), dict) or len(facts) != 2:
        raise ValueError(f"{path}: expected role = ... and [tasks.NAME] tables, found {', '.join(facts) or 'nothing'}")
    tasks = {name: read_task(path, name, table) for name, table in facts["tasks"].items()}
    for name in config.tasks:
        if name not in tasks:
            raise ValueError(
                f"tasks: {name!r} is not in {path}; did you mean {(nearest(name, tasks) or list(tasks))[0]}?"
            )
    chosen = tuple(task for name, task in tasks.items() if not config.tasks or name in config.tasks)
    if config.rows == "nlplog" and (other := next((task.name for task in chosen if task.form == "turns"), "")):
        raise ValueError(f"{path}: tasks.{other}: form turns: a row of nlplog has one question")
    return Prompts(facts["role"].strip(), chosen, hashlib.sha256(content).hexdigest(), str(path))


def read_task(path: Path, name: str, table: object) -> Task:
    """A task by its table. Raises ValueError."""
    try:
        if not isinstance(table, dict):
            raise ValueError("expected a table")
        if unknown := sorted(table.keys() - set(Task.__dataclass_fields__) | table.keys() & {"name"}):
            raise ValueError(f"{unknown[0]}: unknown key")
        if not isinstance(table.get("teacher"), str):
            raise ValueError("teacher: missing; write what the teacher is told")
        return Task(name=name, **{key: stripped(value) for key, value in table.items()})
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: tasks.{name}: {error}") from None


def stripped(value: Any) -> Any:
    """A text without the blanks around it."""
    if isinstance(value, list):
        return tuple(stripped(item) for item in value)
    return value.strip() if isinstance(value, str) else value
