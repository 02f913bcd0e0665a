"""Rows of different adapters in one batch answer as each adapter does alone, merged into its model."""

import itertools

import pytest
import torch

from logtrain.generation.adapters import serve_adapters
from logtrain.generation.generator import Generator
from logtrain.generation.load import ModelFolder
from logtrain.generation.request import Request
from logtrain.model import peft
from logtrain.model.config import LoraConfig
from tests.support.generation import CPU, ids_of, new_generator
from tests.support.lora import TARGETS, adapted, trained

CONFIGS = [
    LoraConfig(rank=rank, alpha=alpha, targets=TARGETS[targets])
    for rank, alpha, targets in ((3, 5.0, "all"), (2, 8.0, "q and down"), (5, 4.0, "k, v, o and up"), (1, 9.0, "all"))
]


@pytest.fixture(scope="module")
def adapters(folder, tmp_path_factory):
    """(folder, config, tensors) of each adapter; no two have the same layers and rank."""
    found = []
    for config in CONFIGS:
        at = tmp_path_factory.mktemp("adapter")
        model = adapted(folder, config)
        tensors = {name: tensor * (1 + config.rank) for name, tensor in trained(model).items()}
        peft.save(at, tensors, model.config, config, str(folder))
        found.append((at, *peft.read(at, model.config)))
    return found


@pytest.fixture
def generator(folder, adapters) -> Generator:
    loaded = ModelFolder(folder).load(CPU)
    serve_adapters(loaded.model, [(config, tensors) for _, config, tensors in adapters])
    return new_generator(loaded, keep_prefixes=True)


def test_rows_of_all_adapters_in_one_batch_answer_as_each_alone(generator, adapters, folder, prompts):
    expected = [
        ids_of(new_generator(ModelFolder(path).load(CPU)), prompts) for path in (folder, *(a[0] for a in adapters))
    ]
    assert len({str(answers) for answers in expected}) == 5, "adapters that change nothing prove nothing"
    cases = list(itertools.product(range(5), range(len(prompts))))
    cases = cases[::3] + cases[1::3] + cases[2::3]
    requests = [Request(prompt=prompts[i], max_new_tokens=24, adapter=adapter) for adapter, i in cases]
    found = {cases[number]: answer.ids for number, answer in generator.run(requests)}
    assert found == {(adapter, i): expected[adapter][i] for adapter, i in cases}


def test_a_prefix_is_not_reused_for_another_adapter(generator, prompts):
    for adapter, reused in ((1, 0), (2, 0), (0, 0), (2, len(prompts[5]) - 1)):
        ((_, answer),) = generator.run([Request(prompt=prompts[5], max_new_tokens=2, adapter=adapter)])
        assert answer.reused == reused


def test_an_unknown_adapter_is_refused(generator, loaded, prompts):
    with pytest.raises(ValueError, match="adapter 5: the model has 4"):
        generator.submit(Request(prompt=prompts[0], adapter=5))
    with pytest.raises(ValueError, match="adapter 1: the model has 0"):
        new_generator(loaded).submit(Request(prompt=prompts[0], adapter=1))


def test_the_model_itself_is_computed_bit_by_bit_as_without_adapters(generator, folder, prompts):
    plain = ModelFolder(folder).load(CPU)
    requests = [Request(prompt=prompt, max_new_tokens=3, logprobs=5) for prompt in prompts]
    logprobs = []
    for each in (generator, new_generator(plain)):
        ids = [each.submit(request) for request in requests]
        events = [event for _ in range(3) for event in each.step()]
        logprobs.append([event.logprob for id in ids for event in events if event.request_id == id])
    assert logprobs[0] == logprobs[1]
    assert not torch.is_grad_enabled() or len(logprobs[0]) == 24
