"""What a line that begins with / does in a chat."""

import difflib
import re
import shlex
from collections.abc import Callable

from logtrain.conversation.session import TASKS, Conversation
from logtrain.data.log import Log, read_log

COMMANDS = {  # name: what follows it, what it does
    "log": ("FILE [LINES]", "attach a log to the next question"),
    **{name: ("", f"ask for {task['help']}") for name, task in TASKS.items()},
    "system": ("[TEXT]", "tell the model something before all else; without TEXT, nothing"),
    "reset": ("", "forget the conversation and its log"),
    "save": ("FILE", "write the conversation for logtrain.prepare --format messages"),
    "help": ("", "this list"),
    "exit": ("", "leave, as Ctrl-D does"),
}
SPELLINGS = {"summarize": "summarise"}
HELP = "\n".join(f"{f'/{name} {follows}':<19}{does}" for name, (follows, does) in COMMANDS.items())
HELP += """

LINES: 100-200, 100- to the end, or -50, the last 50. A question goes with // in the place
of a first /, or after a space. Lines that are pasted together are one question; Alt-Enter
begins a new line, the arrow keys bring back earlier ones, Ctrl-C stops an answer.
"""


class Leave(Exception):
    """/exit"""


def question_in(text: str, conversation: Conversation, say: Callable[[str], None] | None) -> str:
    """What there is to ask, "" for nothing, once the command that it may be is done. Raises ValueError, Leave.

    Without `say` tasks alone are commands: what a script pipes in may be a log's text, which must not command.
    """
    text = text.rstrip("\r\n")
    if re.search("[\ud800-\udfff]", text):
        raise ValueError("a byte that is not UTF-8 was typed; set terminal and locale to UTF-8")
    if text.startswith("//"):
        return text[1:]
    if not text.startswith("/"):
        return text if text.strip() else ""
    name, rest = re.fullmatch(r"/(\S*)\s*(.*)", text, re.DOTALL).groups()
    name = SPELLINGS.get(name.lower(), name.lower())
    if name not in COMMANDS:
        [near] = difflib.get_close_matches(name, [*COMMANDS, *SPELLINGS], n=1, cutoff=0.0)
        raise ValueError(f"/{name}: no such command; the nearest is /{near}. Is it a question? Put a space before it")
    if say is None and name not in TASKS:
        raise ValueError(f"/{name}: where stdin is no terminal only a question, or one of /{', /'.join(TASKS)}")
    follows = COMMANDS[name][0]
    if rest and not follows:
        raise ValueError(f"/{name}: nothing may follow it, and {rest.splitlines()[0]!r} does")
    if not rest and follows and not follows.startswith("["):
        raise ValueError(f"/{name}: expected /{name} {follows}")
    match name:
        case "log":
            say(attach(read_log(*words(rest, 2)), conversation))
        case "system":
            before, conversation.system = conversation.system, rest
            say("told to the model from the next answer on" if rest else f"no longer told to the model: {before!r}")
        case "reset":
            conversation.reset()
            say("the conversation and its log are forgotten")
        case "save":
            [path] = words(rest, 1)
            say(f"{conversation.save(path)}, in {path}")
        case "help":
            say(HELP)
        case "exit":
            raise Leave
        case task:
            return conversation.task(task)
    return ""


def attach(log: Log, conversation: Conversation) -> str:
    """-> what to say of it. Raises ValueError."""
    before, tokens = conversation.log, conversation.attach(log)
    changed, instead = f" ({log.note})" if log.note else "", f", and not {before.path}" if before else ""
    return f"{log.path}: {len(log.lines):,} lines, {tokens:,} tokens{changed}; with the next question{instead}"


def words(text: str, most: int) -> list[str]:
    """Split as a shell does, so that a name in quotes may hold spaces."""
    try:
        found = shlex.split(text)
    except ValueError as error:
        raise ValueError(f"{text}: {error}") from None
    if len(found) > most:
        raise ValueError(f"{text}: {len(found)} words, expected {most} at most; put a name with spaces in quotes")
    return found
