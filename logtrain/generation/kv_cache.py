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
from logtrain.generation.adapters import adapters_of
from logtrain.generation.logits import token_logprobs
from logtrain.generation.request import TokenLogprob
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
    adapter: int = 0
    """The adapter that computes them, counted from 1; 0: the model itself."""
    num_drafts: int = 0
    """How many tokens at its end are drafts. Logits are wanted after each of them, and after the token before them."""


class Scored(NamedTuple):
    """A chunk after each of whose tokens the log-probability of a given token is wanted."""

    index: int
    """Its place among the chunks."""
    targets: Sequence[int]
    """The ids of these tokens; if there are fewer than in the chunk, those after its first tokens."""
    num_top: int
    """How many of the likeliest tokens are told too."""


TokenLogprobs = list[TokenLogprob]
SCORED_AT_ONCE = 256  # tokens whose logits are there at the same time: 128 MiB in fp32 for 128,256 of them


PADDING = Chunk([0], 0, 0)  # a sequence that fills a captured step up


class StepInputs(NamedTuple):
    """What a step reads."""

    batch: Batch
    """The new tokens of all sequences, without labels."""
    cache: list[LayerCache]
    """Keys and values of each layer, with the slots of the sequences."""
    adapters_T: Tensor | None
    """int64: the adapter of each token; None where no sequence has one."""
    rows_R: Tensor
    """int64: the tokens after which logits are wanted."""


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
    """A model with its cache. num_slots: the slots that sequences may use, numbered from 1; slot 0 is for padding.
    adapters: those that chunks may name, None if the model has none.
    """

    def __init__(self, model: Llama, memory: int, max_slots: int, cuda_graphs: bool = True):
        """`memory`: the most bytes for the cache. `max_slots`: the most slots that could ever be used. `cuda_graphs`:
        replay steps of one token for each sequence as CUDA graphs, on a GPU.
        """
        self.model, self.shape = model, model.config
        weight = model.embedding.weight
        self.device, self.dtype = weight.device, weight.dtype
        self.num_slots = min(memory // slot_bytes(self.shape, self.dtype), max_slots)
        K, C, H = self.shape.num_kv_heads, 1 + self.num_slots, self.shape.head_dim
        # Zeros, because memory that nobody has written may hold NaN, which a mask does not remove.
        if self.device.type == "cpu":  # head by head: attention reads a sequence of 2,000 tokens in 0.55 of the time
            cache = torch.zeros(self.shape.num_layers, 2, K, C, H, dtype=self.dtype).transpose(2, 3)
        else:
            cache = torch.zeros(self.shape.num_layers, 2, C, K, H, dtype=self.dtype, device=self.device)
        self.cache = [tuple(layer) for layer in cache]
        self.uses_graphs = cuda_graphs and self.device.type == "cuda"
        self.graph_pool = torch.cuda.graph_pool_handle() if self.uses_graphs else None
        self.adapters = adapters_of(model)
        # By number of sequences, tokens of the longest, and whether any has an adapter.
        self.captured: dict[tuple[int, int, bool], CapturedStep] = {}

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy keys and values of `length` tokens from slot `source` on to slot `target` on; the two may overlap."""
        for keys_and_values in self.cache:
            for x_CKH in keys_and_values:
                x_CKH[target : target + length] = x_CKH[source : source + length].clone()

    @torch.inference_mode()
    def next_logits(self, chunks: Sequence[Chunk]) -> Tensor:
        """The logits after each chunk, and where it ends in drafts after each of them and the token before them: [R, V]
        in the model's dtype. They are valid until the next call.
        """
        if not self.uses_graphs or any(len(chunk.tokens) > 1 for chunk in chunks):
            return self.compute(self.inputs(chunks))
        longest = max(chunk.num_cached + 1 for chunk in chunks)
        is_adapted = any(chunk.adapter for chunk in chunks)
        key = power_of_two(len(chunks)), max(LEAST_LENGTH, power_of_two(longest)), is_adapted
        if key not in self.captured:
            self.captured[key] = self.capture(*key)
        return self.captured[key].replay(self.inputs(padded(chunks), is_adapted=is_adapted))[: len(chunks)]

    def compute(self, inputs: StepInputs) -> Tensor:
        """The logits [R, V] of a step, without a graph."""
        if self.adapters:
            self.adapters.choose(inputs.adapters_T)
        x_TD, residual_TD = self.model.decode(inputs.batch, inputs.cache)
        return self.model.head(x_TD[inputs.rows_R], residual_TD[inputs.rows_R], None)

    @torch.inference_mode()
    def scored_logits(self, chunks: Sequence[Chunk], scored: Sequence[Scored]) -> tuple[Tensor, list[TokenLogprobs]]:
        """What `next_logits` returns, and the log-probabilities of the targets of each of `scored`."""
        inputs = self.inputs(chunks)
        if self.adapters:
            self.adapters.choose(inputs.adapters_T)
        x_TD, residual_TD = self.model.decode(inputs.batch, inputs.cache)
        bounds, found = inputs.batch.cu_seqlens.tolist(), []
        for index, targets, num_top in scored:
            logprobs = []
            for at in range(0, len(targets), SCORED_AT_ONCE):
                ids = targets[at : at + SCORED_AT_ONCE]
                rows = slice(bounds[index] + at, bounds[index] + at + len(ids))
                logprobs += token_logprobs(self.model.head(x_TD[rows], residual_TD[rows], None), ids, num_top)
            found.append(logprobs)
        return self.model.head(x_TD[inputs.rows_R], residual_TD[inputs.rows_R], None), found

    def capture(self, num_sequences: int, max_length: int, is_adapted: bool) -> CapturedStep:
        """Capture a step with one token for each sequence, none of which has more than `max_length` tokens."""
        inputs = self.inputs([PADDING] * num_sequences, max_length, is_adapted)
        self.compute(inputs)  # compiles the kernels
        torch.cuda.synchronize(self.device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.graph_pool):
            logits_SV = self.compute(inputs)
        return CapturedStep(graph, inputs, logits_SV)

    def inputs(self, chunks: Sequence[Chunk], max_length: int = 0, is_adapted: bool = False) -> StepInputs:
        """The model's inputs for a step. `max_length`: an upper bound of the tokens in a sequence; 0 takes the longest
        one's. `is_adapted`: name the adapters of all tokens even if no chunk has one.
        """
        tokens, positions, at, ends, lengths, adapters, rows = [], [], [], [0], [], [], []
        for new, num_cached, first_slot, adapter, num_drafts in chunks:
            tokens += new
            adapters += [adapter] * len(new)
            positions += range(num_cached, num_cached + len(new))
            at += range(first_slot + num_cached, first_slot + num_cached + len(new))
            ends.append(len(tokens))
            rows += range(len(tokens) - 1 - num_drafts, len(tokens))
            lengths.append(num_cached + len(new))
        starts = [*(chunk.first_slot for chunk in chunks), 0]

        def tensor(values: list[int], dtype: torch.dtype = torch.int32) -> Tensor:
            return torch.tensor(values, dtype=dtype).to(self.device, non_blocking=True)

        slots = CacheSlots(tensor(at, torch.int64), tensor(starts), tensor(lengths), max_length or max(lengths))
        longest = max(len(chunk.tokens) for chunk in chunks)
        batch = Batch(tensor(tokens, torch.int64), None, tensor(positions), tensor(ends), longest)
        cache = [LayerCache(keys_CKH, values_CKH, slots) for keys_CKH, values_CKH in self.cache]
        adapters_T = tensor(adapters, torch.int64) if is_adapted or any(adapters) else None
        return StepInputs(batch, cache, adapters_T, tensor(rows, torch.int64))


def power_of_two(number: int) -> int:
    """The smallest power of two that is at least `number`."""
    return 1 << (number - 1).bit_length()


def padded(chunks: Sequence[Chunk]) -> list[Chunk]:
    """The chunks, followed by padding up to a power of two of them."""
    return [*chunks, *[PADDING] * (power_of_two(len(chunks)) - len(chunks))]
