"""The pieces of a sentencepiece model: which are marks, which one opens a document, and how texts stay free of marks.

A model looks in every text for the symbols that its maker defined (`user_defined_symbols`), and cannot be told not to.
So those that are marks, as Yi's <|im_end|>, have other names in the copy of the model that encodes: of the same length,
of control characters that nobody knows before.
"""

import secrets
from pathlib import Path

import sentencepiece

from logtrain.text.marks import SHAPE, TURN_MARKS, listed_tokens
from logtrain.text.template_source import named_tokens, read_config

SIGNS = bytes(range(0x0E, 0x1B))  # of a name
LONGEST = 127  # bytes of a mark: those of which one byte says the length


def marks_of(model: sentencepiece.SentencePieceProcessor) -> dict[str, int]:
    """Returns the ids of the control symbols, and of other pieces that look like marks, by their texts."""
    pieces = ((model.id_to_piece(id), id) for id in range(model.vocab_size()))
    return {text: id for text, id in pieces if model.is_control(id) or text in TURN_MARKS or SHAPE.fullmatch(text)}


def defined_marks(model: sentencepiece.SentencePieceProcessor) -> list[str]:
    """Returns the marks that a model looks for in every text: those that are no control symbols."""
    return [text for text, id in marks_of(model).items() if not model.is_control(id)]


def without_marks(data: bytes, model: sentencepiece.SentencePieceProcessor) -> sentencepiece.SentencePieceProcessor:
    """Returns a model that encodes as `model`, which `data` describes, but finds no mark in any text."""
    spelled = [text.encode() for text in defined_marks(model)]
    for text in spelled:
        # A piece is a message of its text (field 1, of bytes), its score (field 2, a float) and its kind.
        before, after = b"\n" + bytes([min(len(text), LONGEST)]), b"\x15"
        name = bytes(secrets.choice(SIGNS) for _ in text)
        data = data.replace(before + text + after, before + name + after)
    return sentencepiece.SentencePieceProcessor(model_proto=data) if spelled else model


def begin_of_pieces(model: sentencepiece.SentencePieceProcessor, folder: Path) -> int | None:
    """Returns the id of the piece that opens a document: the one that the files of the folder name, or else the model.
    They may say that there is none (`add_bos_token` false, `bos_token` null or empty). A turn mark opens no document.
    Raises ValueError for a name that is no piece.
    """
    config = read_config(folder / "tokenizer_config.json")
    if config.get("add_bos_token") is False or config.get("bos_token", "named") in (None, ""):
        return None
    named = named_tokens(folder, defaults=False).get("bos_token", "")
    id = model.piece_to_id(named) if named else model.bos_id()
    if named and model.id_to_piece(id) != named:
        raise ValueError(f"{folder}: bos_token = {named[:80]!r} is no piece of its tokenizer.model")
    return id if id >= 0 and named not in TURN_MARKS else None


def check_added(model: sentencepiece.SentencePieceProcessor, folder: Path) -> None:
    """Raises ValueError for words that files beside a model add to it, which only tokenizer.json can hold."""
    with_ids, older, _ = listed_tokens(folder)
    words = (token.content for token in (*with_ids, *older) if not token.special)
    added = next((word for word in words if model.id_to_piece(model.piece_to_id(word)) != word), None)
    if added is not None:
        raise ValueError(
            f"{folder}: files beside tokenizer.model add words to it, as {added[:80]!r}, which it does not know; "
            f"save the tokenizer as tokenizer.json"
        )
