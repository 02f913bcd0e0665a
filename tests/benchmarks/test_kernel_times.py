"""The clock of kernels: what it runs, and on what."""

from itertools import pairwise

import torch

from benchmarks.kernels import attention, time
from benchmarks.kernels.shapes import TOKENS
from benchmarks.kernels.work import Work


def test_what_a_call_overwrites_is_there_again_at_the_next():
    x, seen = torch.ones(3), []

    def call() -> None:
        seen.append(x.tolist())
        x.mul_(2.0)

    assert time.microseconds(call, (x,), on_gpu=False) > 0
    assert seen == [[1.0] * 3] * len(seen)
    assert len(seen) > 3


def test_no_contender_is_timed_uncompiled_under_the_compilers_name():
    """After 8 shapes of one function dynamo gives up on it, and runs it eagerly from then on."""
    compiled = []

    def backend(graph: torch.fx.GraphModule, _inputs: list):
        compiled.append(graph)
        return graph.forward

    def double() -> torch.Tensor:
        return x * 2

    original = torch.compile
    try:
        torch.compile = lambda function, **options: original(function, backend=backend, **options)
        for size in range(1, 13):
            x = torch.ones(size)
            call = time.call_of("compile", Work(logtrain=double, eager=double))
            assert call().tolist() == [2.0] * size
    finally:
        torch.compile = original
    assert len(compiled) == 12


def test_attention_is_timed_on_lengths_as_they_come():
    bounds = attention.packed_bounds(TOKENS)
    lengths = [b - a for a, b in pairwise(bounds) if b > a]
    assert (bounds[0], bounds[-1], sum(lengths)) == (0, TOKENS, TOKENS)
    assert bounds.count(TOKENS) == 1  # as the loader leaves it
    assert max(lengths) > 2 * sum(lengths) / len(lengths)  # what equal documents do not show
