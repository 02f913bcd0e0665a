"""Samples in rounds: every rank writes its share of those that are missing, then rank 0 looks whether there are tokens
enough. How large a round is changes nothing in what is kept.
"""

import time
from collections.abc import Iterator
from pathlib import Path

from logtrain.core.still import note
from logtrain.core.world import World
from logtrain.generation.config import ReplayConfig
from logtrain.generation.load import ModelFolder
from logtrain.generation.sample_choice import SampleChoice
from logtrain.generation.sample_files import read_samples, record_samples
from logtrain.generation.self_replay import Frame, Sample, SampleWriter
from logtrain.observe.progress import Progress


def write_samples(config: ReplayConfig, folder: ModelFolder, frame: Frame, aside: Path, world: World) -> SampleChoice:
    """Write samples into the folder `aside`, beside those that are there, until enough can be kept; -> the choice,
    which is rank 0's alone. Every rank calls this. Raises ValueError as `SampleWriter` and `SampleChoice` do.
    """
    choice, writer = SampleChoice(config, frame, folder.tokenizer), None
    model = folder.digest()
    with Progress("replay", config.num_tokens, enabled=world.is_main) as progress:
        while missing := world.from_main(missing_samples(choice, aside, model, world.size) if world.is_main else None):
            mine = [number for number in missing if number % world.size == world.rank]
            if mine and writer is None:
                if world.is_main:
                    print(f"{folder.summary(world.device)}: writes {len(missing):,} samples", flush=True)
                writer = SampleWriter(config, folder, frame, world.device)
            if mine and writer:
                note("writing samples")
                samples = record_samples(aside, world.rank, model, writer.write(mine))
                show(samples, choice, progress, world.size)
            world.barrier()  # all that was written can be read
    return choice


def missing_samples(choice: SampleChoice, aside: Path, model: str, num_ranks: int) -> list[int]:
    """The numbers of the samples that the next round writes; [] where there are tokens enough. `choice` decides on
    those that are there.
    """
    there = read_samples(aside, model)
    choice.extend(there)
    if choice.is_complete:
        return []
    return [number for number in range(choice.num_seen, choice.next_end(num_ranks)) if number not in there]


def show(samples: Iterator[Sample], choice: SampleChoice, progress: Progress, num_ranks: int) -> None:
    """Walk through the samples of this rank, and show how far all are, if the others are as fast."""
    began, tokens = time.monotonic(), 0
    for sample in samples:
        tokens += num_ranks * (len(sample.question) + len(sample.text))
        rate = tokens / (time.monotonic() - began)
        done = min(choice.num_tokens + tokens, progress.total)
        progress.update(done, {"tokens": done, "tokens_per_second": round(rate, 1)}, bar=f"{rate:,.0f} tokens/s")
