"""Answers beside transformers' `generate`; the same whatever the batch, the chunks and the room; and no place twice."""

import dataclasses
import gc
import itertools
import json
import os
import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from logtrain.generation.cpu_linear import BlockedHead, BlockedLinear
from logtrain.generation.generator import Answer, Generator, Request
from logtrain.generation.kv_cache import CachedModel, Chunk, place_bytes
from logtrain.generation.load import Pretrained, digest, load_pretrained
from logtrain.generation.sampling import SamplingConfig
from logtrain.model import peft as adapter
from logtrain.model.config import LoraConfig
from logtrain.text.chat_template import ChatTemplate, Turn
from tests.support.llama import load_transformers, packed, random_documents
from tests.support.precision import ON_GPU
from tests.support.synthetic import edit_json, write_model, write_tokenizer

CPU = torch.device("cpu")
LENGTHS = (37, 5, 1, 64, 12, 90, 2, 41)
NEW = 24
DRAWN = SamplingConfig(temperature=1.0, top_k=50, top_p=0.95, repetition_penalty=1.2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Heads share keys, rope is scaled, and the weights are large enough for answers that do not repeat one token."""
    return write_model(tmp_path_factory.mktemp("model"), initializer_range=0.3)


@pytest.fixture(scope="module")
def loaded(folder) -> Pretrained:
    return load_pretrained(folder, CPU)


@pytest.fixture(scope="module")
def prompts(loaded) -> list[list[int]]:
    return [document.tolist() for document in random_documents(list(LENGTHS), loaded.model.config.vocab_size)]


def transformers_answer(model, prompt: list[int], new: int, **options) -> list[int]:
    ids = torch.tensor([prompt])
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False, pad_token_id=0, **options
    )
    return out[0, len(prompt) :].tolist()


def answers(generator: Generator, prompts: list[list[int]], **changes) -> list[Answer]:
    requests = [
        Request(**{"prompt": prompt, "max_new_tokens": NEW, "number": i, **changes}) for i, prompt in enumerate(prompts)
    ]
    return [answer for _, answer in sorted(generator.run(requests))]


def ids_of(generator: Generator, prompts: list[list[int]], **changes) -> list[list[int]]:
    return [answer.ids for answer in answers(generator, prompts, **changes)]


# Beside transformers


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kv_heads", [1, 2, 8])
def test_greedy_answers_are_those_of_transformers(tmp_path, kv_heads, tied):
    folder = write_model(
        tmp_path, num_key_value_heads=kv_heads, tie_word_embeddings=tied, initializer_range=0.3, eos_token_id=[1, 7]
    )
    theirs, ours = load_transformers(folder), load_pretrained(folder, CPU)
    assert ours.stop_ids == {1, 7}
    prompts = [document.tolist() for document in random_documents(list(LENGTHS), 320)]
    expected = [transformers_answer(theirs, prompt, NEW) for prompt in prompts]
    assert len({tuple(answer) for answer in expected}) == len(expected), "they say nothing if they are all the same"
    found = answers(Generator(ours.model, ours.tokenizer, ours.stop_ids), prompts)
    for answer, ids in zip(found, expected, strict=True):
        stopped = ids[-1] in ours.stop_ids
        assert answer.ids == (ids[:-1] if stopped else ids)
        assert answer.finish_reason == ("stop" if stopped else "length")
        assert answer.text == ours.tokenizer.decode(answer.ids)


def test_greedy_answers_under_a_repetition_penalty_are_those_of_transformers(folder, loaded, prompts):
    theirs = load_transformers(folder)
    expected = [transformers_answer(theirs, p, NEW, repetition_penalty=1.3, eos_token_id=None) for p in prompts]
    sampling = SamplingConfig(repetition_penalty=1.3)
    assert ids_of(Generator(loaded.model, loaded.tokenizer), prompts, sampling=sampling) == expected


def test_a_trained_model_tells_the_story_that_it_tells_in_transformers(shared):
    folder = shared / "data" / "stories260k"
    ours, prompt = load_pretrained(folder, CPU), "Once upon a time"
    ids = [ours.tokenizer.bos_id, *ours.tokenizer.encode(prompt)]
    expected = transformers_answer(load_transformers(folder), ids, 256, eos_token_id=None)
    (answer,) = answers(Generator(ours.model, ours.tokenizer), [ids], max_new_tokens=256)
    assert answer.ids == expected


def test_smollm2_answers_fifty_real_questions_as_in_transformers(smollm2, shared):
    """In ragged batches of 8, 200 new tokens each: the prompts of log instructions."""
    rows = json.loads((shared / "data" / "loglm" / "loglm_instruction_2632.json").read_text(encoding="utf-8"))[::53]
    ours, theirs = load_pretrained(smollm2, CPU, at_once=8), load_transformers(smollm2)
    template = ChatTemplate.load(ours.tokenizer)
    prompts = [template.prompt([Turn("user", f"{row['instruction']}\n{row['input']}")]) for row in rows]
    assert len(prompts) == 50
    torch.set_num_threads(2)
    try:
        generator = Generator(ours.model, ours.tokenizer, ours.stop_ids, max_sequences=8)
        found = ids_of(generator, prompts, max_new_tokens=200)
        for first in range(0, len(prompts), 8):
            batch = prompts[first : first + 8]
            longest = max(map(len, batch))
            ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in batch])
            mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in batch])
            out = theirs.generate(ids, attention_mask=mask, max_new_tokens=200, do_sample=False, pad_token_id=0)
            for answer, row in zip(found[first : first + 8], out[:, longest:].tolist(), strict=True):
                ended = next((i for i, id in enumerate(row) if id in ours.stop_ids), len(row))
                assert answer == row[:ended]
    finally:
        torch.set_num_threads(1)


# The same answers whatever else happens


@pytest.mark.parametrize("sampling", [SamplingConfig(), DRAWN], ids=["greedy", "drawn"])
def test_answers_do_not_depend_on_batch_chunks_or_room(loaded, prompts, sampling):
    alone = [
        ids_of(Generator(loaded.model, loaded.tokenizer, loaded.stop_ids), [p], sampling=sampling, number=i)[0]
        for i, p in enumerate(prompts)
    ]
    size = place_bytes(loaded.model.config, torch.float32)
    for options in (
        {},
        {"max_sequences": 3},
        {"max_sequences": 1},
        {"step_tokens": 8, "max_sequences": 8},
        {"step_tokens": 11, "max_sequences": 4},
        {"memory": size * (max(LENGTHS) + NEW)},  # room for the longest alone
        {"memory": size * 200, "keep_prefixes": True},
    ):
        generator = Generator(loaded.model, loaded.tokenizer, loaded.stop_ids, **options)
        assert ids_of(generator, prompts, sampling=sampling) == alone, options
        assert ids_of(generator, prompts[::-1], sampling=sampling, number=0)[-1] == alone[0], options


def test_matrices_laid_out_for_several_sequences_give_the_same_answers_and_losses(folder, loaded, prompts):
    blocked = load_pretrained(folder, CPU, at_once=8)
    assert isinstance(blocked.model.head, BlockedHead)
    expected = ids_of(Generator(loaded.model, loaded.tokenizer, loaded.stop_ids), prompts)
    assert ids_of(Generator(blocked.model, blocked.tokenizer, blocked.stop_ids), prompts) == expected
    row = packed([torch.tensor(prompt) for prompt in prompts])
    assert blocked.model(row).item() == pytest.approx(loaded.model(row).item(), rel=1e-6)


@pytest.mark.parametrize("tokens", [1, 4, 64, 65])
@pytest.mark.parametrize("rows", [1, 47, 48, 97])
def test_a_product_in_blocks_is_the_product(tokens, rows):
    weight, x = torch.nn.Parameter(torch.randn(rows, 20, dtype=torch.float64)), torch.randn(tokens, 20).double()
    found = BlockedLinear(weight)(x)
    assert found.is_contiguous()
    torch.testing.assert_close(found, x @ weight.T, rtol=1e-12, atol=1e-12)


def test_a_long_prompt_is_read_in_chunks_as_at_once(tmp_path):
    folder = write_model(tmp_path, max_position_embeddings=8192, num_hidden_layers=1, initializer_range=0.3)
    loaded = load_pretrained(folder, CPU)
    (prompt,) = random_documents([5000], 320)
    expected = transformers_answer(load_transformers(folder), prompt.tolist(), 4, eos_token_id=None)
    for step_tokens in (4999, 700):
        generator = Generator(loaded.model, loaded.tokenizer, max_sequences=1, step_tokens=step_tokens)
        assert ids_of(generator, [prompt.tolist()], max_new_tokens=4) == [expected]


def test_a_request_joins_the_running_batch_and_changes_nothing(loaded, prompts):
    generator = Generator(loaded.model, loaded.tokenizer)
    expected = ids_of(generator, prompts[:2], max_new_tokens=12)
    first = generator.submit(Request(prompt=prompts[0], max_new_tokens=12))
    found = {}
    for number in range(20):
        if number == 5:
            second = generator.submit(Request(prompt=prompts[1], max_new_tokens=12))
        found |= {event.key: (number, event.answer.ids) for event in generator.step() if event.answer}
    assert found == {first: (11, expected[0]), second: (5 + 11, expected[1])}


def test_draws_differ_between_seeds_and_requests_and_repeat(loaded, prompts):
    generator, same = Generator(loaded.model, loaded.tokenizer), [prompts[0]] * 3
    sampling = SamplingConfig(temperature=1.5)
    first = ids_of(generator, same, sampling=sampling)
    assert len({tuple(ids) for ids in first}) == 3
    assert ids_of(generator, same, sampling=sampling) == first
    other = ids_of(generator, same, sampling=dataclasses.replace(sampling, seed=2))
    assert not {tuple(ids) for ids in first} & {tuple(ids) for ids in other}


def test_a_captured_step_gives_the_same_answers(loaded, prompts, monkeypatch):
    """With what a CUDA graph does done by hand: a step of fixed shapes reads its inputs from, and writes its logits to,
    where they were when it was captured."""

    class Replayed:
        def __init__(self, model, inputs):
            self.model, self.inputs = model, inputs
            self.logits_SV = model.next_logits(*inputs)

        def replay(self):
            replays.append(len(self.logits_SV))
            self.logits_SV.copy_(self.model.next_logits(*self.inputs))

    def capture(self, size, max_length):
        graph = Replayed(self.model, self.inputs([Chunk([0], 0, 0)] * size, max_length))
        return graph, graph.inputs, graph.logits_SV

    replays: list[int] = []
    expected = ids_of(Generator(loaded.model, loaded.tokenizer, loaded.stop_ids), prompts)
    monkeypatch.setattr(CachedModel, "capture", capture)
    generator = Generator(loaded.model, loaded.tokenizer, loaded.stop_ids)
    generator.cached.captures = True
    assert ids_of(generator, prompts) == expected
    assert set(replays) <= {1, 2, 4, 8}
    assert len(replays) >= NEW - 1


@pytest.mark.skipif(not ON_GPU, reason="CUDA graphs need a GPU")
def test_on_a_gpu_a_captured_step_gives_the_logits_of_a_plain_one(folder, prompts):
    model = load_pretrained(folder, torch.device("cuda")).model
    plain, captured = (CachedModel(model, 10**7, 10**4, cuda_graphs=graphs) for graphs in (False, True))
    starts = range(1, 8 * 600, 600)
    for cached in (plain, captured):
        cached.next_logits([Chunk(prompt, 0, start) for prompt, start in zip(prompts, starts, strict=True)])
    for step in range(5):  # of 5 sequences, which are filled up to 8
        chunks = [
            Chunk([7 * step + i], len(prompt) + step, start)
            for i, (prompt, start) in enumerate(zip(prompts[:5], starts, strict=False))
        ]
        expected, found = plain.next_logits(chunks).float(), captured.next_logits(chunks).float()
        assert (found - expected).abs().max() < 0.03 * expected.abs().max()
    assert list(captured.captured) == [(8, 1024)]


def test_memory_is_given_back_with_the_last_reference(loaded):
    """Not when garbage is next collected: an evaluation loads one model after the other."""
    generator = Generator(loaded.model, loaded.tokenizer)
    cache = weakref.ref(generator.cached.cache[0][0])
    gc.disable()
    try:
        del generator
        assert cache() is None
    finally:
        gc.enable()


# Ends


def test_an_answer_ends_at_a_stop_id_a_stop_string_or_its_length(loaded, prompts):
    generator = Generator(loaded.model, loaded.tokenizer)
    (whole,) = answers(generator, prompts[:1])
    assert (len(whole.ids), whole.finish_reason) == (NEW, "length")
    at = next(i for i in range(4, NEW) if whole.ids[i] not in whole.ids[:i])
    (stopped,) = answers(Generator(loaded.model, loaded.tokenizer, [whole.ids[at]]), prompts[:1])
    assert stopped == Answer(whole.ids[:at], loaded.tokenizer.decode(whole.ids[:at]), "stop")
    word = loaded.tokenizer.decode([whole.ids[at]])
    (cut,) = answers(generator, prompts[:1], stop=(f" {word} ",))
    assert cut.finish_reason == "stop"
    assert cut.text == whole.text[: whole.text.index(f" {word} ")]
    (ignoring,) = answers(Generator(loaded.model, loaded.tokenizer, [whole.ids[at]]), prompts[:1], ignore_stop_ids=True)
    assert ignoring == whole


def test_an_answer_ends_where_the_model_knows_no_more_positions(loaded):
    most = loaded.model.config.max_positions
    (answer,) = answers(Generator(loaded.model, loaded.tokenizer), [[5] * (most - 3)], max_new_tokens=10)
    assert (len(answer.ids), answer.finish_reason) == (3, "length")


def test_events_are_the_answer_in_pieces(loaded, prompts):
    generator = Generator(loaded.model, loaded.tokenizer)
    (expected,) = answers(generator, prompts[:1])
    key, events = generator.submit(Request(prompt=prompts[0], max_new_tokens=NEW)), []
    while generator.waiting or generator.running:
        events += generator.step()
    assert {event.key for event in events} == {key}
    assert "".join(event.text for event in events) == expected.text
    assert [event.answer for event in events] == [None] * (NEW - 1) + [expected]


def test_a_run_that_is_ended_early_leaves_nothing_behind(loaded, prompts):
    generator = Generator(loaded.model, loaded.tokenizer, max_sequences=2)
    run = generator.run(Request(prompt=prompt, max_new_tokens=4 + 3 * i) for i, prompt in enumerate(prompts[:5]))
    assert next(run)[0] == 0
    assert generator.running
    run.close()
    assert not generator.running
    assert not generator.waiting
    assert len(answers(generator, prompts[:2])) == 2


def test_logits_that_are_not_finite_are_named(tmp_path, prompts):
    """A draw among NaNs would be an id that the model does not have."""
    loaded = load_pretrained(write_model(tmp_path), CPU)
    loaded.model.head.weight[5] = float("nan")
    for temperature in (0.0, 1.0):
        with pytest.raises(ValueError, match="logits are not finite"):
            answers(
                Generator(loaded.model, loaded.tokenizer), prompts[:2], sampling=SamplingConfig(temperature=temperature)
            )


# Room


class NoModel:
    """Stands in for a model of which only the bookkeeping matters; every answer is token 2 over and over."""

    def __init__(self, places: int):
        self.places, self.device, self.dtype, self.taken = places, CPU, torch.float32, []

    def next_logits(self, chunks: list[Chunk]) -> torch.Tensor:
        self.taken.append([(chunk.start, chunk.known, len(chunk.tokens)) for chunk in chunks])
        return torch.nn.functional.one_hot(torch.full((len(chunks),), 2), 320).float()

    def copy(self, source: int, target: int, length: int) -> None:
        pass


@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(1, 12)), min_size=1, max_size=25),
    st.integers(42, 120),
    st.integers(1, 6),
    st.booleans(),
)
@settings(max_examples=60)
def test_no_place_is_two_requests_and_every_request_is_answered(loaded, sizes, places, max_sequences, keep_prefixes):
    generator = Generator(
        loaded.model, loaded.tokenizer, max_sequences=max_sequences, step_tokens=8, keep_prefixes=keep_prefixes
    )
    generator.cached = NoModel(places)
    for length, new in sizes:
        generator.submit(Request(prompt=[3] * length, max_new_tokens=new))
    begun, answered = [], {}
    while generator.running or generator.waiting:
        for event in generator.step():
            if event.answer:
                answered[event.key] = event.answer.ids
        held = sorted((a.start, a.start + a.last) for a in (*generator.running, *generator.kept))
        assert all(start >= 1 and stop <= places + 1 for start, stop in held)
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(held))
        assert len(generator.running) <= max_sequences
        begun += [active.key for active in generator.running if active.key not in begun]
    assert answered == {key: [2] * new for key, (_, new) in enumerate(sizes, 1)}
    assert begun == sorted(begun), "first come, first served"
    for step in generator.cached.taken:
        assert sum(count for _, _, count in step) <= 8


def test_answers_go_on_while_a_long_prompt_is_read(loaded):
    generator = Generator(loaded.model, loaded.tokenizer, max_sequences=2, step_tokens=8)
    generator.cached = NoModel(1000)
    generator.submit(Request(prompt=[3], max_new_tokens=50))
    generator.submit(Request(prompt=[3] * 100, max_new_tokens=2))
    for _ in range(12):
        generator.step()
    assert generator.cached.taken[1:12] == [[(1, known, 1), (52, 7 * known, 7)] for known in range(1, 12)]


def test_the_cache_takes_the_memory_that_was_stated_and_no_more_than_could_be_used(loaded):
    a_place = place_bytes(loaded.model.config, torch.float32)
    for memory, places in ((10**5, 10**5 // a_place), (10**9, 3 * 512)):
        cached = Generator(loaded.model, loaded.tokenizer, memory=memory, max_sequences=3).cached
        assert cached.places == places
        assert cached.cache[0][0].untyped_storage().nbytes() == (1 + places) * a_place <= memory + a_place


def test_a_chat_reads_only_what_is_new(loaded, prompts, monkeypatch):
    first, question = prompts[3], prompts[4]
    plain = Generator(loaded.model, loaded.tokenizer)
    (answer,) = ids_of(plain, [first])
    second = [*first, *answer, *question]
    (expected,) = ids_of(plain, [second])
    chat = Generator(loaded.model, loaded.tokenizer, keep_prefixes=True)
    assert ids_of(chat, [first]) == [answer]
    lengths = []
    next_logits = chat.cached.next_logits
    monkeypatch.setattr(chat.cached, "next_logits", lambda c: lengths.append(len(c[0].tokens)) or next_logits(c))
    assert ids_of(chat, [second]) == [expected]
    assert lengths[0] == len(question) + 1, "all but the first answer's last token, which was never put in"


def test_a_chat_grows_where_it_is_when_the_cache_has_no_second_place(loaded, prompts, monkeypatch):
    """Its beginning moves up or down, or stays; what is kept of other requests makes room first."""
    plain = Generator(loaded.model, loaded.tokenizer)
    places = place_bytes(loaded.model.config, torch.float32) * 200
    chat = Generator(loaded.model, loaded.tokenizer, memory=places, max_sequences=1, keep_prefixes=True)
    ids_of(chat, [prompts[0]], max_new_tokens=8)
    said, read, starts = list(prompts[1]), [], []
    next_logits = chat.cached.next_logits
    monkeypatch.setattr(chat.cached, "next_logits", lambda c: read.append(c[0]) or next_logits(c))
    for new in (8, 60, 60, 8):
        read.clear()
        (answer,) = ids_of(chat, [said], max_new_tokens=new)
        assert answer == ids_of(plain, [said], max_new_tokens=new)[0]
        starts.append((read[0].start, read[0].known))
        said += [*answer, 7, 8, 9]
    known = [0, 5 + 7, 5 + 8 + 3 + 59, 5 + 8 + 3 + 60 + 3 + 59]
    assert starts == list(zip([45, 57, 1, 1], known, strict=True))
    assert len(chat.kept) == 1


@pytest.mark.parametrize("steps", [1, 3, 20])
def test_what_was_read_of_a_cancelled_request_is_not_read_again(loaded, prompts, steps):
    """Cancelled in its prompt, which takes 9 steps, or in its answer."""
    prompt = prompts[3] + prompts[0][:6]
    (expected,) = ids_of(Generator(loaded.model, loaded.tokenizer), [prompt])
    chat = Generator(loaded.model, loaded.tokenizer, max_sequences=1, step_tokens=8, keep_prefixes=True)
    key = chat.submit(Request(prompt=prompt))
    for _ in range(steps):
        chat.step()
    chat.cancel(key)
    assert not chat.running
    chat.submit(Request(prompt=prompt, max_new_tokens=NEW))
    chat.admit()
    assert chat.running[0].known == min(8 * steps, len(prompt) - 1)
    answer = next(event.answer for _ in range(100) for event in chat.step() if event.answer)
    assert answer.ids == expected


# What is loaded


def test_an_adapter_is_merged_into_the_model_it_names(folder, tmp_path):
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model

    torch.manual_seed(0)
    model = get_peft_model(
        load_transformers(folder), PeftConfig(r=4, lora_alpha=16, target_modules=["q_proj", "v_proj", "up_proj"])
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(tmp_path)
    ours, ids = load_pretrained(tmp_path, CPU), [3, 4, 5, 6]
    plain = load_pretrained(folder, CPU)
    expected = transformers_answer(model, ids, NEW, eos_token_id=None)
    assert ids_of(Generator(ours.model, ours.tokenizer), [ids]) == [expected]
    assert ids_of(Generator(plain.model, plain.tokenizer), [ids]) != [expected]
    assert ours.folder == folder
    edit_json(tmp_path / "adapter_config.json")  # takes nulls out, as it will below
    copy = shutil.copytree(tmp_path, tmp_path.with_name("a_copy"))
    edit_json(copy / "adapter_config.json", base_model_name_or_path=os.path.relpath(folder))
    assert digest(copy) == digest(tmp_path) != digest(folder)
    edit_json(copy / "adapter_config.json", lora_alpha=17)
    assert digest(copy) != digest(tmp_path)


def damaged(folder: Path, loaded_from: Path) -> Iterator[tuple[str, Path, str]]:
    for name in ("no tokenizer", "large tokenizer", "strange stop", "lost base"):
        copy = folder / name.replace(" ", "_")
        copy.mkdir()
        for file in loaded_from.iterdir():
            (copy / file.name).write_bytes(file.read_bytes())
        if name == "no tokenizer":
            (copy / "tokenizer.json").unlink()
            yield name, copy, "no tokenizer.json or tokenizer.model"
        if name == "large tokenizer":
            write_tokenizer(copy, 400)
            yield name, copy, "its tokenizer has 400 ids, its model only 320"
        if name == "strange stop":
            edit_json(copy / "generation_config.json", eos_token_id="</s>")
            yield name, copy, 'eos_token_id = "</s>"; expected an id or a list of ids'
        if name == "lost base":
            adapter.save(copy, {}, load_pretrained(loaded_from, CPU).model.config, LoraConfig(rank=1), "/nowhere")
            yield name, copy, 'base_model_name_or_path = "/nowhere" is no folder here; set it to the model\'s folder'


def test_a_folder_that_is_no_model_is_named(folder, tmp_path):
    cases = list(damaged(tmp_path, folder))
    assert len(cases) == 4
    for name, path, message in cases:
        with pytest.raises(ValueError) as error:
            load_pretrained(path, CPU)
        assert message in str(error.value), name
        assert str(path) in str(error.value)


def test_a_request_that_can_never_be_answered_is_refused(loaded):
    generator = Generator(loaded.model, loaded.tokenizer, memory=place_bytes(loaded.model.config, torch.float32) * 100)
    for request, message in (
        ({"prompt": [1] * 512}, "a prompt of 512 tokens: the model knows 512 positions"),
        ({"prompt": [1] * 90, "max_new_tokens": 11}, "an answer of up to 11 take .* room for 100 tokens in all"),
        ({"prompt": [1, 320], "max_new_tokens": 5}, "token id 320: the model has 320"),
        ({"prompt": []}, "a prompt of no tokens"),
        ({"prompt": [1], "max_new_tokens": 0}, "max_new_tokens = 0"),
        ({"prompt": [1], "stop": ("",)}, "an empty stop string"),
    ):
        with pytest.raises(ValueError, match=message):
            generator.submit(Request(**request))
    with pytest.raises(ValueError, match="step_tokens = 8"):
        Generator(loaded.model, loaded.tokenizer, max_sequences=9, step_tokens=8)
    assert not generator.waiting
