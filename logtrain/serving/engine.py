"""The process that has the model on one device and answers, driven by messages. The HTTP server is another process.

    from the server    EngineConfig once, then Submit and Cancel
    to the server      Ready once (or Refused, and it ends), then Progress after each step that brought something

Between two steps it reads all messages that have come, so a request that is cancelled leaves before the next one.
"""

from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import torch

from logtrain.generation.adapters import serve_adapters
from logtrain.generation.load import ModelFolder
from logtrain.generation.memory import device_name
from logtrain.generation.request import Event, Request
from logtrain.model import peft

MODULE = __name__  # what core.worker starts
STEP_TOKENS = {"cpu": 512, "cuda": 4096}  # running answers wait for a step: 0.5 s for 135 M parameters on two cores


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """What a worker must know; the fields are those of ServeConfig."""

    model: str
    device: str
    adapters: tuple[str, ...]
    """Folders, in the order of the numbers that requests name them by."""
    memory: float
    max_sequences: int
    step_tokens: int


class Submit(NamedTuple):
    """A request to be answered."""

    key: int
    """By which the server knows it."""
    request: Request


class Cancel(NamedTuple):
    """A request that nobody waits for any more."""

    key: int


class Ready(NamedTuple):
    """The model is loaded."""

    summary: str
    """What, where and how, in words."""
    context_size: int
    """The most tokens that a prompt and its answer may have together."""
    num_slots: int
    """Tokens that the cache has room for."""


class Refused(NamedTuple):
    """A mistake of the user's: with key 0 in what the worker is to load, otherwise in a request."""

    key: int
    message: str


class Load(NamedTuple):
    """What a worker is doing."""

    running: int = 0
    waiting: int = 0
    used_slots: int = 0
    """Slots of the cache that running answers hold."""
    kept_slots: int = 0
    """Slots that hold what was answered before, for prompts that begin alike."""


class Progress(NamedTuple):
    """What a step has brought."""

    events: list[tuple[int, Event]]
    """Key and event of each token that a request got."""
    load: Load


class Engine:
    """A generator, and the requests that the server has given it."""

    def __init__(self, config: EngineConfig, connection: Connection):
        """Raises ValueError for a folder that is wrong, or larger than the device."""
        device, folder = torch.device(config.device), ModelFolder(config.model)
        if device.type == "cuda":
            torch.cuda.set_device(device)  # kernels are launched on the current one
        loaded = folder.load(device, config.max_sequences)
        serve_adapters(loaded.model, [peft.read(Path(path), folder.shape) for path in config.adapters])
        step_tokens = config.step_tokens or max(STEP_TOKENS[device.type], config.max_sequences)
        self.generator = loaded.generator(config.memory, stop_ids=(), step_tokens=step_tokens, keep_prefixes=True)
        slots, most = self.generator.scheduler.num_slots, folder.shape.max_positions
        beside = f", {len(config.adapters)} adapters" if config.adapters else ""
        summary = f"{folder.summary(device)}{beside}, on {device_name(device)}; room for {slots:,} tokens"
        self.ready = Ready(summary, min(slots, most), slots)
        self.connection, self.told = connection, Load()
        self.keys: dict[int, int] = {}  # the server's, by the generator's ids

    def read(self, message: Submit | Cancel) -> None:
        """Do what a message says."""
        if isinstance(message, Submit):
            try:
                self.keys[self.generator.submit(message.request)] = message.key
            except ValueError as error:
                self.connection.send(Refused(message.key, str(error)))
            return
        for request_id, key in self.keys.items():
            if key == message.key:
                self.generator.cancel(request_id)
                del self.keys[request_id]
                return

    def load(self) -> Load:
        """What the worker is doing now."""
        scheduler = self.generator.scheduler
        used = sum(state.num_slots for state in scheduler.running)
        kept = sum(state.num_slots for state in scheduler.kept)
        return Load(len(scheduler.running), len(scheduler.waiting), used, kept)

    def step(self) -> None:
        """Read all messages, waiting for one if there is nothing to do, then take one step of the generator."""
        if self.generator.scheduler.is_idle:
            self.read(self.connection.recv())
        while self.connection.poll():
            self.read(self.connection.recv())
        events = self.generator.step()
        found = [(self.keys[event.request_id], event) for event in events]
        for event in events:
            if event.answer:
                del self.keys[event.request_id]
        if found or self.load() != self.told:
            self.told = self.load()
            self.connection.send(Progress(found, self.told))


def work(connection: Connection) -> None:
    """The worker's side: load the model, then answer until the server has gone."""
    try:
        engine = Engine(connection.recv(), connection)
    except ValueError as error:
        connection.send(Refused(0, str(error)))
        return
    connection.send(engine.ready)
    while True:
        engine.step()
