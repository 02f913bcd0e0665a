"""Conversations as tokens: no answer lost, no template cut, none longer than a row, and an account that adds up."""

import itertools
import random
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logtrain.data.account import Account
from logtrain.data.chunks import RowsRead
from logtrain.data.encode import CASES
from logtrain.data.encode_chat import MARKER, ChatEncoder
from logtrain.data.shards import CONTEXT, DOCUMENT
from logtrain.text.chat_template import DATE, ChatTemplate, Turn
from logtrain.text.tokenizer import Tokenizer
from tests.support.chats import TRIMMING, write_tokenizer
from tests.text.test_chat_template import chats, contents


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> ChatTemplate:
    return ChatTemplate.load(Tokenizer.load(write_tokenizer(tmp_path_factory.mktemp("chat_tokenizer"))))


def parts(template: ChatTemplate, ids: list[int], is_target: np.ndarray) -> list[tuple[str, bool]]:
    """The texts between special tokens, each with the special token after it, and whether it is trained on."""
    special, found, start = set(template.tokenizer.marks.values()), [], 0
    for i, id in enumerate(ids):
        if id in special:
            found.append((template.tokenizer.decode(ids[start : i + 1], skip_special=False), bool(is_target[i])))
            start = i + 1
    return found


def turns_of(template: ChatTemplate, ids: list[int], is_target: np.ndarray) -> list[Turn]:
    """Reads a conversation back from its ids; fails where the template is not whole, or a target not an answer's."""
    (bos, _), *rest = parts(template, ids, is_target)
    assert bos == "<|begin|>"
    turns = []
    for (start, a), (role, b), (content, is_answer) in zip(rest[::3], rest[1::3], rest[2::3], strict=True):
        role = role.removesuffix("<|header|>")
        assert start == "<|start|>" and content.startswith("\n\n") and content.endswith("<|eot|>")
        assert (a, b, is_answer) == (False, False, role == "assistant")
        turns.append(Turn(role, content.removeprefix("\n\n").removesuffix("<|eot|>")))
    answers = "".join(turn.content + "<|eot|>" for turn in turns if turn.role == "assistant")
    assert template.tokenizer.decode(np.array(ids)[is_target].tolist(), skip_special=False) == answers
    return turns


def trimmed(turns) -> list[Turn]:
    return [turn._replace(content=turn.content.strip()) for turn in turns]


@st.composite
def batches(draw) -> list[list[Turn]]:
    long = st.builds(lambda text, times: text * times, contents, st.integers(1, 12))
    return draw(st.lists(chats(long, max_exchanges=4), min_size=1, max_size=4))


@settings(max_examples=120)
@given(
    chats=batches(),
    seq_len=st.integers(20, 250),
    too_long=st.sampled_from(["auto", "drop", "split_turns", "truncate_content", "truncate_answer"]),
)
def test_any_conversation_at_any_length(template, chats, seq_len, too_long):
    tokenizer = template.tokenizer
    encoder = ChatEncoder(TRIMMING, DATE, "all", too_long, seq_len, b"1309")
    encoded = encoder.encode(chats, tokenizer)
    ends = np.cumsum(encoded.lengths_D)
    assert max(encoded.lengths_D, default=0) <= seq_len
    assert not encoded.problems

    for i, turns in enumerate(chats):
        whole = template.encode(turns)
        case, num_tokens, num_targets = encoded.outcomes_I[i].tolist()
        assert (num_tokens, num_targets) == (len(whole[0]), whole[1].sum())
        stored = [encoded.tokens_N[end - n : end] for end, n in zip(ends, encoded.lengths_D, strict=True)]
        stored = [tokens for tokens, chat in zip(stored, encoded.item_D, strict=True) if chat == i]
        samples = [((tokens & ~np.uint32(CONTEXT)).tolist(), tokens < CONTEXT) for tokens in stored]
        name = CASES[case]
        read = [turns_of(template, *sample) for sample in samples if name != "cut"]
        first = turns[0].role == "system"
        assert (name == "whole") == (num_tokens <= seq_len)
        if name == "whole":
            assert samples[0][0] == whole[0]
            assert np.array_equal(samples[0][1], whole[1])
        elif name == "truncated":
            assert too_long in ("auto", "truncate_content", "truncate_answer")
            ((*kept,),) = read
            assert sum(sample[1].sum() for sample in samples) == num_targets
            for now, was in zip(kept, trimmed(turns), strict=True):
                assert now.role == was.role
                if now.content != was.content:
                    assert now.role == "user"
                    assert MARKER.strip() in now.content
                    heads = [m.start() for m in re.finditer(re.escape(MARKER.strip()), now.content)]
                    assert any(
                        was.content.startswith(now.content[:at].rstrip("\n"))
                        and was.content.endswith(now.content[at + len(MARKER.strip()) :].lstrip("\n"))
                        for at in heads
                    )
        elif name == "cut":
            assert too_long == "truncate_answer"
            ((ids, is_target),) = samples
            assert len(ids) == seq_len
            assert 0 < is_target.sum() < num_targets
            ends_of_turns = [id for id, is_one in zip(ids, is_target, strict=True) if is_one and id == template.end_id]
            spoken = tokenizer.decode([id for id, is_one in zip(ids, is_target, strict=True) if is_one])
            answers = [turn.content for turn in trimmed(turns) if turn.role == "assistant"]
            assert len(ends_of_turns) <= len(answers)
            assert "".join(answers).startswith(spoken.rstrip("\ufffd"))
        elif name == "split":
            assert too_long == "split_turns"
            assert len(read) > 1
            assert all(part[:first] == trimmed(turns)[:first] for part in read)
            assert [turn for part in read for turn in part[first:]] == trimmed(turns)[first:]
            for before, after in itertools.pairwise(read):  # one exchange more would not have fit
                assert len(template.encode([*before, *after[first : first + 2]])[0]) > seq_len
        else:
            assert (name, read) == ("dropped", [])
            if too_long in ("auto", "truncate_content"):
                short = [t._replace(content=shortest(tokenizer, t.content)) if t.role == "user" else t for t in turns]
                assert len(template.encode(short)[0]) > seq_len
            elif too_long == "split_turns":
                exchanges = [[*turns[:first], *turns[j : j + 2]] for j in range(first, len(turns), 2)]
                assert any(len(template.encode(exchange)[0]) > seq_len for exchange in exchanges)

    account, records = Account(["a"]), np.zeros(len(chats), DOCUMENT)
    records["row"] = np.arange(len(chats))
    of_documents = account.add(RowsRead(records, [], num_chars=0, is_held_I=np.zeros(len(chats), bool)), encoded)
    assert of_documents["row"].tolist() == encoded.item_D.tolist()
    cases = {case: counts._asdict() for case, counts in account.cases().items()}
    for column, expected in {
        "conversations": len(chats),
        "read_tokens": encoded.outcomes_I["tokens"].sum(),
        "read_targets": encoded.outcomes_I["targets"].sum(),
        "documents": len(encoded.lengths_D),
        "tokens": len(encoded.tokens_N),
        "targets": (encoded.tokens_N < CONTEXT).sum(),
    }.items():
        assert cases["total"][column] == expected == sum(cases[case][column] for case in list(cases)[:-1])
    assert cases["total"]["read_targets"] == (
        cases["total"]["targets"]
        + cases["dropped"]["read_targets"]
        + cases["cut"]["read_targets"]
        - cases["cut"]["targets"]
    )


def shortest(tokenizer: Tokenizer, content: str) -> str:
    return MARKER if len(tokenizer.encode(content)) > len(tokenizer.encode(MARKER)) else content


def test_a_truncated_question_is_not_cut_more_than_it_must(template):
    random_ = random.Random(0)
    for seq_len in (100, 200, 400):
        words = " ".join(random_.choices(["error", "disk", "sshd[24499]:", "é", "\n", "10.0.0.1"], k=400))
        turns = [Turn("user", words), Turn("assistant", "because"), Turn("user", "why"), Turn("assistant", "disk")]
        encoded = ChatEncoder(TRIMMING, DATE, "all", "truncate_content", seq_len, b"").encode(
            [turns], template.tokenizer
        )
        assert seq_len - 4 <= encoded.lengths_D[0] <= seq_len
        text = template.tokenizer.decode((encoded.tokens_N & ~np.uint32(CONTEXT)).tolist())
        head, tail = text.split(MARKER)
        assert abs(len(template.tokenizer.encode(head)) - len(template.tokenizer.encode(tail))) < 30
        assert "why" in tail
