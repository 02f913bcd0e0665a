"""Whether the peers train as we do: the losses of the same steps from the same weights, on one rank, beside ours.

    python -m benchmarks.one_rank.agreement launch/recipes/cpt_8xh100.toml --layers 4

A speed counts for nothing where the losses differ. Liger-Kernel runs only where there is a GPU. The exit status is 1
where a loss is further from ours than rounding takes it.
"""

from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.gpu_check.figures import tell
from benchmarks.one_rank import peers
from benchmarks.one_rank.__main__ import run
from benchmarks.one_rank.rank import OneRankConfig, Rank
from logtrain.core import entry
from logtrain.core.config import load
from logtrain.data.config import LoaderConfig
from logtrain.model import hf
from logtrain.planning.trace import pretended_world
from logtrain.training.sharding import full_tensors

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}  # of a loss of about 12 nats: bf16 keeps 3 digits of a logit


def losses_of(config: OneRankConfig, device: torch.device, weights: dict[str, Tensor]) -> list[float]:
    """The losses of some steps of one rank. `weights`: by published names; filled from our model where it is empty."""
    with pretended_world(1):
        rank = Rank(config, device)
        if not weights:
            assert config.library == "logtrain"
            ours = ((name, tensor.clone()) for name, tensor in full_tensors(rank.model))
            weights |= dict(hf.published_rows(rank.shape, ours))
        elif isinstance(rank.model, peers.PeerLlama):
            peers.fill(rank.model, weights)
        loader = LoaderConfig(seq_len=config.loader.seq_len, rows_per_step=1, rows_per_batch=1)
        return [run(rank, step, number) for number, step in enumerate(rank.steps(loader, config.steps))]


def main(argv: list[str]) -> int:
    config = replace(load(OneRankConfig, argv), ranks=1, recompute="none")
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    weights: dict[str, Tensor] = {}
    ours = losses_of(replace(config, library="logtrain"), device, weights)
    differ = False
    for library in ("transformers", "liger") if device.type == "cuda" else ("transformers",):
        theirs = losses_of(replace(config, library=library), device, weights)
        largest = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
        tell(f"{library}: largest difference of its losses from ours", largest, "nats")
        differ |= not largest <= TOLERANCE[torch.bfloat16 if device.type == "cuda" else torch.float32]
    tell("logtrain: last loss of the comparison", ours[-1], "nats")
    return int(differ)


if __name__ == "__main__":
    entry.run(main)
