"""Talk to a model in the terminal: `python -m logtrain.chat --model DIR`. /help there lists its commands.

What a pipe brings is one question, all lines of it, or one of the tasks, and the answer is all that is printed:

    echo /cause | python -m logtrain.chat --model DIR --log app.log

    conversation.py  turns, the log, answers     commands.py  lines that begin with /     terminal.py  keys and screen
    data/log.py  a file's lines                  tasks.toml  what the tasks ask
"""

import dataclasses
import datetime
import os
import signal
import sys
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch

from logtrain.conversation.commands import COMMANDS, Leave, attach, question_in
from logtrain.conversation.session import Conversation, Exchange
from logtrain.conversation.terminal import Interrupt, Keyboard, Screen
from logtrain.core.config import load
from logtrain.core.entry import run
from logtrain.data.log import read_log
from logtrain.generation.generator import Generator, cache_bytes
from logtrain.generation.kv_cache import place_bytes
from logtrain.generation.load import DRAWN_BY, load_pretrained, load_template, model_folder, published_sampling
from logtrain.model import hf
from logtrain.model.llama import Llama
from logtrain.text.chat_template import DATE
from logtrain.text.tokenizer import Tokenizer

GIB = 2**30
STEP_TOKENS = {"cpu": 256, "cuda": 2048}  # Ctrl-C waits for a step: 0.6 s for 135 M parameters on one core


@dataclass(frozen=True, kw_only=True)
class ChatConfig:
    """Talk to a model in the terminal, or let a script ask it one question through a pipe."""

    model: str
    """Hugging Face folder of the model, or of an adapter in PEFT's format."""
    system: str = ""
    """What the model is told first."""
    log: str = ""
    """Log file that goes with the first question, as /log does it."""
    lines: str = ""
    """Which of its lines: 100-200, 100- to the end, or -50, the last 50."""
    max_new_tokens: int = 1024
    """An answer ends after so many tokens."""
    temperature: float = -1.0
    """Logits are divided by it before a token is drawn; 0: always the likeliest token. -1, here and below: what the
    model's generation_config.json says; if nothing, what Llama-3.1-Instruct's says: temperature 0.6, top_p 0.9."""
    top_k: int = -1
    """Draw among so many of the likeliest tokens; 0: all."""
    top_p: float = -1.0
    """Draw among the likeliest tokens that have this much probability together."""
    repetition_penalty: float = -1.0
    """Makes tokens that are there already less likely; 1: does not."""
    seed: int = 1309
    """Of the draws: the same questions in the same order get the same answers."""
    memory: float = 0.0
    """GiB for the cache of keys and values, of which it takes no more than the model's context needs. 0: on a GPU four
    fifths of what the model leaves free, on a CPU 2."""
    template: str = ""
    """A jinja file instead of the tokenizer's own chat template."""
    date: str = DATE
    """What a chat template that asks for the date is told."""

    def __post_init__(self):
        if self.lines and not self.log:
            raise ValueError(f"lines = {self.lines}: of which log? give --log FILE")
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens = {self.max_new_tokens} must be at least 1")
        if not 0 <= self.memory < float("inf"):
            raise ValueError(f"memory = {self.memory} must be a finite number of GiB >= 0")
        try:
            datetime.date.fromisoformat(self.date)
        except ValueError:
            raise ValueError(f"date = {self.date}: not a date as {DATE}") from None


def main(argv: list[str]) -> int:
    config = load(ChatConfig, argv)
    is_read = sys.stdin.isatty()
    text = "" if is_read else piped()
    log = read_log(config.log, config.lines) if config.log else None
    screen = Screen(is_read)
    conversation = build(config, screen)
    if log:
        (screen.warn if log.note else screen.note)(attach(log, conversation))
    if is_read:
        talk(conversation, screen)
        return 0
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # ends with whoever reads the answer
    exchange = answer(question_in(text, conversation, None), conversation, screen)
    return 130 if exchange.end == "cut" else 0


def piped() -> str:
    """All of stdin."""
    try:
        text = sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"stdin: not UTF-8 at byte {error.start:,}; a log goes with --log FILE") from None
    if not text.strip():
        raise ValueError("stdin: no question in it, and it is no terminal to type one")
    return text


# ---- what is loaded


def build(config: ChatConfig, screen: Screen) -> Conversation:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    path = Path(config.model)
    folder = model_folder(path)
    shape = hf.read_config(folder)
    template = load_template(path, Tokenizer.load(folder), config.template, config.date)
    given = {name: value for name in DRAWN_BY if (value := getattr(config, name)) != -1}
    sampling = dataclasses.replace(published_sampling(path), **given, seed=config.seed)
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in Llama(shape).parameters())
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    what = f"{config.model}: {parameters / 1e6:,.1f} M parameters in {str(dtype).removeprefix('torch.')}"
    check_memory(what, parameters * dtype.itemsize, device)
    screen.note(f"{what}, on {device_name(device)}")
    began = time.perf_counter()
    loaded = load_pretrained(config.model, device)
    assert loaded.model.head.weight.dtype == dtype
    most = shape.max_positions * place_bytes(shape, dtype)
    memory = cache_bytes(config.memory, device)
    check_memory("the cache (--memory)", min(memory, most), device)
    generator = Generator(
        loaded.model,
        loaded.tokenizer,
        loaded.stop_ids | {template.end_id},
        memory=memory,
        max_sequences=1,
        step_tokens=STEP_TOKENS[device.type],
        keep_prefixes=True,
    )
    conversation = Conversation(
        generator, template, sampling=sampling, max_new_tokens=config.max_new_tokens, system=config.system
    )
    drawn = ", ".join(f"{name} {getattr(sampling, name):g}" for name in ("temperature", "top_p"))
    screen.note(f"loaded in {time.perf_counter() - began:.1f} s; room for {conversation.room:,} tokens; {drawn}")
    screen.note("/help lists the commands; Ctrl-C stops an answer, Ctrl-D leaves")
    return conversation


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"


def free_bytes(device: torch.device) -> int:
    """On a GPU what is free, on the CPU all there is."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def check_memory(what: str, size: int, device: torch.device) -> None:
    if size > (free := free_bytes(device)):
        raise ValueError(
            f"{what}: {size / GIB:.1f} GiB, more than the {free / GIB:.1f} GiB that {device_name(device)} has"
        )


# ---- talking


def talk(conversation: Conversation, screen: Screen) -> None:
    keyboard = Keyboard(screen, COMMANDS, with_file=("log", "save"))
    leaving = False
    while True:
        try:
            text = keyboard.read()
        except EOFError:
            return
        except KeyboardInterrupt:
            if leaving:
                return
            leaving = True
            screen.note("Ctrl-C once more leaves")
            continue
        leaving = False
        try:
            if question := question_in(text, conversation, screen.note):
                answer(question, conversation, screen)
        except Leave:
            return
        except KeyboardInterrupt:  # where a command takes long
            screen.warn("stopped")
        except (ValueError, OSError) as error:
            screen.warn(str(error))


def answer(question: str, conversation: Conversation, screen: Screen) -> Exchange:
    """Ask, and write the answer as it comes. Ctrl-C stops it. Raises ValueError."""
    try:
        with Interrupt(screen) as interrupt, closing(conversation.ask(question)) as steps:
            for exchange in steps:
                screen.write(exchange.piece)
                if not exchange.first and exchange.read + conversation.generator.step_tokens < exchange.prompt_tokens:
                    screen.status(f"reading the prompt: {exchange.read:,} of {exchange.prompt_tokens:,} tokens")
                if interrupt.pressed:
                    break
    except torch.OutOfMemoryError:
        raise ValueError("the GPU's memory is full; start with a smaller --memory") from None
    finally:
        screen.end()
    if not exchange.text.strip():
        screen.warn("no answer, so the question is not part of the conversation")
    elif exchange.end == "cut":
        screen.warn("stopped; the conversation has the answer as far as it came")
    elif exchange.end == "length":
        screen.warn(f"cut at max_new_tokens = {conversation.max_new_tokens:,}")
    screen.note(str(exchange))
    return exchange


if __name__ == "__main__":
    run(main)
