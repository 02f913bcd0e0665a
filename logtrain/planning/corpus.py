"""The corpus of a plan: the lengths of its documents, from prepared data or drawn at random, packed into rows."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from logtrain.data.pack import pack, pieces
from logtrain.data.shards import Split
from logtrain.planning.config import PlanConfig


@dataclass(frozen=True)
class Corpus:
    """A training split, packed into rows."""

    source: str
    """Where the lengths are from, in words."""
    num_tokens: int
    """Tokens of all documents."""
    num_rows: int
    """Rows that they fill."""
    lengths_P: np.ndarray
    """Tokens of each piece of a document that is packed, int64 [P]."""


def read_corpus(config: PlanConfig) -> Corpus:
    """The corpus in the folder `config.data`, packed as the loader packs its first epoch. If the folder holds no
    prepared data, the lengths are drawn from the config's lognormal distribution, the same each time.
    """
    name, data = next(iter(config.sources.items()))
    if (Path(data) / "manifest.json").is_file():
        lengths, source = Split.open(data, "train", verify=False).lengths, data
    else:
        sigma, mean = config.document_sigma, config.document_tokens
        drawn = np.random.default_rng(0).lognormal(np.log(mean) - sigma**2 / 2, sigma, config.documents)
        lengths = np.maximum(2, drawn).astype(np.int64)
        source = f"lognormal, mean {mean:g} tokens, sigma {sigma:g} (no prepared data at {data})"
    lengths_P = pieces(lengths, config.loader.seq_len).length_P.astype(np.int64)
    num_rows = len(pack(lengths_P, config.loader.seq_len, config.seed, 0).row_start_R1) - 1
    share = config.mix.get(name, 1.0)  # an epoch is a pass over the first source, which stands for all
    return Corpus(source, round(lengths.sum() / share), round(num_rows / share), lengths_P)


def with_rows_per_step(config: PlanConfig, corpus: Corpus) -> PlanConfig:
    """The config with the `rows_per_step` that hold `documents_per_step` documents on average, if it sets that."""
    if not config.loader.documents_per_step:
        return config
    rows = config.loader.rows_for_documents(len(corpus.lengths_P) / corpus.num_rows, config.gpus)
    return replace(config, loader=replace(config.loader, rows_per_step=rows, documents_per_step=0))
