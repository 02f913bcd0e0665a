"""The run of an evaluation: what it works with before anyone answers, and what ends it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch

from logtrain.core.run_folder import enter_run_folder
from logtrain.core.world import World
from logtrain.data.files import InputFile
from logtrain.evaluation.config import MAY_CHANGE, EvaluateConfig

GOES_ON = "--resume auto goes on with the answers that are there"


def join_world(config: EvaluateConfig) -> World:
    """The ranks. Raises ValueError for several of them where a server answers."""
    world = World(on_cpu=config.backend == "openai")
    if config.backend == "openai" and world.size > 1:
        raise ValueError("backend = openai: one process sends all; start it without torchrun")
    return world


def open_texts(config: EvaluateConfig) -> dict[str, Path]:
    """The files to measure perplexity on, by name. Raises ValueError for one that cannot be read."""
    return {name: InputFile(path).path for name, path in config.perplexity_paths.items()}


@contextmanager
def run_folder(config: EvaluateConfig, world: World) -> Iterator[Path]:
    """The run's folder, held by rank 0 for the block. Raises ValueError where it holds another run, and for a full disk
    or a full GPU in the block; what can go on after the block's end says so.
    """
    folder = Path(config.run)
    resume = config.resume == "auto"
    lock = enter_run_folder(folder, config, resume, MAY_CHANGE, flag="--run") if world.is_main else None
    with lock or nullcontext():
        world.barrier()
        try:
            yield folder
        except OSError as error:
            raise ValueError(f"{error.filename or config.run}: {error.strerror or error}; {GOES_ON}") from None
        except torch.OutOfMemoryError:
            raise ValueError(f"the GPU's memory is full; set a smaller --memory: {GOES_ON}") from None
        except KeyboardInterrupt:
            if world.is_main:
                print(f"{config.run}: stopped; {GOES_ON}", file=sys.stderr)
            raise
