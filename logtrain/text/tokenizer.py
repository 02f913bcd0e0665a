"""A tokenizer: text -> ids -> text, and the ids of the special tokens that frame a document.

Two kinds of files are read: `tokenizer.json` (the tokenizers library: Llama 3, SmolLM2, ...) and a sentencepiece
`tokenizer.model` (Llama 2). Text is only ever text: a `<|eot_id|>` that stands in a log line becomes the pieces of its
characters, never id 128009, because marks are put in by id, not by spelling (plain_text.py; marks.py says what is a
mark). There is one exception: a chat template spells its marks, so what it wrote is encoded with `spelled=True`
(chat_template.py).
"""

import functools
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import sentencepiece
import tokenizers

from logtrain.core.untrusted import nearest, read_bytes
from logtrain.text.llama_class import as_its_class
from logtrain.text.marks import TURN_MARKS, add_listed, begin_of_text, find_marks
from logtrain.text.panics import panics_named, raise_if_ours
from logtrain.text.pieces import begin_of_pieces, check_added, defined_marks, marks_of, without_marks
from logtrain.text.plain_text import Encoding, PlainText
from logtrain.text.template_source import TOKENIZER_FILES, named_tokens, template_text, tokenizer_file
from logtrain.text.token_bytes import REPLACEMENT, bytes_of_part
from logtrain.text.tokenizer_trial import try_out

DOCUMENT_ENDS = ("<|end_of_text|>", "<|endoftext|>", "</s>")


class Tokenizer:
    """A tokenizer file, opened by `Tokenizer.load`. Encoding adds no special token and cuts nothing, whatever the file
    was saved with.

    vocab_size: highest id + 1, added tokens included. bos_id: the id that opens a document, or None. unknown_id: the id
    that stands for all text without a token, or None. sha256: digest of what decides the ids. files: what an export
    copies beside the weights. folder: where these files are. marks: ids, by their texts, of the tokens that no text
    becomes.
    """

    vocab_size: int
    bos_id: int | None
    unknown_id: int | None
    sha256: str
    marks: dict[str, int]
    files: tuple[Path, ...]

    @staticmethod
    def load(path: str | Path) -> "Tokenizer":
        """Opens the tokenizer of a folder with tokenizer.json or tokenizer.model (the first is preferred), or of one of
        these files. Raises ValueError if there is none, or it is damaged.
        """
        path = Path(path)
        if not path.exists():
            raise ValueError(f"{path}: no such tokenizer folder")
        file = tokenizer_file(path) if path.is_dir() else path
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
        """Returns the ids and spans of a text; `spelled`: a mark's text becomes its id. Raises ValueError for a
        sentencepiece model, which has no spans.
        """
        raise NotImplementedError

    def encode_between(self, text: str, before: int | None, after: int | None) -> Encoding:
        """Returns the ids and spans of a text, in which no mark is recognised, as it is between two marks; None: there
        is none. Raises ValueError for a sentencepiece model.
        """
        raise NotImplementedError

    def knowing(self, template: str) -> "Tokenizer":
        """Returns this tokenizer with the marks of another chat template than its folder's."""
        return self

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

    def special_tokens(self) -> dict[str, int]:
        """Returns the ids of the special tokens by their text, and those of added words, which `encode` knows."""
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


class JsonTokenizer(Tokenizer):
    """A tokenizer.json, read by the tokenizers library."""

    def __init__(self, file: Path, template: str = ""):
        """`template`: a chat template that knows marks beside those of the folder's own."""
        super().__init__(file)
        tokenizer, changes = self._open()
        if changes:
            self.sha256 = hashlib.sha256("\n".join((self.sha256, *changes)).encode()).hexdigest()
        try_out(file, tokenizer)
        self._added = {token.content: id for id, token in tokenizer.get_added_tokens_decoder().items()}
        named = named_tokens(self.folder, defaults=False).get("bos_token", "")
        if named and tokenizer.token_to_id(named) is None:
            self.token_id(named)  # says which are near
        with panics_named(file):
            self.bos_id = begin_of_text(tokenizer, self.folder)
        unknown = getattr(tokenizer.model, "unk_token", None)
        self.unknown_id = None if unknown is None else tokenizer.token_to_id(unknown)
        tokenizer.post_processor = None  # it would leave the spaces before and after a word out of its span
        self._templates = template_text(self.folder) + template
        self.marks = find_marks(tokenizer.get_added_tokens_decoder(), self.folder, self._templates)
        with panics_named(file):
            self._plain = PlainText(tokenizer, self.marks)

    def _open(self) -> tuple[tokenizers.Tokenizer, list[str]]:
        """Opens the file; also returns what others beside it change: how spaces are written, which tokens it lacks."""
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
        of_class = as_its_class(tokenizer, self.folder)
        return tokenizer, [*([of_class] if of_class else []), *add_listed(tokenizer, self.folder)]

    @functools.cached_property
    def _spelled(self) -> tokenizers.Tokenizer:
        """A second tokenizer, for texts that spell their marks."""
        tokenizer = self._open()[0]
        tokenizer.post_processor = None
        return tokenizer

    @functools.cached_property  # 0.1 s for Llama 3, which prepare's workers need not spend
    def vocab_size(self) -> int:
        return self._plain.largest_id() + 1

    def knowing(self, template: str) -> Tokenizer:
        more = find_marks(self._spelled.get_added_tokens_decoder(), self.folder, self._templates + template)
        return self if more == self.marks else JsonTokenizer(self._file, template)

    def encode(self, text: str) -> list[int]:
        with panics_named(self._file):
            return self._plain.encode(text).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        with panics_named(self._file):
            return self._plain.encode_batch(texts)

    def encode_with_spans(self, text: str, spelled: bool) -> Encoding:
        with panics_named(self._file):
            if not spelled:
                return self._plain.encode(text)
            encoding = self._spelled.encode(text, add_special_tokens=False)
        return Encoding(encoding.ids, encoding.offsets)

    def encode_between(self, text: str, before: int | None, after: int | None) -> Encoding:
        with panics_named(self._file):
            return self._plain.encode_between(text, before, after)

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        with panics_named(self._file):
            tokenizer = self._spelled if self._plain.is_changed else self._plain.tokenizer
            return tokenizer.decode(ids, skip_special_tokens=skip_special)

    def _token(self, id: int) -> str:
        return self._spelled.id_to_token(id) or ""

    def normalized(self, text: str) -> str:
        normalizer = self._plain.tokenizer.normalizer
        return normalizer.normalize_str(text) if normalizer else text

    def special_tokens(self) -> dict[str, int]:
        return dict(self._added)


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
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_proto=data)
        except RuntimeError as error:
            raise ValueError(f"{file}: not a sentencepiece model ({error})") from None
        check_added(self._model, file.parent)
        self._encoder = without_marks(data, self._model)
        if changes := defined_marks(self._model):  # by a rule that may become another one, and decides ids
            self.sha256 = hashlib.sha256("\n".join((self.sha256, *changes)).encode()).hexdigest()
        self.vocab_size, self.unknown_id = self._model.vocab_size(), self._model.unk_id()
        self.bos_id = begin_of_pieces(self._model, file.parent)
        self.marks = marks_of(self._model)
        self._mark_ids = set(self.marks.values())

    def encode(self, text: str) -> list[int]:
        return self._encoder.encode(text)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return self._encoder.encode(list(texts), num_threads=1)

    def encode_with_spans(self, text: str, spelled: bool) -> Encoding:
        raise ValueError(
            f"{self._file}: a sentencepiece model, which knows no special token by its text, as a chat template needs; "
            f"save the tokenizer as tokenizer.json (transformers does with save_pretrained)"
        )

    def encode_between(self, text: str, before: int | None, after: int | None) -> Encoding:
        return self.encode_with_spans(text, spelled=False)

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        if skip_special:
            return self._model.decode([i for i in ids if i not in self._mark_ids])
        text, run = "", []
        for i in ids:  # the library decodes a control token to nothing
            if i in self._mark_ids:
                text, run = text + self._model.decode(run) + self._model.id_to_piece(i), []
            else:
                run.append(i)
        return text + self._model.decode(run)

    def _token(self, id: int) -> str:
        return self._model.id_to_piece(id)

    def normalized(self, text: str) -> str:
        return self._model.normalize(text)

    def special_tokens(self) -> dict[str, int]:
        return dict(self.marks)
