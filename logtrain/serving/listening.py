"""The server as a process: it loads the models, listens, and ends in order."""

import asyncio
import resource
import signal
import socket
import sys
from types import FrameType

import torch
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from logtrain.core.printable import printable
from logtrain.core.still import Still
from logtrain.generation.arguments import device_of
from logtrain.serving.app import Server
from logtrain.serving.config import ServeConfig
from logtrain.serving.engine import EngineConfig
from logtrain.serving.pool import WorkerPool
from logtrain.serving.served import ServedModels

LOOPBACK = ("127.0.0.1", "::1", "localhost")
CONNECTIONS = 2048  # the most at once; further ones are told to come later
PATIENCE = 30  # seconds for which a connection may wait for its next request, or for the rest of its head


async def serve(config: ServeConfig) -> int:
    """Serve until SIGTERM or Ctrl-C, then until running answers are complete; -> the exit status. Raises ValueError for
    settings or folders that are wrong, OSError for an address that cannot be listened at.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, leave)  # until the server listens
    raise_file_limit()
    say(f"reading {config.model}")
    models = ServedModels(config)
    for model in models.models.values():
        if isinstance(model.template, str):
            say(f"{model.name} answers completions alone: {model.template}")
    with listener(config) as bound:
        pool = WorkerPool([engine_config(config, device) for device in devices_of(config)], config.max_queue)
        with Still():
            await pool.open()
        for worker in pool.workers:
            assert worker.ready
            say(worker.ready.summary)
        bound.listen(CONNECTIONS)  # so that whoever reads the address below can connect
        host = f"[{config.host}]" if ":" in config.host else config.host
        address = f"http://{host}:{bound.getsockname()[1]}"
        say(f"{', '.join(models.models)} at {address}/v1")
        if config.host not in LOOPBACK and not config.api_key:
            say(f"anyone who reaches {config.host} may ask; --api_key asks for a key")
        settings = uvicorn.Config(
            Server(config, models, pool).app(),
            http=PatientProtocol,
            ws="none",
            access_log=False,
            log_level="warning",
            server_header=False,
            limit_concurrency=CONNECTIONS,
            timeout_keep_alive=PATIENCE,
        )
        signal.signal(signal.SIGTERM, ignore)  # uvicorn raises it again when it has ended in order
        signal.signal(signal.SIGINT, ignore)
        await uvicorn.Server(settings).serve([bound])
    say("all answers are complete; ended")
    return 0


class PatientProtocol(H11Protocol):
    """HTTP with a limit of time between two requests of a connection, and before the first: uvicorn has none for a
    client that has begun to send one.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:
        """A client has connected."""
        super().connection_made(transport)
        self.look_again(self.cycle)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is closed: nothing is looked at again, or 7 KiB would wait for it for PATIENCE seconds."""
        self.next_look.cancel()
        super().connection_lost(exc)

    def look_again(self, answered: object) -> None:
        """Look after PATIENCE seconds whether a new request has come since `answered`."""
        self.next_look = self.loop.call_later(PATIENCE, self.close_silent, answered)

    def close_silent(self, answered: object) -> None:
        """Close the connection of a client that has sent no whole head of a request since `answered`."""
        if self.transport.is_closing():
            return
        is_answering = self.cycle is not None and not self.cycle.response_complete
        if is_answering or self.cycle is not answered:
            self.look_again(None if is_answering else self.cycle)
        else:
            self.transport.close()


def raise_file_limit() -> None:
    """Let this process have as many connections as the system allows it: shells often set 1,024."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def listener(config: ServeConfig) -> socket.socket:
    """A socket at the address, taken before the model is loaded. Raises ValueError if it cannot be."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    bound = socket.socket(family)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((config.host, config.port))
    except (OSError, UnicodeError) as error:
        bound.close()
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"--host {config.host} --port {config.port}: {reason}; choose another") from None
    return bound


def devices_of(config: ServeConfig) -> list[str]:
    """The device of each worker. Raises ValueError for one that is not here."""
    if config.devices:
        return [str(device_of(name)) for name in config.devices]
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [f"cuda:{i}" for i in range(count)] or ["cpu"]


def engine_config(config: ServeConfig, device: str) -> EngineConfig:
    """What a worker must know."""
    return EngineConfig(
        model=config.model,
        device=device,
        adapters=tuple(config.adapter_paths.values()),
        memory=config.memory,
        max_sequences=config.max_sequences,
        step_tokens=config.step_tokens,
    )


def say(what: str) -> None:
    """A line for who started the server."""
    print(printable(what), file=sys.stderr, flush=True)


def leave(number: int, _: FrameType | None) -> None:
    """End while the models are being loaded: nothing is under way."""
    raise SystemExit(0)


def ignore(number: int, _: FrameType | None) -> None:
    """A signal that has been obeyed."""
