"""Talk to a model in the terminal: `python -m logtrain.chat --model DIR`. /help there lists its commands.

What a pipe brings is one question, all lines of it, or one of the tasks, and the answer is all that is printed:

    echo /cause | python -m logtrain.chat --model DIR --log app.log

The parts are in conversation/: session.py has turns, the log and answers, commands.py the lines that begin with /,
tasks.toml what the tasks ask, terminal.py keys and screen, repl.py the loop. data/log.py reads a file's lines.
"""

import dataclasses
import signal
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from logtrain.core.config import load
from logtrain.core.entry import BY_CTRL_C, run
from logtrain.generation.config import DRAWN_BY, SamplingConfig
from logtrain.text.config import DATE, check_date

if TYPE_CHECKING:
    from logtrain.conversation.session import Conversation
    from logtrain.conversation.terminal import Screen

STEP_TOKENS = {"cpu": 256, "cuda": 2048}  # Ctrl-C waits for a step: 0.6 s for 135 M parameters on one core


@dataclass(frozen=True, kw_only=True)
class ChatConfig:
    """Talk to a model in the terminal, or let a script ask it one question through a pipe."""

    model: str
    """Hugging Face folder of the model, or of an adapter in PEFT's format."""
    system: str = ""
    """What the model is told first."""
    log: str = ""
    """Log file that goes with the first question, as one that /log names goes with the next."""
    lines: str = ""
    """Which of the log's lines: 100-200, 100- to the end, or -50, the last 50."""
    max_new_tokens: int = 1024
    """An answer ends after so many tokens."""
    temperature: float = -1.0
    """Logits are divided by it before a token is drawn; 0: always the likeliest token. -1, for each setting of draws:
    what the model's generation_config.json says; if nothing, what Llama-3.1-Instruct's says: temperature 0.6, top_p
    0.9."""
    top_k: int = -1
    """A token is drawn among so many of the likeliest; 0: among all; -1: as the model says."""
    top_p: float = -1.0
    """A token is drawn among the likeliest that have this much probability together; -1: as the model says."""
    repetition_penalty: float = -1.0
    """It makes tokens that are there already less likely; 1: it does not; -1: as the model says."""
    seed: int = 1309
    """Seed of the draws: the same questions in the same order get the same answers."""
    memory: float = 0.0
    """GiB for the cache of keys and values, of which it takes no more than the model's context needs. 0: on a GPU four
    fifths of what the model leaves free, on a CPU 2."""
    template: str = ""
    """A jinja file instead of the tokenizer's own chat template."""
    date: str = DATE
    """The day that a chat template which asks for the date is told."""

    def __post_init__(self):
        if self.lines and not self.log:
            raise ValueError(f"lines = {self.lines}: of which log? give --log FILE")
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens = {self.max_new_tokens} must be at least 1")
        if not 0 <= self.memory < float("inf"):
            raise ValueError(f"memory = {self.memory} must be a finite number of GiB >= 0")
        check_date(self.date)

    def sampling(self, published: SamplingConfig) -> SamplingConfig:
        """How answers are drawn: as the model says, but for what is set here. Raises ValueError as SamplingConfig."""
        given = {name: value for name in DRAWN_BY if (value := getattr(self, name)) != -1}
        return dataclasses.replace(published, **given, seed=self.seed)


def main(argv: list[str]) -> int:
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
        (screen.warn if log.note else screen.note)(attach_log(log, conversation))
    if is_interactive:
        run_repl(conversation, screen)
        return 0
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # ends with whoever reads the answer
    response = answer(piped_question(text, conversation), conversation, screen)
    return BY_CTRL_C if response.finish_reason is None else 0


def build(config: ChatConfig, screen: "Screen") -> "Conversation":
    """The model, ready to talk. Raises ValueError for a folder that cannot chat, or is larger than the device."""
    import torch

    from logtrain.conversation.session import Conversation
    from logtrain.generation.load import ModelFolder
    from logtrain.generation.memory import device_name

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    folder = ModelFolder(config.model, config.template, config.date)
    folder.check_memory(device)
    template, sampling = folder.template, config.sampling(folder.sampling)
    screen.note(f"{folder.summary(device)}, on {device_name(device)}")
    began = time.perf_counter()
    generator = folder.load(device).generator(config.memory, step_tokens=STEP_TOKENS[device.type], keep_prefixes=True)
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
