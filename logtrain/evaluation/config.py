"""The settings of an evaluation. Nothing here imports torch, so that `--help` answers at once."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from logtrain.core.kinds import NONE_BY_DEFAULT, Config
from logtrain.core.location import FILE, FOLDER, MODEL, OUTPUT
from logtrain.data.config import READ_COLUMNS, check_renames
from logtrain.data.questions import TASK_COLUMN, AnswersOf, QuestionFormat
from logtrain.generation.config import SamplingConfig
from logtrain.text.config import DATE, check_date

Prompts = Literal["ids", "messages"]
Task = Literal["text", "parsing", "anomaly", "diagnosis", "logqa", "rca"]
NAME_MARKS = "._+-/:@"  # characters of a name, beside letters and digits


@dataclass(frozen=True, kw_only=True)
class AnswerConfig(Config):
    """How every candidate answers."""

    max_new_tokens: int = 1024
    """The most tokens of an answer; longer ones are cut, and the report says how many were."""
    stop: Annotated[tuple[str, ...], NONE_BY_DEFAULT] = ()
    """Strings that end an answer, beside the model's own stop tokens."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """How tokens are drawn; greedily by default."""


@dataclass(frozen=True, kw_only=True)
class ModelsConfig(AnswerConfig):
    """Which models answer, where, and what of a test set is asked."""

    models: Annotated[tuple[str, ...], MODEL]
    """NAME=DIR of each model: a Llama folder, an export or a PEFT adapter; with a server, its name and tokenizer there.
    """
    run: Annotated[str, OUTPUT]
    """Folder to write."""
    resume: Literal["none", "auto"] = "none"
    """none: start a new run. auto: go on with the answers that are in the folder."""
    limit: int = 0
    """Ask only the first so many questions. 0: all."""
    max_bad_rows: int = 0
    """Bad rows that may be left out; more of them stop the evaluation."""
    too_long: Literal["error", "skip"] = "error"
    """A question that, with its answer, is longer than a model's context: error stops, skip leaves it out for all."""
    prepared: Annotated[str, FOLDER] = ""
    """Folder of the training data, prepared with --split_by COLUMN: rows of groups that it trains on are seen, those of
    groups that it holds out are unseen, and both are also scored alone."""
    unseen: Annotated[tuple[str, ...], NONE_BY_DEFAULT] = ()
    """The groups that no model was trained on, beside those that --prepared holds out."""
    template: Annotated[str, FILE] = ""
    """A jinja file to write the prompts with instead of each model's own chat template."""
    date: str = DATE
    """The date that is given to a chat template that asks for today's."""
    backend: Literal["local", "openai"] = "local"
    """Whether this program answers, or a server that speaks OpenAI's API, such as vLLM."""
    base_url: str = ""
    """The server's address, up to and with /v1. Its key is taken from OPENAI_API_KEY."""
    prompts: Prompts = "ids"
    """What the server is sent: token ids, or messages, which it renders with a template of its own."""
    check_server: bool = True
    """Refuse a server whose tokenizer or chat template is another than that of the model's folder here."""
    concurrency: int = 32
    """Requests at once to the server."""
    memory: float = 0.0
    """GiB for the cache of keys and values. 0: four fifths of what is free on a GPU, 2 GiB on a CPU."""
    max_sequences: int = 64
    """The most questions that are answered at once on a device, as far as the memory allows."""

    def __post_init__(self):
        super().__post_init__()
        least = {"limit": 0, "max_bad_rows": 0, "max_new_tokens": 1, "concurrency": 1, "max_sequences": 1}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise ValueError(f"{name} = {getattr(self, name)} must be at least {value}")
        if not 0 <= self.memory < float("inf"):
            raise ValueError(f"memory = {self.memory} must be a finite number >= 0")
        if (self.backend == "openai") != bool(self.base_url):
            raise ValueError("backend = openai and base_url go together: give both or neither")
        if not self.model_paths:
            raise ValueError("models: none given; give at least one NAME=DIR")
        check_date(self.date)

    @property
    def model_paths(self) -> dict[str, str]:
        """{NAME: DIR} of the models."""
        return paths_by_name("models", self.models)


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(ModelsConfig):
    """Let models answer a test set, score the answers, and compare."""

    data: Annotated[str, FILE]
    """The test set: .json, .jsonl or .ndjson, also as .gz or .zst."""
    format: QuestionFormat
    """Form of the rows: sharegpt, messages or alpaca as in logtrain.prepare, or nlplog {instruction, log, output}."""
    answers: AnswersOf = "last"
    """Which answers of a conversation are asked for: the last, or all, each after the reference's turns."""
    task_column: str = TASK_COLUMN
    """Column that names the task of a row; if there are several tasks, each is scored alone too."""
    ignore_columns: Annotated[tuple[str, ...], NONE_BY_DEFAULT] = ()
    """Columns of the rows to leave out, as in logtrain.prepare."""
    columns: Annotated[tuple[str, ...], NONE_BY_DEFAULT] = ()
    """Other names of columns, each THEIRS=OURS, as question=instruction answer=output, as in logtrain.prepare."""
    task: Task = "text"
    """What the answers are scored as, beside the scores of texts: log templates (parsing), normal or abnormal
    (anomaly), one of a closed set of labels (diagnosis), short answers (logqa), failures in JSON (rca)."""
    kind_column: str = ""
    """Column that names this for each row, in place of --task."""
    labels: Annotated[tuple[str, ...], NONE_BY_DEFAULT] = ()
    """The labels of diagnosis. Without them: those of the references."""
    split_by: str = ""
    """Column that names the group of a row, as system, where no --prepared says so."""
    perplexity: Annotated[tuple[str, ...], NONE_BY_DEFAULT, FILE] = ()
    """NAME=FILE of each file of texts or chats to measure perplexity on, such as a domain's or a general one."""

    def __post_init__(self):
        super().__post_init__()
        if self.backend == "openai" and self.perplexity:
            raise ValueError("perplexity: only with backend = local; a server gives no losses")
        paths_by_name("perplexity", self.perplexity)
        check_renames(self.columns, READ_COLUMNS | {self.task_column, self.kind_column, self.split_by} - {""})
        if self.kind_column and self.task != "text":
            raise ValueError(f"task = {self.task} and kind_column = {self.kind_column}: give one of them")
        if self.labels and self.task != "diagnosis" and not self.kind_column:
            raise ValueError("labels: only those of --task diagnosis can be named")
        if self.unseen and not (self.split_by or self.prepared):
            raise ValueError("unseen: give --split_by, the column that names the groups")

    @property
    def perplexity_paths(self) -> dict[str, str]:
        """{NAME: FILE} of the texts that perplexity is measured on."""
        return paths_by_name("perplexity", self.perplexity)


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig(ModelsConfig):
    """Let models answer every set of a suite; the scores as a table beside published ones."""

    suite: Annotated[str, FILE]
    """The suite, a TOML file: its sets, the figures that count of each, and what others have published."""
    data: Annotated[str, FOLDER]
    """Folder of the files of the sets."""


@dataclass(frozen=True, kw_only=True)
class JudgeConfig(AnswerConfig):
    """Let a model behind a server say which of an evaluation's models answers better."""

    run: Annotated[str, FOLDER]
    """Folder of an evaluation of two models or more."""
    base_url: str
    """Address of a server of OpenAI's API, up to and with /v1. Its key is taken from OPENAI_API_KEY."""
    model: str
    """The judge's name there."""
    reference: bool = True
    """Whether the judge is shown the reference."""
    prompt: Annotated[str, FILE] = ""
    """A file with another prompt: {question}, {first} and {second} are needed, {reference} may be there. It asks for a
    last line "Verdict: 1", "Verdict: 2" or "Verdict: tie"."""
    limit: int = 0
    """Judge only the first so many questions. 0: all."""
    concurrency: int = 32
    """Requests at once to the server."""
    price_per_million_in: float = 0.0
    """Dollars for a million tokens of prompts, to count the cost."""
    price_per_million_out: float = 0.0
    """Dollars for a million tokens of replies."""

    def __post_init__(self):
        super().__post_init__()
        for name, least in {"limit": 0, "concurrency": 1, "max_new_tokens": 1}.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} = {getattr(self, name)} must be at least {least}")
        for name in ("price_per_million_in", "price_per_million_out"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} = {getattr(self, name)} must be a finite number >= 0")


def paths_by_name(key: str, pairs: tuple[str, ...]) -> dict[str, str]:
    """{NAME: PATH} of texts NAME=PATH. Raises ValueError, which names the setting `key`, for any other text."""
    paths = {}
    for pair in pairs:
        name, _, path = pair.partition("=")
        if not name or not path or name in paths or not all(c.isalnum() or c in NAME_MARKS for c in name):
            raise ValueError(
                f"{key}: {pair!r}: expected NAME=PATH, each name once, of letters, digits and {NAME_MARKS}"
            )
        paths[name] = path
    return paths


# What a resumed run may set anew: no answer depends on it, or `Candidate.check_answers` checks the answers against it
# (but for the weights of a server's model).
MAY_CHANGE = (
    *("resume", "run", "memory", "max_sequences", "base_url", "check_server", "concurrency", "perplexity"),
    *("models", "data", "limit", "too_long", "max_bad_rows", "task_column", "ignore_columns", "columns"),
    *("task", "kind_column", "labels", "prepared", "split_by", "unseen"),
)
