"""How well a model predicts whole files: what it learned of a domain, what it forgot of everything else.

Text is read as for continual pretraining, chats as for fine-tuning, of which only the answers are predicted. What is
longer than the model's context is predicted window by window: each begins with nothing before it, and its own first
token is predicted by the window before.

A loss per byte can be compared between models of different tokenizers, a loss per token cannot.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from logtrain.core.batch import IGNORE, Batch
from logtrain.core.world import World
from logtrain.data.conversations import CHAT_COLUMNS, conversations
from logtrain.data.documents import documents
from logtrain.data.files import BadRow, InputFile
from logtrain.model.llama import Llama
from logtrain.text.chat_template import ChatTemplate
from logtrain.text.tokenizer import Tokenizer

WINDOW = 8192  # tokens at most, of a document and of a batch of them
TEXT_CHARS = 32_768  # of a document of a text file, as in prepare


class Piece(NamedTuple):
    ids: Tensor
    """int32"""
    labels: Tensor
    """int32: the next token, or IGNORE"""


class Text(NamedTuple):
    """What is read once for all ranks and batches."""

    pieces: list[Piece]
    bytes: int
    """of the text that is predicted, in UTF-8"""


def read_text(path: str, tokenizer: Tokenizer, template: ChatTemplate | None, window: int) -> Text:
    """The file cut into pieces of at most `window` tokens. Raises ValueError for a file or a row that is none."""
    file = InputFile(path)
    pieces, num_bytes = [], 0
    for ids, is_target, text in encoded(file, tokenizer, template):
        num_bytes += len(text.encode())
        ids_N = torch.tensor(ids, dtype=torch.int32)
        labels_N = torch.where(torch.tensor(is_target), ids_N, IGNORE).roll(-1)
        labels_N[-1:] = IGNORE
        pieces += map(Piece, ids_N.split(window), labels_N.split(window))
    return Text(pieces, num_bytes)


def encoded(
    file: InputFile, tokenizer: Tokenizer, template: ChatTemplate | None
) -> Iterator[tuple[list[int], list[bool], str]]:
    """(ids, whether each is to be predicted, the text of these) of each row."""
    _, first = next(iter(InputFile(file.path).rows(text_chars=1)), (0, None))
    format = next((CHAT_COLUMNS[name] for name in CHAT_COLUMNS if isinstance(first, dict) and name in first), None)
    if format and template is None:
        raise ValueError(f"{file.path}: holds chats, and {tokenizer.folder} has no chat template to write them with")
    begin = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    for item in conversations(file, format) if format else documents(file, "auto", TEXT_CHARS):
        if isinstance(item, BadRow):
            raise ValueError(f"{file.path} row {item.row}: {item}")
        if format:
            ids, is_target = template.encode(item.turns)
            yield ids, list(is_target), "".join(turn.content for turn in item.turns if turn.role == "assistant")
        else:
            ids = [*begin, *tokenizer.encode(item.text), tokenizer.document_end()]
            yield ids, [True] * len(ids), item.text


@torch.no_grad()
def measure(model: Llama, text: Text, world: World) -> dict[str, float]:
    """-> {"perplexity", "loss" (nats a token), "bits_per_byte", "tokens"}, of the predicted tokens, over all ranks."""
    sums = torch.zeros(2, dtype=torch.float64, device=world.device)
    for batch in list(batches(text.pieces))[world.rank :: world.size]:
        lengths = torch.tensor([len(piece.ids) for piece in batch])
        packed = Batch(
            torch.cat([piece.ids for piece in batch]).long(),
            torch.cat([piece.labels for piece in batch]).long(),
            torch.cat([torch.arange(length, dtype=torch.int32) for length in lengths.tolist()]),
            torch.cat((torch.zeros(1, dtype=torch.int64), lengths.cumsum(0))).int(),
            int(lengths.max()),
        ).to(world.device)
        sums += torch.stack((model(packed).double(), (packed.labels_T != IGNORE).sum().double()))
    loss, tokens = world.sum(sums).tolist()
    mean = loss / max(1, tokens)
    if not math.isfinite(mean):
        raise ValueError("the model's loss is not finite; its weights are damaged")
    return {
        "perplexity": math.exp(min(mean, 700.0)),  # of random weights in bf16, say, it would be more than a float holds
        "loss": mean,
        "bits_per_byte": loss / math.log(2) / max(1, text.bytes),
        "tokens": int(tokens),
    }


def batches(pieces: list[Piece]) -> Iterator[list[Piece]]:
    """The pieces by length, so that few are alone, in batches of at most WINDOW tokens or one piece."""
    batch, room = [], WINDOW
    for piece in sorted(pieces, key=lambda piece: len(piece.ids)):
        if batch and len(piece.ids) > room:
            yield batch
            batch, room = [], WINDOW
        batch.append(piece)
        room -= len(piece.ids)
    if batch:
        yield batch
