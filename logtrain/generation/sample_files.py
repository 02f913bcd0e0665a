"""Samples on disk as they are written, so that a kill loses none:

    OUTPUT.samples/00000.jsonl   an object for each sample that rank 0 wrote, with its teacher's distribution if that is
                                 asked for; a torn last line is ignored

Each object has a hash of the rest of it, and names model and run. Any number of ranks may go on.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

from logtrain.core.origin import check_origin, origin
from logtrain.core.sealed_lines import add, adding, parsed, read_sealed_lines
from logtrain.generation.self_replay import Sample

KIND = "samples"  # what lines say of their file


def record_samples(folder: Path, rank: int, model: str, samples: Iterable[Sample]) -> Iterator[Sample]:
    """Yield each sample after this rank has written it. `model`: the digest of the model that writes them."""
    stream = None
    try:
        for sample in samples:
            if stream is None:
                stream = adding(folder / f"{rank:05d}.jsonl")
            facts = {**sample._asdict(), "model": model, **origin(folder, KIND)}
            add(stream, facts)
            yield sample
    finally:
        if stream:
            stream.close()


def read_samples(folder: Path, model: str) -> dict[int, Sample]:
    """What all ranks have written, by number; a torn sample is not there, and will be written again. Raises ValueError
    for a line that has changed since, and for samples of another model or of another run.
    """
    found: dict[int, Sample] = {}
    wanted = origin(folder, KIND)
    for file in sorted(folder.glob("?????.jsonl")):
        for number, facts in read_sealed_lines(file, "and it is drawn again", is_made_again=True):
            check_origin(f"{file} line {number}", facts, wanted)
            if facts.pop("model", None) != model:
                raise ValueError(
                    f"{file} line {number}: was written by another model than the one that is there now; delete the "
                    f"folder to start anew"
                )
            sample = parsed(Sample, facts, f"{file} line {number}")
            found.setdefault(sample.number, sample)
    return found
