"""The settings of a synthesis. Nothing here imports torch, so that `--help` answers at once."""

import re
from dataclasses import dataclass, field
from typing import Annotated, Literal

from logtrain.core.kinds import NONE_BY_DEFAULT, Config
from logtrain.core.location import FILE, MODEL, OUTPUT
from logtrain.generation.config import SamplingConfig

RowForm = Literal["messages", "sharegpt", "nlplog"]
Language = Literal["any", "en", "de", "fr", "es", "zh"]
SYSTEM = re.compile(r"[\w.+-]{1,100}")


@dataclass(frozen=True, kw_only=True)
class SynthesiseConfig(Config):
    """Let a teacher, which is a larger model, make training data of raw logs."""

    input: Annotated[tuple[str, ...], FILE]
    """SYSTEM=FILE, or FILE, which is its own system, of each raw log (.log or .txt, also compressed), its lines in the
    order of time. A system may have several files, the oldest first."""
    run: Annotated[str, OUTPUT]
    """Folder to write."""
    resume: Literal["none", "auto"] = "none"
    """none: start a new run. auto: go on with the answers that are in the folder."""
    rows: RowForm = "messages"
    """What a row is: messages {messages: [{role, content}]} or sharegpt {conversations: [{from, value}]}, which are
    chats about some lines of a log for logtrain sft, or nlplog {instruction, log, output}, which are pairs about a
    single record for logtrain cpt."""
    prompts: Annotated[str, FILE] = ""
    """TOML file of the tasks: what the teacher is told, and what the rows ask. Empty: chat.toml or nlplog.toml, which
    come with logtrain."""
    tasks: Annotated[tuple[str, ...], NONE_BY_DEFAULT] = ()
    """Tasks of that file to take. None given: all."""
    limit: int = 0
    """Ask only for the first so many rows, of a random order. 0: all, which is each task about each chunk."""
    seed: int = 1309
    """Decides the sizes of chunks, which are kept, which systems are held out, the order and the words of questions."""

    least_lines: int = 50
    """The fewest lines of a chunk, which is what a chat is about. Shorter ends of files are left out."""
    most_lines: int = 150
    """The most lines of a chunk, unless its last record has more of them."""
    most_chars: int = 32_768
    """The most characters of a chunk. Longer records are left out."""
    chunks_per_system: int = 0
    """Keeps so many chunks of a system, spread over its time at random. 0: all."""
    valid_systems: int = 1
    """So many systems, chosen by the seed, are held out whole, as valid_systems.jsonl; but one is trained on."""
    valid_fraction: float = 0.1
    """Of the other systems the latest chunks, this share of them, are held out as valid.jsonl."""

    base_url: str = ""
    """Address, up to and with /v1, of the teacher's server, which speaks OpenAI's API. Its key is taken from
    OPENAI_API_KEY."""
    teacher: str = ""
    """The teacher's name there."""
    model: Annotated[str, MODEL] = ""
    """Instead of a server: the folder of a model to load, in the Hugging Face layout."""
    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(temperature=0.7, top_p=0.95))
    """How the teacher's tokens are drawn."""
    max_new_tokens: int = 2048
    """The most tokens of an answer; one that is cut there is rejected."""
    json_mode: Literal["none", "object", "schema"] = "object"
    """What is asked of a server for answers in JSON beside the prompt: nothing, any object, or the task's schema."""
    concurrency: int = 16
    """Requests at once."""
    timeout: float = 180.0
    """Seconds in which an answer must have come; it is asked for again then."""
    tries: int = 6
    """How often a request is sent that fails for a passing reason: 429, 500, no answer in time."""
    template: Annotated[str, FILE] = ""
    """A jinja file to write the prompts for `model` with instead of its own chat template."""
    memory: float = 0.0
    """GiB for the cache of keys and values of `model`. 0: on a GPU four fifths of what is free, on a CPU 2."""

    attempts: int = 2
    """How often the teacher is asked for a row, each time with another seed, if its answers are rejected."""
    language: Language = "en"
    """Answers must be in this language."""
    grounded: float = 0.9
    """Of the addresses, paths, numbers and identifiers in an answer, so many must stand in the log. 0: no matter."""

    budget_tokens: int = 0
    """No request is sent that could bring the tokens of prompts and answers above this. 0: no limit."""
    budget_dollars: float = 0.0
    """No request is sent that could bring the cost above this. 0: no limit."""
    price_input: float = 0.0
    """Dollars for a million tokens of prompts."""
    price_output: float = 0.0
    """Dollars for a million tokens of answers."""

    def __post_init__(self):
        super().__post_init__()
        least = {"limit": 0, "chunks_per_system": 0, "valid_systems": 0, "budget_tokens": 0, "seed": 0}
        least |= {"max_new_tokens": 1, "concurrency": 1, "tries": 1, "attempts": 1, "least_lines": 1, "most_chars": 100}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise ValueError(f"{name} = {getattr(self, name)} must be at least {value}")
        for name in ("budget_dollars", "price_input", "price_output", "memory"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} = {getattr(self, name)} must be a finite number >= 0")
        if not 0 < self.timeout < 1e6:
            raise ValueError(f"timeout = {self.timeout} must be above 0 and below a million")
        if not 0 <= self.valid_fraction < 1 or not 0 <= self.grounded <= 1:
            raise ValueError("valid_fraction must be in [0, 1), and grounded in [0, 1]")
        if self.most_lines < self.least_lines:
            raise ValueError(f"most_lines = {self.most_lines} is less than least_lines = {self.least_lines}")
        if bool(self.base_url) == bool(self.model) or bool(self.base_url) != bool(self.teacher):
            raise ValueError("give either base_url and teacher, a server and a name there, or model, a folder")
        if self.budget_dollars and not (self.price_input or self.price_output):
            raise ValueError("budget_dollars: give the prices too, --price_input and --price_output")
        if not self.input:
            raise ValueError("input: no log given; give SYSTEM=FILE of each")
        self.systems()

    def systems(self) -> list[tuple[str, str]]:
        """(system, file) of the inputs. Raises ValueError for a name that is none."""
        found = []
        for given in self.input:
            name, has_name, path = given.partition("=")
            name, path = (name, path) if has_name and "/" not in name else (stem_of(given), given)
            if not SYSTEM.fullmatch(name) or not path:
                raise ValueError(f"input: {given!r}: expected SYSTEM=FILE, the system of letters, digits and . _ + -")
            found.append((name, path))
        return found


def stem_of(path: str) -> str:
    """The name of a file up to its first dot."""
    return path.rpartition("/")[2].partition(".")[0]


# What a resumed run may set anew: no row that is there depends on it.
MAY_CHANGE = (
    *("resume", "run", "base_url", "concurrency", "timeout", "tries", "memory"),
    *("budget_tokens", "budget_dollars"),
)
