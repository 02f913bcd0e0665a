"""A cache has the memory that it was given, and a captured step gives the logits of a plain one."""

import gc
import weakref

import pytest
import torch

from logtrain.generation.kv_cache import CachedModel, CapturedStep, Chunk, slot_bytes
from logtrain.generation.load import ModelFolder
from tests.support.generation import NEW, ids_of, new_generator
from tests.support.precision import ON_GPU


def test_a_captured_step_gives_the_same_answers(loaded, prompts, monkeypatch):
    """With what a CUDA graph does done by hand: a step of fixed shapes reads its inputs from, and writes its logits to,
    where they were when it was captured."""

    class Replayed:
        def __init__(self, cached, inputs):
            self.cached, self.inputs = cached, inputs
            self.logits_SV = cached.compute(inputs)

        def replay(self):
            replays.append(len(self.logits_SV))
            self.logits_SV.copy_(self.cached.compute(self.inputs))

    def capture(self, num_sequences, max_length, is_adapted):
        graph = Replayed(self, self.inputs([Chunk([0], 0, 0)] * num_sequences, max_length, is_adapted))
        return CapturedStep(graph, graph.inputs, graph.logits_SV)

    replays: list[int] = []
    expected = ids_of(new_generator(loaded, loaded.folder.stop_ids), prompts)
    monkeypatch.setattr(CachedModel, "capture", capture)
    generator = new_generator(loaded, loaded.folder.stop_ids, drafting=False)  # as on a GPU
    generator.cached.uses_graphs = True
    assert ids_of(generator, prompts) == expected
    assert set(replays) <= {1, 2, 4, 8}
    assert len(replays) >= NEW - 1


@pytest.mark.skipif(not ON_GPU, reason="CUDA graphs need a GPU")
def test_on_a_gpu_a_captured_step_gives_the_logits_of_a_plain_one(folder, prompts):
    model = ModelFolder(folder).load(torch.device("cuda")).model
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
    assert list(captured.captured) == [(8, 1024, False)]


def test_memory_is_given_back_with_the_last_reference(loaded):
    """Not when garbage is next collected: an evaluation loads one model after the other."""
    generator = new_generator(loaded)
    cache = weakref.ref(generator.cached.cache[0][0])
    gc.disable()
    try:
        del generator
        assert cache() is None
    finally:
        gc.enable()


def test_the_cache_takes_the_memory_that_was_stated_and_no_more_than_could_be_used(loaded):
    a_slot = slot_bytes(loaded.model.config, torch.float32)
    for memory, num_slots in ((10**5, 10**5 // a_slot), (10**9, 3 * 512)):
        cached = new_generator(loaded, memory=memory, max_sequences=3).cached
        assert cached.num_slots == num_slots
        assert cached.cache[0][0].untyped_storage().nbytes() == (1 + num_slots) * a_slot <= memory + a_slot
