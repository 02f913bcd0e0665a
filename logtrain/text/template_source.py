"""Where a folder keeps its tokenizer, its chat template, and the special tokens that a template may call by name."""

import os
from pathlib import Path
from typing import Any, NamedTuple

from logtrain.core.untrusted import read_bytes, read_json, shown

FILE, CONFIG = "chat_template.jinja", "tokenizer_config.json"  # beside a tokenizer
OTHERS = "additional_chat_templates"  # a folder, of templates by name
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
MAX_TEMPLATE_BYTES = 1 << 20  # the longest that is known has some 30 KB
MAX_CONFIG_BYTES = 1 << 24  # the largest that is honest, of many added tokens, has some 3 MB
LLAMA_CLASSES = ("LlamaTokenizer", "LlamaTokenizerFast", "CodeLlamaTokenizer", "CodeLlamaTokenizerFast")
OF_LLAMA = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}  # that those classes have unless told
NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class TemplateSource(NamedTuple):
    """A chat template that has been found."""

    where: str
    """The file that holds the template."""
    text: str
    """The template itself, in jinja."""


def find_template(*folders: Path, file: str | Path = "") -> TemplateSource:
    """Finds the template in `file`; without one, that of a tokenizer's folder, of several the last that has one. Raises
    ValueError if there is none, or several of which none is the default.
    """
    of_folders = (template_of(folder) for folder in reversed(folders))
    found = read_template(Path(file)) if file else next(filter(None, of_folders), None)
    if found is None:
        raise ValueError(
            f"{folders[0]}: the tokenizer has no chat template (no {FILE}, none in {CONFIG}); "
            f"give the model's own, or one to train it with, with --template FILE"
        )
    return found


def template_of(folder: Path) -> TemplateSource | None:
    """Returns the template of a folder, None if it has none: chat_template.jinja goes before the entry of
    tokenizer_config.json. Raises ValueError for several of which none is the default, and where transformers takes
    another: with templates in OTHERS it does not read that entry, and default.jinja there goes before all.
    """
    found, other = _template_of(folder), folder / OTHERS / "default.jinja"
    if os.path.lexists(other):
        if found is None or read_template(other).text != found.text:
            beside = f"that in {Path(found.where).name}" if found else "a template"
            raise ValueError(
                f"{other}: transformers takes it for the default, and other programs {beside}; move the one that is "
                f"meant to {folder / FILE}, or give it with --template FILE"
            )
    elif found and Path(found.where).name == CONFIG and any((folder / OTHERS).glob("*.jinja")):
        raise ValueError(
            f"{folder / OTHERS}: beside it transformers does not read the chat template in {CONFIG}; write that into "
            f"{folder / FILE}, or give one with --template FILE"
        )
    return found


def _template_of(folder: Path) -> TemplateSource | None:
    if os.path.lexists(folder / FILE):
        return read_template(folder / FILE)
    config_file = folder / CONFIG
    found = read_config(config_file).get("chat_template")
    if isinstance(found, dict):
        found = [{"name": name, "template": text} for name, text in found.items()]
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
    return TemplateSource(str(config_file), found) if isinstance(found, str) and found else None


def read_template(file: Path) -> TemplateSource:
    """Reads the template in a file. Raises ValueError for a file that is missing, too large or not UTF-8."""
    try:
        return TemplateSource(str(file), read_bytes(file, MAX_TEMPLATE_BYTES).decode())
    except UnicodeDecodeError:
        raise ValueError(f"{file}: not UTF-8") from None


def template_text(folder: Path) -> str:
    """Returns the template of a folder, "" where it has none that is of use: to look into, not to render."""
    try:
        found = template_of(folder)
    except ValueError:  # whoever renders it will say so
        return ""
    return found.text if found else ""


def named_tokens(*folders: Path, defaults: bool = True) -> dict[str, str]:
    """Returns the special tokens by what the files of tokenizers call them: {"bos_token": "<|begin_of_text|>", ...}; a
    later folder goes before an earlier one. `defaults`: also those that Llama's class of tokenizers has. As in
    transformers, the older special_tokens_map.json goes before tokenizer_config.json, and counts only where that lists
    no added tokens; a model may have names of its own (`eot_token`). Raises ValueError for a file that is not JSON, and
    for a name whose value is no token.
    """
    found: dict[str, str | None] = {}
    for folder in folders:
        config = read_config(folder / CONFIG)
        if defaults and config.get("tokenizer_class") in LLAMA_CLASSES:
            found = OF_LLAMA | found
        map_file = folder / "special_tokens_map.json"
        older = read_config(map_file)
        for file, facts in ((folder / CONFIG, config), (map_file, {} if "added_tokens_decoder" in config else older)):
            found |= {name: token_text(file, facts[name], name) for name in NAMED_TOKENS if name in facts}
            found |= own_tokens(facts)
    return {name: text for name in (*NAMED_TOKENS, *found) if (text := found.get(name))}  # the model's own names last


def own_tokens(facts: dict[str, Any]) -> dict[str, str]:
    """Returns the special tokens that a file of a tokenizer calls by names of the model's own."""
    extra = facts.get("extra_special_tokens")
    named = {name: value for name, value in facts.items() if name.endswith("_token") and name not in NAMED_TOKENS}
    named |= extra if isinstance(extra, dict) else {}
    texts = {
        name: value.get("content") if isinstance(value, dict) and "__type" in value else value
        for name, value in named.items()
    }
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def tokenizer_file(folder: Path) -> Path | None:
    """Returns the file of a folder that decides the ids, None if it has none."""
    return next((file for name in TOKENIZER_FILES[:2] if os.path.lexists(file := folder / name)), None)


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
