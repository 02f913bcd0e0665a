"""The settings of a plan. Nothing here imports torch, so that `--help` answers at once."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from logtrain.core.location import FOLDER, WITHOUT_WEIGHTS
from logtrain.training.config import RunConfig


@dataclass(frozen=True, kw_only=True)
class PlanConfig(RunConfig):
    """Predict memory, speed and cost of a training job on GPUs, without one."""

    offers: ClassVar[tuple[str, ...]] = (
        *(
            "name",
            "model",
            "data",
            "mix",
            "mix.",
            "seed",
            "dtype",
            "precision",
            "fp8.",
            "recompute",
            "compile",
            "attention_backend",
        ),
        *("lora.", "loader.", "trainer.epochs", "trainer.max_steps", "trainer.max_grad_norm", "trainer.replay_kl"),
        *("parallel.shard_ranks", "parallel.reduce_dtype", "parallel.reshard_after_forward", "parallel.prefetch"),
        "parallel.symmetric_memory",
        *("gpus", "gpu", "price", "search", "json", "picture"),
        *("pairs", "documents", "document_tokens", "document_sigma"),
    )  # of a run's settings those that change a plan; a recipe may have any
    model: Annotated[str, WITHOUT_WEIGHTS]
    """Hugging Face folder of a Llama model, of which only config.json is read, or the name of a published one."""
    name: str = "plan"
    """The name that a picture has as its title."""
    data: Annotated[str | tuple[str, ...], FOLDER] = ""
    """Folder written by logtrain.prepare; or several to mix, each NAME=FOLDER, with mix.NAME for the share of each.
    Where there is none, documents are drawn.
    """
    gpus: int = 8
    """GPUs of the job, eight in a node; by default the number in the recipe's name, such as ..._4xh100.toml."""
    gpu: str = "h100-sxm"
    """Name of the GPU: h100-sxm, h100-sxm-500w, h200, a100-80g, or a TOML file like those in logtrain/planning/gpus."""
    price: float = 2.31
    """Price of a GPU for an hour, in dollars."""
    search: bool = False
    """Compare micro-batches, recomputation, resharding and reduce dtypes, and print the fastest that fits first."""
    json: bool = False
    """Print one JSON object instead of the table."""
    picture: str = ""
    """SVG file to draw a block's kernels on all streams, and the memory over a step."""
    pairs: bool = False
    """The job is one of logtrain dpo: a document is two answers to a question, each a sequence of its own. A prepared
    folder of pairs says so itself.
    """
    documents: int = 250_000
    """Documents of the corpus if `data` is no prepared folder; by default as many as NLPLog has."""
    document_tokens: float = 444.0
    """Mean tokens of a document, or of each of its two answers with the question, if `data` is no prepared folder; by
    default as of NLPLog, 111 M tokens in all.
    """
    document_sigma: float = 0.6
    """Standard deviation of the logarithm of a document's tokens if `data` is no prepared folder (lognormal)."""
    # NLPLog's is not published. Similar data have 0.41 (explanations of log lines) and 0.81 (mixed log instructions).
    # The time of attention is proportional to exp(sigma^2).

    @property
    def trains_on(self) -> Literal["pairs", "either"]:
        """What the objective of the job is for."""
        return "pairs" if self.pairs else "either"

    def __post_init__(self):
        super().__post_init__()
        if self.gpus < 1 or (self.gpus > 8 and self.gpus % 8):
            raise ValueError(f"gpus = {self.gpus}: expected 1 to 8, or whole nodes of 8")
        if self.document_sigma < 0:
            raise ValueError(f"document_sigma = {self.document_sigma} must not be negative")
        if self.documents < 1 or self.document_tokens < 2:
            raise ValueError("documents must be at least 1 and document_tokens at least 2")
