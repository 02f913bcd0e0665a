"""Lets a model write its own old data, to mix in when it is trained on new.

A run that mixes it in forgets less:

    logtrain replay --model Llama-3.1-8B-Instruct --tokens 5M --output data/replay
    launch/run.sh replay --model Llama-3.1-8B-Instruct --tokens 5M --output data/replay      on all GPUs
    launch/run.sh cpt RECIPE --data logs=data/nlplog replay=data/replay --mix.logs 0.95 --mix.replay 0.05

Each rank has a copy of the model and writes every n-th sample. What comes out depends on the model, the settings and
the seed alone, not on the number of ranks. The parts are in generation/:

    self_replay.py     samples, drawn         sample_choice.py   which are kept
    sample_files.py    as they are written    replay_folder.py   prepared data, at the end
    sample_teacher.py  what the model expected of each token
"""

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from logtrain.core.config import load
from logtrain.core.entry import run
from logtrain.core.printable import printable
from logtrain.core.run_folder import enter_run_folder, has_begun
from logtrain.core.still import Still, note
from logtrain.generation.config import ReplayConfig

MAY_CHANGE = ("model", "output", "memory", "max_sequences")  # a model may lie elsewhere; samples of another are refused


def main(argv: list[str]) -> int:
    """Write the folder that the flags name, or go on with it; -> the exit status."""
    config = load(ReplayConfig, argv)
    with Still():
        return replay(config)


def replay(config: ReplayConfig) -> int:
    """Write the folder; -> the exit status."""
    # After the flags: --help and a mistyped one need no torch.
    from logtrain.core.atomic import new_folder, refuse_taken
    from logtrain.core.world import World, compute_dtype
    from logtrain.data.prepared import MANIFEST, refuse_other_origin
    from logtrain.generation.load import ModelFolder
    from logtrain.generation.replay_folder import replay_origin, write_replay
    from logtrain.generation.replay_rounds import write_samples
    from logtrain.generation.self_replay import frame_of

    world = World()
    folder = ModelFolder(config.model, config.template, config.date)
    frame = frame_of(config, folder)
    origin = replay_origin(config, folder, frame)
    output, shown = Path(config.output).absolute(), printable(config.output, one_line=True)
    aside = output.with_name(f"{output.name}.samples")
    told = f"{shown}: already written by this model with these settings; nothing to do"
    if (output / MANIFEST).exists():
        refuse_other_origin(output, origin)
    else:
        refuse_taken(output)
        with samples_of(config, aside) if world.is_main else nullcontext():
            world.barrier()
            choice = write_samples(config, folder, frame, aside, world)
            if world.is_main:
                note(f"writing {shown}")
                with new_folder(output) as written:
                    write_replay(written, origin, choice, str(compute_dtype(world.device)).removeprefix("torch."))
            told = f"{shown}: {choice.num_tokens:,} tokens of {len(choice.kept):,} samples; left out: {choice.told()}"
            world.barrier()
    if world.is_main:
        shutil.rmtree(aside, ignore_errors=True)  # what a process left that was killed here, too
        print(told)
    world.close()
    return 0


@contextmanager
def samples_of(config: ReplayConfig, aside: Path) -> Iterator[None]:
    """The folder of samples, which this process holds during the block; where that fails, a line says what it keeps."""
    try:
        with enter_run_folder(aside, config, True, MAY_CHANGE, flag="--output"):
            yield
    except BaseException:
        if has_begun(aside):
            kept = "keeps the samples so far, with which the same command goes on; to begin anew, delete it"
            print(f"{printable(str(aside), one_line=True)}: {kept}", file=sys.stderr, flush=True)
        raise


if __name__ == "__main__":
    run(main)
