"""A tokenizer's folder means what transformers takes it for: its class, flags of tokens, names and templates."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from logtrain.text.chat_template import ChatTemplate, Turn
from logtrain.text.tokenizer import Tokenizer
from tests.support.templates import KINDS, TOKENIZERS, write_folder

ZEPHYR, LLAMA3 = KINDS["zephyr, tinyllama"], KINDS["llama 3"]
TEXTS = ["why error disk", " why  error", "é disk\n\nuser"]
CHATS = [
    [Turn("user", "why error")],
    [Turn("system", "be error"), Turn("user", "why"), Turn("assistant", "disk error\n"), Turn("user", " user")],
]


def edit(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    facts = json.loads(file.read_text()) if file.exists() else {}
    change(facts)
    file.write_text(json.dumps(facts))


def check(folder: Path, *more: str) -> Tokenizer:
    """Holds ids of texts and prompts against transformers'."""
    from transformers import AutoTokenizer

    theirs, ours = AutoTokenizer.from_pretrained(folder), Tokenizer.load(folder)
    for text in (*TEXTS, *more):
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False), text
    template = ChatTemplate.load(ours)
    for turns in CHATS:
        messages = [turn._asdict() for turn in turns]
        prompt = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert template.prompt(turns) == prompt, theirs.convert_ids_to_tokens(prompt)
        assert ours.decode(prompt, skip_special=False) == theirs.decode(prompt)
    return ours


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize(
    "config",
    [
        *({"tokenizer_class": "LlamaTokenizer", "legacy": legacy} for legacy in (True, False)),
        {"tokenizer_class": "LlamaTokenizerFast"},
        {"tokenizer_class": "LlamaTokenizer", "add_prefix_space": False},
        {"tokenizer_class": "LlamaTokenizer", "add_prefix_space": True},
        {"tokenizer_class": "TokenizersBackend"},
        {"tokenizer_class": "PreTrainedTokenizerFast", "add_prefix_space": True},
        {"tokenizer_class": "CodeLlamaTokenizerFast"},
        {"tokenizer_class": "CodeLlamaTokenizer", "legacy": True},
    ],
    ids=lambda config: "-".join(map(str, config.values())),
)
def test_the_class_says_how_spaces_are_written(tmp_path, kind, config):
    """TinyLlama and Llama 2: the file puts a space behind each mark, their class with legacy = false does not."""
    if kind == "byte level" and config["tokenizer_class"].startswith("Code"):
        return  # transformers makes another tokenizer of it, which no model has
    folder = write_folder(tmp_path / "tokenizer", kind, ZEPHYR, special=True)
    edit(folder / "tokenizer_config.json", lambda facts: facts.update(config))
    check(folder)


def test_a_class_that_changes_the_ids_changes_the_hash(tmp_path):
    """So that shards of the others are not used again."""
    hashes = set()
    for number, config in enumerate(
        [{}, {"tokenizer_class": "LlamaTokenizer"}, {"tokenizer_class": "LlamaTokenizer", "legacy": True}]
    ):
        folder = write_folder(tmp_path / str(number), "metaspace, legacy", ZEPHYR, special=True)
        edit(folder / "tokenizer_config.json", lambda facts, config=config: facts.update(config))
        hashes.add(Tokenizer.load(folder).sha256)
    assert len(hashes) == 3


# -- added tokens ------------------------------------------------------------------------------------


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("flag", ["lstrip", "rstrip", "single_word", "normalized"])
@pytest.mark.parametrize("text", ["<|eot|>", "</s>"])
def test_flags_of_tokens_are_those_of_the_config(tmp_path, flag, special, text):
    folder = write_folder(tmp_path / "tokenizer", "metaspace, legacy", LLAMA3, special=special)
    added = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    listed = {str(token.pop("id")): token | ({flag: True} if token["content"] == text else {}) for token in added}
    edit(folder / "tokenizer_config.json", lambda facts: facts.update(added_tokens_decoder=listed))
    check(folder)


def without(text: str) -> Callable[[dict[str, Any]], None]:
    def change(facts: dict[str, Any]) -> None:
        facts["added_tokens"] = [token for token in facts["added_tokens"] if token["content"] != text]

    return change


@pytest.mark.parametrize("kind", ["byte level", "metaspace, first"])
def test_a_named_token_that_is_only_a_word_is_a_mark(tmp_path, kind):
    """It is in the vocabulary, and no list of added tokens has it: the template's </s> was spelled out."""
    folder = write_folder(tmp_path / "tokenizer", kind, ZEPHYR, special=True)
    edit(folder / "tokenizer.json", without("</s>"))
    ours = check(folder)
    assert ours.marks["</s>"] not in ours.encode("error </s>")


@pytest.mark.parametrize(
    ("config", "template"),
    [
        ({"eos_token": "<|new|>"}, ZEPHYR),
        ({"pad_token": "<|new|>"}, ZEPHYR),
        ({"eot_token": "<|eot|>"}, LLAMA3 + "{{ eot_token }}"),
        ({"eot_token": "<|new|>"}, LLAMA3 + "{{ eot_token }}"),
        ({"extra_special_tokens": {"eot_token": "<|new|>"}}, LLAMA3 + "{{ eot_token }}"),
        ({"extra_special_tokens": ["<|new|>"]}, LLAMA3 + "<|new|>"),
        ({"additional_special_tokens": ["<x>", "<|eot|>"]}, LLAMA3 + "<x>"),
    ],
)
def test_names_of_tokens(tmp_path, config, template):
    folder = write_folder(tmp_path / "tokenizer", "byte level", template, special=True)
    edit(folder / "tokenizer_config.json", lambda facts: facts.update(config))
    check(folder)


@pytest.mark.parametrize("lists", [True, False])
@pytest.mark.parametrize("named", [True, False])
def test_the_older_map_of_special_tokens(tmp_path, lists, named):
    """It goes before tokenizer_config.json, but where that lists its added tokens."""
    template = "{{ bos_token }}{% for m in messages %}{{ m.content ~ eos_token }}{% endfor %}"
    folder = write_folder(tmp_path / "tokenizer", "byte level", template, special=True)
    (folder / "special_tokens_map.json").write_text('{"eos_token": "<|eot|>", "bos_token": "<s>"}')
    token = {"content": "</s>", "special": True, "normalized": False}

    def change(facts: dict[str, Any]) -> None:
        facts.update({"added_tokens_decoder": {"2": token}} if lists else {})
        if not named:
            del facts["eos_token"], facts["bos_token"]

    edit(folder / "tokenizer_config.json", change)
    check(folder)


def test_the_older_list_of_added_tokens(tmp_path):
    folder = write_folder(tmp_path / "tokenizer", "byte level", LLAMA3 + "<|new|>", special=True)
    (folder / "added_tokens.json").write_text('{"sshd": 500, "<|new|>": 499}')
    ours = check(folder, "sshd error")
    assert len(ours.encode("sshd")) == 1
    assert "<|new|>" in ours.marks


# -- templates ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{% set a = 'w' %}{% generation %}{% set a = m.content %}{{ a }}{% endgeneration %}"
        "{{ a }}{{ loop.index }}{% endfor %}",
        "{% set ns = namespace(x='') %}{% for m in messages %}{% generation %}{% set ns.x = ns.x + m.content %}"
        "{% endgeneration %}{% if loop.index0 == 1 %}{% continue %}{% endif %}{{ ns.x }}{% endfor %}",
        "{% if tools is none %}a{% endif %}{% if documents is defined %}b{% endif %}{{ messages[0].content }}",
        "{{ messages | tojson }}{{ messages[0] | tojson(indent=2) }}{{ messages[0] | tojson(ensure_ascii=True) }}",
        "{{ messages | map(attribute='content') | join(', ') }}{{ messages[-1].get('tools') }}{{ messages[0].name }}",
    ],
)
def test_templates(tmp_path, template):
    check(write_folder(tmp_path / "tokenizer", "byte level", template, special=True))


@pytest.mark.parametrize("form", [dict, lambda one: [{"name": name, "template": text} for name, text in one.items()]])
def test_templates_by_name(tmp_path, form):
    folder = write_folder(tmp_path / "tokenizer", "byte level", "", special=True)
    named = form({"tool_use": "x", "default": LLAMA3})
    edit(folder / "tokenizer_config.json", lambda facts: facts.update(chat_template=named))
    check(folder)


def test_the_order_of_tokens_that_are_new(tmp_path):
    """Which decides their ids: those of the older file, then the names that all have, the model's own, and the rest."""
    folder = write_folder(tmp_path / "tokenizer", "byte level", LLAMA3 + "{{ eot_token }}<|c|><|d|>", special=True)
    (folder / "added_tokens.json").write_text('{"<|d|>": 907, "</s>": 2}')
    config = {"eot_token": "<|new|>", "pad_token": "<|pad|>", "extra_special_tokens": ["<|c|>", "<|eot|>"]}
    edit(folder / "tokenizer_config.json", lambda facts: facts.update(config))
    check(folder)


def test_flags_in_tokenizer_json_stay_where_a_token_is_only_named(tmp_path):
    folder = write_folder(tmp_path / "tokenizer", "byte level", LLAMA3, special=True)

    def change(facts: dict[str, Any]) -> None:
        for token in facts["added_tokens"]:
            token["lstrip"] = token["content"] in ("<|eot|>", "</s>")

    edit(folder / "tokenizer.json", change)
    (folder / "added_tokens.json").write_text('{"</s>": 2}')
    edit(folder / "tokenizer_config.json", lambda facts: facts.update(additional_special_tokens=["<|eot|>"]))
    check(folder)
