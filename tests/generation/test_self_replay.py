"""What a model writes of its own: a sample is a pure function of seed and number, its ids stand as a chat template
writes them, and what is left out is left out for the reason that is counted.
"""

import numpy as np
import pytest

from logtrain.core.config import load
from logtrain.data.shards import CONTEXT
from logtrain.generation.config import ReplayConfig, SamplingConfig
from logtrain.generation.load import ModelFolder
from logtrain.generation.sample_choice import SampleChoice, repeated_share
from logtrain.generation.self_replay import Frame, Sample, SampleWriter, chat_frame, frame_of
from logtrain.text.chat_template import ChatTemplate, Turn
from logtrain.text.tokenizer import Tokenizer
from tests.support import chats
from tests.support.evaluation import write_chat_model
from tests.support.generation import CPU


def config_of(folder, **changes) -> ReplayConfig:
    return ReplayConfig(**{"model": str(folder), "output": "unused", "seq_len": 64, "max_tokens": 20, **changes})


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory) -> ModelFolder:
    return ModelFolder(write_chat_model(tmp_path_factory.mktemp("chat"), 0.3))


def written(config: ReplayConfig, folder: ModelFolder, numbers) -> list[Sample]:
    return sorted(SampleWriter(config, folder, frame_of(config, folder), CPU).write(numbers))


@pytest.mark.parametrize("kind", ["documents", "chats"])
def test_a_sample_does_not_depend_on_those_beside_it(chat_model, kind):
    together = written(config_of(chat_model.path, kind=kind), chat_model, range(12))
    alone = written(config_of(chat_model.path, kind=kind, max_sequences=1), chat_model, [7, 3])
    assert alone == [together[3], together[7]]
    assert len({tuple(sample.question + sample.text) for sample in together}) == 12
    other = config_of(chat_model.path, kind=kind, sampling=SamplingConfig(temperature=1.0, seed=2))
    assert written(other, chat_model, [3, 7]) != alone


@pytest.mark.parametrize(
    "change",
    [
        ["--sampling.top_k", "2"],
        ["--sampling.top_p", "0.1"],
        ["--sampling.min_p", "0.9"],
        ["--sampling.repetition_penalty", "3"],
        ["--sampling.presence_penalty", "9"],
        ["--sampling.frequency_penalty", "9"],
    ],
)
def test_how_tokens_are_drawn(chat_model, change):
    flags = ["--model", str(chat_model.path), "--output", "unused", "--seq_len", "64", "--max_tokens", "20"]
    plain, other = (load(ReplayConfig, [*flags, "--kind", "documents", *more]) for more in ([], change))
    assert written(plain, chat_model, range(2)) != written(other, chat_model, range(2))


def test_questions_and_answers_keep_within_a_row(chat_model):
    config = config_of(chat_model.path, seq_len=48, max_tokens=30, min_tokens=2)
    frame = frame_of(config, chat_model)
    samples = written(config, chat_model, range(30))
    assert any(not sample.is_ended and len(sample.text) < 30 for sample in samples if sample.text)  # cut by the row
    assert max(len(frame.stored(sample)) for sample in samples) <= 48
    with pytest.raises(ValueError, match="raise seq_len"):
        SampleWriter(config_of(chat_model.path, seq_len=32, min_tokens=15), chat_model, frame, CPU)


@pytest.mark.parametrize(("template", "bos"), [(chats.TRIMMING, True), (chats.CHATML, False)])
def test_a_chat_is_stored_as_its_template_writes_it(tmp_path, template, bos):
    tokenizer = Tokenizer.load(chats.write_tokenizer(tmp_path, template, bos))
    loaded = ChatTemplate.load(tokenizer)
    frame = chat_frame(loaded, frozenset())
    question, answer = "why error 10.0.0.1", "because disk"
    sample = Sample(0, tokenizer.encode(question), tokenizer.encode(answer), is_ended=True)
    ids, is_target = loaded.encode([Turn("user", question), Turn("assistant", answer)])
    stored = frame.stored(sample)
    assert (stored & (CONTEXT - 1)).tolist() == ids
    assert (stored < CONTEXT).tolist() == is_target.tolist()
    cut = frame.stored(sample._replace(is_ended=False))
    assert cut.tolist() == stored[: len(stored) - len(frame.after)].tolist()
    assert frame.prompt + sample.question + frame.between == loaded.prompt([Turn("user", question)])


def test_a_document_stands_as_prepared_ones_do(chat_model):
    frame = frame_of(config_of(chat_model.path, kind="documents"), chat_model)
    bos, end = (chat_model.tokenizer.token_id(text) for text in ("<|begin|>", "<|end_of_text|>"))
    assert frame.stored(Sample(0, [], [9, 8], is_ended=True)).tolist() == [bos, 9, 8, end]
    assert frame.stored(Sample(0, [], [9, 8], is_ended=False)).tolist() == [bos, 9, 8]
    assert frame_of(config_of(chat_model.path), chat_model).is_chat  # auto: it has a template


def choice_of(tokenizer: Tokenizer, is_chat: bool, **changes) -> SampleChoice:
    frame = Frame(is_chat, [0], [0], [5, 6] if is_chat else [], [1], frozenset({1}), 1)
    return SampleChoice(config_of("unused", min_tokens=3, **changes), frame, tokenizer)


def test_what_is_left_out_and_why(chat_model):
    tokenizer = chat_model.tokenizer

    def sample(number: int, question: str, answer: str, is_ended: bool = True) -> Sample:
        return Sample(number, tokenizer.encode(question), tokenizer.encode(answer), is_ended)

    long = "because disk error 10.0.0.1 failed why"
    samples = [
        sample(0, "why error 1?", long),
        sample(1, "why error 2?", long),  # the question but for a number
        sample(2, "why", "é"),
        sample(3, "why disk", "disk " * 40),
        sample(4, "why user", long)._replace(text=[*tokenizer.encode(long), tokenizer.token_id("<|start|>")]),
        sample(5, "why this", "", is_ended=False),
        sample(6, "  ", long),
        sample(7, "because", long, is_ended=False),
    ]
    choice = choice_of(tokenizer, is_chat=True)
    choice.extend({one.number: one for one in samples if one.number != 6})
    assert choice.num_seen == 6  # a gap: what comes behind it waits
    choice.extend({one.number: one for one in samples})
    assert list(choice.kept) == [0, 7] and choice.num_seen == 8
    assert choice.dropped == {
        "duplicate": 1,
        "too short": 1,
        "repeats": 1,
        "special token": 1,
        "unfinished question": 2,
    }
    assert choice.num_tokens == sum(map(len, choice.kept.values()))


def test_the_choice_ends_at_the_sample_that_makes_enough(chat_model):
    random = np.random.default_rng(0)
    samples = {n: Sample(n, [], random.integers(20, 300, 10).tolist(), True) for n in range(9)}
    choice = choice_of(chat_model.tokenizer, is_chat=False, tokens="40")
    choice.extend(samples)
    assert (choice.num_tokens, choice.num_seen, choice.is_complete) == (48, 4, True)
    hopeless = choice_of(chat_model.tokenizer, is_chat=False)
    with pytest.raises(ValueError, match=r"of 200 samples 1 can be kept \(duplicate 199\); raise sampling.temperature"):
        hopeless.extend({n: samples[0]._replace(number=n) for n in range(300)})


def test_the_share_of_runs_that_stood_before():
    assert repeated_share(list(range(100))) == 0
    assert repeated_share([4] * 108) == pytest.approx(100 / 101)
    assert repeated_share([*range(50), *range(50)]) == pytest.approx(43 / 93)
    assert repeated_share([1, 2]) == 0
