"""Samples on disk as they are written, so that a kill loses none:

    OUTPUT.samples/00000.jsonl   an object for each sample that rank 0 wrote; a torn last line is ignored

Each object has a hash of the rest of it, and names the model. Any number of ranks may go on.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import orjson

from logtrain.core.untrusted import SEAL, check_regular, from_json, seal_of
from logtrain.generation.self_replay import Sample


def record_samples(folder: Path, rank: int, model: str, samples: Iterable[Sample]) -> Iterator[Sample]:
    """Yield each sample after this rank has written it. `model`: the digest of the model that writes them."""
    stream = None
    try:
        for sample in samples:
            if stream is None:
                stream = open(folder / f"{rank:05d}.jsonl", "ab")  # noqa: SIM115 (closed below)
                if stream.tell():
                    stream.write(b"\n")  # the last line may be torn; a blank one is nothing
            facts = {**sample._asdict(), "model": model}
            stream.write(orjson.dumps(facts | {SEAL: seal_of(facts)}, option=orjson.OPT_APPEND_NEWLINE))
            stream.flush()
            yield sample
    finally:
        if stream:
            stream.close()


def read_samples(folder: Path, model: str) -> dict[int, Sample]:
    """What all ranks have written, by number; a torn sample is not there, and will be written again. Raises ValueError
    for a line that has changed since, and for samples of another model.
    """
    found: dict[int, Sample] = {}
    for file in sorted(folder.glob("?????.jsonl")):
        check_regular(file)
        with open(file, "rb") as lines:
            for number, line in enumerate(lines, start=1):
                try:
                    sample = parse_sample(line, model)
                except ValueError as error:
                    raise ValueError(f"{file} line {number}: {error}") from None
                if sample:
                    found.setdefault(sample.number, sample)
    return found


def parse_sample(line: bytes, model: str) -> Sample | None:
    """A sample by its line; None for a line that was torn. Raises ValueError for one that has changed, or is of another
    model.
    """
    try:
        facts = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(facts, dict) or facts.pop(SEAL, None) != seal_of(facts):
        raise ValueError(
            f"has changed since it was written ({SEAL} does not fit); delete the line, and it is drawn again"
        )
    if facts.pop("model", None) != model:
        raise ValueError("was written by another model than the one that is there now; delete the folder to start anew")
    return from_json(Sample, facts)
