"""Text as it comes: in pieces that are whole characters, together what the ids decode to, without a stop string."""

import random
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from logtrain.text.stream import TextStream
from logtrain.text.tokenizer import Tokenizer
from tests.support import synthetic
from tests.support.chats import write_tokenizer

TEXTS = [
    "Failed password for root from 10.0.0.1 port 22 ssh2\n\n",
    "naïve Größe, 日本語のログ, 🚒🇩🇪👩‍👩‍👧 é",
    " leading and trailing ",
    "\n\n\t  \n",
    "",
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    return Tokenizer.load(write_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> Tokenizer:
    return Tokenizer.load(synthetic.write_tokenizer(tmp_path_factory.mktemp("words"), 51))


def pieces(tokenizer: Tokenizer, ids: list[int], stop: tuple[str, ...] = ()) -> tuple[list[str], TextStream]:
    stream = TextStream(tokenizer, stop)
    given_out = []
    for id in ids:
        given_out.append(stream.add(id))
        if stream.stopped:
            break
    return [*given_out, stream.end()], stream


def assert_streams(tokenizer: Tokenizer, ids: list[int]) -> None:
    found, stream = pieces(tokenizer, ids)
    assert "".join(found) == stream.text == tokenizer.decode(ids)
    assert not stream.stopped


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_are_the_text(tokenizer, text):
    ids = tokenizer.encode(text)
    found, _ = pieces(tokenizer, ids)
    assert "".join(found) == text
    assert "\ufffd" not in "".join(found)
    if text.isascii():
        assert all(found[:-1]), "a whole token is given out at once"


def test_half_a_character_waits_for_its_other_bytes(tokenizer):
    ids = tokenizer.encode("日")
    assert len(ids) == 3
    assert pieces(tokenizer, ids)[0] == ["", "", "日", ""]
    assert pieces(tokenizer, ids[:2])[0][:2] == ["", ""]
    assert pieces(tokenizer, ids[:2])[0][2] == tokenizer.decode(ids[:2])  # what never became one, at the end


@given(st.lists(st.integers(0, 404), max_size=30))
def test_pieces_of_any_ids_are_what_they_decode_to(tokenizer, ids):
    assert_streams(tokenizer, ids)


def test_special_tokens_are_no_text(tokenizer):
    end = tokenizer.token_id("<|eot|>")
    found, _ = pieces(tokenizer, [*tokenizer.encode("disk"), end, *tokenizer.encode(" error")])
    assert "".join(found) == "disk error"


@given(st.lists(st.integers(0, 50), max_size=12))
def test_a_tokenizer_that_puts_spaces_between_words_keeps_them(words, ids):
    assert_streams(words, ids)


def test_a_sentencepiece_tokenizer_keeps_its_spaces(shared):
    tokenizer = Tokenizer.load(shared / "data" / "stories260k")
    for text in ("Once upon a time", "a  b", "Lily's mom, Ünal 日"):
        ids = tokenizer.encode(text)
        assert "".join(pieces(tokenizer, ids)[0]) == tokenizer.decode(ids)


def test_real_tokenizers_stream_any_text(llama3_tokenizer, smollm2, shared):
    log = (shared / "data" / "loghub" / "Android" / "Android_2k.log").read_text(encoding="utf-8")[:20_000]
    for folder in (llama3_tokenizer, smollm2):
        tokenizer, random_ = Tokenizer.load(folder), random.Random(0)
        for text in (*TEXTS, log):
            assert_streams(tokenizer, tokenizer.encode(text))
        for _ in range(200):
            assert_streams(tokenizer, random_.choices(range(tokenizer.vocab_size), k=20))


# Stop strings


@given(
    st.text(alphabet="ab\n#é", max_size=30),
    st.lists(st.text(alphabet="ab\n#é", min_size=1, max_size=4), min_size=1, max_size=3),
)
@example("aéa", ["é", "aéa"])  # the longer begins first, but the shorter is complete first
@example("bé#", ["é", "bé"])  # complete together: neither is part of the text
def test_a_text_ends_before_the_stop_string_that_is_complete_first(tokenizer, text, stop):
    found, stream = pieces(tokenizer, tokenizer.encode(text), tuple(stop))
    read = (text[:end] for end in range(len(text) + 1))
    expected = next((t[: -max(len(s) for s in stop if t.endswith(s))] for t in read if t.endswith(tuple(stop))), None)
    assert stream.stopped == (expected is not None)
    assert "".join(found) == stream.text == (text if expected is None else expected)


def test_what_might_begin_a_stop_string_waits_and_nothing_more_does(tokenizer):
    stream = TextStream(tokenizer, ("\nHuman:",))
    said = [stream.add(id) for id in tokenizer.encode("a\nHum")]
    assert "".join(said) == "a"
    assert stream.add(*tokenizer.encode("b")) == "\nHumb"
    assert stream.end() == ""


def test_a_stop_string_across_tokens_and_within_one_is_found(tokenizer):
    ids = tokenizer.encode("why because disk error")
    assert max(len(tokenizer.decode([id])) for id in ids) > 3
    assert "".join(pieces(tokenizer, ids, ("caus",))[0]) == "why be"
    assert "".join(pieces(tokenizer, ids, ("se di",))[0]) == "why becau"


def test_nothing_is_given_out_after_the_end(tokenizer: Tokenizer, tmp_path: Path):
    stream = TextStream(tokenizer, ("x",))
    for id in tokenizer.encode("axb"):
        stream.add(id)
    assert (stream.text, stream.end(), stream.stopped) == ("a", "", True)
