"""A model with a cache of keys and values: many sequences of unequal length go on in one call.

The cache has C places, allocated once, of a key and a value in every layer. A sequence lies in a run of them; which one
is the caller's to decide. The new tokens of all sequences are put through the model end to end, without padding.

A call with one token a sequence always has the same shapes, up to the next power of two of sequences, and the same
kernels, up to the next power of two of tokens in the longest: by it attention splits long sequences over the
processors. On a GPU it is captured as a CUDA graph: for its hundreds of small kernels the host takes longer than the
GPU.

Shapes in names: T new tokens, S sequences, C places, K key-value heads, H head size, V vocabulary.
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
    known: int
    """tokens before them, whose keys and values are in the cache"""
    start: int
    """place of the sequence's first token"""


IDLE = Chunk([0], 0, 0)  # fills up a captured step


def place_bytes(shape: LlamaConfig, dtype: torch.dtype) -> int:
    """Of one token's keys and values in all layers."""
    return 2 * shape.num_layers * shape.num_kv_heads * shape.head_dim * dtype.itemsize


class CachedModel:
    """places: how many sequences may use, numbered from 1; place 0 is for what fills up a step."""

    def __init__(self, model: Llama, memory: int, most: int, cuda_graphs: bool = True):
        """`memory`: bytes for the cache at most; `most`: places that could ever be used."""
        self.model, self.shape = model, model.config
        weight = model.embedding.weight
        self.device, self.dtype = weight.device, weight.dtype
        self.places = min(memory // place_bytes(self.shape, self.dtype), most)
        size = (self.shape.num_layers, 2, 1 + self.places, self.shape.num_kv_heads, self.shape.head_dim)
        # Zeros: what nobody has written may be NaN, and a masked NaN is one still.
        self.cache = [tuple(layer) for layer in torch.zeros(size, device=self.device, dtype=self.dtype)]
        self.captures = cuda_graphs and self.device.type == "cuda"
        self.pool = torch.cuda.graph_pool_handle() if self.captures else None
        self.captured: dict[tuple[int, int], tuple] = {}  # (sequences, tokens of the longest) -> what `capture` gives

    def copy(self, source: int, target: int, length: int) -> None:
        """Keys and values of a sequence's first tokens, to where another begins; the two may overlap."""
        for keys_and_values in self.cache:
            for x_CKH in keys_and_values:
                x_CKH[target : target + length] = x_CKH[source : source + length].clone()

    @torch.inference_mode()
    def next_logits(self, chunks: Sequence[Chunk]) -> Tensor:
        """What follows the last token of each chunk: [S, V], in the model's dtype; valid until the next call."""
        if not self.captures or any(len(chunk.tokens) > 1 for chunk in chunks):
            return self.model.next_logits(*self.inputs(chunks))
        longest = max(chunk.known + 1 for chunk in chunks)
        key = power_of_two(len(chunks)), max(LEAST_LENGTH, power_of_two(longest))
        if key not in self.captured:
            self.captured[key] = self.capture(*key)
        graph, inputs, logits_SV = self.captured[key]
        for static, new in zip(inputs, self.inputs(filled_up(chunks)), strict=True):
            for into, value in zip(tree_leaves(static), tree_leaves(new), strict=True):
                if isinstance(into, Tensor) and into is not value:  # the cache is the same
                    into.copy_(value)
        graph.replay()
        return logits_SV[: len(chunks)]

    def capture(self, size: int, max_length: int) -> tuple[torch.cuda.CUDAGraph, tuple, Tensor]:
        """A call with one token for each of `size` sequences: -> (graph, its inputs, what it writes its logits to)."""
        inputs = self.inputs([IDLE] * size, max_length)
        self.model.next_logits(*inputs)  # compiles the kernels
        torch.cuda.synchronize(self.device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            logits_SV = self.model.next_logits(*inputs)
        return graph, inputs, logits_SV

    def inputs(self, chunks: Sequence[Chunk], max_length: int = 0) -> tuple[Batch, list[LayerCache]]:
        """What `Llama.next_logits` takes. `max_length`: more than the longest sequence has."""
        tokens, positions, at, ends, lengths = [], [], [], [0], []
        for new, known, start in chunks:
            tokens += new
            positions += range(known, known + len(new))
            at += range(start + known, start + known + len(new))
            ends.append(len(tokens))
            lengths.append(known + len(new))
        starts = [*(chunk.start for chunk in chunks), 0]

        def tensor(values: list[int], dtype: torch.dtype = torch.int32) -> Tensor:
            return torch.tensor(values, dtype=dtype).to(self.device, non_blocking=True)

        slots = CacheSlots(tensor(at, torch.int64), tensor(starts), tensor(lengths), max_length or max(lengths))
        longest = max(len(chunk.tokens) for chunk in chunks)
        batch = Batch(tensor(tokens, torch.int64), None, tensor(positions), tensor(ends), longest)
        return batch, [LayerCache(keys_CKH, values_CKH, slots) for keys_CKH, values_CKH in self.cache]


def power_of_two(number: int) -> int:
    """The least that is not below it."""
    return 1 << (number - 1).bit_length()


def filled_up(chunks: Sequence[Chunk]) -> list[Chunk]:
    return [*chunks, *[IDLE] * (power_of_two(len(chunks)) - len(chunks))]
