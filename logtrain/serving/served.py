"""The models that requests may name: the model itself and its adapters, each with its template, stop tokens and
sampling.
"""

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from logtrain.core.printable import printable
from logtrain.generation.config import SamplingConfig
from logtrain.generation.load import ModelFolder
from logtrain.serving.config import ServeConfig
from logtrain.serving.errors import ApiError
from logtrain.text.chat_template import ChatTemplate
from logtrain.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class ServedModel:
    """A model that requests may name."""

    name: str
    adapter: int
    """Its number among the adapters, from 1 on; 0: the model itself."""
    root: str
    """Its folder."""
    sampling: SamplingConfig
    """How tokens are drawn for a request that does not say."""
    stop_ids: frozenset[int]
    """Tokens that end a text."""
    template: ChatTemplate | str
    """Its chat template, or why it has none."""

    def chat_template(self) -> ChatTemplate:
        """The chat template. Raises ApiError if there is none."""
        if isinstance(self.template, str):
            raise ApiError(400, f"{self.name} cannot chat: {self.template}", param="model")
        return self.template


class ServedModels:
    """All of them. tokenizer: of all. context_size: the most tokens of prompt and answer. created: when the server
    started, in seconds since 1970.
    """

    def __init__(self, config: ServeConfig):
        """Read the folders, without their weights. Raises ValueError for one that is wrong."""
        folder = ModelFolder(config.model, config.template, config.date)
        if folder.is_adapter and config.adapters:
            raise ValueError(
                f"{config.model}: an adapter, which is merged into its model, so that no other fits beside it; give "
                f"{folder.base} as --model, and this one as one of --adapters"
            )
        self.tokenizer: Tokenizer = folder.tokenizer
        self.context_size, self.vocab_size = folder.shape.max_positions, folder.shape.vocab_size
        self.created = int(time.time())
        folder.open_weights()
        self.models = {}
        names = [config.name or Path(os.path.abspath(config.model)).name, *config.adapter_paths]
        folders = [folder, *(adapter_of(folder, path, config) for path in config.adapter_paths.values())]
        for number, (name, each) in enumerate(zip(names, folders, strict=True)):
            if name in self.models:
                raise ValueError(f"adapters: {name} is the model's own name; choose another, or another --name")
            self.models[name] = served(name, number, each)
        self.default = next(iter(self.models.values()))

    def named(self, name: str | None) -> ServedModel:
        """The model that a request names; without a name the first. Raises ApiError for one that is not there."""
        if name is None:
            return self.default
        if name not in self.models:
            known = ", ".join(self.models)
            message = f"there is no model {name[:100]!r} here; the models are {known}"
            raise ApiError(404, message, param="model", code="model_not_found")
        return self.models[name]


def adapter_of(base: ModelFolder, path: str, config: ServeConfig) -> ModelFolder:
    """The folder of an adapter. Raises ValueError if it is none; says so if it names another model as its own."""
    folder = ModelFolder(path, config.template, config.date)
    if not folder.is_adapter:
        raise ValueError(f"{path}: no adapter_config.json in it; an adapter is what PEFT or logtrain sft has saved")
    if not os.path.samefile(folder.base, base.path):
        note = f"{path}: names {folder.base} as its model, and is served on {base.path}"
        print(printable(note), file=sys.stderr, flush=True)
    return folder


def served(name: str, number: int, folder: ModelFolder) -> ServedModel:
    """The model of a folder."""
    try:
        template = folder.template
    except ValueError as error:
        if folder.template_file:
            raise
        template = str(error)
    return ServedModel(name, number, str(folder.path), folder.sampling, folder.stop_ids, template)
