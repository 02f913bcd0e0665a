"""What is about to be published is tried first: a model's folder, or an adapter's, must load in chat, in transformers
and in vLLM, and all of its files must say where an answer ends.
"""

import contextlib
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from logtrain.core.untrusted import shown
from logtrain.model import hf, peft
from logtrain.model.hf_layout import SIZES, is_number
from logtrain.model.llama import LlamaConfig
from logtrain.text import template_source
from logtrain.text.chat_template import ChatTemplate
from logtrain.text.tokenizer import Tokenizer

GENERATION = "generation_config.json"
DRAWS = {  # how answers are drawn: the least and the most of each, the least itself only where it is None
    "temperature": (0.0, 1e6),
    "top_k": (0, 2**31),
    "top_p": (1e-6, 1.0),
    "repetition_penalty": (1e-3, 1e3),
    "min_p": (0.0, 1.0),
}
WHOLE = ("top_k", "max_length", "max_new_tokens", "num_beams", "pad_token_id", "bos_token_id")
FLAGS = ("do_sample", "use_cache")
ID_KEYS = ("pad_token_id", "bos_token_id")


def read_generation(file: Path) -> dict[str, Any]:
    """Reads a generation_config.json, {} if it is not there. Raises ValueError for values that chat or transformers
    would fail at.
    """
    facts = hf.read_json(file) if os.path.lexists(file) else {}
    for name, value in facts.items():
        if value is None:
            continue
        if name in (*DRAWS, *WHOLE) and not (is_number(value) and (type(value) is int or name not in WHOLE)):
            raise ValueError(f"{file}: {name} = {shown(value)}; expected a number")
        if name in FLAGS and type(value) is not bool:
            raise ValueError(f"{file}: {name} = {shown(value)}; expected true or false")
        least, most = DRAWS.get(name, (-1 if name in ID_KEYS else 1, SIZES["vocab_size"] if name in ID_KEYS else 2**31))
        if name in (*DRAWS, *WHOLE) and not least <= value <= most:
            raise ValueError(f"{file}: {name} = {shown(value)} must be from {least:g} to {most:,}")
    hf.end_ids(file)
    return facts


def check_source(folder: Path, shape: LlamaConfig) -> None:
    """Raises ValueError, before any work is done, for what stands beside the weights of a model and would be published
    with them, if it is of no use.
    """
    read_generation(folder / GENERATION)
    check_ends(folder / GENERATION, folder / "config.json", shape)
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        template_source.read_config(folder / name)
    template_source.named_tokens(folder)


def read_tokenizer(folder: Path, shape: LlamaConfig) -> Tokenizer:
    """Opens the tokenizer of a model's folder. Raises ValueError as `Tokenizer.load` does, and for one of another
    model.
    """
    tokenizer = Tokenizer.load(folder)
    check_vocabulary(tokenizer, shape)
    return tokenizer


def check_vocabulary(tokenizer: Tokenizer, shape: LlamaConfig, template: str = "", ends: Sequence[int] = ()) -> None:
    """Raises ValueError for a tokenizer with ids that the model does not have. A mark beyond them, as a padding token
    that was added later, does no harm where nobody writes it: no text becomes it. `template`: a chat template beside
    that of the tokenizer's folder. `ends`: ids that are written at the ends of documents.
    """
    if tokenizer.vocab_size <= shape.vocab_size:
        return
    ends = [id for id in (tokenizer.bos_id, *ends) if id is not None]
    special = tokenizer.special_tokens()
    beyond = {text: id for text, id in special.items() if id >= shape.vocab_size}
    template += template_source.template_text(tokenizer.folder)
    named = template_source.named_tokens(tokenizer.folder)
    called = {named[name] for name in ("bos_token", "eos_token") if name in named}
    called |= {text for name, text in named.items() if name in template}
    called |= {text for text, id in beyond.items() if id in ends or text not in tokenizer.marks or text in template}
    written = [text for text in beyond if text in called]
    if len(beyond) == tokenizer.vocab_size - shape.vocab_size and not written:
        return
    which = f", as {written[0]} ({beyond[written[0]]:,}), which stands in texts" if written else ""
    raise ValueError(
        f"{tokenizer.folder}: its tokenizer has {tokenizer.vocab_size:,} ids, its model only {shape.vocab_size:,} rows"
        f"{which}; they do not belong together: take the model's own tokenizer, or give the model more rows with "
        f"transformers' resize_token_embeddings"
    )


@contextlib.contextmanager
def called(aside: Path, folder: Path) -> Iterator[None]:
    """Lets a ValueError of the block speak of `folder`, which is not written, and not of `aside`, where it would be."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{str(error).replace(str(aside), str(folder))}; not written") from None


def check_model(folder: Path, *, trained_template: bool) -> list[str]:
    """Tries a model's folder as those who load it will. `trained_template`: whether its chat template is one that the
    model has learned, which must work. Returns what is odd, in sentences. Raises ValueError
    where it would not load.
    """
    shape = hf.read_config(folder)
    hf.Weights(folder, shape)
    check_source(folder, shape)
    return odd_ends(folder, folder, read_tokenizer(folder, shape), trained_template)


def check_adapter(folder: Path, base: Path, shape: LlamaConfig, *, trained_template: bool) -> list[str]:
    """Does what `check_model` does for an adapter's folder, which goes with the model in the folder `base`."""
    peft.read(folder, shape)
    read_generation(folder / GENERATION)
    check_ends(folder / GENERATION, base / "config.json", shape)
    return odd_ends(folder, base, Tokenizer.load(base), trained_template) if trained_template else []


def add_end(folder: Path) -> None:
    """Add the mark with which the chat template of a model's folder ends answers to the ends in its
    generation_config.json: an adapter has learned it. What is wrong with the template is `check_model`'s to say.
    """
    try:
        end_id = ChatTemplate.load(Tokenizer.load(folder)).end_id
    except ValueError:
        return
    file = folder / GENERATION
    ends = hf.end_ids(file, folder / "config.json")
    if end_id is not None and end_id not in ends:
        hf.write_json(file, read_generation(file) | {"eos_token_id": [*ends, end_id]})


def check_ends(generation: Path, config: Path, shape: LlamaConfig) -> None:
    """Raises ValueError for an end of an answer that is no id of the model."""
    for file in (generation, config):
        if beyond := [id for id in hf.end_ids(file) if id >= shape.vocab_size]:
            raise ValueError(f"{file}: eos_token_id = {beyond[0]}, but the model has {shape.vocab_size:,} ids")


def odd_ends(folder: Path, base: Path, tokenizer: Tokenizer, trained_template: bool) -> list[str]:
    """Returns where the files of a folder do not agree on the end of an answer, in sentences; the tokenizer's are in
    `base`. Raises ValueError where it is the template that the model has learned which does not work, or ends
    otherwise.
    """
    own = [file for file in (folder / GENERATION, base / GENERATION) if os.path.lexists(file)]
    ends, odd = hf.end_ids(*own[:1], base / "config.json"), []
    if not ends:
        return [f"{folder}: no file names the token that ends an answer (eos_token_id)"]
    config = hf.end_ids(base / "config.json")
    if not set(config) <= set(ends):
        odd.append(f"{folder}: config.json ends answers with {words(config)}, {GENERATION} with {words(ends)}")
    name = template_source.named_tokens(base).get("eos_token")
    id = tokenizer.special_tokens().get(name or "")
    if name and id not in ends:
        odd.append(f"{folder}: the tokenizer's eos_token is {name} ({id}), but answers end with {words(ends)}")
    try:
        template = ChatTemplate.load(tokenizer, folder / template_source.FILE if trained_template else "")
        template.check_asks()
    except ValueError as error:
        if trained_template:
            raise
        return odd if "has no chat template" in str(error) else [*odd, f"its chat template is of no use: {error}"]
    if (end_id := template.end_id) is None:
        odd.append(f"{folder}: the chat template writes no token that ends an answer")
    elif end_id not in ends:
        wrong = f"{folder}: the chat template ends answers with {end_id}, {GENERATION} with {words(ends)}"
        if trained_template:
            raise ValueError(f"{wrong}; add the first to its eos_token_id")
        odd.append(wrong)
    return odd


def words(ids: Collection[int]) -> str:
    """Returns ids as they stand in a sentence."""
    return " or ".join(map(str, ids)) if ids else "nothing"
