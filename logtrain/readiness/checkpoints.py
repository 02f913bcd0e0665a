"""The checkpoint that a run would go on from, before it does."""

from dataclasses import replace
from pathlib import Path

import torch

from logtrain.core.run_folder import refuse_changes
from logtrain.model.llama import LlamaConfig
from logtrain.model.lora import add_adapters
from logtrain.model.weights import empty_model
from logtrain.training.checkpoint import complete_in, read_facts, stored_with
from logtrain.training.config import MAY_CHANGE, RunConfig
from logtrain.training.state import TrainState
from logtrain.training.tensor_files import TensorFiles


def check_resumable(folder: Path, config: RunConfig, shape: LlamaConfig, data: str) -> str:
    """Where the run in `folder` would go on, in words. `data`: the fingerprint of the training data. Raises ValueError
    where it was started with other settings or data, or its newest checkpoint is not of this model.
    """
    refuse_changes(folder, config, MAY_CHANGE, "--name")
    newest = next(reversed(complete_in(folder / "checkpoints")), None)
    if newest is None:
        return "goes on from its start: there is no checkpoint yet"
    facts = read_facts(newest)
    of_now = replace(facts.state, data=data)
    state: TrainState = facts.state.continued_as(of_now, newest, " ".join(config.sources.values()))
    for name, of_file in facts.files.items():
        found = (newest / name).stat().st_size if (newest / name).is_file() else 0
        if found != of_file.bytes:
            raise ValueError(
                f"{newest}: corrupt checkpoint: {name} has {found} bytes instead of {of_file.bytes}; remove it to "
                f"resume from an older one"
            )
    model = empty_model(shape)
    if config.lora.rank:
        add_adapters(model, config.lora, torch.float32)
    try:
        files = TensorFiles(newest, sorted(facts.files))
        files.check({name: t.shape for name, t in stored_with(model, files.moments).items()})
    except ValueError as error:
        raise ValueError(f"{newest}: does not fit this model: {error}") from None
    return f"goes on after step {state.step}"
