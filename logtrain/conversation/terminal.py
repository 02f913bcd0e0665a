"""The keyboard and the screen of a chat. For a script there are answers on stdout, and nothing else.

prompt_toolkit edits the line, so that a pasted block of lines is one question with any Python (whose readline may be
libedit, which takes it line by line) and at any time (also while an answer comes). The text of a model or a log cannot
steer the terminal, because control characters are written as their escapes. Without a terminal answers are unchanged.
"""

import io
import signal
import sys
import termios
from collections.abc import Collection, Iterable, Iterator

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.key_binding import KeyBindings
from prompt_toolkit.output import create_output
from rich.console import Console
from rich.text import Text

from logtrain.core.printable import printable

CLEAR_LINE = "\r\x1b[K"
BRACKET_PASTES, NO_BRACKETS = "\x1b[?2004h", "\x1b[?2004l"  # pasted text is marked, or not


class Screen:
    """The output of a chat. Answers go to stdout, and so do messages if a user reads them there, else to stderr."""

    def __init__(self, is_interactive: bool):
        """`is_interactive`: whether a user reads the screen; a script gets warnings, but no notes."""
        self.is_interactive, self.is_terminal = is_interactive, sys.stdout.isatty()
        self.file = sys.stdout if is_interactive and self.is_terminal else sys.stderr
        self.console = Console(file=self.file, highlight=False)
        self.has_status, self.at_start = False, True
        if not self.is_terminal and isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8")

    def write(self, piece: str) -> None:
        """Write the next piece of an answer."""
        if piece:
            self.status("")
            print(printable(piece) if self.is_terminal else piece, end="", flush=True)
            self.at_start = piece.endswith("\n")

    def end(self) -> None:
        """End an answer: the next output begins a line."""
        self.status("")
        if not self.at_start:
            print(flush=True)
        self.at_start = True

    def note(self, text: str) -> None:
        """Show a message to a user, but not to a script."""
        if self.is_interactive:
            self.show(text, "dim")

    def warn(self, text: str) -> None:
        """Show a warning to a user or a script."""
        self.show(text, "yellow")

    def show(self, text: str, style: str) -> None:
        """Write lines in a style, wrapped to a terminal's width."""
        self.console.print(Text(printable(text), style=style), soft_wrap=not self.console.is_terminal)

    def status(self, text: str) -> None:
        """Show a message that the next one, or the answer, replaces."""
        if text or self.has_status:
            self.control(CLEAR_LINE + text)
            self.has_status = bool(text)

    def control(self, codes: str) -> None:
        """Send control codes, if the output is a terminal that knows them."""
        if self.is_interactive and self.console.is_terminal and not self.console.is_dumb_terminal:
            print(codes, end="", file=self.file, flush=True)


class Keyboard:
    """Reads a line, or a pasted block of lines, at a time. The arrow keys bring back earlier ones."""

    def __init__(self, screen: Screen, commands: Iterable[str], with_file: Collection[str]):
        """`commands`: their names, without /. `with_file`: those of them that a path follows."""
        keys = KeyBindings()
        keys.add("escape", "enter")(lambda event: event.current_buffer.insert_text("\n"))
        self.session = PromptSession(
            "\n> ",
            prompt_continuation="  ",
            key_bindings=keys,
            completer=CommandCompleter(commands, with_file),
            complete_while_typing=False,
            enable_suspend=True,
            output=create_output(screen.file),
        )

    def read(self) -> str:
        """Read the next line. Raises EOFError for Ctrl-D, and KeyboardInterrupt for Ctrl-C on an empty line; on another
        one Ctrl-C clears it.
        """
        while True:
            try:
                return self.session.prompt()
            except KeyboardInterrupt:
                if not self.session.default_buffer.text:
                    raise


class CommandCompleter(Completer):
    """Completes commands, and paths after those that take one, at the Tab key."""

    def __init__(self, commands: Iterable[str], with_file: Collection[str]):
        self.before_path = tuple(f"/{name} " for name in with_file)
        self.names = [*self.before_path, *(f"/{name}" for name in commands if name not in with_file)]
        self.paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
        """The completions of the text before the cursor, as prompt_toolkit asks for them."""
        text = document.text_before_cursor
        if text.startswith(self.before_path):
            yield from self.paths.get_completions(Document(text.partition(" ")[2]), complete_event)
        else:
            yield from (Completion(name, -len(text)) for name in self.names if name.startswith(text))


class Interrupt:
    """A context in which Ctrl-C sets `pressed`, and typed or pasted text waits, unseen, for the next prompt."""

    def __init__(self, screen: Screen):
        self.screen, self.pressed = screen, False

    def press(self, number: int, frame: object) -> None:
        """Remember that Ctrl-C was pressed; the handler of its signal."""
        self.pressed = True

    def __enter__(self) -> "Interrupt":
        self.handler = signal.signal(signal.SIGINT, self.press)
        self.mode = termios.tcgetattr(sys.stdin) if sys.stdin.isatty() else None
        if self.mode:
            mode = list(self.mode)
            mode[3] &= ~(termios.ECHO | termios.ICANON)  # the local modes
            termios.tcsetattr(sys.stdin, termios.TCSANOW, mode)
            self.screen.control(BRACKET_PASTES)
        return self

    def __exit__(self, *error: object) -> None:
        if self.mode:
            self.screen.control(NO_BRACKETS)
            termios.tcsetattr(sys.stdin, termios.TCSANOW, self.mode)
        signal.signal(signal.SIGINT, self.handler)
