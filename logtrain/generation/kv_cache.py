"""A model with a cache of keys and values: many sequences of unequal length go on in one call.

The cache has C slots, allocated once, each of them for one token's key and value in every layer. A sequence lies in a
run of slots; which one is the caller's to decide. The new tokens of all sequences are put through the model end to end,
without padding.

A call with one token a sequence always has the same shapes, up to the next power of two of sequences, and the same
kernels, up to the next power of two of tokens in the longest: by it attention splits long sequences over the
processors. On a GPU it is captured as a CUDA graph: for its hundreds of small kernels the host takes longer than the
GPU.

Shapes in names: T new tokens, S sequences, C slots, K key-value heads, H head size, V vocabulary.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from logtrain.core.batch import Batch
from logtrain.model.llama import CacheSlots, LayerCache, Llama, LlamaConfig

LEAST_LENGTH = 1024  # tokens in the longest sequence that a captured step is made for


class Chunk(NamedTuple):
    """How one sequence goes on."""

    tokens: Sequence[int]
    """new ones, at least one"""
    num_cached: int
    """tokens before them, whose keys and values are in the cache"""
    first_slot: int
    """slot of the sequence's first token"""


PADDING = Chunk([0], 0, 0)  # fills up a captured step


class StepInputs(NamedTuple):
    """What `Llama.next_logits` takes."""

    batch: Batch
    cache: list[LayerCache]


class CapturedStep(NamedTuple):
    """A call with one token for each of a number of sequences, as a CUDA graph."""

    graph: torch.cuda.CUDAGraph
    inputs: StepInputs
    """the tensors that the graph reads"""
    logits_SV: Tensor
    """the tensor that it writes"""

    def replay(self, inputs: StepInputs) -> Tensor:
        """Logits [S, V] for other inputs of the same shapes; valid until the next replay."""
        for into, value in zip(tree_leaves(self.inputs), tree_leaves(inputs), strict=True):
            if isinstance(into, Tensor) and into is not value:  # the cache is the same
                into.copy_(value)
        self.graph.replay()
        return self.logits_SV


def slot_bytes(shape: LlamaConfig, dtype: torch.dtype) -> int:
    """Memory of a slot: one token's keys and values in all layers."""
    return 2 * shape.num_layers * shape.num_kv_heads * shape.head_dim * dtype.itemsize


class CachedModel:
    """num_slots: slots that sequences may use, numbered from 1; slot 0 is for padding."""

    def __init__(self, model: Llama, memory: int, max_slots: int, cuda_graphs: bool = True):
        """`memory`: bytes for the cache at most; `max_slots`: slots that could ever be used."""
        self.model, self.shape = model, model.config
        weight = model.embedding.weight
        self.device, self.dtype = weight.device, weight.dtype
        self.num_slots = min(memory // slot_bytes(self.shape, self.dtype), max_slots)
        size = (self.shape.num_layers, 2, 1 + self.num_slots, self.shape.num_kv_heads, self.shape.head_dim)
        # Zeros: what nobody has written may be NaN, and a masked NaN is one still.
        self.cache = [tuple(layer) for layer in torch.zeros(size, device=self.device, dtype=self.dtype)]
        self.uses_graphs = cuda_graphs and self.device.type == "cuda"
        self.graph_pool = torch.cuda.graph_pool_handle() if self.uses_graphs else None
        self.captured: dict[tuple[int, int], CapturedStep] = {}  # by number of sequences, and tokens of the longest

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy keys and values of so many tokens from the slots at `source` to those at `target`; both may overlap."""
        for keys_and_values in self.cache:
            for x_CKH in keys_and_values:
                x_CKH[target : target + length] = x_CKH[source : source + length].clone()

    @torch.inference_mode()
    def next_logits(self, chunks: Sequence[Chunk]) -> Tensor:
        """What follows the last token of each chunk: [S, V], in the model's dtype; valid until the next call."""
        if not self.uses_graphs or any(len(chunk.tokens) > 1 for chunk in chunks):
            return self.compute(self.inputs(chunks))
        longest = max(chunk.num_cached + 1 for chunk in chunks)
        key = power_of_two(len(chunks)), max(LEAST_LENGTH, power_of_two(longest))
        if key not in self.captured:
            self.captured[key] = self.capture(*key)
        return self.captured[key].replay(self.inputs(padded(chunks)))[: len(chunks)]

    def compute(self, inputs: StepInputs) -> Tensor:
        """Logits [S, V] of a step, its kernels launched one by one."""
        return self.model.next_logits(inputs.batch, inputs.cache)

    def capture(self, num_sequences: int, max_length: int) -> CapturedStep:
        """A step with one token for each sequence, none of which has more than `max_length` tokens."""
        inputs = self.inputs([PADDING] * num_sequences, max_length)
        self.compute(inputs)  # compiles the kernels
        torch.cuda.synchronize(self.device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.graph_pool):
            logits_SV = self.compute(inputs)
        return CapturedStep(graph, inputs, logits_SV)

    def inputs(self, chunks: Sequence[Chunk], max_length: int = 0) -> StepInputs:
        """The model's inputs for a step; `max_length`: tokens of its longest sequence, or more (0: just as many)."""
        tokens, positions, at, ends, lengths = [], [], [], [0], []
        for new, num_cached, first_slot in chunks:
            tokens += new
            positions += range(num_cached, num_cached + len(new))
            at += range(first_slot + num_cached, first_slot + num_cached + len(new))
            ends.append(len(tokens))
            lengths.append(num_cached + len(new))
        starts = [*(chunk.first_slot for chunk in chunks), 0]

        def tensor(values: list[int], dtype: torch.dtype = torch.int32) -> Tensor:
            return torch.tensor(values, dtype=dtype).to(self.device, non_blocking=True)

        slots = CacheSlots(tensor(at, torch.int64), tensor(starts), tensor(lengths), max_length or max(lengths))
        longest = max(len(chunk.tokens) for chunk in chunks)
        batch = Batch(tensor(tokens, torch.int64), None, tensor(positions), tensor(ends), longest)
        return StepInputs(batch, [LayerCache(keys_CKH, values_CKH, slots) for keys_CKH, values_CKH in self.cache])


def power_of_two(number: int) -> int:
    """The least power of two that is not below a number."""
    return 1 << (number - 1).bit_length()


def padded(chunks: Sequence[Chunk]) -> list[Chunk]:
    """The chunks, filled up to a power of two of them."""
    return [*chunks, *[PADDING] * (power_of_two(len(chunks)) - len(chunks))]
