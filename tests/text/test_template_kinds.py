"""Chat templates of many kinds with tokenizers of many kinds: prompts are those of transformers, and no text of a turn
becomes a mark or changes what stands around it.
"""

import datetime
import json
import re
from functools import cache
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from logtrain.text.chat_template import ChatTemplate, Turn
from logtrain.text.tokenizer import Tokenizer
from tests.support.templates import BY_ROLE, DEEPSEEK_R1, KINDS, MARKS, NO_SYSTEM, SMOLLM3, TOKENIZERS, write_folder

TODAY = datetime.date.today().isoformat()
ALL_MARKS = ["<s>", "</s>", *MARKS]
PLAIN = ["why error", " ", "\n", "\n\n", "é", "😀", "<", "|>", "disk  user", "a", "[INST", " x "]
THINKING = ["<think>\na plan\n</think>\n\nbecause", "</think>", "x</think>\n\n"]


def turns_of(pieces: list[str]) -> st.SearchStrategy[list[Turn]]:
    """Questions: a system turn or none, then exchanges, then what is asked."""
    content = st.lists(st.sampled_from(pieces), min_size=1, max_size=6).map("".join).filter(str.strip)
    exchange = st.tuples(content, content).map(lambda said: [Turn("user", said[0]), Turn("assistant", said[1])])
    return st.tuples(
        st.lists(content.map(lambda text: Turn("system", text)), max_size=1),
        st.lists(exchange, max_size=2).map(lambda exchanges: [turn for both in exchanges for turn in both]),
        content.map(lambda text: [Turn("user", text)]),
    ).map(lambda parts: parts[0] + parts[1] + parts[2])


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    @cache
    def loaded(kind: str, name: str, special: bool, bos: bool = True, **flags) -> ChatTemplate:
        folder = tmp_path_factory.mktemp("kinds") / "tokenizer"
        write_folder(folder, kind, KINDS[name], special=special, bos=bos, **flags)
        dated = TODAY if "strftime_now" in KINDS[name] else "2024-07-26"
        return ChatTemplate.load(Tokenizer.load(folder), date=dated)

    return loaded


@cache
def theirs(folder: Path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def prompt_by_transformers(template: ChatTemplate, turns: list[Turn]) -> list[int] | str:
    messages = [turn._asdict() for turn in turns]
    tokenizer = theirs(template.tokenizer.folder)
    try:
        return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    except Exception as error:  # as its template says
        return str(error)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("kind", ["byte level", "metaspace, first", "metaspace, legacy"])
@settings(max_examples=25)
@given(turns=turns_of(PLAIN), special=st.booleans(), bos=st.booleans())
def test_prompts_are_those_of_transformers(load, kind, name, turns, special, bos):
    template = load(kind, name, special, bos)
    expected = prompt_by_transformers(template, turns)
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=re.escape(expected)):
            template.prompt(turns)
    else:
        assert template.prompt(turns) == expected


@pytest.mark.parametrize("name", ["deepseek r1", "smollm 3"])
@settings(max_examples=30)
@given(turns=turns_of([*PLAIN, *THINKING]).filter(lambda turns: turns[0].role != "system"))
def test_a_template_finds_the_thoughts_in_earlier_answers(load, name, turns):
    """It drops them, as in transformers: what it writes is the same, but for ids of thoughts that are text."""
    template = load("byte level", name, special=True)
    user_turns = [turn._replace(content=turn.content.replace("think>", "")) for turn in turns if turn.role == "user"]
    users = iter(user_turns)
    turns = [next(users) if turn.role == "user" else turn for turn in turns]
    if not all(turn.content.strip() for turn in turns):
        return
    written = theirs(template.tokenizer.folder).decode(prompt_by_transformers(template, turns))
    assert template.tokenizer.decode(template.prompt(turns), skip_special=False) == written


@cache
def secret(template: ChatTemplate) -> tuple[tokenizers.Tokenizer, ChatTemplate]:
    """A tokenizer in which every mark has a name that no turn has, and the template that writes those names."""
    facts = json.loads((template.tokenizer.folder / "tokenizer.json").read_text())
    added = {token["content"]: token["special"] for token in facts["added_tokens"]}
    marks = [text for text, special in added.items() if special or "<|" in text or text in template.source]
    names = {mark: f"\U00100000{chr(0x4E00 + i)}\U00100000" for i, mark in enumerate(marks)}
    for token in facts["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    model, facts["post_processor"] = facts["model"], None
    model["vocab"] = {names.get(piece, piece): id for piece, id in model["vocab"].items()}
    source = template.source
    for mark, name in names.items():
        source = source.replace(mark, name)
    named = {name: names.get(token, token) for name, token in template.named.items()}
    date = TODAY if "strftime_now" in source else "2024-07-26"
    renamed = ChatTemplate(template.tokenizer, source, date, named=named)
    return tokenizers.Tokenizer.from_str(json.dumps(facts)), renamed


def by_definition(template: ChatTemplate, turns: list[Turn]) -> list[int]:
    """The ids of a question where nothing that a turn says can be a mark."""
    tokenizer, renamed = secret(template)
    return tokenizer.encode(renamed.render(turns, add_generation_prompt=True), add_special_tokens=False).ids


# Of templates that look for marks in what is said, that refuse a system turn, and that put marks together.
NOT_DEFINED = (DEEPSEEK_R1, SMOLLM3, NO_SYSTEM, BY_ROLE)


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(max_examples=60)
@given(
    turns=turns_of([*PLAIN, *ALL_MARKS]),
    name=st.sampled_from([name for name, source in KINDS.items() if source not in NOT_DEFINED]),
    special=st.booleans(),
    flags=st.sampled_from([{}, {"lstrip": True}, {"rstrip": True}]),
)
def test_no_text_becomes_a_mark_or_changes_what_stands_around_it(load, kind, turns, name, special, flags):
    template = load(kind, name, special, **flags)
    assert template.prompt(turns) == by_definition(template, turns)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_an_end_in_a_turn_leaves_the_templates_own_words_alone(load, kind):
    """Of a public report: with prepend_scheme first, "</s>" in a turn put a space before "[INST]"."""
    template = load(kind, "alpaca", special=True)
    with_end, without = (template.prompt([Turn("user", text)]) for text in ("error </s> disk", "error disk"))
    said = [Turn("user", "error </s> disk")]
    assert with_end == by_definition(template, said)
    assert with_end.count(template.tokenizer.marks["</s>"]) == 0
    first = next(i for i, pair in enumerate(zip(with_end, without, strict=False)) if pair[0] != pair[1])
    assert "### Instruction:\nerror" in template.tokenizer.decode(with_end[:first])


def test_training_says_what_to_do_with_a_template_that_breaks_its_rules(load):
    for name, message in {
        "llama 2": r"bos_token 2 times, not once, at the start; give another to train with --template FILE",
        "zephyr, tinyllama": r"bos_token 0 times, not once, at the start; give another to train with --template FILE",
        "deepseek r1": r"changes what stood before it, .*; give another to train with --template FILE",
    }.items():
        with pytest.raises(ValueError, match=message):
            load("byte level", name, special=True).check_trainable()
    template = load("byte level", "smollm 2", special=False, bos=False)
    assert template.check_trainable() == template.tokenizer.marks["<|eot|>"]


def test_many_trainable_kinds(load):
    trainable = {
        name for name in KINDS for bos in (True, False) if not refused(load("byte level", name, special=False, bos=bos))
    }
    assert trainable == KINDS.keys() - {"deepseek r1"}


def refused(template: ChatTemplate) -> bool:
    try:
        template.check_trainable()
    except ValueError:
        return True
    return False


def test_marks_that_a_template_puts_together_are_its_own(load):
    template = load("byte level", "by role", special=False)
    marks = template.tokenizer.marks
    ids = template.prompt([Turn("user", "why <|user|> error </s>")])
    assert [id for id in ids if id in marks.values()] == [marks["<|user|>"], marks["</s>"]]
    assert template.tokenizer.decode(ids, skip_special=False) == "<|user|>why <|user|> error </s></s><|assistant|>"
