"""The commands of a chat, which are lines that begin with /."""

import difflib
import re
import shlex
from collections.abc import Callable
from typing import NamedTuple

from logtrain.conversation.session import Conversation, FoldedLog
from logtrain.conversation.tasks import TASKS
from logtrain.data.log import Log, read_log


class Usage(NamedTuple):
    """How a command is given, as /help shows it."""

    arguments: str
    """The arguments after the name, "" for none; those in brackets may be left out."""
    help: str
    """What the command does, in a few words."""


COMMANDS = {
    "log": Usage("FILE [LINES]", "attach a log to the next question"),
    **{name: Usage("", f"ask for {task.help}") for name, task in TASKS.items()},
    "unfold": Usage("Tn|LINES", "lines that folding left out, for you and the model"),
    "system": Usage("[TEXT]", "tell the model something before all else; without TEXT, nothing"),
    "reset": Usage("", "forget the conversation and its log"),
    "save": Usage("FILE", "write the conversation for logtrain.prepare --format messages"),
    "help": Usage("", "this list"),
    "exit": Usage("", "leave, as Ctrl-D does"),
}
WITH_FILE = tuple(name for name, usage in COMMANDS.items() if usage.arguments.startswith("FILE"))
MOST_SHOWN = 200  # lines of /unfold that are shown
MOST_GROUPS = 8  # of a folded log that are shown
SPELLINGS = {"summarize": "summarise"}
HELP = "\n".join(f"{f'/{name} {usage.arguments}':<19}{usage.help}" for name, usage in COMMANDS.items())
HELP += """

LINES: 100-200, 100- to the end, or -50, the last 50. A question goes with // in the place
of a first /, or after a space. Lines that are pasted together are one question; Alt-Enter
begins a new line, the arrow keys bring back earlier ones, Ctrl-C stops an answer.
"""


class ExitChat(Exception):
    """Raised by /exit, to leave the chat."""


class Command(NamedTuple):
    """A line that is a command."""

    name: str
    """Name of the command, a key of COMMANDS."""
    arguments: str
    """The rest of the line, "" for none."""


def parse(line: str) -> Command | str:
    """The command or the question that a line is; "" for a blank line. Raises ValueError for an unknown command."""
    line = line.rstrip("\r\n")
    if re.search("[\ud800-\udfff]", line):
        raise ValueError("a byte that is not UTF-8 was typed; set terminal and locale to UTF-8")
    if line.startswith("//"):
        return line[1:]
    if not line.startswith("/"):
        return line if line.strip() else ""
    name, arguments = (*re.split(r"\s+", line[1:], maxsplit=1), "")[:2]
    name = SPELLINGS.get(name.lower(), name.lower())
    if name not in COMMANDS:
        [near] = difflib.get_close_matches(name, [*COMMANDS, *SPELLINGS], n=1, cutoff=0.0)
        raise ValueError(f"/{name}: no such command; the nearest is /{near}. Is it a question? Put a space before it")
    return Command(name, arguments)


def check_arguments(command: Command) -> None:
    """Raises ValueError for arguments of a command that takes none, and for none of one that needs some."""
    name, arguments = command
    expected = COMMANDS[name].arguments
    if arguments and not expected:
        raise ValueError(f"/{name}: nothing may follow it, and {arguments.splitlines()[0]!r} does")
    if not arguments and expected and not expected.startswith("["):
        raise ValueError(f"/{name}: expected /{name} {expected}")


def handle(line: str, conversation: Conversation, say: Callable[[str], None]) -> str:
    """Run the command that a line may be; -> the question to ask the model next, "" for none. `say` shows a message.
    Raises ValueError for a user's mistake, and ExitChat.
    """
    command = parse(line)
    if isinstance(command, str):
        return command
    check_arguments(command)
    return perform(command, conversation, say)


def piped_question(text: str, conversation: Conversation) -> str:
    """The question that a script pipes in. Only the names of tasks are commands there, because the text may be a log's,
    which must not give commands. Raises ValueError for other commands.
    """
    command = parse(text)
    if isinstance(command, str):
        return command
    if command.name not in TASKS:
        tasks = ", /".join(TASKS)
        raise ValueError(f"/{command.name}: where stdin is no terminal only a question, or one of /{tasks}")
    check_arguments(command)
    return conversation.task_question(command.name)


def perform(command: Command, conversation: Conversation, say: Callable[[str], None]) -> str:
    """Run a command; -> the question to ask the model next, "" for none. Raises ValueError and ExitChat as `handle`."""
    match command.name:
        case "log":
            say(attach_log(read_log(*split_words(command.arguments, 2)), conversation))
        case "unfold":
            [which] = split_words(command.arguments, 1)
            lines, told = conversation.unfold(which)
            more = [f"... and {len(lines) - MOST_SHOWN:,} more"] if len(lines) > MOST_SHOWN else []
            say("\n".join([*lines[:MOST_SHOWN], *more, f"{len(lines):,} lines; {told}"]))
        case "system":
            before, conversation.system = conversation.system, command.arguments
            is_told = "told to the model from the next answer on"
            say(is_told if command.arguments else f"no longer told to the model: {before!r}")
        case "reset":
            conversation.reset()
            say("the conversation and its log are forgotten")
        case "save":
            [path] = split_words(command.arguments, 1)
            say(f"{conversation.save(path)}, in {path}")
        case "help":
            say(HELP)
        case "exit":
            raise ExitChat
        case task:
            return conversation.task_question(task)
    return ""


def attach_log(log: Log, conversation: Conversation) -> str:
    """Attach a log to the next question; -> the message for the user. Raises ValueError if not even a folded log
    fits.
    """
    before, size = conversation.log, conversation.attach(log)
    changed, instead = f" ({log.note})" if log.note else "", f", and not {before.path}" if before else ""
    said = f"{log.path}: {size}{changed}; with the next question{instead}"
    if isinstance(conversation.log, FoldedLog):
        groups = [group.text for group in conversation.log.folded.groups[:MOST_GROUPS]]
        said = "\n".join([said, *groups, "/unfold T1 or /unfold 100-200 brings back what is left out"])
    return said


def split_words(text: str, most: int) -> list[str]:
    """The words of a text as a shell splits it, so that a name in quotes may hold spaces. Raises ValueError for more
    than `most`.
    """
    try:
        found = shlex.split(text)
    except ValueError as error:
        raise ValueError(f"{text}: {error}") from None
    if len(found) > most:
        raise ValueError(f"{text}: {len(found)} words, expected {most} at most; put a name with spaces in quotes")
    return found
