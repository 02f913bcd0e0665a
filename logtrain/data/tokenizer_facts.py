"""What a manifest says of a tokenizer, found where one is loaded: in a worker, so that prepare itself needs none."""

from typing import TypedDict

from logtrain.data.lost_text import refuse_empty
from logtrain.text.tokenizer import Tokenizer


class TokenizerFacts(TypedDict):
    """The tokenizer, and the tokens around a document."""

    path: str
    sha256: str
    vocab_size: int
    bos_id: int | None
    document_end: str
    document_end_id: int


def tokenizer_facts(tokenizer: Tokenizer, path: str, end_id: int) -> TokenizerFacts:
    """The facts of a tokenizer; `path`: as the manifest has it. `end_id`: the token that ends a document."""
    return {
        "path": path,
        "sha256": tokenizer.sha256,
        "vocab_size": tokenizer.vocab_size,
        "bos_id": tokenizer.bos_id,
        "document_end": next(text for text, id in tokenizer.special_tokens().items() if id == end_id),
        "document_end_id": end_id,
    }


def facts_for_texts(tokenizer: Tokenizer, path: str, document_end: str) -> TokenizerFacts:
    """The same where documents are texts; `document_end`: a special token, or "auto". Raises ValueError where there is
    no such token, or none for any text.
    """
    refuse_empty(tokenizer)
    return tokenizer_facts(tokenizer, path, tokenizer.document_end(document_end))
