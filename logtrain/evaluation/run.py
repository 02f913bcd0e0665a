"""The run of an evaluation: its ranks, its texts and its folder."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch

from logtrain.core.run_folder import enter_run_folder
from logtrain.core.world import World
from logtrain.data.files import InputFile
from logtrain.evaluation.config import MAY_CHANGE, EvaluateConfig, ModelsConfig

GOES_ON = "--resume auto goes on with the answers that are there"


def join_world(config: ModelsConfig) -> World:
    """Join the ranks. Raises ValueError for more than one rank if a server answers."""
    world = World(on_cpu=config.backend == "openai")
    if config.backend == "openai" and world.size > 1:
        raise ValueError("backend = openai: one process sends all; start it without torchrun")
    return world


def open_texts(config: EvaluateConfig) -> dict[str, Path]:
    """The files to measure perplexity on, by name. Raises ValueError for a file that cannot be read."""
    return {name: InputFile(path).path for name, path in config.perplexity_paths.items()}


@contextmanager
def run_folder(config: EvaluateConfig, world: World) -> Iterator[Path]:
    """The run's folder, which rank 0 holds a lock on during the block. Raises ValueError if it holds another run, and
    for a full disk or a full GPU in the block; the error, and a message at Ctrl-C, say that --resume auto goes on.
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
