"""Which tokens of a tokenizer are marks, by all that its folder says of them: tokenizer.json, tokenizer_config.json,
special_tokens_map.json and the chat templates.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken

from logtrain.text.template_source import named_tokens, read_config, token_text

# These mark the turns of a chat. A model that learns to begin or end every document with one unlearns the chat format.
TURN_MARKS = ("<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|im_start|>", "<|start_header_id|>", "<|end_header_id|>")
SHAPE = re.compile(r"<[|\uff5c].*[|\uff5c]>", re.DOTALL)  # of tokens that are marks wherever they are found
WORD = re.compile(r"[\w\s]*")  # no mark, though a template may have such a word: add_tokens(["user"])
CONFIG_FILES = ("special_tokens_map.json", "tokenizer_config.json")
MAX_DIGITS = 10  # of an id
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def find_marks(added: Mapping[int, AddedToken], folder: Path, templates: str) -> dict[str, int]:
    """Returns the ids of the marks among a tokenizer's added tokens, by their texts. `templates`: all text of chat
    templates. Raises ValueError for a file that names as special what is no token.
    """
    named = set(named_tokens(folder).values()) | {
        token.content for tokens in listed_tokens(folder) for token in tokens if token.special
    }
    return {
        token.content: id
        for id, token in added.items()
        if token.special
        or token.content in named
        or token.content in TURN_MARKS
        or SHAPE.fullmatch(token.content)
        or (token.content in templates and not WORD.fullmatch(token.content))
    }


def add_listed(tokenizer: tokenizers.Tokenizer, folder: Path) -> list[str]:
    """Adds the tokens to an opened tokenizer that only the files beside it list, in the order of their ids, or name,
    and gives others the flags that these list, as transformers does; returns what it has changed.
    """
    known = {token.content: token for token in tokenizer.get_added_tokens_decoder().values()}
    named = named_tokens(folder, defaults=False)
    if tokenizer.token_to_id(named.get("bos_token", "")) is None:  # a mistake, of which the user hears
        named.pop("bos_token", None)
    with_ids, older, others = listed_tokens(folder)
    of_names = [AddedToken(text, special=True, normalized=False) for text in named.values()]
    tokens = {token.content: token for token in with_ids}
    for token in (*older, *of_names, *others):
        if token.content not in known:
            tokens.setdefault(token.content, token)
    added: list[AddedToken] = []
    for text, token in tokens.items():
        if text in known:
            flags = {flag: getattr(token, flag) for flag in FLAGS if flag != "special"}  # which decides no ids
            if all(getattr(known[text], flag) == value for flag, value in flags.items()):
                continue
            token = AddedToken(text, special=known[text].special, **flags)
        added.append(token)
    tokenizer.add_tokens(added)
    return [token.content if token.content not in known else repr(token) for token in added]


def listed_tokens(folder: Path) -> tuple[list[AddedToken], list[AddedToken], list[AddedToken]]:
    """Returns the added tokens that the files beside a tokenizer list: those with ids, by their ids, those of the file
    that older versions of transformers left, which counts where there are none of these, and the others.
    """
    with_ids: list[AddedToken | None] = []
    others: list[AddedToken | None] = []
    for facts in (read_config(folder / name) for name in reversed(CONFIG_FILES)):
        by_id = facts.get("added_tokens_decoder")
        if isinstance(by_id, dict):
            ids = (id for id in by_id if id.isdecimal() and len(id) < MAX_DIGITS)
            with_ids += [added_token(by_id[id]) for id in sorted(ids, key=int)]
        for name in ("additional_special_tokens", "extra_special_tokens"):
            values = facts.get(name)
            values = list(values.values()) if isinstance(values, dict) else values
            others += [added_token(one, special=True) for one in values] if isinstance(values, list) else []
    id_of = {} if with_ids else read_config(folder / "added_tokens.json")
    special = set(named_tokens(folder).values()) | {token.content for token in others if token}
    by_text = sorted((id, text) for text, id in id_of.items() if type(id) is int)
    older = [added_token(text, text in special) for _, text in by_text]

    def there(tokens: list[AddedToken | None]) -> list[AddedToken]:
        return [token for token in tokens if token]

    return there(with_ids), there(older), there(others)


def added_token(facts: Any, special: bool = False) -> AddedToken | None:
    """Returns the token that a file describes, by an object or by its text alone; None for what is none."""
    facts = {"content": facts} if isinstance(facts, str) else facts
    if not isinstance(facts, dict) or not isinstance(facts.get("content"), str) or not facts["content"]:
        return None
    flags = {flag: facts[flag] for flag in FLAGS if isinstance(facts.get(flag), bool)}
    return AddedToken(facts["content"], **({"normalized": False, "special": True} if special else {}) | flags)


def begin_of_text(tokenizer: tokenizers.Tokenizer, folder: Path) -> int | None:
    """Returns the id of the token that opens a document: what the tokenizer itself writes before a text. Its files may
    say that there is none (`add_bos_token` false, `bos_token` null or empty) or, where it writes none, that there is
    one all the same (`add_bos_token` true). A turn mark opens no document.
    """
    facts: dict[str, Any] = {}
    for file in (folder / name for name in CONFIG_FILES):
        found = read_config(file)
        if "bos_token" in found:
            facts["bos_token"] = token_text(file, found["bos_token"], "bos_token")
        facts |= {"add_bos_token": found["add_bos_token"]} if "add_bos_token" in found else {}
    if facts.get("add_bos_token") is False or ("bos_token" in facts and not facts["bos_token"]):
        return None
    encoding = tokenizer.encode("a", add_special_tokens=True)
    if encoding.special_tokens_mask[:1] == [1]:
        return None if encoding.tokens[0] in TURN_MARKS else encoding.ids[0]
    if facts.get("add_bos_token") is not True:
        return None
    named = named_tokens(folder).get("bos_token", "")
    return None if named in TURN_MARKS else tokenizer.token_to_id(named)
