"""Which model answers better, by how much, and is it more than chance?

    python -m logtrain.evaluate --models base=DIR sft=DIR --data test.json --format sharegpt --run runs/evaluation

or under torchrun, where every rank has a copy of the model and answers its share. Leaves in the run's folder

    samples.jsonl    one object an answer: what was asked (hash, tokens), reference, output, finish reason, scores
    scores.json      every score with its 95% interval, every difference between two models with its own (comparison.py)
    compare.html     the same to read and to print, with the answers that differ most; compare.png: its chart
    config.toml, answers/    the settings, and the answers as they came: --resume auto goes on with these

Exit status 2: wrong input.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TextIO

import orjson
import torch

from logtrain.core.atomic import write_file
from logtrain.core.config import load
from logtrain.core.entry import run
from logtrain.core.run_folder import enter_run_folder
from logtrain.core.world import World
from logtrain.data.files import BadRow, InputFile
from logtrain.data.manifest import sha256
from logtrain.data.questions import TASK_COLUMN, AnswersOf, Question, QuestionFormat, questions
from logtrain.evaluation import perplexity
from logtrain.evaluation.answers import Answered, check_same, quoted, read_answers, write_answers
from logtrain.evaluation.candidate import Asking, Contestant
from logtrain.evaluation.comparison import compare
from logtrain.evaluation.page import write_page
from logtrain.evaluation.progress import AnswerProgress, print_scores
from logtrain.evaluation.remote import Prompts, Server
from logtrain.evaluation.scoring import Pair, Scores, score_all
from logtrain.text.config import DATE

BAD_ROWS_NAMED = 3
GOES_ON = "--resume auto goes on with the answers that are there"
MAY_CHANGE = (  # what no answer depends on, or what `check_same` holds it against (of a server's model not the weights)
    *("resume", "run", "memory", "max_sequences", "base_url", "concurrency", "perplexity"),
    *("models", "data", "limit", "too_long", "max_bad_rows", "task_column", "ignore_columns"),
)


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Asking):
    """Let models answer a test set, score the answers, and compare."""

    models: tuple[str, ...]
    """NAME=DIR of each: a Hugging Face Llama folder, an export, or a PEFT adapter that names its model's folder. With
    backend = openai: the name by which the server knows it, and a folder with its tokenizer."""
    data: str
    """The test set: .json, .jsonl or .ndjson, also as .gz or .zst."""
    format: QuestionFormat
    """Of its rows: sharegpt, messages and alpaca as in logtrain.prepare; nlplog {instruction, log, output}."""
    run: str
    """Folder to write."""
    resume: Literal["none", "auto"] = "none"
    """auto: go on with the answers that are in the folder."""
    answers: AnswersOf = "last"
    """Of a conversation of several turns: the last answer is asked for, or all, each after the reference's turns."""
    limit: int = 0
    """Ask only the first so many questions. 0: all."""
    task_column: str = TASK_COLUMN
    """Column that names the kind of a row's question; scores are given for each kind, too."""
    ignore_columns: tuple[str, ...] = ()
    """Columns of the rows to leave out, as in logtrain.prepare."""
    max_bad_rows: int = 0
    """More bad rows than this stop the evaluation; up to so many are left out."""
    too_long: Literal["error", "skip"] = "error"
    """A question that does not fit into a model's context together with its answer: an error, or left out for all."""
    perplexity: tuple[str, ...] = ()
    """NAME=FILE of texts or chats that each model is measured on, too: its domain, general text, ..."""
    template: str = ""
    """A jinja file to write the prompts with instead of each model's own chat template."""
    date: str = DATE
    """What a chat template that asks for the date is told."""
    backend: Literal["local", "openai"] = "local"
    """Who answers: this program, or a server that speaks OpenAI's API (vLLM, say)."""
    base_url: str = ""
    """Of the server, up to and with /v1. Its key is taken from OPENAI_API_KEY."""
    prompts: Prompts = "ids"
    """What the server is sent: the token ids, or messages that it puts into a template of its own."""
    concurrency: int = 32
    """Requests at once to the server."""
    memory: float = 0.0
    """GiB for keys and values. 0: four fifths of what is free on a GPU, 2 GiB on a CPU."""
    max_sequences: int = 64
    """Questions that are answered at once on a device, as far as the memory allows."""

    def __post_init__(self):
        least = {"limit": 0, "max_bad_rows": 0, "max_new_tokens": 1, "concurrency": 1, "max_sequences": 1}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise ValueError(f"{name} = {getattr(self, name)} must be at least {value}")
        if not 0 <= self.memory < float("inf"):
            raise ValueError(f"memory = {self.memory} must be a finite number >= 0")
        if (self.backend == "openai") != bool(self.base_url):
            raise ValueError("backend = openai and base_url go together: give both or neither")
        if self.backend == "openai" and self.perplexity:
            raise ValueError("perplexity: only with backend = local; a server gives no losses")


def main(argv: list[str]) -> int:
    config = load(EvaluateConfig, argv)
    world = World(on_cpu=config.backend == "openai")
    if config.backend == "openai" and world.size > 1:
        raise ValueError("backend = openai: one process sends all; start it without torchrun")
    texts = {name: InputFile(path).path for name, path in named(config.perplexity, "perplexity")}
    local = config.backend == "local"
    contestants = [Contestant(*pair, config.template, config.date, local) for pair in named(config.models, "models")]
    asked, bad_rows = read_questions(config)
    for contestant in contestants:
        contestant.read(asked, config.data)
        if config.resume == "auto":
            check_same(Path(config.run) / "answers", contestant.name, contestant.digest, contestant.fingerprints, asked)
    skipped = too_long(config, contestants)
    numbers = [number for number in range(len(asked)) if number not in skipped]
    with claim_folder(Path(config.run), config) if world.is_main else nullcontext():
        torch.distributed.barrier(world.control)
        try:
            losses = {contestant.name: answer(config, contestant, numbers, texts, world) for contestant in contestants}
            if world.is_main:
                finish(config, contestants, numbers, {"bad rows": bad_rows}, skipped, losses)
        except OSError as error:
            raise ValueError(f"{error.filename or config.run}: {error.strerror or error}; {GOES_ON}") from None
        except torch.OutOfMemoryError:
            raise ValueError(f"the GPU's memory is full; set a smaller --memory: {GOES_ON}") from None
        except KeyboardInterrupt:
            if world.is_main:
                print(f"{config.run}: stopped; {GOES_ON}", file=sys.stderr)
            raise
    world.close()
    return 0


def named(pairs: tuple[str, ...], key: str) -> list[tuple[str, str]]:
    """NAME=PATH of each, names once."""
    found = {}
    for pair in pairs:
        name, equals, path = pair.partition("=")
        if not equals or not path or name in found or not all(c.isalnum() or c in "._+-/:@" for c in name) or not name:
            raise ValueError(f"{key}: {pair!r}: expected NAME=PATH, each name once, of letters, digits and ._+-/:@")
        found[name] = path
    return list(found.items())


def read_questions(config: EvaluateConfig) -> tuple[list[Question], int]:
    """-> questions, and how many rows were bad."""
    good, bad = [], []
    for item in questions(config.data, config.format, config.answers, config.task_column, config.ignore_columns):
        (bad if isinstance(item, BadRow) else good).append(item)
        if config.limit and len(good) >= config.limit:
            break
    if len(bad) > config.max_bad_rows:
        told = "; ".join(f"{config.data} row {row.row}: {row}" for row in bad[:BAD_ROWS_NAMED])
        more = f"; and {len(bad) - BAD_ROWS_NAMED:,} more" if len(bad) > BAD_ROWS_NAMED else ""
        raise ValueError(
            f"{len(bad):,} bad row{'s' if len(bad) > 1 else ''} (counting from 0): {told}{more}. Mend the data, or "
            f"leave them out with --max_bad_rows {len(bad)}"
        )
    if not good:
        raise ValueError(f"{config.data}: holds no question")
    if config.task_column != TASK_COLUMN and not any(question.has_task for question in good):
        raise ValueError(f"{config.data}: task_column = {config.task_column}: no question has such a column")
    return good, len(bad)


def too_long(config: EvaluateConfig, contestants: list[Contestant]) -> dict[int, str]:
    """Questions that are too long for one of the models -> why."""
    found: dict[int, str] = {}
    for contestant in contestants:
        found = contestant.too_long(config.max_new_tokens) | found
    if found and config.too_long == "error":
        first = found[min(found)]
        raise ValueError(
            f"{first} ({len(found):,} question{'s' if len(found) > 1 else ''} in all); leave them out with --too_long "
            f"skip, or lower --max_new_tokens"
        )
    if len(found) == len(contestants[0].questions):
        raise ValueError(f"{found[min(found)]}; so it is with every question")
    return found


def claim_folder(folder: Path, config: EvaluateConfig) -> TextIO:
    return enter_run_folder(folder, config, config.resume == "auto", MAY_CHANGE, record="answers", flag="--run")


# ---- answers


def answer(
    config: EvaluateConfig, contestant: Contestant, numbers: list[int], texts: dict[str, Path], world: World
) -> dict:
    """Let a model answer what is not answered yet, on all ranks, and measure its perplexities: -> these."""
    folder, name = Path(config.run) / "answers", contestant.name
    there = read_answers(folder, name)
    missing = sorted((n for n in numbers if n not in there), key=lambda n: -len(contestant.prompts[n]))
    losses_file = folder / f"{quoted(name)}.perplexity.json"
    losses = orjson.loads(losses_file.read_bytes()) if losses_file.exists() else {}
    of = {text: {"sha256": sha256(path), "model_sha256": contestant.digest} for text, path in texts.items()}
    to_measure = [text for text in texts if not of[text].items() <= losses.get(text, {}).items()]
    torch.distributed.barrier(world.control)  # all have read what is there before any writes more
    if not missing and not to_measure:
        return {text: losses[text] for text in texts}
    if config.backend == "openai":
        server = Server(config.base_url, config.prompts, config.concurrency)
        take(config, name, contestant.remote_answers(missing, server, config), missing, world)
        return losses
    loaded = contestant.folder.load(world.device, config.max_sequences)
    for text in to_measure:
        window = min(contestant.max_positions, perplexity.WINDOW)
        read = perplexity.read_text(texts[text], contestant.tokenizer, contestant.template, window)
        losses[text] = perplexity.measure(loaded.model, read, world) | of[text]
    if world.is_main and to_measure:
        folder.mkdir(exist_ok=True)
        write_file(losses_file, orjson.dumps(losses))
    mine = missing[world.rank :: world.size]
    if mine:
        generator = loaded.generator(config.memory)
        take(config, name, contestant.answers(mine, generator, config), mine, world)
    torch.distributed.barrier(world.control)
    return {text: losses[text] for text in texts}


def take(config: EvaluateConfig, name: str, answers: Iterator[Answered], numbers: list[int], world: World) -> None:
    """Write the answers of this rank as they come."""
    with AnswerProgress(name, len(numbers), world.size, enabled=world.is_main) as progress:
        for answered in write_answers(Path(config.run) / "answers", name, world.rank, answers):
            progress.add(answered.output_tokens or 0)


# ---- scores


def finish(
    config: EvaluateConfig,
    contestants: list[Contestant],
    numbers: list[int],
    left_out: dict[str, int],
    skipped: dict[int, str],
    losses: dict[str, dict],
) -> None:
    """Score all answers, and write what the run leaves."""
    folder, asked = Path(config.run), contestants[0].questions
    answered = {c.name: read_answers(folder / "answers", c.name) for c in contestants}
    for name, of_model in answered.items():
        if missing := [n for n in numbers if n not in of_model]:
            raise ValueError(f"{folder}: {len(missing):,} answers of {name} are missing; let ranks share the folder")
    pairs: dict[str, list[Pair]] = {
        name: [(of_model[n].output, asked[n].reference) for n in numbers] for name, of_model in answered.items()
    }
    scores: dict[str, list[Scores]] = {name: score_all(of_model) for name, of_model in pairs.items()}
    for name, of_model in scores.items():
        for n, sample in zip(numbers, of_model, strict=True):
            sample["stopped"] = float(answered[name][n].finish_reason == "stop")
    samples = [
        {"model": name, "row": asked[n].row, "turn": asked[n].turn, "task": asked[n].task}
        | {"reference": asked[n].reference}
        | answered[name][n]._asdict()
        | {"scores": scores[name][i]}
        for name in scores
        for i, n in enumerate(numbers)
    ]
    write_file(folder / "samples.jsonl", b"".join(orjson.dumps(s, option=orjson.OPT_APPEND_NEWLINE) for s in samples))
    result = {
        "data": {
            "path": os.path.abspath(config.data),
            "sha256": sha256(Path(config.data)),
            "questions": len(numbers),
            "rows": len({asked[n].row for n in numbers}),
            "left_out": left_out,
            "too_long": list(skipped.values()),
        }
    }
    result |= compare(scores, pairs, [asked[n].row for n in numbers], [asked[n].task for n in numbers])
    for contestant in contestants:
        result["models"][contestant.name] |= {"path": str(contestant.path), "perplexity": losses[contestant.name]}
    write_file(folder / "scores.json", orjson.dumps(result, option=orjson.OPT_INDENT_2))
    write_page(folder, result, [asked[n] for n in numbers], pairs, scores)
    print_scores(result)
    print(f"\n{folder / 'compare.html'}: the comparison, with answers side by side; its chart: compare.png")


if __name__ == "__main__":
    run(main)
