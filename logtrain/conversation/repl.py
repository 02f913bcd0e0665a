"""The loop of a chat, which reads a question and writes its answer as it comes."""

import sys
from contextlib import closing

import torch

from logtrain.conversation.commands import COMMANDS, WITH_FILE, ExitChat, handle
from logtrain.conversation.session import Conversation, Response
from logtrain.conversation.terminal import Interrupt, Keyboard, Screen


def read_piped() -> str:
    """The text that a script pipes in. Raises ValueError if it is not UTF-8, or blank."""
    try:
        text = sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"stdin: not UTF-8 at byte {error.start:,}; a log goes with --log FILE") from None
    if not text.strip():
        raise ValueError("stdin: no question in it, and it is no terminal to type one")
    return text


def run_repl(conversation: Conversation, screen: Screen) -> None:
    """Answer the questions of a user until they leave. Mistakes are shown, and the chat goes on."""
    keyboard = Keyboard(screen, COMMANDS, WITH_FILE)
    is_leaving = False
    while True:
        try:
            line = keyboard.read()
        except EOFError:
            return
        except KeyboardInterrupt:
            if is_leaving:
                return
            is_leaving = True
            screen.note("Ctrl-C once more leaves")
            continue
        is_leaving = False
        try:
            if question := handle(line, conversation, screen.note):
                answer(question, conversation, screen)
        except ExitChat:
            return
        except KeyboardInterrupt:  # Ctrl-C during a command
            screen.warn("stopped")
        except (ValueError, OSError) as error:
            screen.warn(str(error))


def answer(question: str, conversation: Conversation, screen: Screen) -> Response:
    """Ask the model, and write its answer as it comes; Ctrl-C stops the answer. Raises ValueError if the question does
    not fit, or the GPU's memory is full.
    """
    step_tokens = conversation.generator.scheduler.step_tokens
    try:
        with Interrupt(screen) as interrupt, closing(conversation.ask(question)) as steps:
            for response in steps:
                screen.write(response.delta)
                if not response.first_token and response.cached_tokens + step_tokens < response.prompt_tokens:
                    read = f"{response.cached_tokens:,} of {response.prompt_tokens:,}"
                    screen.status(f"reading the prompt: {read} tokens")
                if interrupt.pressed:
                    break
    except torch.OutOfMemoryError:
        raise ValueError("the GPU's memory is full; start with a smaller --memory") from None
    finally:
        screen.end()
    if not response.text.strip():
        screen.warn("no answer, so the question is not part of the conversation")
    elif response.finish_reason is None:
        screen.warn("stopped; the conversation has the answer as far as it came")
    elif response.finish_reason == "length":
        screen.warn(f"cut at max_new_tokens = {conversation.max_new_tokens:,}")
    screen.note(str(response))
    return response
