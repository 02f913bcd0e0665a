"""Where a model's folder keeps its chat template, and the special tokens that a template may call by name."""

import os
from pathlib import Path
from typing import Any, NamedTuple

from logtrain.core.untrusted import read_bytes, read_json, shown

FILE = "chat_template.jinja"  # beside a tokenizer
MAX_TEMPLATE_BYTES = 1 << 20  # the longest that is known has some 30 KB
MAX_CONFIG_BYTES = 1 << 24  # the largest that is honest, of many added tokens, has some 3 MB
NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class TemplateSource(NamedTuple):
    """A chat template that has been found."""

    where: str
    """The file that holds the template."""
    text: str
    """The template itself, in jinja."""


def find_template(folder: Path, file: str | Path = "") -> TemplateSource:
    """Finds the template in `file`; without one, that of a tokenizer's folder: chat_template.jinja goes before the
    entry of tokenizer_config.json. Raises ValueError if there is none, or several of which none is the default.
    """
    if file or os.path.lexists(folder / FILE):
        path = Path(file or folder / FILE)
        try:
            return TemplateSource(str(path), read_bytes(path, MAX_TEMPLATE_BYTES).decode())
        except UnicodeDecodeError:
            raise ValueError(f"{path}: not UTF-8") from None
    config_file = folder / "tokenizer_config.json"
    found = read_config(config_file).get("chat_template")
    if isinstance(found, list):  # several by name
        by_name = {
            one["name"]: one.get("template")
            for one in found
            if isinstance(one, dict) and isinstance(one.get("name"), str)
        }
        if "default" not in by_name:
            raise ValueError(
                f"{config_file}: its chat templates are {', '.join(by_name)[:200]}, and none is the default; "
                f"write the one to use into a file and give it with --template FILE"
            )
        found = by_name["default"]
    if isinstance(found, str) and len(found) > MAX_TEMPLATE_BYTES:
        raise ValueError(f"{config_file}: a chat template of {len(found):,} characters; {MAX_TEMPLATE_BYTES:,} at most")
    if not isinstance(found, str) or not found:
        raise ValueError(
            f"{folder}: the tokenizer has no chat template (no {FILE}, none in tokenizer_config.json); "
            f"give the model's own, or one to train it with, with --template FILE"
        )
    return TemplateSource(str(config_file), found)


def named_tokens(folder: Path) -> dict[str, str]:
    """Returns the special tokens by what the tokenizer's files call them: {"bos_token": "<|begin_of_text|>", ...}.
    Raises ValueError for a file that is not JSON, and for a name whose value is no token.
    """
    files = (folder / "special_tokens_map.json", folder / "tokenizer_config.json")
    found = {name: (file, facts[name]) for file in files for facts in (read_config(file),) for name in facts}
    return {name: text for name in NAMED_TOKENS if name in found and (text := token_text(*found[name], name))}


def token_text(file: Path, value: object, name: str) -> str | None:
    """Returns the text of a special token as a file has it: a string, or an object with it as "content"; None for null.
    Raises ValueError for anything else.
    """
    text = value.get("content") if isinstance(value, dict) else value
    if not isinstance(text, str | None) or (text is None and isinstance(value, dict)):
        raise ValueError(f"{file}: {name} = {shown(value)}; expected the text of a token")
    return text


def read_config(file: Path) -> dict[str, Any]:
    """Reads a JSON file beside a tokenizer, {} if there is none. Raises ValueError for what is no JSON object."""
    return read_json(file, max_bytes=MAX_CONFIG_BYTES) if os.path.lexists(file) else {}
