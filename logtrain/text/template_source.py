"""Where a model's folder keeps its chat template, and the special tokens that a template may call by name."""

import json
from pathlib import Path
from typing import Any, NamedTuple

FILE = "chat_template.jinja"  # beside a tokenizer
NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class TemplateSource(NamedTuple):
    """A chat template that has been found."""

    where: str
    """the file that holds the template"""
    text: str
    """the template itself, in jinja"""


def find_template(folder: Path, file: str | Path = "") -> TemplateSource:
    """The template in `file`; without one, that of a tokenizer's folder: chat_template.jinja goes before the entry of
    tokenizer_config.json. Raises ValueError if there is none, or several of which none is the default.
    """
    if file or (folder / FILE).is_file():
        path = Path(file or folder / FILE)
        try:
            return TemplateSource(str(path), path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"template {path}: {getattr(error, 'strerror', None) or 'not UTF-8'}") from None
    config_file = folder / "tokenizer_config.json"
    found = _read_json(config_file).get("chat_template")
    if isinstance(found, list):  # several by name
        by_name = {one["name"]: one["template"] for one in found}
        if "default" not in by_name:
            raise ValueError(
                f"{config_file}: its chat templates are {', '.join(by_name)}, and none is the default; "
                f"write the one to use into a file and give it with --template FILE"
            )
        found = by_name["default"]
    if not isinstance(found, str) or not found:
        raise ValueError(
            f"{folder}: the tokenizer has no chat template (no {FILE}, none in tokenizer_config.json); "
            f"give the model's own, or one to train it with, with --template FILE"
        )
    return TemplateSource(str(config_file), found)


def named_tokens(folder: Path) -> dict[str, str]:
    """Special tokens by what the tokenizer's files call them: {"bos_token": "<|begin_of_text|>", ...}. Raises
    ValueError for a file that is not JSON.
    """
    config = _read_json(folder / "special_tokens_map.json") | _read_json(folder / "tokenizer_config.json")
    found = {name: config[name] for name in NAMED_TOKENS if config.get(name)}
    return {name: value["content"] if isinstance(value, dict) else value for name, value in found.items()}


def _read_json(file: Path) -> dict[str, Any]:
    """What the file holds, {} if there is none."""
    try:
        return json.loads(file.read_bytes()) if file.is_file() else {}
    except ValueError as error:
        raise ValueError(f"{file}: not JSON ({error})") from None
