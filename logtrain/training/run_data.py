"""The data of a run: prepared folders, opened as loaders and checked against the model and against each other."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from logtrain.core.node_folder import is_on_network, node_folder
from logtrain.core.world import World
from logtrain.data.epoch import EpochSize, Shared, of_pieces
from logtrain.data.loader import Loader, OfRank
from logtrain.data.manifest import Manifest
from logtrain.data.mixture import MixtureLoader
from logtrain.data.pack import pack
from logtrain.data.pairs import PairLoader, PairSplit, has_pairs
from logtrain.data.prepared import SPLITS, check_tokenizer
from logtrain.data.shards import Split
from logtrain.model.llama import LlamaConfig
from logtrain.model.published import check_vocabulary
from logtrain.text.tokenizer import Tokenizer
from logtrain.training.checkpoint import complete_in, read_facts
from logtrain.training.config import RunConfig
from logtrain.training.data_kinds import check_kind, check_teacher, refuse_pairs


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
    sources: dict[str, Split] = field(default_factory=dict)
    """The training splits by the names of their sources."""

    @property
    def check(self) -> Loader:
        """The rows of which the first step is the check of an export: the first validation set's, else the training
        rows.
        """
        return next(iter(self.valid.values()), self.train)

    @property
    def first_valid_set(self) -> str:
        """Fingerprint of the data of the first validation set; "" where there is none."""
        return next((loader.split.manifest["fingerprint"] for loader in self.valid.values()), "")

    @property
    def documents_per_step(self) -> float:
        """Mean number of documents in a step."""
        return self.train.split.num_documents / self.train.steps_per_epoch


def open_run_data(config: RunConfig, shape: LlamaConfig, world: World) -> RunData:
    """Open and check all data that a run reads. Raises ValueError for data, tokenizer and model that do not belong
    together, and for a setting that needs a split which the data does not have.
    """
    opened = open_splits(config, shape, world)
    sizes = world.from_main(known_sizes(config, opened.fingerprint) if world.is_main else None)
    loaders = Loaders(config, world, node_folder(world), sizes)
    return RunData(
        train=loaders.train(opened.sources),
        valid={name: loaders.valid(split, number) for number, (name, split) in enumerate(opened.valid.items())},
        tokenizer=opened.tokenizer,
        fingerprint=opened.fingerprint,
        chat=opened.chat,
        sources=opened.sources,
    )


class OpenedSplits(NamedTuple):
    """All splits that a run reads, checked against the model and against each other; nothing is packed yet."""

    sources: dict[str, Split]
    """The training splits by the names of their sources."""
    valid: dict[str, Split]
    """The validation splits by name."""
    tokenizer: Tokenizer
    """The tokenizer of the model and of the prepared data."""
    fingerprint: str
    """Fingerprint of the training data's manifest."""
    chat: ChatStyle | None
    """The style of chat data; None for documents."""


def open_splits(config: RunConfig, shape: LlamaConfig, world: World) -> OpenedSplits:
    """Open and check the splits, each rank a part of their bytes; no rank waits for another. Raises ValueError as
    `open_run_data` does.
    """
    sources = {name: open_split(folder, "train", world) for name, folder in config.sources.items()}
    check_kind(sources, config.trains_on)
    check_teacher(sources, config.trainer.replay_kl)
    tokenizers = [
        matching_tokenizer(split, str(split.folder), config.model, shape, config.loader.seq_len)
        for split in sources.values()
    ]
    valid = valid_splits(sources, config.valid, world)
    if unknown := [name for name in config.roles if name not in valid]:
        raise ValueError(f"roles.{unknown[0]}: no such validation set; there are {', '.join(valid) or 'none'}")
    for key in ("keep_best", "patience"):
        if getattr(config.trainer, key) and not valid:
            raise ValueError(
                f"trainer.{key} goes by the validation loss, but {config.data} has no validation split; prepare it "
                f"with one, name one with --valid, or switch trainer.{key} off"
            )
    first = next(iter(valid), "")
    if config.trainer.forget_budget and config.roles.get(first, "domain") != "domain":
        raise ValueError(
            f"roles.{first} = {config.roles[first]}: the first validation set tells which step is the best within "
            f"trainer.forget_budget, and is to be of the domain; name another source first in data"
        )
    if config.trains_on == "pairs":
        sources, valid = of_pairs(sources), of_pairs(valid)
    elif config.trains_on != "either":
        refuse_pairs(valid)
    fingerprint = " ".join(
        f"{name}{'=' * bool(name)}{split.manifest['fingerprint']}" for name, split in sources.items()
    )
    return OpenedSplits(sources, valid, tokenizers[0], fingerprint, chat_style(sources))


def of_pairs(splits: dict[str, Split]) -> dict[str, Split]:
    """The splits as those of pairs. Raises ValueError for a folder that was not prepared with pairs."""
    for split in splits.values():
        if not has_pairs(split.manifest):
            raise ValueError(f"{split.folder}: no pairs of answers; prepare it with --format dpo")
    return {name: PairSplit(split) for name, split in splits.items()}


def known_sizes(config: RunConfig, data: str) -> dict[str, EpochSize]:
    """How much the first epoch of each source is, by its name, as far as the checkpoint to resume from tells it of the
    same data, a fingerprint.
    """
    checkpoints = complete_in(Path(config.runs) / config.name / "checkpoints") if config.resume == "auto" else []
    if not checkpoints:
        return {}
    try:
        state = read_facts(checkpoints[-1]).state
    except ValueError:  # told where it is loaded
        return {}
    are_sizes = all(min(size.rows, size.slots, size.tokens) > 0 for size in state.sizes.values())
    return state.sizes if are_sizes and state.data == data else {}


def chat_style(sources: dict[str, Split]) -> ChatStyle | None:
    """The style of the chats among the sources. Raises ValueError where they have several."""
    return style_of({str(split.folder): split.manifest for split in sources.values()})


def style_of(manifests: Mapping[str, Manifest]) -> ChatStyle | None:
    """The style of the chats among prepared folders, None without any. Raises ValueError where they have several."""
    found: dict[ChatStyle, str] = {}
    for folder, facts in manifests.items():
        if "chat" in facts:
            style = ChatStyle(facts["chat"]["template"], facts["tokenizer"]["document_end_id"])
            found.setdefault(style, folder)
    if len(found) > 1:
        first, second = list(found.values())[:2]
        raise ValueError(f"{first} and {second} were prepared with different chat templates; prepare both with one")
    return next(iter(found), None)


@dataclass(frozen=True)
class Loaders:
    """Makes this rank's loaders."""

    config: RunConfig
    world: World
    folder: Path | None
    """that this node's ranks share"""
    sizes: dict[str, EpochSize]
    """of the first epoch of each source of the training data, as far as they are known"""

    def train(self, sources: dict[str, Split]) -> Loader:
        """Steps as configured: of `rows_per_step`, or of as many rows as hold `documents_per_step` on average."""
        loader = self.config.loader
        if len(sources) > 1:
            of_rank = self.of_rank(next(iter(sources.values())), "train")
            mixture, trainer = MixtureLoader(sources, self.config.mix, loader, **of_rank), self.config.trainer
            if trainer.forget_budget:
                mixture.check_bounds(trainer.replay_source, trainer.replay_bounds)
            return mixture
        split = next(iter(sources.values()))
        rows_per_step = loader.rows_per_step
        if loader.documents_per_step:
            per_row = self.world.from_main(self.documents_per_row(split) if self.world.is_main else None)
            rows_per_step = loader.rows_for_documents(per_row, self.world.size)
        return self.make(split, rows_per_step, "train")

    def documents_per_row(self, split: Split) -> float:
        """On average. It packs an epoch, which takes a large split seconds and memory: not for every rank."""
        length_P = of_pieces(split, self.config.loader.seq_len, lambda part: part.cut.length_P)
        return split.num_documents / pack(length_P, self.config.loader.seq_len, self.config.seed, 0).num_rows

    def valid(self, split: Split, number: int) -> Loader:
        """A micro-batch a rank at each step."""
        return self.make(split, self.world.size * self.config.loader.rows_per_batch, f"valid-{number}")

    def make(self, split: Split, rows_per_step: int, name: str) -> Loader:
        """A loader of one split; for `name` see `of_rank`."""
        self.world.note(f"packing {split.folder}")
        config, of_rank = self.config.loader.with_rows_per_step(rows_per_step), self.of_rank(split, name)
        return (
            PairLoader(split, config, **of_rank) if isinstance(split, PairSplit) else Loader(split, config, **of_rank)
        )

    def of_rank(self, split: Split, name: str) -> OfRank:
        """What all loaders of this rank are given. `name`: of the loader's part of the folder that the ranks share."""
        world = self.world
        return {
            "seed": self.config.seed,
            "pad_id": split.manifest["tokenizer"]["document_end_id"],
            "rank": world.rank,
            "world_size": world.size,
            "pin_memory": world.device.type == "cuda",
            "shared": self.folder and Shared(self.folder / name, packs=world.local_rank == 0),
            "sizes": self.sizes if name == "train" else {},
            "with_teacher": name == "train" and self.config.trainer.replay_kl > 0,
        }


def matching_tokenizer(split: Split, data: str, model: str, llama: LlamaConfig, seq_len: int) -> Tokenizer:
    """The tokenizer of the prepared data. Raises ValueError where data, tokenizer and model do not belong together."""
    facts, prepared = split.manifest["tokenizer"], split.manifest["settings"]["seq_len"]
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
    template = split.manifest["chat"]["template"] if "chat" in split.manifest else ""
    check_vocabulary(tokenizer, llama, template, [facts["document_end_id"]])
    check_tokenizer(data, split.manifest, tokenizer)
    return tokenizer


def open_split(folder: str, split: str, world: World) -> Split:
    """A split of prepared data, verified by all ranks that see the same files, a part each: a node's, or all."""
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    part = (world.rank, world.size) if is_on_network(folder) else (world.local_rank, local_size)
    return Split.open(folder, split, part=part, note=world.note)


def valid_splits(sources: dict[str, Split], named: tuple[str, ...], world: World) -> dict[str, Split]:
    """The data's own validation splits by their names, of several sources with its name in the place of "valid", then
    those that the config names. Raises ValueError for a name that is used twice, and for data of another tokenizer.
    """
    splits: dict[str, Split] = {}
    for name, train in sources.items():
        for split in SPLITS[1:]:
            if split in train.manifest["splits"]:
                splits[split.replace("valid", name) if name else split] = open_split(str(train.folder), split, world)
    first = next(iter(sources.values()))
    for text in named:
        name, equals, folder = text.partition("=")
        if not equals or not name or name in splits:
            raise ValueError(
                f"valid = {text!r}: expected NAME=FOLDER, each name once" + f' and not "{name}"' * (name in splits)
            )
        splits[name] = open_split(folder, "valid", world)
        if splits[name].manifest["tokenizer"]["sha256"] != first.manifest["tokenizer"]["sha256"]:
            raise ValueError(f"{folder}: was prepared with another tokenizer than {first.folder}")
    return splits
