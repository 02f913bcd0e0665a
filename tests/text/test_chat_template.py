"""Chat templates: the ids are transformers', the targets are the answers and nothing else, and a text is only text."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from logtrain.data.conversations import conversations
from logtrain.data.files import BadRow, InputFile
from logtrain.text.chat_template import ChatTemplate, Turn
from logtrain.text.config import DATE
from logtrain.text.template_sandbox import compile_template
from logtrain.text.tokenizer import Tokenizer
from tests.support.chats import CHATML, SPECIAL, TRIMMING, write_tokenizer


@pytest.fixture(scope="module")
def loaded(tmp_path_factory) -> dict[str, ChatTemplate]:
    folder = tmp_path_factory.mktemp("tokenizers")
    trimming = write_tokenizer(folder / "trimming", TRIMMING)
    chatml = write_tokenizer(folder / "chatml", CHATML, bos=False)
    return {TRIMMING: ChatTemplate.load(Tokenizer.load(trimming)), CHATML: ChatTemplate.load(Tokenizer.load(chatml))}


def apply_chat_template(folder: Path):
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(folder)

    def apply(turns: list[Turn], add_generation_prompt: bool = False) -> list[int]:
        messages = [turn._asdict() for turn in turns]
        return theirs.apply_chat_template(messages, add_generation_prompt=add_generation_prompt, return_dict=False)

    return apply


def check_equals_transformers(template: ChatTemplate, chats: list[list[Turn]], prompts: bool = True) -> int:
    """Ids, and the mask by their own renderings of every beginning of a conversation. Gives the number of targets."""
    apply, num_targets = apply_chat_template(template.tokenizer.folder), 0
    for turns in chats:
        ids, is_target = template.encode(turns)
        assert ids == apply(turns)
        expected = np.zeros(len(ids), bool)
        for i, turn in enumerate(turns):
            if turn.role == "assistant":
                invited = apply(turns[:i], add_generation_prompt=True)
                answered = ids if i == len(turns) - 1 else apply(turns[: i + 1])
                assert ids[: len(invited)] == invited
                assert not prompts or template.prompt(turns[:i]) == invited
                assert ids[: len(answered)] == answered
                last = np.zeros(len(ids), bool)
                last[len(invited) : len(answered)] = True
                expected |= last
        assert np.array_equal(is_target, expected)
        assert not prompts or np.array_equal(template.encode(turns, "last")[1], last)
        num_targets += int(expected.sum())
    return num_targets


@pytest.mark.parametrize("source", [TRIMMING, CHATML], ids=["trimming", "chatml"])
def test_equals_transformers(loaded, source):
    user, assistant = Turn("user", "why error 10.0.0.1?"), Turn("assistant", "because disk\n\nFailed é 😀")
    chats = [
        [user, assistant],
        [Turn("system", "sshd user"), user, assistant, user, assistant._replace(content="x")],
        [user, assistant._replace(content="{{ bos_token }} {% raise %}")] * 4,
    ]
    assert check_equals_transformers(loaded[source], chats) > 30


@pytest.mark.parametrize("model", ["llama3_tokenizer", "smollm2"])
@pytest.mark.parametrize(
    ("name", "format", "rows", "targets"),
    [
        ("formats/sharegpt_chat_val_mini.json", "sharegpt", 99, 80_000),
        ("formats/alpaca_eval_mini.json", "alpaca", 100, 2_000),
        ("chat/json_analysis_val.json", "sharegpt", 100, 5_000),
    ],
)
def test_equals_transformers_on_real_chats(request, shared, model, name, format, rows, targets):
    template = ChatTemplate.load(Tokenizer.load(request.getfixturevalue(model)))
    read = list(conversations(InputFile(shared / "data" / name), format))
    chats = [list(chat.turns) for chat in read if not isinstance(chat, BadRow)]
    assert len(chats) == rows
    assert [(bad.row, str(bad)) for bad in read if isinstance(bad, BadRow)] == (
        [(79, 'turn 2: "value" is empty')] if rows == 99 else []
    )
    assert check_equals_transformers(template, chats, prompts=format == "alpaca") > targets


# -- any text --------------------------------------------------------------------------------------

PIECES = [*SPECIAL, "<|eot", "|>", "<", "a", "why error", " ", "\n", "\n\n", "é", "😀", "{{", "\U000f0000", "<thought>"]
contents = st.lists(st.sampled_from(PIECES), min_size=1, max_size=8).map("".join).filter(str.strip)


@st.composite
def chats(draw, contents=contents, max_exchanges: int = 3) -> list[Turn]:
    turns = [Turn("system", draw(contents))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, max_exchanges))):
        turns += [Turn("user", draw(contents)), Turn("assistant", draw(contents))]
    return turns


def by_hand(tokenizer: Tokenizer, source: str, turns: list[Turn]) -> tuple[list[int], list[list[int]]]:
    """A conversation's ids put together without a template, no special token being looked for in any text; and the ids
    of each answer, from its first character on."""
    start, header_end, eot = (tokenizer.token_id(text) for text in ("<|start|>", "<|header|>", "<|eot|>"))
    ids, answers = ([tokenizer.token_id("<|begin|>")] if source == TRIMMING else []), []
    for role, content in turns:
        if source == TRIMMING:
            lead, header, content, after = [start, *tokenizer.encode(role), header_end], "\n\n", content.strip(), []
        else:
            lead, header, after = [start], role + "\n", tokenizer.encode("\n")
        written = tokenizer.encode(header + content)
        ids += [*lead, *written, eot, *after]
        if role == "assistant":
            whole = 0  # tokens that are only header
            while len(tokenizer.decode(written[: whole + 1], skip_special=False).encode()) <= len(header.encode()):
                whole += 1
            answers.append([*written[whole:], eot, *after])
    return ids, answers


@pytest.mark.parametrize("source", [TRIMMING, CHATML], ids=["trimming", "chatml"])
@settings(max_examples=150)
@given(turns=chats())
def test_any_text_is_only_text(loaded, source, turns):
    template = loaded[source]
    ids, is_target = template.encode(turns)
    expected, answers = by_hand(template.tokenizer, source, turns)
    assert ids == expected
    assert ids.count(template.tokenizer.token_id("<|begin|>")) == (source == TRIMMING)
    borders = np.flatnonzero(np.diff(np.concatenate([[0], is_target, [0]])))
    assert [ids[a:b] for a, b in borders.reshape(-1, 2)] == answers
    assert template.prompt(turns[:-1]) == by_hand_prompt(template.tokenizer, source, turns[:-1])


def by_hand_prompt(tokenizer: Tokenizer, source: str, turns: list[Turn]) -> list[int]:
    ids = by_hand(tokenizer, source, turns)[0]
    if source == CHATML:
        return [*ids, tokenizer.token_id("<|start|>"), *tokenizer.encode("assistant\n")]
    start, header = tokenizer.token_id("<|start|>"), tokenizer.token_id("<|header|>")
    return [*ids, start, *tokenizer.encode("assistant"), header, *tokenizer.encode("\n\n")]


def test_special_strings_in_a_real_tokenizer(llama3_tokenizer):
    template = ChatTemplate.load(Tokenizer.load(llama3_tokenizer))
    turns = [Turn("user", "a <|eot_id|><|end_of_text|> b"), Turn("assistant", "<|begin_of_text|><|start_header_id|>x")]
    ids, is_target = template.encode(turns)
    encode, special = template.tokenizer.encode, template.tokenizer.token_id
    start, end, eot = special("<|start_header_id|>"), special("<|end_header_id|>"), special("<|eot_id|>")
    answer = [*encode("\n\n" + turns[1].content), eot]
    expected = [start, *encode("user"), end, *encode("\n\n" + turns[0].content), eot]
    expected += [start, *encode("assistant"), end, *answer]
    assert ids[-len(expected) :] == expected
    assert np.flatnonzero(is_target).tolist() == list(range(len(ids) - len(answer) + 1, len(ids)))


# -- which template --------------------------------------------------------------------------------


def test_where_the_template_is_found(tmp_path):
    folder = write_tokenizer(tmp_path / "a", TRIMMING)
    tokenizer = Tokenizer.load(folder)
    assert ChatTemplate.load(tokenizer).source == TRIMMING
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": TRIMMING}]
    assert ChatTemplate.load(Tokenizer.load(write_tokenizer(tmp_path / "b", named))).source == TRIMMING
    other = TRIMMING.replace("message['role']", "(message['role'] | upper)").replace("assistant", "ASSISTANT")
    (folder / "chat_template.jinja").write_text(other)  # this one has the first word, as in transformers
    assert ChatTemplate.load(tokenizer).source == other
    (tmp_path / "mine.jinja").write_text(TRIMMING)
    assert ChatTemplate.load(tokenizer, tmp_path / "mine.jinja").source == TRIMMING
    check_equals_transformers(ChatTemplate.load(tokenizer), [[Turn("user", "why"), Turn("assistant", "because")]])


def test_templates_in_a_folder_of_their_own(tmp_path):
    """There transformers' default is before all others, and beside any there it reads none of tokenizer_config.json."""
    from transformers import AutoTokenizer

    folder = write_tokenizer(tmp_path / "a", TRIMMING)
    tokenizer, others = Tokenizer.load(folder), folder / "additional_chat_templates"
    others.mkdir()
    (others / "tool_use.jinja").write_text("no")
    assert AutoTokenizer.from_pretrained(folder).chat_template == {"tool_use": "no"}
    with pytest.raises(ValueError, match=r"additional_chat_templates: .* does not read the chat template in"):
        ChatTemplate.load(tokenizer)
    (folder / "chat_template.jinja").write_text(TRIMMING)
    assert AutoTokenizer.from_pretrained(folder).chat_template["default"] == TRIMMING
    assert ChatTemplate.load(tokenizer).source == TRIMMING
    (others / "default.jinja").write_text(TRIMMING.upper())
    assert AutoTokenizer.from_pretrained(folder).chat_template["default"] == TRIMMING.upper()
    with pytest.raises(ValueError, match=r"default\.jinja: .* other programs that in chat_template\.jinja; move"):
        ChatTemplate.load(tokenizer)
    assert ChatTemplate.load(tokenizer, folder / "chat_template.jinja").source == TRIMMING
    (others / "default.jinja").write_text(TRIMMING)
    assert ChatTemplate.load(tokenizer).source == TRIMMING
    alone = write_tokenizer(tmp_path / "b", None)
    others.rename(alone / others.name)
    with pytest.raises(ValueError, match=r"default\.jinja: .* other programs a template; move"):
        ChatTemplate.load(Tokenizer.load(alone))


def test_a_tokenizer_that_splits_special_tokens_is_refused(tmp_path):
    folder = write_tokenizer(tmp_path / "a", TRIMMING, split_special_tokens=True)
    turns = [Turn("user", "why"), Turn("assistant", "because")]
    split = apply_chat_template(folder)(turns)
    with pytest.raises(ValueError, match=r"tokenizer_config\.json: with split_special_tokens .* set it to false"):
        ChatTemplate.load(Tokenizer.load(folder))
    whole = write_tokenizer(tmp_path / "b", TRIMMING, split_special_tokens=False)
    assert ChatTemplate.load(Tokenizer.load(whole)).encode(turns)[0] == apply_chat_template(whole)(turns) != split
    text = "why <|eot|>"  # which is never a mark for us
    assert Tokenizer.load(folder).encode(text) == Tokenizer.load(whole).encode(text)


def test_what_templates_may_use(tmp_path):
    """Blocks trimmed as transformers does, break, generation blocks, tojson without HTML escapes, the date."""
    source = TRIMMING.replace("{{- bos_token }}", "{{- bos_token }}{{ strftime_now('%d %b %Y') }}{{ '<é>' | tojson }}")
    source = source.replace("{%- endfor %}", "{% if loop.index > 9 %}\n{% break %}\n  {% endif %}\n{%- endfor %}")
    answer = "{%- generation %}{{ message['content'] | trim + '<|eot|>' }}{%- endgeneration %}"
    source = source.replace("messages %}", "messages %}{%- if tools %}x{% endif %}")
    source = source.replace("+ message['content'] | trim + '<|eot|>' }}", "}}" + answer)
    tokenizer = Tokenizer.load(write_tokenizer(tmp_path / "a", source))
    turns = [Turn("user", "why"), Turn("assistant", "because")]
    template = ChatTemplate.load(tokenizer, date="2025-01-31")
    assert template.render(turns).startswith('<|begin|>31 Jan 2025"<é>"<|start|>user<|header|>\n\nwhy<|eot|><|start|>')
    assert ChatTemplate.load(tokenizer).render(turns).startswith("<|begin|>26 Jul 2024")
    ids, is_target = template.encode(turns)
    assert tokenizer.decode(np.array(ids)[is_target].tolist(), skip_special=False) == "because<|eot|>"


RICH = """{%- macro turn(role, content='', end=none) -%}
    {{- '<|start|>' ~ role + '<|header|>' -}}
    {%- for line in content.split('\n') if line is string %}{{ line.rstrip() }}{{ '\n' if not loop.last }}{% endfor -%}
    {{- end if end is not none else '' -}}
{%- endmacro -%}
{%- set ns = namespace(n=0, seen=[], text='') -%}
{%- set roles = {'user': 'U', 'assistant': 'A'} -%}
{{- bos_token -}}
{%- for message in messages -%}
    {%- set ns.n = ns.n + 1 -%}
    {%- set ns.seen = ns.seen + [message.role] -%}
    {%- set ns.text = ns.text ~ message.content[:3] -%}
    {{- turn(roles[message['role']] * 2, message.content | trim, end='<|eot|>') -}}
    {{- '%02d' % ns.n ~ '{:>3}'.format(loop.index0) ~ (message | tojson(indent=2)) -}}
    {%- if loop.previtem is defined and loop.previtem.role in ['user', 'system'] -%}P{%- endif -%}
{%- endfor -%}
{{- (messages | selectattr('role', 'equalto', 'user') | list | length) ~ '/' -}}
{{- messages | map(attribute='role') | join(',') -}}
{{- messages[::-1][0].content | upper | replace('A', 'b') ~ ns.text ~ (roles | dictsort)[0][0] ~ 2 ** 5 -}}
{%- for key, value in roles.items() -%}{{ key }}{{ value | default('x') }}{{ loop.length }}{%- endfor -%}
{%- if messages | length % 2 == 0 and 'zzz' not in ns.text and ns.seen[-1] != 'user' -%}!{%- endif -%}
"""


def test_a_template_that_uses_much_is_rendered_as_transformers_does(loaded):
    """What is counted comes out as if it were not."""
    from transformers.utils.chat_template_utils import render_jinja_template

    turns = [
        Turn("user", " why\n error é "),
        Turn("assistant", "a because "),
        Turn("user", "disk"),
        Turn("assistant", "A"),
    ]
    ours = compile_template(RICH, DATE).render([turn._asdict() for turn in turns], bos_token="<|begin|>")
    theirs, _ = render_jinja_template([[turn._asdict() for turn in turns]], chat_template=RICH, bos_token="<|begin|>")
    assert ours == theirs[0]
    assert ours.endswith("!")
    assert len(ours) > 400


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (None, "the tokenizer has no chat template .*give the model's own, or one to train it with, with --template"),
        ([{"name": "rag", "template": "x"}], r"its chat templates are rag, and none is the default; .* --template"),
        ("{% for %}", r"not a jinja template: line 1: "),
        (TRIMMING + "{{ raise_exception('no ' + messages[0].role) }}", r"turn 0 \(user\): .* fails \(no user\); give"),
        (TRIMMING + "{{ messages[3].content }}", r"turn 0 \(user\): the chat template fails \(.*has no element 3\)"),
        (TRIMMING + "{{ 1 + '' }}", r"fails \(TypeError: unsupported operand"),
        (TRIMMING + "{{ ''.__class__.mro() }}", r"fails \(access to attribute '__class__' .* is unsafe"),
        (TRIMMING.replace("{{- bos_token }}", ""), "writes the tokenizer's bos_token 0 times, not once, at the start"),
        ("{{ bos_token }}" + TRIMMING, "writes the tokenizer's bos_token 2 times"),
        (TRIMMING.replace("message['content']", "message['content'] | replace('first ', '')"), "turn 1 .*not write al"),
        (TRIMMING.replace("| trim +", "| trim + ('' if loop.last else '!') +"), "turn 1 .*changes what stood before"),
        (TRIMMING.replace("bos_token }}", "bos_token ~ messages | length }}"), r"turn 1 \(assistant\): .*changes what"),
        (TRIMMING + "\n{% if not add_generation_prompt %}{{ eos_token }}{% endif %}", "turn 1 .*changes what stood"),
        (TRIMMING.replace("add_generation_prompt", "false"), r"turn 1 .*writes '<\|start\|>assistant<\|header"),
        (TRIMMING.replace("+ '<|eot|>'", "+ '\n'"), r"turn 1 .*writes no special token after the answer"),
    ],
)
def test_templates_that_are_refused(tmp_path, source, message):
    tokenizer = Tokenizer.load(write_tokenizer(tmp_path / "a", source))
    with pytest.raises(ValueError, match=message) as error:
        ChatTemplate.load(tokenizer).check_trainable()
    assert str(error.value).startswith(str(tmp_path / "a"))
    assert "\n" not in str(error.value)


def test_other_refusals(tmp_path, loaded):
    tokenizer = Tokenizer.load(write_tokenizer(tmp_path / "a"))
    with pytest.raises(ValueError, match=r"nowhere\.jinja: no such file"):
        ChatTemplate.load(tokenizer, "nowhere.jinja")
    with pytest.raises(ValueError, match=r"never asks for the date .*, so date = 2025-01-01 has no effect"):
        ChatTemplate.load(tokenizer, date="2025-01-01")
    user, assistant, system = Turn("user", "a"), Turn("assistant", "b"), Turn("system", "c")
    wrong = {
        "no turns": [],
        "no assistant turn": [user],
        r"turn 0 \(assistant\) comes first": [assistant],
        r"turn 1 \(user\) comes after user": [user, user, assistant],
        r"turn 1 \(assistant\) comes after system": [system, assistant],
        r"turn 2 \(system\) comes after assistant": [user, assistant, system, user, assistant],
        r"turn 2 \(user\) is the last and has no answer": [user, assistant, user],
    }
    for message, turns in wrong.items():
        with pytest.raises(ValueError, match=message):
            loaded[TRIMMING].encode(turns)


def test_sentencepiece_is_refused(tmp_path):
    (tmp_path / "t.jinja").write_text(TRIMMING)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["why error because disk"] * 50),
        model_prefix=str(tmp_path / "tokenizer"),
        vocab_size=30,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    tokenizer = Tokenizer.load(tmp_path / "tokenizer.model")
    with pytest.raises(ValueError, match=re.escape("save the tokenizer as tokenizer.json")):
        ChatTemplate.load(tokenizer, tmp_path / "t.jinja")


def test_a_template_file_named_in_the_config_is_json(tmp_path):
    folder = write_tokenizer(tmp_path / "a")
    (folder / "special_tokens_map.json").write_text(
        json.dumps({"pad_token": "<|end_of_text|>", "eos_token": "<|start|>"})
    )
    # In a conflict transformers takes the older map: tests/text/test_as_transformers.py holds it against them.
    named = {"bos_token": "<|begin|>", "eos_token": "<|start|>", "pad_token": "<|end_of_text|>"}
    assert ChatTemplate.load(Tokenizer.load(folder)).named == named
    (folder / "special_tokens_map.json").write_text("{")
    with pytest.raises(ValueError, match=r"special_tokens_map\.json: not JSON"):
        ChatTemplate.load(Tokenizer.load(folder))
