"""A checkpoint into a Hugging Face folder: `python -m logtrain.export --run runs/NAME --output DIR`, under torchrun
where one device is too small.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from logtrain.core.config import load, run
from logtrain.training.checkpoint import Checkpoints
from logtrain.training.job import Job, JobConfig
from logtrain.training.sharding import ParallelConfig


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Write any checkpoint of a run as a model that transformers and vLLM load."""

    run: str
    """Folder of the run, with its config.toml and checkpoints/."""
    output: str
    """Folder to write; must not exist."""
    step: int = 0
    """Which checkpoint. 0: the newest complete one."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Precision of the weights. auto: as the run's config says."""


def main(argv: list[str]) -> int:
    config = load(ExportConfig, argv)
    folder, output = Path(config.run), Path(config.output)
    if output.exists():
        raise ValueError(f"{output}: exists already; choose another --output")
    if not (folder / "config.toml").exists():
        raise ValueError(f"{folder}: not a run (no config.toml)")
    job = Job(replace(load(JobConfig, [str(folder / "config.toml")]), parallel=ParallelConfig()))  # on any ranks
    checkpoints = Checkpoints(folder / "checkpoints")
    path = checkpoints.at(config.step)
    model = job.build(job.initial_rows() if job.config.lora.rank else None)  # frozen weights are in no checkpoint
    checkpoints.load(path, model)
    result = job.publish(model, output, None if config.dtype == "auto" else config.dtype)
    if job.world.is_main:
        print(
            f"{path} -> {output} ({result['dtype']}): loss {result['exported_loss']:.6f}, "
            f"difference {result['difference']:+.1e}"
        )
    job.world.close()
    return 0


if __name__ == "__main__":
    run(main)
