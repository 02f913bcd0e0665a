"""Lets you talk with a model in the terminal, about a log or anything else.

    logtrain chat --model DIR

/help lists the commands of the chat. The whole of a piped input is one question, or the name of a task, and only the
answer is printed:

    echo /cause | logtrain chat --model DIR --log app.log

The parts are in conversation/: session.py has the turns, the log and the answers, commands.py the lines that begin with
/, tasks.toml the questions of the tasks, terminal.py keyboard and screen, repl.py the loop. data/log.py reads logs.
"""

import dataclasses
import signal
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from logtrain.core.config import load
from logtrain.core.entry import BY_CTRL_C, run
from logtrain.core.kinds import Config
from logtrain.core.location import FILE, MODEL
from logtrain.generation.config import DRAWN_BY, SamplingConfig
from logtrain.text.config import DATE, check_date

if TYPE_CHECKING:
    from logtrain.conversation.session import Conversation
    from logtrain.conversation.terminal import Screen

STEP_TOKENS = {"cpu": 256, "cuda": 2048}  # Ctrl-C waits for a step: 0.6 s for 135 M parameters on one core


@dataclass(frozen=True, kw_only=True)
class ChatConfig(Config):
    """Talk to a model in the terminal, or let a script ask it one question through a pipe."""

    model: Annotated[str, MODEL]
    """Hugging Face folder of the model, or of an adapter in PEFT's format."""
    system: str = ""
    """System prompt: the text that the model is told before the conversation."""
    log: Annotated[str, FILE] = ""
    """Log file that is attached to the first question, as /log FILE attaches one to the next question."""
    lines: str = ""
    """The lines of the log to attach: 100-200; 100- for all from line 100; -50 for the last 50."""
    max_new_tokens: int = 1024
    """The most tokens of an answer."""
    temperature: float = -1.0
    """Divisor of the logits before a token is drawn; 0: always the likeliest token; -1: as the model's files say."""
    top_k: int = -1
    """Each token is drawn among so many of the likeliest; 0: among all; -1: as the model's files say."""
    top_p: float = -1.0
    """Tokens are drawn among the likeliest whose probabilities have this sum; 1: among all; -1: as the files say."""
    repetition_penalty: float = -1.0
    """Factor that makes tokens which are in the text already less likely; 1: none; -1: as the model's files say."""
    seed: int = 1309
    """Seed of the draws; the same questions in the same order get the same answers."""
    memory: float = 0.0
    """GiB for the cache of keys and values at most; 0: on a GPU four fifths of what is free, on a CPU 2."""
    template: Annotated[str, FILE] = ""
    """A jinja file to use instead of the tokenizer's own chat template."""
    date: str = DATE
    """The date that is given to a chat template that asks for today's."""

    def __post_init__(self):
        super().__post_init__()
        if self.lines and not self.log:
            raise ValueError(f"lines = {self.lines}: of which log? give --log FILE")
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens = {self.max_new_tokens} must be at least 1")
        if not 0 <= self.memory < float("inf"):
            raise ValueError(f"memory = {self.memory} must be a finite number of GiB >= 0")
        check_date(self.date)

    def sampling(self, published: SamplingConfig) -> SamplingConfig:
        """The settings of draws: those that the model's files publish, with those that are set here in their place.
        Raises ValueError as SamplingConfig does.
        """
        given = {name: value for name in DRAWN_BY if (value := getattr(self, name)) != -1}
        return dataclasses.replace(published, **given, seed=self.seed)


def main(argv: list[str]) -> int:
    """Chat as the flags say; -> the exit status."""
    config = load(ChatConfig, argv)
    from logtrain.conversation.commands import attach_log, piped_question  # after the flags: they bring torch
    from logtrain.conversation.repl import answer, read_piped, run_repl
    from logtrain.conversation.terminal import Screen
    from logtrain.data.log import read_log

    is_interactive = sys.stdin.isatty()
    text = "" if is_interactive else read_piped()
    log = read_log(config.log, config.lines) if config.log else None
    screen = Screen(is_interactive)
    conversation = build(config, screen)
    if log:
        said = attach_log(log, conversation)
        (screen.warn if log.note or conversation.last_folded else screen.note)(said)
    if is_interactive:
        run_repl(conversation, screen)
        return 0
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # ends with whoever reads the answer
    response = answer(piped_question(text, conversation), conversation, screen)
    return BY_CTRL_C if response.finish_reason is None else 0


def build(config: ChatConfig, screen: "Screen") -> "Conversation":
    """A conversation with the loaded model. Raises ValueError for a folder that cannot chat, or is larger than the
    device.
    """
    import torch

    from logtrain.conversation.session import Conversation
    from logtrain.core.still import Still
    from logtrain.generation.load import ModelFolder
    from logtrain.generation.memory import device_name

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    folder = ModelFolder(config.model, config.template, config.date)
    folder.check_memory(device)
    template, sampling = folder.template, config.sampling(folder.sampling)
    screen.note(f"{folder.summary(device)}, on {device_name(device)}")
    began = time.perf_counter()
    with Still():
        loaded = folder.load(device)
    generator = loaded.generator(config.memory, step_tokens=STEP_TOKENS[device.type], keep_prefixes=True)
    conversation = Conversation(
        generator, template, sampling=sampling, max_new_tokens=config.max_new_tokens, system=config.system
    )
    drawn = f"temperature {sampling.temperature:g}, top_p {sampling.top_p:g}"
    seconds = time.perf_counter() - began
    screen.note(f"loaded in {seconds:.1f} s; room for {conversation.context_size:,} tokens; {drawn}")
    screen.note("/help lists the commands; Ctrl-C stops an answer, Ctrl-D leaves")
    return conversation


if __name__ == "__main__":
    run(main)
