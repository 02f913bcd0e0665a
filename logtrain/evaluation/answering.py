"""Lets one candidate answer, on all ranks: its weights are read, its perplexities measured, its answers generated.

Perplexities and answers that the run's folder has already are not computed again.
"""

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from logtrain.core.atomic import write_file
from logtrain.core.origin import check_origin, origin
from logtrain.core.untrusted import checked, named, read_sealed, sealed
from logtrain.core.world import World, compute_dtype
from logtrain.data.manifest import sha256
from logtrain.evaluation.answers import MODEL, RecordedAnswer, file_name, read_answers, record_answers
from logtrain.evaluation.candidate import Candidate
from logtrain.evaluation.config import EvaluateConfig
from logtrain.evaluation.perplexity import measure
from logtrain.evaluation.remote import Server
from logtrain.evaluation.results import AnsweredBy, Perplexity
from logtrain.generation.load import LoadedModel
from logtrain.observe.progress import Progress

KIND = "perplexity"  # what a file of perplexities says that it holds
TOLD = ("id", "root", "parent", "owned_by", "max_model_len")  # of a server's model


def answer_questions(
    config: EvaluateConfig, candidate: Candidate, numbers: Sequence[int], texts: Mapping[str, Path], world: World
) -> dict[str, Perplexity]:
    """Let a candidate answer the questions of these numbers, and record the answers in the run's folder; -> its
    perplexities on the files `texts`, by their names. Every rank calls this. Raises ValueError for a question that
    cannot be answered.
    """
    folder = answers_folder(config)
    recorded = read_answers(folder, candidate.name)
    missing = [number for number in numbers if number not in recorded]
    missing.sort(key=lambda number: -len(candidate.prompts[number]))
    perplexities = read_perplexities(folder, candidate.name)
    sources = {name: {"sha256": sha256(path), "model_sha256": candidate.model.sha256} for name, path in texts.items()}
    unmeasured = [name for name in texts if not sources[name].items() <= perplexities.get(name, {}).items()]
    world.barrier()  # all ranks must have read the folder before any writes to it
    if config.backend == "openai" and missing:
        server = Server(config.base_url, config.prompts, config.concurrency, config.check_server)
        record(config, candidate, candidate.server_answers(missing, server, config), len(missing), world)
    elif missing or unmeasured:
        loaded = candidate.model.folder.load(world.device, config.max_sequences)
        for name in unmeasured:
            perplexities[name] = measure(loaded.model, candidate.model, texts[name], world)
        if world.is_main and unmeasured:
            write_perplexities(folder, candidate.name, perplexities)
        generate(config, candidate, loaded, missing[world.rank :: world.size], world)
        world.barrier()
    return {name: perplexities[name] for name in texts}


def answered_by(config: EvaluateConfig, names: Iterable[str], world: World) -> dict[str, AnsweredBy]:
    """Who has answered for each candidate, and how."""
    is_remote = config.backend == "openai"
    listed = Server(config.base_url, config.prompts, 1).models() if is_remote else []
    found: AnsweredBy = {
        "backend": config.backend,
        "dtype": None if is_remote else str(compute_dtype(world.device)).removeprefix("torch."),
        "base_url": config.base_url,
        "prompts": config.prompts if is_remote else "",
        "server_model": None,
        "sampling": {"max_new_tokens": config.max_new_tokens, "stop": config.stop, **asdict(config.sampling)},
    }
    told = {one.get("id"): {key: value for key, value in one.items() if key in TOLD} for one in listed}
    return {name: {**found, "server_model": told.get(name)} for name in names}


def generate(
    config: EvaluateConfig, candidate: Candidate, loaded: LoadedModel, numbers: Sequence[int], world: World
) -> None:
    """Generate and record this rank's share of the answers."""
    if not numbers:
        return
    generator = loaded.generator(config.memory)
    record(config, candidate, candidate.answers(numbers, generator, config), len(numbers), world)


def record(
    config: EvaluateConfig, candidate: Candidate, answers: Iterator[RecordedAnswer], total: int, world: World
) -> None:
    """Record `total` answers of this rank as they come, and show rank 0's progress; the others have as many."""
    title = f"{candidate.name}, rank 0 of {world.size}" if world.size > 1 else candidate.name
    with Progress("evaluate", total, title=title, enabled=world.is_main) as progress:
        tokens = 0
        written = record_answers(answers_folder(config), candidate.name, world.rank, answers)
        for done, answer in enumerate(written, start=1):
            tokens += answer.output_tokens or 0
            rate = tokens / (time.monotonic() - progress.began)
            line = {"model": candidate.name, "answers": done, "of": total, "ranks": world.size}
            progress.update(done, {**line, "tokens_per_second": round(rate, 1)}, bar=f"{rate:,.0f} tokens/s")


def answers_folder(config: EvaluateConfig) -> Path:
    """The folder of a run's answers and perplexities."""
    return Path(config.run) / "answers"


def read_perplexities(folder: Path, name: str) -> dict[str, Perplexity]:
    """What has been measured of a candidate, by the texts' names. Raises ValueError where it has changed since, or is
    another candidate's or evaluation's.
    """
    file = perplexity_file(folder, name)
    if not os.path.lexists(file):
        return {}
    facts = check_origin(file, read_sealed(file), origin(folder.parent, KIND))
    if (whose := facts.get(MODEL, name)) != name:  # older versions have not written whose they are
        raise ValueError(f"{file}: perplexities of {named(whose)}; give the file that name again")
    return checked(f"{file}: perplexities", facts.get("perplexities"), dict[str, Perplexity])


def write_perplexities(folder: Path, name: str, perplexities: Mapping[str, Perplexity]) -> None:
    """Write the perplexities of a candidate beside its answers, whole or not at all. Raises OSError."""
    folder.mkdir(exist_ok=True)
    facts = {MODEL: name, "perplexities": dict(perplexities), **origin(folder.parent, KIND)}
    write_file(perplexity_file(folder, name), sealed(facts))


def perplexity_file(folder: Path, name: str) -> Path:
    """The file of the perplexities of candidate `name` in the folder of answers."""
    return folder / f"{file_name(name)}.perplexity.json"
