"""The data of a run: prepared folders, opened as loaders and checked against the model and against each other."""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from logtrain.core.node_folder import is_on_network, node_folder
from logtrain.core.world import World
from logtrain.data.epoch import Shared
from logtrain.data.loader import Loader
from logtrain.data.pack import pack, pieces
from logtrain.data.prepared import check_tokenizer
from logtrain.data.shards import Split
from logtrain.model.llama import LlamaConfig
from logtrain.text.tokenizer import Tokenizer
from logtrain.training.config import RunConfig


class ChatStyle(NamedTuple):
    """How prompts are written for a model that was trained on chats, and where its answers end."""

    template: str
    """The jinja text of the chat template."""
    end_id: int
    """Id of the token that ends an answer."""


@dataclass(frozen=True)
class RunData:
    """The data of a run, opened and checked."""

    train: Loader
    """This rank's part of the training split."""
    valid: dict[str, Loader]
    """This rank's part of each validation set, by name; the data's own comes first, as "valid"."""
    tokenizer: Tokenizer
    """The tokenizer of the model and of the prepared data."""
    fingerprint: str
    """Fingerprint of the training data's manifest."""
    chat: ChatStyle | None
    """The style of chat data; None for documents."""

    @property
    def check(self) -> Loader:
        """The rows of which the first step is the check of an export: the first validation set's, else the training
        rows.
        """
        return next(iter(self.valid.values()), self.train)

    @property
    def documents_per_step(self) -> float:
        """Mean number of documents in a step."""
        return self.train.split.num_documents / self.train.steps_per_epoch


def open_run_data(config: RunConfig, shape: LlamaConfig, world: World) -> RunData:
    """Open and check all data that a run reads. Raises ValueError for data, tokenizer and model that do not belong
    together, and for a setting that needs a split which the data does not have.
    """
    train = open_split(config.data, "train", world)
    tokenizer = matching_tokenizer(train, config.data, config.model, shape, config.loader.seq_len)
    valid = valid_splits(train, config.data, config.valid, world)
    for key in ("keep_best", "patience"):
        if getattr(config.trainer, key) and not valid:
            raise ValueError(
                f"trainer.{key} goes by the validation loss, but {config.data} has no validation split; prepare it "
                f"with one, name one with --valid, or switch trainer.{key} off"
            )
    facts = train.manifest
    chat = ChatStyle(facts["chat"]["template"], facts["tokenizer"]["document_end_id"]) if "chat" in facts else None
    folder = node_folder(world)
    loaders = Loaders(config, world, folder)
    return RunData(
        train=loaders.train(train),
        valid={name: loaders.valid(split, number) for number, (name, split) in enumerate(valid.items())},
        tokenizer=tokenizer,
        fingerprint=facts["fingerprint"],
        chat=chat,
    )


@dataclass(frozen=True)
class Loaders:
    """Makes this rank's loaders."""

    config: RunConfig
    world: World
    folder: Path | None
    """that this node's ranks share"""

    def train(self, split: Split) -> Loader:
        """Steps as configured: of `rows_per_step`, or of as many rows as hold `documents_per_step` on average."""
        loader = self.config.loader
        rows_per_step = loader.rows_per_step
        if loader.documents_per_step:
            per_row = self.world.from_main(self.documents_per_row(split) if self.world.is_main else None)
            rows_per_step = loader.rows_for_documents(per_row, self.world.size)
        return self.make(split, rows_per_step, "train")

    def documents_per_row(self, split: Split) -> float:
        """On average. It packs an epoch, which takes a large split minutes and gigabytes: not for every rank."""
        length_P = pieces(split.lengths, self.config.loader.seq_len).length_P
        return split.num_documents / pack(length_P, self.config.loader.seq_len, self.config.seed, 0).num_rows

    def valid(self, split: Split, number: int) -> Loader:
        """A micro-batch a rank at each step."""
        return self.make(split, self.world.size * self.config.loader.rows_per_batch, f"valid-{number}")

    def make(self, split: Split, rows_per_step: int, name: str) -> Loader:
        """`name`: of the folder that the ranks of a node share for this loader."""
        world = self.world
        return Loader(
            split,
            replace(self.config.loader, rows_per_step=rows_per_step, documents_per_step=0),
            seed=self.config.seed,
            pad_id=split.manifest["tokenizer"]["document_end_id"],
            rank=world.rank,
            world_size=world.size,
            pin_memory=world.device.type == "cuda",
            shared=self.folder and Shared(self.folder / name, packs=world.local_rank == 0),
        )


def matching_tokenizer(split: Split, data: str, model: str, llama: LlamaConfig, seq_len: int) -> Tokenizer:
    """The tokenizer of the prepared data. Raises ValueError where data, tokenizer and model do not belong together."""
    facts, prepared = split.manifest["tokenizer"], split.manifest["settings"]["seq_len"]
    if facts["vocab_size"] > llama.vocab_size:
        raise ValueError(
            f"{data}: its tokenizer has {facts['vocab_size']} ids, the model {model} only {llama.vocab_size}; "
            f"prepare the data with the model's own tokenizer"
        )
    if seq_len > llama.max_positions:
        raise ValueError(f"loader.seq_len = {seq_len}: the model {model} knows {llama.max_positions} positions")
    if seq_len != prepared:
        raise ValueError(f"loader.seq_len = {seq_len}, but {data} was prepared for {prepared}; set one to the other")
    has_own = any((Path(model) / name).exists() for name in ("tokenizer.json", "tokenizer.model"))
    own = model if has_own else facts["path"]
    tokenizer = Tokenizer.load(own)
    if tokenizer.sha256 != facts["sha256"] and own == facts["path"]:
        raise ValueError(f"{own}: the tokenizer has changed since {data} was prepared; prepare it again")
    if tokenizer.sha256 != facts["sha256"]:
        raise ValueError(
            f"{data}: was prepared with another tokenizer than that of {own}; prepare it with --tokenizer {own}"
        )
    check_tokenizer(data, split.manifest, tokenizer)
    return tokenizer


def open_split(folder: str, split: str, world: World) -> Split:
    """A split of prepared data, verified by all ranks that see the same files, each a part: by those of all nodes where
    the folder is on a network, else by those of this node.
    """
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    part = (world.rank, world.size) if is_on_network(folder) else (world.local_rank, local_size)
    return Split.open(folder, split, part=part)


def valid_splits(train: Split, data: str, named: tuple[str, ...], world: World) -> dict[str, Split]:
    """The data's own validation split as "valid", if it has one, then those that the config names. Raises ValueError
    for a name that is used twice, and for data of another tokenizer.
    """
    splits = {}
    if "valid" in train.manifest["splits"]:
        splits["valid"] = open_split(data, "valid", world)
    for text in named:
        name, equals, folder = text.partition("=")
        if not equals or not name or name in splits:
            raise ValueError(
                f"valid = {text!r}: expected NAME=FOLDER, each name once" + ' and not "valid"' * (name == "valid")
            )
        splits[name] = open_split(folder, "valid", world)
        if splits[name].manifest["tokenizer"]["sha256"] != train.manifest["tokenizer"]["sha256"]:
            raise ValueError(f"{folder}: was prepared with another tokenizer than {data}")
    return splits
