"""A model that goes into a blend: a Hugging Face folder, or a checkpoint of a run, RUN:step-000040, of which no
model has to have been exported.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from logtrain.core.checksums import check_folder, find_damage
from logtrain.core.run_folder import read_run_config
from logtrain.data.prepared import read_manifest
from logtrain.model import hf
from logtrain.model.blending import MappedWeights, check_same_shape
from logtrain.model.llama import LlamaConfig
from logtrain.model.published import check_source, read_tokenizer
from logtrain.model.weights import empty_model
from logtrain.text.template_source import tokenizer_file
from logtrain.text.tokenizer import Tokenizer
from logtrain.training.checkpoint import FACTS, read_facts, stored_with
from logtrain.training.config import RunConfig
from logtrain.training.run_data import ChatStyle, style_of
from logtrain.training.tensor_files import TensorFiles

Note = Callable[[str], None]


class BlendInput(NamedTuple):
    """A model, opened and checked; none of its weights is in memory."""

    name: str
    """As the user gave it."""
    folder: Path
    """The model's folder, or that of the checkpoint."""
    model: Path
    """The folder with config.json: of a checkpoint that of the model which its run started from."""
    shape: LlamaConfig
    """Sizes of the model."""
    weights: MappedWeights
    """Its weights."""
    dtype: torch.dtype
    """Their precision."""
    tokenizer: Tokenizer
    """Its tokenizer."""
    data: tuple[Path, ...] = ()
    """The prepared data of a checkpoint's run."""

    def chat_style(self) -> ChatStyle | None:
        """How its run writes chats; None for a folder, whose own files say it. Raises ValueError where the data of the
        run is no longer there.
        """
        return style_of({str(folder): read_manifest(folder) for folder in self.data})


class CheckpointWeights:
    """The weights of a checkpoint, as a `MappedWeights`."""

    def __init__(self, files: TensorFiles):
        self.files = files

    def rows(self, name: str, start: int, stop: int) -> Iterator[Tensor]:
        """Rows [start, stop) of our parameter `name`, fp32, in pieces."""
        return self.files.rows(f"model.{name}", start, stop)

    def let_go(self) -> None:
        """Give back the memory that the files take in this process."""
        self.files.let_go()


def open_inputs(names: Sequence[str], part: tuple[int, int], note: Note) -> list[BlendInput]:
    """The models of a blend. `part`: (i, n) verifies every n-th of them, from the i-th on. `note` is told what comes
    next. Raises ValueError for one that is missing or damaged, and for models of different shapes.
    """
    found = [open_input(name, number % part[1] == part[0], note) for number, name in enumerate(names)]
    check_same_shape(names, [each.shape for each in found])
    return found


def open_input(name: str, verify: bool, note: Note) -> BlendInput:
    """A model by its name, as users give it. Raises ValueError for what is missing or damaged."""
    path = checkpoint_of(name)
    if (path / FACTS).exists() or ".." in name or path.name.startswith("step-"):
        return open_checkpoint(name, path, verify, note)
    if verify:
        check_folder(path, note)
    shape = hf.read_config(path)
    check_source(path, shape)
    weights = hf.Weights(path, shape)
    dtype = next(iter(weights.rows("embedding.weight", 0, 1))).dtype
    return BlendInput(name, path, path, shape, weights, dtype, read_tokenizer(path, shape))


def checkpoint_of(name: str) -> Path:
    """The folder that a name means: RUN:step-000040 is RUN/checkpoints/step-000040."""
    run, colon, step = name.rpartition(":")
    return Path(run) / "checkpoints" / step if colon and step.startswith("step-") else Path(name)


def open_checkpoint(name: str, path: Path, verify: bool, note: Note) -> BlendInput:
    """A checkpoint of a run that trains all parameters."""
    config = read_run_config(path.parent.parent, RunConfig)
    if config.lora.rank:
        raise ValueError(
            f"{name}: a checkpoint of adapters; blend their folders, or models that logtrain export writes"
        )
    facts = read_facts(path)
    for file, of_file in facts.files.items() if verify else ():
        note(f"verifying {path / file}")
        if damage := find_damage(path / file, of_file):
            raise ValueError(f"{path}: corrupt checkpoint: {damage}")
    model, shape = Path(config.model), hf.read_config(config.model)
    try:
        files = TensorFiles(path, sorted(facts.files))
        files.check({key: tensor.shape for key, tensor in stored_with(empty_model(shape), files.moments).items()})
    except ValueError as error:
        raise ValueError(f"{path}: does not fit the model {model}: {error}") from None
    data = tuple(Path(folder) for folder in config.sources.values())
    tokenizer = Tokenizer.load(model if tokenizer_file(model) else read_manifest(data[0])["tokenizer"]["path"])
    return BlendInput(name, path, model, shape, CheckpointWeights(files), torch.float32, tokenizer, data)


def check_tokenizers(inputs: Sequence[BlendInput]) -> None:
    """Raises ValueError for models of which one has another tokenizer than the first."""
    for each in inputs[1:]:
        if each.tokenizer.sha256 != inputs[0].tokenizer.sha256:
            raise ValueError(
                f"{each.name}: has another tokenizer than {inputs[0].name}; blend models of one vocabulary, or, if "
                f"both mean the same tokens by the same ids, say which files are to be taken with --like DIR"
            )
