"""A tokenizer: text -> ids -> text, and the ids of the special tokens that frame a document.

Two kinds of files are read: `tokenizer.json` (the tokenizers library: Llama 3, SmolLM2, ...) and a sentencepiece
`tokenizer.model` (Llama 2). Text is only ever text: a `<|eot_id|>` that stands in a log line becomes the pieces of its
characters, never id 128009, because special tokens are put in by id, not by spelling. There is one exception: a chat
template spells its special tokens, so what it wrote is encoded with `spelled=True` (chat_template.py).
"""

import functools
import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import sentencepiece
import tokenizers

from logtrain.core.untrusted import nearest, read_bytes
from logtrain.text.template_source import read_config, token_text
from logtrain.text.tokenizer_trial import try_out

TOKENIZER_FILES = (  # of a Hugging Face folder: the first two decide the ids, the others say more of them
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
)
PANIC = "PanicException"  # of Rust
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # what bytes that are no character decode to
PRINTABLE = (*range(33, 127), *range(161, 173), *range(174, 256))
BYTE_OF = {chr(byte): byte for byte in PRINTABLE} | {
    chr(256 + i): byte for i, byte in enumerate(sorted(set(range(256)) - set(PRINTABLE)))
}
DOCUMENT_ENDS = ("<|end_of_text|>", "<|endoftext|>", "</s>")
# These mark the turns of a chat. A model that learns to begin or end every document with one unlearns the chat format.
TURN_MARKS = ("<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|im_start|>", "<|start_header_id|>", "<|end_header_id|>")


class Encoding(NamedTuple):
    """A text as token ids, and where each stands in it."""

    ids: list[int]
    spans: list[tuple[int, int]]
    """The characters [start, end) that each id stands for; the ids of one character share its span."""


class Tokenizer:
    """A tokenizer file, opened by `Tokenizer.load`. Encoding adds no special token and cuts nothing, whatever the file
    was saved with.

    vocab_size: highest id + 1, added tokens included. bos_id: the id that opens a document, or None. unknown_id: the id
    that stands for all text without a token, or None. sha256: digest of the file that decides the ids. files: what an
    export copies beside the weights. folder: where these files are.
    """

    vocab_size: int
    bos_id: int | None
    unknown_id: int | None
    sha256: str
    files: tuple[Path, ...]

    @staticmethod
    def load(path: str | Path) -> "Tokenizer":
        """Opens the tokenizer of a folder with tokenizer.json or tokenizer.model (the first is preferred), or of one of
        these files. Raises ValueError if there is none, or it is damaged.
        """
        path = Path(path)
        if not path.exists():
            raise ValueError(f"{path}: no such tokenizer folder")
        names = ("tokenizer.json", "tokenizer.model")
        file = next((f for f in (path / n for n in names) if os.path.lexists(f)), None) if path.is_dir() else path
        if file is None:
            raise ValueError(
                f"{path}: no tokenizer.json or tokenizer.model in it; give the folder of a Hugging Face model"
            )
        return (JsonTokenizer if file.suffix == ".json" else SentencePieceTokenizer)(file)

    def __init__(self, file: Path):
        self._file, self.folder = file, file.parent
        self.sha256 = hashlib.sha256(read_bytes(file)).hexdigest()
        beside = (file.parent / name for name in TOKENIZER_FILES if name != file.name)
        self.files = (file, *(f for f in beside if f.is_file()))

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text, in which no special token is recognised."""
        raise NotImplementedError

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the ids of each text, as `encode` does, but on all cores (unless TOKENIZERS_PARALLELISM=false)."""
        raise NotImplementedError

    def encode_with_spans(self, text: str, spelled: bool) -> Encoding:
        """Returns the ids and spans of a text; `spelled`: a special token's text becomes its id. Raises ValueError for
        a sentencepiece model, which has no spans.
        """
        raise NotImplementedError

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Returns the text of ids; `skip_special` leaves special tokens out."""
        raise NotImplementedError

    def token_bytes(self, id: int) -> bytes:
        """Returns the bytes of UTF-8 that a token stands for, which may be a part of a character's."""
        text = self.decode([id], skip_special=False)
        return text.encode() if REPLACEMENT not in text else bytes_of_part(self._token(id)) or text.encode()

    def _token(self, id: int) -> str:
        """Returns a token as the file spells it."""
        raise NotImplementedError

    def normalized(self, text: str) -> str:
        """The text as `encode` reads it; some tokenizers write all in lower case, or put a space before it."""
        raise NotImplementedError

    def special_tokens(self, added: bool = True) -> dict[str, int]:
        """Returns the ids of the special tokens by their text; with `added` also those of added words, which `encode`
        knows.
        """
        raise NotImplementedError

    def token_id(self, text: str) -> int:
        """Returns the id of a special token by its text. Raises ValueError, with the nearest ones, if there is none."""
        special = self.special_tokens()
        if text not in special:
            near = nearest(text, special, n=3, cutoff=0.0)
            raise ValueError(f"{text[:80]!r} is no special token of {self._file}; the nearest are {', '.join(near)}")
        return special[text]

    def document_end(self, name: str = "auto") -> int:
        """Returns the id that closes a document; "auto" takes the first of DOCUMENT_ENDS that the tokenizer has. Raises
        ValueError for a turn mark, and where there is no such token.
        """
        if name in TURN_MARKS:
            raise ValueError(
                f"document_end {name} marks a turn of a chat, not the end of a document: a model trained on it "
                f"unlearns its turns; use one of {', '.join(DOCUMENT_ENDS)}"
            )
        if name != "auto":
            return self.token_id(name)
        special = self.special_tokens()
        found = next((end for end in DOCUMENT_ENDS if end in special), None)
        if found is None:
            raise ValueError(
                f"{self._file}: document_end auto found none of {', '.join(DOCUMENT_ENDS)}; "
                f"name the token that ends a document"
            )
        return special[found]


def bytes_of_part(token: str) -> bytes | None:
    """The bytes of a token that is a part of a character, as tokenizers spell it: <0xE2>, or a letter for each byte.
    These letters are the printable bytes themselves and, for the others in order, those from U+0100 on (GPT-2). None
    for another spelling.
    """
    if found := re.fullmatch(r"<0x([0-9A-F]{2})>", token):
        return bytes.fromhex(found[1])
    try:
        return bytes(BYTE_OF[letter] for letter in token)
    except KeyError:
        return None


class panics_named:
    """A panic of the library in the block, which is no Exception, becomes a ValueError that names the file."""

    def __init__(self, file: Path):
        self.file = file

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if error is not None and type(error).__name__ == PANIC:
            raise ValueError(f"{self.file}: its tokenizer fails ({error})") from None


def raise_if_ours(error: BaseException) -> None:
    """Raises an error again that does not come from the library, Ctrl-C say."""
    if not isinstance(error, Exception) and type(error).__name__ != PANIC:
        raise error


class JsonTokenizer(Tokenizer):
    """A tokenizer.json, read by the tokenizers library."""

    def __init__(self, file: Path):
        super().__init__(file)
        self._tokenizer = self._open()
        try_out(file, self._tokenizer)
        self._tokenizer.encode_special_tokens = True
        self.bos_id = self._find_bos(file.parent / "tokenizer_config.json")
        unknown = getattr(self._tokenizer.model, "unk_token", None)
        self.unknown_id = None if unknown is None else self._tokenizer.token_to_id(unknown)
        self._tokenizer.post_processor = None  # it would leave the spaces before and after a word out of its span

    def _open(self) -> tokenizers.Tokenizer:
        try:
            tokenizer = tokenizers.Tokenizer.from_file(str(self._file))
        except BaseException as error:  # the library raises bare Exception, and panics that are none
            raise_if_ours(error)
            raise ValueError(f"{self._file}: not a tokenizer.json ({error})") from None
        # All three may be saved in the file, and each would silently change what a document becomes.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        if getattr(tokenizer.model, "dropout", None):
            tokenizer.model.dropout = None
        return tokenizer

    @functools.cached_property
    def _spelled(self) -> tokenizers.Tokenizer:
        """A second tokenizer, for texts that spell special tokens: threads share the first, whose switch stays off."""
        tokenizer = self._open()
        tokenizer.encode_special_tokens = False
        tokenizer.post_processor = None
        return tokenizer

    @functools.cached_property  # 0.1 s for Llama 3, which prepare's workers need not spend
    def vocab_size(self) -> int:
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    def _find_bos(self, config_file: Path) -> int | None:
        """The bos_token of tokenizer_config.json; without that file, what the tokenizer itself puts before a text.

        None if the config says so (`add_bos_token` false), and for a turn mark: SmolLM2 names `<|im_start|>`, although
        no document of its pretraining began with it.
        """
        if not os.path.lexists(config_file):
            return next(iter(self._tokenizer.encode("").ids), None)
        config = read_config(config_file)
        bos = token_text(config_file, config.get("bos_token"), "bos_token")
        if bos is None or bos in TURN_MARKS or config.get("add_bos_token") is False:
            return None
        return self.token_id(bos)

    def encode(self, text: str) -> list[int]:
        with panics_named(self._file):
            return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        with panics_named(self._file):
            return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def encode_with_spans(self, text: str, spelled: bool) -> Encoding:
        with panics_named(self._file):
            encoding = (self._spelled if spelled else self._tokenizer).encode(text, add_special_tokens=False)
        return Encoding(encoding.ids, encoding.offsets)

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        with panics_named(self._file):
            return self._tokenizer.decode(ids, skip_special_tokens=skip_special)

    def _token(self, id: int) -> str:
        return self._tokenizer.id_to_token(id) or ""

    def normalized(self, text: str) -> str:
        normalizer = self._tokenizer.normalizer
        return normalizer.normalize_str(text) if normalizer else text

    def special_tokens(self, added: bool = True) -> dict[str, int]:
        tokens = self._tokenizer.get_added_tokens_decoder().items()
        return {token.content: id for id, token in tokens if added or token.special}


class SentencePieceTokenizer(Tokenizer):
    """A sentencepiece tokenizer.model, read by the sentencepiece library."""

    def __init__(self, file: Path):
        super().__init__(file)
        data = read_bytes(file)
        if re.match(rb"[A-Za-z0-9+/]+=* \d+\n", data):
            raise ValueError(
                f"{file}: a tiktoken vocabulary (Llama 3's original release), which holds no special tokens; "
                f"give the Hugging Face folder of the same model, with tokenizer.json"
            )
        if (file.parent / "added_tokens.json").is_file():
            raise ValueError(
                f"{file.parent}: added_tokens.json adds ids that tokenizer.model does not know; "
                f"save the tokenizer as tokenizer.json"
            )
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_proto=data)
        except RuntimeError as error:
            raise ValueError(f"{file}: not a sentencepiece model ({error})") from None
        self.vocab_size = self._model.vocab_size()
        self.bos_id = self._model.bos_id() if self._model.bos_id() >= 0 else None
        self.unknown_id = self._model.unk_id()
        self._control = {i for i in range(self.vocab_size) if self._model.is_control(i)}

    def encode(self, text: str) -> list[int]:
        return self._model.encode(text)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return self._model.encode(list(texts), num_threads=1)

    def encode_with_spans(self, text: str, spelled: bool) -> Encoding:
        raise ValueError(
            f"{self._file}: a sentencepiece model, which knows no special token by its text, as a chat template needs; "
            f"save the tokenizer as tokenizer.json (transformers does with save_pretrained)"
        )

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        if skip_special:
            return self._model.decode([i for i in ids if i not in self._control])
        text, run = "", []
        for i in ids:  # the library decodes a control token to nothing
            if i in self._control:
                text, run = text + self._model.decode(run) + self._model.id_to_piece(i), []
            else:
                run.append(i)
        return text + self._model.decode(run)

    def _token(self, id: int) -> str:
        return self._model.id_to_piece(id)

    def normalized(self, text: str) -> str:
        return self._model.normalize(text)

    def special_tokens(self, added: bool = True) -> dict[str, int]:
        return {self._model.id_to_piece(i): i for i in sorted(self._control)}
