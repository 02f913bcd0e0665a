"""Where a person types questions and reads answers, or a script: then there are answers on stdout and nothing else.

prompt_toolkit edits the line, for a pasted block of lines to be one question with any Python (whose readline may be
libedit, which takes it line by line) and at any time (while an answer comes, too). What a model or a log says cannot
steer the terminal: a control character is written as its escape. Where there is no terminal an answer stays as it is.
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
BRACKET_PASTES, NO_BRACKETS = "\x1b[?2004h", "\x1b[?2004l"  # the terminal puts what is pasted in brackets, or does not


class Screen:
    """Answers go to stdout, and the rest beside them: to stderr where stdout is no terminal, or nobody reads along."""

    def __init__(self, is_interactive: bool):
        """`is_interactive`: a person reads along; a script gets no notes, but warnings."""
        self.is_interactive, self.is_terminal = is_interactive, sys.stdout.isatty()
        self.file = sys.stdout if is_interactive and self.is_terminal else sys.stderr
        self.console = Console(file=self.file, highlight=False)
        self.has_status, self.at_start = False, True
        if not self.is_terminal and isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8")

    def write(self, piece: str) -> None:
        """Show one more piece of an answer."""
        if piece:
            self.status("")
            print(printable(piece) if self.is_terminal else piece, end="", flush=True)
            self.at_start = piece.endswith("\n")

    def end(self) -> None:
        """The answer is over: what follows begins a line."""
        self.status("")
        if not self.at_start:
            print(flush=True)
        self.at_start = True

    def note(self, text: str) -> None:
        """Tell a person something; a script is not told."""
        if self.is_interactive:
            self.show(text, "dim")

    def warn(self, text: str) -> None:
        """Tell a person or a script that something is not as it was asked for."""
        self.show(text, "yellow")

    def show(self, text: str, style: str) -> None:
        """Write lines in a style, wrapped to a terminal's width."""
        self.console.print(Text(printable(text), style=style), soft_wrap=not self.console.is_terminal)

    def status(self, text: str) -> None:
        """Show a note that the next one, or the answer, takes the place of."""
        if text or self.has_status:
            self.control(CLEAR_LINE + text)
            self.has_status = bool(text)

    def control(self, codes: str) -> None:
        """Send codes to a terminal that knows them, to no other and to no file."""
        if self.is_interactive and self.console.is_terminal and not self.console.is_dumb_terminal:
            print(codes, end="", file=self.file, flush=True)


class Keyboard:
    """Reads a line, or a pasted block of them, at a time. What was typed before comes back with the arrow keys."""

    def __init__(self, screen: Screen, commands: Iterable[str], with_file: Collection[str]):
        """`with_file`: those of the commands that a path follows."""
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
        """What is typed next. Raises EOFError for Ctrl-D; KeyboardInterrupt for Ctrl-C where nothing was typed, else
        the line begins anew.
        """
        while True:
            try:
                return self.session.prompt()
            except KeyboardInterrupt:
                if not self.session.default_buffer.text:
                    raise


class CommandCompleter(Completer):
    """The Tab key writes out commands, and paths after those that take one."""

    def __init__(self, commands: Iterable[str], with_file: Collection[str]):
        self.before_path = tuple(f"/{name} " for name in with_file)
        self.names = [*self.before_path, *(f"/{name}" for name in commands if name not in with_file)]
        self.paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
        text = document.text_before_cursor
        if text.startswith(self.before_path):
            yield from self.paths.get_completions(Document(text.partition(" ")[2]), complete_event)
        else:
            yield from (Completion(name, -len(text)) for name in self.names if name.startswith(text))


class Interrupt:
    """While it is entered Ctrl-C sets `pressed`, and what is typed or pasted waits, unseen, for the next prompt."""

    def __init__(self, screen: Screen):
        self.screen, self.pressed = screen, False

    def press(self, number: int, frame: object) -> None:
        """What Ctrl-C calls, as a signal's handler."""
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
