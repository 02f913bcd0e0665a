"""A model with a cache of keys and values, by which many sequences of unequal length are continued in one call.

The cache has C slots, allocated once, each for the key and the value of one token in every layer. A sequence occupies
successive slots, which the caller chooses. The new tokens of all sequences are put through the model end to end,
without padding.

On a GPU a call with one token for each sequence is captured as a CUDA graph, because the host takes longer to launch
its hundreds of small kernels than the GPU takes to run them. A graph has fixed shapes, so the number of sequences is
filled up to a power of two; it has fixed kernels, so there is a graph for each power of two of the longest sequence, by
which attention splits sequences over the processors.

Shapes in names: T new tokens, S sequences, C slots, K key-value heads, H head size, V vocabulary.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from logtrain.core.batch import Batch
from logtrain.model.llama import CacheSlots, LayerCache, Llama, LlamaConfig

LEAST_LENGTH = 1024  # tokens of the longest sequence for which the first graph is captured


class Chunk(NamedTuple):
    """The new tokens of one sequence."""

    tokens: Sequence[int]
    """Ids of the new tokens, at least one."""
    num_cached: int
    """Number of tokens before them, whose keys and values are in the cache."""
    first_slot: int
    """Slot of the sequence's first token."""


PADDING = Chunk([0], 0, 0)  # a sequence that fills a captured step up


class StepInputs(NamedTuple):
    """The arguments of `Llama.next_logits`."""

    batch: Batch
    """The new tokens of all sequences, without labels."""
    cache: list[LayerCache]
    """Keys and values of each layer, with the slots of the sequences."""


class CapturedStep(NamedTuple):
    """A step with one token for each sequence, as a CUDA graph."""

    graph: torch.cuda.CUDAGraph
    """The recorded kernels."""
    inputs: StepInputs
    """The tensors that the graph reads."""
    logits_SV: Tensor
    """The tensor that the graph writes."""

    def replay(self, inputs: StepInputs) -> Tensor:
        """Logits [S, V] for other inputs of the same shapes; valid until the next replay."""
        for into, value in zip(tree_leaves(self.inputs), tree_leaves(inputs), strict=True):
            if isinstance(into, Tensor) and into is not value:  # the cache is the same
                into.copy_(value)
        self.graph.replay()
        return self.logits_SV


def slot_bytes(shape: LlamaConfig, dtype: torch.dtype) -> int:
    """Bytes of a slot: the keys and values of one token in all layers."""
    return 2 * shape.num_layers * shape.num_kv_heads * shape.head_dim * dtype.itemsize


class CachedModel:
    """A model with its cache. num_slots: the slots that sequences may use, numbered from 1; slot 0 is for padding."""

    def __init__(self, model: Llama, memory: int, max_slots: int, cuda_graphs: bool = True):
        """`memory`: the most bytes for the cache. `max_slots`: the most slots that could ever be used. `cuda_graphs`:
        replay steps of one token for each sequence as CUDA graphs, on a GPU.
        """
        self.model, self.shape = model, model.config
        weight = model.embedding.weight
        self.device, self.dtype = weight.device, weight.dtype
        self.num_slots = min(memory // slot_bytes(self.shape, self.dtype), max_slots)
        size = (self.shape.num_layers, 2, 1 + self.num_slots, self.shape.num_kv_heads, self.shape.head_dim)
        # Zeros, because memory that nobody has written may hold NaN, which a mask does not remove.
        self.cache = [tuple(layer) for layer in torch.zeros(size, device=self.device, dtype=self.dtype)]
        self.uses_graphs = cuda_graphs and self.device.type == "cuda"
        self.graph_pool = torch.cuda.graph_pool_handle() if self.uses_graphs else None
        self.captured: dict[tuple[int, int], CapturedStep] = {}  # by number of sequences, and tokens of the longest

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy keys and values of `length` tokens from slot `source` on to slot `target` on; the two may overlap."""
        for keys_and_values in self.cache:
            for x_CKH in keys_and_values:
                x_CKH[target : target + length] = x_CKH[source : source + length].clone()

    @torch.inference_mode()
    def next_logits(self, chunks: Sequence[Chunk]) -> Tensor:
        """The logits of the token after each chunk, [S, V] in the model's dtype; they are valid until the next call."""
        if not self.uses_graphs or any(len(chunk.tokens) > 1 for chunk in chunks):
            return self.compute(self.inputs(chunks))
        longest = max(chunk.num_cached + 1 for chunk in chunks)
        key = power_of_two(len(chunks)), max(LEAST_LENGTH, power_of_two(longest))
        if key not in self.captured:
            self.captured[key] = self.capture(*key)
        return self.captured[key].replay(self.inputs(padded(chunks)))[: len(chunks)]

    def compute(self, inputs: StepInputs) -> Tensor:
        """The logits [S, V] of a step, without a graph."""
        return self.model.next_logits(inputs.batch, inputs.cache)

    def capture(self, num_sequences: int, max_length: int) -> CapturedStep:
        """Capture a step with one token for each sequence, none of which has more than `max_length` tokens."""
        inputs = self.inputs([PADDING] * num_sequences, max_length)
        self.compute(inputs)  # compiles the kernels
        torch.cuda.synchronize(self.device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.graph_pool):
            logits_SV = self.compute(inputs)
        return CapturedStep(graph, inputs, logits_SV)

    def inputs(self, chunks: Sequence[Chunk], max_length: int = 0) -> StepInputs:
        """The model's inputs for a step. `max_length`: an upper bound of the tokens in a sequence; 0 takes the longest
        one's.
        """
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
    """The smallest power of two that is at least `number`."""
    return 1 << (number - 1).bit_length()


def padded(chunks: Sequence[Chunk]) -> list[Chunk]:
    """The chunks, followed by padding up to a power of two of them."""
    return [*chunks, *[PADDING] * (power_of_two(len(chunks)) - len(chunks))]
