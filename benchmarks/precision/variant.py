"""The precisions that are compared, by name, and a run in each: the run of `logtrain cpt`, up to its first step."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from logtrain.core.config import load
from logtrain.model.llama import Llama
from logtrain.training.config import RunConfig
from logtrain.training.setup import RunSetup, set_up

IN_FLOAT8 = ["--precision", "fp8", "--fp8.recipe"]
VARIANTS = {
    "fp32": ["--precision", "fp32"],
    "bf16": ["--precision", "bf16"],
    "tensorwise": [*IN_FLOAT8, "tensorwise"],
    "rowwise": [*IN_FLOAT8, "rowwise"],
    "tensorwise, dW bf16": [*IN_FLOAT8, "tensorwise", "--fp8.weight_gradient", "bf16"],
    "rowwise, dW bf16": [*IN_FLOAT8, "rowwise", "--fp8.weight_gradient", "bf16"],
}
REFERENCE = "fp32"


@dataclass(frozen=True)
class Job:
    """What all variants have in common."""

    model: Path
    """Hugging Face folder."""
    data: Path
    """Folder written by logtrain.prepare."""
    rows: int
    """Rows of a step."""
    seq_len: int
    """Tokens of a row."""
    steps: int
    """Steps of a run; its learning rate falls to zero over them."""

    @contextmanager
    def run(self, variant: str, seed: int = 1309, lr: float = 1e-5) -> Iterator[tuple[RunSetup, Llama]]:
        """A run of one variant, with its model as it is before the first step."""
        flags = ["--name", "float8", "--model", str(self.model), "--data", str(self.data), "--seed", str(seed)]
        flags += ["--loader.seq_len", str(self.seq_len), "--loader.rows_per_step", str(self.rows)]
        flags += ["--trainer.epochs", "1000", "--trainer.max_steps", str(self.steps), "--optim.lr", str(lr)]
        setup = set_up(load(RunConfig, [*flags, *VARIANTS[variant]]))
        try:
            yield setup, setup.build_model(setup.initial_weights())
        finally:
            setup.world.close()
