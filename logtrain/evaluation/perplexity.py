"""Measures how well a model predicts whole files, which shows what it learned of a domain and forgot of everything
else.

Text is read as for continual pretraining, and chats as for fine-tuning, where only the answers are predicted. A
document longer than the model's context is predicted window by window: a window does not see the one before it, which
predicts its first token.

A loss per byte can be compared between models of different tokenizers, a loss per token cannot. The bytes are those of
predicted tokens: where a model begins documents with no token of its own, nothing predicts a document's first one.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from logtrain.core.batch import IGNORE, Batch
from logtrain.core.world import World
from logtrain.data.config import ChatFormat
from logtrain.data.conversations import CHAT_COLUMNS, conversations
from logtrain.data.documents import documents
from logtrain.data.files import BadRow, InputFile
from logtrain.data.manifest import sha256
from logtrain.evaluation.candidate import ModelFiles
from logtrain.evaluation.results import Perplexity
from logtrain.model.llama import Llama
from logtrain.text.chat_template import ChatTemplate
from logtrain.text.tokenizer import Tokenizer

WINDOW = 8192  # the most tokens of a window, and of a batch of windows
TEXT_CHARS = 32_768  # characters of a document of a text file, as in prepare
LARGEST_EXPONENT = 700.0  # exp of more is no float; random weights in bf16 may have such a loss


class EncodedRow(NamedTuple):
    """A document or a conversation in tokens."""

    ids: list[int]
    """Token ids of the whole."""
    is_target: Sequence[bool]
    """Whether each of the ids is to be predicted."""
    target_text: str
    """The text that is to be predicted."""


class Piece(NamedTuple):
    """A stretch of a document that is predicted without what is before it."""

    ids: Tensor
    """Token ids, int32 [N]."""
    labels: Tensor
    """The next token of each, int32 [N], or IGNORE."""


class TextPieces(NamedTuple):
    """The pieces of a file, the same on all ranks."""

    pieces: list[Piece]
    """All pieces, in the order of the file."""
    num_bytes: int
    """Size in UTF-8 of the text that is predicted."""


def measure(model: Llama, files: ModelFiles, path: Path, world: World) -> Perplexity:
    """The perplexity of a model on a file. Every rank calls this and predicts its share. `model`: the model of `files`.
    Raises ValueError for a file or a row that cannot be read, and for weights whose loss is not finite.
    """
    text = read_text(InputFile(path), files, min(files.max_positions or WINDOW, WINDOW))
    sums = sum_losses(model, list(batches(text.pieces))[world.rank :: world.size], world.device)
    summed_loss, num_tokens = world.sum(sums).tolist()
    loss = summed_loss / max(1, num_tokens)
    if not math.isfinite(loss):
        raise ValueError("the model's loss is not finite; its weights are damaged")
    return {
        "perplexity": math.exp(min(loss, LARGEST_EXPONENT)),
        "loss": loss,
        "bits_per_byte": summed_loss / math.log(2) / max(1, text.num_bytes),
        "tokens": int(num_tokens),
        "sha256": sha256(path),
        "model_sha256": files.sha256,
    }


@torch.no_grad()
def sum_losses(model: Llama, batches: Sequence[Sequence[Piece]], device: torch.device) -> Tensor:
    """fp64 [2]: the loss in nats and the number of tokens, summed over the predicted tokens of this rank's batches.

    `training.step.mean_loss` will not do here: it takes the steps of a loader of packed shards, and sums in fp32.
    """
    summed_loss, num_tokens = torch.zeros((), dtype=torch.float64, device=device), 0
    for pieces in batches:
        summed_loss += model(packed(pieces).to(device)).double()
        num_tokens += sum(int((piece.labels != IGNORE).sum()) for piece in pieces)
    return torch.stack((summed_loss, torch.tensor(num_tokens, dtype=torch.float64, device=device)))


def packed(pieces: Sequence[Piece]) -> Batch:
    """A batch of the pieces end to end, none of which sees another."""
    lengths = torch.tensor([len(piece.ids) for piece in pieces])
    return Batch(
        tokens_T=torch.cat([piece.ids for piece in pieces]).long(),
        labels_T=torch.cat([piece.labels for piece in pieces]).long(),
        positions_T=torch.cat([torch.arange(length, dtype=torch.int32) for length in lengths.tolist()]),
        cu_seqlens=torch.cat((torch.zeros(1, dtype=torch.int64), lengths.cumsum(0))).int(),
        max_seqlen=int(lengths.max()),
    )


def batches(pieces: Sequence[Piece]) -> Iterator[list[Piece]]:
    """Batches of pieces of similar length, each of at most WINDOW tokens or of one piece."""
    batch: list[Piece] = []
    room = WINDOW
    for piece in sorted(pieces, key=lambda piece: len(piece.ids)):
        if batch and len(piece.ids) > room:
            yield batch
            batch, room = [], WINDOW
        batch.append(piece)
        room -= len(piece.ids)
    if batch:
        yield batch


# ---- reading


def read_text(file: InputFile, files: ModelFiles, window: int) -> TextPieces:
    """The pieces of a file, of at most `window` tokens each. Raises ValueError for what cannot be read."""
    pieces: list[Piece] = []
    num_bytes = 0
    for row in encoded_rows(file, files):
        num_bytes += len(row.target_text.encode())
        ids_N = torch.tensor(row.ids, dtype=torch.int32)
        labels_N = torch.where(torch.tensor(row.is_target), ids_N, IGNORE).roll(-1)
        labels_N[-1:] = IGNORE
        pieces += map(Piece, ids_N.split(window), labels_N.split(window))
    return TextPieces(pieces, num_bytes)


def encoded_rows(file: InputFile, files: ModelFiles) -> Iterator[EncodedRow]:
    """Each row of a file in the model's tokens; the first row decides whether all are documents or chats."""
    format = chat_format(file)
    return encoded_documents(file, files.tokenizer) if format is None else encoded_chats(file, format, files.template)


def chat_format(file: InputFile) -> ChatFormat | None:
    """The format of a file's chats, by the columns of its first row; None for a file of documents."""
    _, first = next(InputFile(file.path).rows(text_chars=1), (0, None))
    columns = first if isinstance(first, dict) else {}
    return next((format for column, format in CHAT_COLUMNS.items() if column in columns), None)


def encoded_documents(file: InputFile, tokenizer: Tokenizer) -> Iterator[EncodedRow]:
    """The documents of a file, all of whose tokens are to be predicted. Raises ValueError for a bad row."""
    begin = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    for document in documents(file, "auto", TEXT_CHARS):
        if isinstance(document, BadRow):
            raise ValueError(f"{file.path} row {document.row}: {document}")
        encoding = tokenizer.encode_with_spans(document.text, spelled=False)
        ids = [*begin, *encoding.ids, tokenizer.document_end()]
        yield EncodedRow(ids, [True] * len(ids), document.text[0 if begin else end_of_first(encoding.spans) :])


def end_of_first(spans: Sequence[tuple[int, int]]) -> int:
    """How many characters the first of several tokens stands for; not one of which the next token stands for a part."""
    return min([end for _, end in spans[:1]] + [start for start, _ in spans[1:2]], default=0)


def encoded_chats(file: InputFile, format: ChatFormat, template: ChatTemplate) -> Iterator[EncodedRow]:
    """The conversations of a file, of which the answers are to be predicted. Raises ValueError for a bad row."""
    for chat in conversations(file, format):
        if isinstance(chat, BadRow):
            raise ValueError(f"{file.path} row {chat.row}: {chat}")
        ids, is_target = template.encode(chat.turns)
        answers = "".join(turn.content for turn in chat.turns if turn.role == "assistant")
        yield EncodedRow(ids, is_target.tolist(), answers)
