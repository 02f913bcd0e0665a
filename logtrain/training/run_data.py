"""The data of a run: prepared folders as loaders, held against the model and against each other."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from logtrain.core.world import World
from logtrain.data.config import LoaderConfig
from logtrain.data.loader import Loader
from logtrain.data.prepared import check_tokenizer
from logtrain.data.shards import Split
from logtrain.model.llama import LlamaConfig
from logtrain.text.tokenizer import Tokenizer
from logtrain.training.config import RunConfig


class ChatStyle(NamedTuple):
    """How prompts are written for a model that was trained on chats, and where its answers end."""

    template: str
    end_id: int


@dataclass(frozen=True)
class RunData:
    train: Loader
    valid: dict[str, Loader]
    """by name; the data's own first, as "valid" """
    tokenizer: Tokenizer
    fingerprint: str
    """of the training data"""
    chat: ChatStyle | None
    """of chat data"""

    @property
    def check(self) -> Loader:
        """A few rows that everyone can compute a loss on: of the first validation set, else of the training rows."""
        return next(iter(self.valid.values()), self.train)

    @property
    def documents_per_step(self) -> float:
        """On average."""
        return len(self.train.split.lengths) * self.train.config.rows_per_step / self.train.num_rows


def open_run_data(config: RunConfig, shape: LlamaConfig, world: World) -> RunData:
    """Open and check all that a run reads. Raises ValueError for data, tokenizer and model that do not belong together,
    and where a setting asks for what the data does not have.
    """
    verify = world.local_rank == 0  # once a node
    train = Split.open(config.data, "train", verify)
    tokenizer = matching_tokenizer(train, config.data, config.model, shape, config.loader.seq_len)
    valid = valid_splits(train, config.data, config.valid, verify)
    for key in ("keep_best", "patience"):
        if getattr(config.trainer, key) and not valid:
            raise ValueError(
                f"trainer.{key} goes by the validation loss, but {config.data} has no validation split; prepare it "
                f"with one, name one with --valid, or switch trainer.{key} off"
            )
    facts = train.manifest
    chat = ChatStyle(facts["chat"]["template"], facts["tokenizer"]["document_end_id"]) if "chat" in facts else None
    return RunData(
        train=make_loader(train, config, world, rows_per_step(train, config, world)),
        valid={name: make_loader(split, config, world) for name, split in valid.items()},
        tokenizer=tokenizer,
        fingerprint=facts["fingerprint"],
        chat=chat,
    )


def make_loader(split: Split, config: RunConfig, world: World, rows_per_step: int = 0) -> Loader:
    """This rank's part of a split. `rows_per_step = 0`: one micro-batch a rank, for validation."""
    loader = config.loader
    return Loader(
        split,
        LoaderConfig(
            seq_len=loader.seq_len,
            rows_per_step=rows_per_step or world.size * loader.rows_per_batch,
            rows_per_batch=loader.rows_per_batch,
            attention=loader.attention,
        ),
        seed=config.seed,
        pad_id=split.manifest["tokenizer"]["document_end_id"],
        rank=world.rank,
        world_size=world.size,
        pin_memory=world.device.type == "cuda",
    )


def rows_per_step(train: Split, config: RunConfig, world: World) -> int:
    """As configured, or as many as hold documents_per_step on average, for every rank the same number."""
    loader = config.loader
    if not loader.documents_per_step:
        return loader.rows_per_step
    num_rows = make_loader(train, config, world).num_rows
    return loader.rows_for_documents(len(train.lengths) / num_rows, world.size)


def matching_tokenizer(split: Split, data: str, model: str, llama: LlamaConfig, seq_len: int) -> Tokenizer:
    """The tokenizer of the prepared data, after making sure that data, tokenizer and model belong together."""
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


def valid_splits(train: Split, data: str, named: tuple[str, ...], verify: bool) -> dict[str, Split]:
    """The data's own validation split as "valid" (if it has one), then the named ones."""
    splits = {}
    if "valid" in train.manifest["splits"]:
        splits["valid"] = Split.open(data, "valid", verify)
    for text in named:
        name, equals, folder = text.partition("=")
        if not equals or not name or name in splits:
            raise ValueError(
                f"valid = {text!r}: expected NAME=FOLDER, each name once" + ' and not "valid"' * (name == "valid")
            )
        splits[name] = Split.open(folder, "valid", verify)
        if splits[name].manifest["tokenizer"]["sha256"] != train.manifest["tokenizer"]["sha256"]:
            raise ValueError(f"{folder}: was prepared with another tokenizer than {data}")
    return splits
