"""The corpus of a plan: the lengths of its documents, from prepared data or drawn at random, packed into rows."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from logtrain.data.pack import pack, pieces
from logtrain.data.pairs import PairSplit, has_pairs
from logtrain.data.prepared import MANIFEST, read_manifest
from logtrain.data.shards import Split
from logtrain.planning.config import PlanConfig

DRAWS = 500  # steps that are drawn to see how micro-batches differ: 1% of the mean


@dataclass(frozen=True)
class Corpus:
    """A training split, packed into rows."""

    source: str
    """Where the lengths are from, in words."""
    num_tokens: int
    """Tokens of all documents."""
    num_rows: int
    """Rows that they fill."""
    num_pieces: int
    """Pieces of documents, or pairs of answers, that are packed."""
    lengths_S: np.ndarray
    """Tokens of each sequence: of each piece, or of each answer of a pair with its question, int64 [S]."""
    sequences_R: np.ndarray
    """Sequences of each row, among them, where these leave room, the padding behind them, int64 [R]."""
    longest_R: np.ndarray
    """Tokens of each row's longest sequence, int64 [R]."""
    squares_R: np.ndarray
    """Sum of the squares of each row's lengths, to which its attention is proportional, float64 [R]."""

    def micro_batches(self, rows: int, ranks: int, accumulation: int) -> tuple[float, float]:
        """(tokens of the longest sequence of a micro-batch, on average; by how much the largest attention of `ranks`
        micro-batches is above the mean, on average, as a share of it), for micro-batches of `rows` rows. Steps of
        `accumulation` times as many are drawn, and dealt to the ranks as `Loader.rows` orders them.
        """
        drawn = np.random.default_rng(0).integers(len(self.longest_R), size=(DRAWS, accumulation * rows * ranks))
        order = np.argsort(-self.squares_R[drawn], axis=1, kind="stable")
        dealt = np.take_along_axis(drawn, order, axis=1).reshape(DRAWS, accumulation, rows, ranks)
        attention = self.squares_R[dealt].sum(2)
        return float(self.longest_R[dealt].max(2).mean()), float(attention.max(-1).mean() / attention.mean() - 1)


def read_corpus(config: PlanConfig) -> Corpus:
    """The corpus in the folder `config.data`, packed as the loader packs its first epoch. If the folder holds no
    prepared data, the lengths are drawn from the config's lognormal distribution, the same each time.
    """
    name, data = next(iter(config.sources.items()))
    seq_len, num_sequences = config.loader.seq_len, 1 + config.pairs
    if is_prepared(data):
        split = Split.open(data, "train", verify=False)
        lengths, source = (PairSplit(split).lengths_D2 if config.pairs else split.lengths), data
    else:
        sigma, mean = config.document_sigma, config.document_tokens
        drawn = np.random.default_rng(0).lognormal(np.log(mean) - sigma**2 / 2, sigma, config.documents * num_sequences)
        lengths = np.maximum(2, drawn).astype(np.int64)
        where = f" (no prepared data at {data})" if data else ""
        source = f"lognormal, mean {mean:g} tokens, sigma {sigma:g}{where}"
    if config.pairs:  # no pair is cut; prepare leaves out those that are longer than a row
        lengths_PK = lengths.reshape(-1, 2).astype(np.int64)
        lengths_PK = lengths_PK[lengths_PK.sum(1) <= seq_len]
        if not len(lengths_PK):
            raise ValueError(f"loader.seq_len = {seq_len}: no pair has both answers in a row ({source}); raise it")
    else:
        lengths_PK = pieces(lengths, seq_len).length_P.astype(np.int64)[:, None]
    packed = pack(lengths_PK.sum(1), seq_len, config.seed, 0)
    share = config.mix.get(name, 1.0)  # an epoch is a pass over the first source, which stands for all
    first_R, lengths_PK = packed.row_start_R1[:-1], lengths_PK[packed.piece_P]
    has_room_R = np.add.reduceat(lengths_PK.sum(1), first_R) < seq_len
    return Corpus(
        source=source,
        num_tokens=round(lengths.sum() / share),
        num_rows=round(packed.num_rows / share),
        num_pieces=len(lengths_PK),
        lengths_S=lengths_PK.ravel(),
        sequences_R=num_sequences * np.diff(packed.row_start_R1) + has_room_R,
        longest_R=np.maximum.reduceat(lengths_PK.max(1), first_R),
        squares_R=np.add.reduceat((lengths_PK.astype(float) ** 2).sum(1), first_R),
    )


def is_prepared(data: str) -> bool:
    """Whether a path leads to prepared data."""
    return bool(data) and (Path(data) / MANIFEST).is_file()


def with_pairs(config: PlanConfig) -> PlanConfig:
    """The config of a job on the pairs of answers that its data are, or as it is."""
    data = next(iter(config.sources.values()))
    return replace(config, pairs=True) if is_prepared(data) and has_pairs(read_manifest(Path(data))) else config


def with_rows_per_step(config: PlanConfig, corpus: Corpus) -> PlanConfig:
    """The config with the `rows_per_step` that hold `documents_per_step` documents on average, if it sets that."""
    if not config.loader.documents_per_step:
        return config
    rows = config.loader.rows_for_documents(corpus.num_pieces / corpus.num_rows, config.gpus)
    return replace(config, loader=replace(config.loader, rows_per_step=rows, documents_per_step=0))
