"""Tries in minutes, on two layers, all that a run would do: what would fail at minute 40 fails now.

    logtrain rehearse launch/recipes/cpt_8xh100.toml --model Llama-3.1-8B-Instruct --data data/nlplog

It is `logtrain cpt --rehearse`, or sft where the data are chats; `launch/run.sh cpt RECIPE --rehearse` rehearses on all
GPUs. The exit status is 0 where nothing would fail, else 2, after a line for each thing that would.
"""

import contextlib
import importlib
from dataclasses import dataclass
from pathlib import Path

from logtrain.core.config import load
from logtrain.core.entry import run
from logtrain.training.config import RunConfig


@dataclass(frozen=True, kw_only=True)
class RehearseConfig(RunConfig):
    """Try all that a run would do, on two layers of its model, in minutes; the settings are those of the run."""


def main(argv: list[str]) -> int:
    """Rehearse the run that the flags describe; -> the exit status."""
    job = "sft" if are_chats(load(RehearseConfig, argv, writes=False)) else "cpt"
    return importlib.import_module(f"logtrain.{job}").main([*argv, "--rehearse"])


def are_chats(config: RunConfig) -> bool:
    """Whether all data are chats; what cannot be read is for the rehearsal to say."""
    from logtrain.data.prepared import read_manifest  # after the flags: a mistyped one is told at once

    with contextlib.suppress(ValueError, OSError):
        return all("chat" in read_manifest(Path(folder)) for folder in config.sources.values())
    return False


if __name__ == "__main__":
    run(main)
