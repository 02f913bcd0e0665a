"""What a run is to train on, held against what its data was prepared as."""

from dataclasses import fields
from pathlib import Path

from logtrain.data.pairs import has_pairs
from logtrain.data.prepared import read_manifest
from logtrain.data.shards import Split
from logtrain.training.config import PairsRunConfig, RunConfig


def check_kind(sources: dict[str, Split], trains_on: str) -> None:
    """Raises ValueError where none of the sources has what is trained on, "documents", "chats" or "pairs": the loss
    would fall all the same, for chats read as documents and documents as answers.
    """
    folder, *more = (str(split.folder) for split in sources.values())
    which = f"{folder} and {len(more)} more" if more else folder
    are_pairs = [has_pairs(split.manifest) for split in sources.values()]
    if trains_on == "pairs" and (not all(are_pairs) or more):
        raise ValueError(f"{which}: `logtrain dpo` trains on one folder of pairs; prepare it with --format dpo")
    if trains_on in ("documents", "chats"):
        refuse_pairs(sources)
    are_chats = ["chat" in split.manifest for split in sources.values()]
    if trains_on == "chats" and not any(are_chats):
        raise ValueError(
            f"{which}: prepared as documents, which `logtrain cpt` trains on; for `logtrain sft` prepare "
            f"conversations, with --format sharegpt, messages or alpaca"
        )
    if trains_on == "documents" and all(are_chats):
        raise ValueError(
            f"{which}: prepared as chats, which `logtrain sft` trains on (--lora.rank 0 for all parameters); for "
            f"`logtrain cpt` prepare text, with --format auto"
        )


def as_trained(config: RunConfig) -> RunConfig:
    """The settings of a run, which do not say what it trains on, with what its data says of that."""
    folder, *more = config.sources.values()
    if more or not has_pairs(read_manifest(Path(folder))):
        return config
    return PairsRunConfig(**{field.name: getattr(config, field.name) for field in fields(config)})


def refuse_pairs(sources: dict[str, Split]) -> None:
    """Raises ValueError where a source has pairs, of which the rejected answers would count, too."""
    for split in sources.values():
        if has_pairs(split.manifest):
            raise ValueError(
                f"{split.folder}: prepared as pairs of answers, which `logtrain dpo` trains on, the rejected ones too"
            )


def check_teacher(sources: dict[str, Split], replay_kl: float) -> None:
    """Raises ValueError where `trainer.replay_kl` counts a teacher in, and no source has one."""
    if replay_kl and not any(split.teacher_top_k for split in sources.values()):
        folders = " and ".join(str(split.folder) for split in sources.values())
        raise ValueError(
            f"trainer.replay_kl = {replay_kl}: {folders} has no teacher's distribution; write the replay with "
            f"`logtrain replay --teacher_top_k 16`, or set trainer.replay_kl to 0"
        )
