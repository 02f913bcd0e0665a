"""A linear layer with adapters against PyTorch's plain expression, in the same dtype and in fp64."""

import pytest
import torch
import torch.nn.functional as F

import logtrain_kernels as kernels
from logtrain_kernels import AdapterSpan, dropped_linear
from logtrain_kernels.dropout import kept_reference, kept_scale
from tests.support.precision import DTYPES, assert_right, slack_of


def spans_of_layers(rank, adapted, out):
    """The spans of adapters on layers (first column, last one's next), and the rows of all Bs; columns between layers
    have no adapter.
    """
    found, row = [], 0
    for i, (start, stop) in enumerate(adapted):
        assert start < stop <= out
        rows, ranks = slice(row, row + stop - start), slice(i * rank, (i + 1) * rank)
        found.append(AdapterSpan(slice(start, stop), rows, ranks))
        row += stop - start
    return found, row


@pytest.fixture(params=[1, 3], ids=["one part", "three parts"])
def parts(request, monkeypatch):
    """The gradient of A is summed in so many parts."""
    monkeypatch.setattr(dropped_linear, "num_parts", lambda *_: request.param)


@DTYPES
@pytest.mark.parametrize("drop", [0, 3277, 40_000])
@pytest.mark.parametrize(
    ("num_tokens", "width", "out", "rank", "adapted"),
    [
        (0, 24, 10, 3, [(0, 10)]),
        (1, 1, 1, 1, [(0, 1)]),
        (150, 129, 50, 3, [(5, 20), (20, 21), (30, 50)]),  # with columns that have none
        (64, 200, 48, 16, [(0, 48)]),
        (130, 96, 64, 16, [(0, 32), (32, 48), (48, 64)]),
        (200, 48, 40, 33, [(0, 20), (20, 40)]),
        (70, 40, 24, 130, [(0, 12), (12, 24)]),  # more ranks than the kernels take
    ],
    ids=str,
)
def test_adapted_linear(num_tokens, width, out, rank, adapted, drop, dtype, way, parts):
    spans, rows = spans_of_layers(rank, adapted, out)
    weight, scale = (torch.randn(out, width) / width**0.5).bfloat16(), 0.75
    seeds = torch.randint(-(2**62), 2**62, (num_tokens,)) if drop else None
    dropout = seeds, torch.tensor(-(2**61) + 5, device="cpu"), drop
    mask = kept_reference(*dropout, width) * kept_scale(drop) if drop else 1.0

    def pytorch(x, a, b):
        y, dropped = F.linear(x, weight.to(x.dtype)), x * torch.as_tensor(mask, dtype=x.dtype)
        added = torch.zeros_like(y)
        for span in spans:
            added[:, span.columns] = dropped @ a[span.ranks].T @ b[span.rows].T * scale
        return y + added

    assert_right(
        lambda x, a, b: kernels.adapted_linear(x, weight.to(x.dtype), a, b, spans, scale, *dropout),
        pytorch,
        pytorch,
        [torch.randn(num_tokens, width), torch.randn(rank * len(spans), width) / width**0.5, torch.randn(rows, rank)],
        dtype,
        slack_of(way, dtype, truncations=2),  # h, and what is made of it
    )


def test_adapters_in_fp32_beside_a_matrix_in_bf16_have_gradients_in_fp32(way):
    spans, _ = spans_of_layers(4, [(0, 12)], 12)
    x, weight = torch.randn(9, 16).bfloat16().requires_grad_(), torch.randn(12, 16).bfloat16()
    a, b = torch.randn(4, 16, requires_grad=True), torch.randn(12, 4, requires_grad=True)
    y = kernels.adapted_linear(x, weight, a, b, spans, 0.5, torch.arange(9), torch.tensor(1), 3277)
    y.sum().backward()
    assert (y.dtype, x.grad.dtype, a.grad.dtype, b.grad.dtype) == (*[torch.bfloat16] * 2, *[torch.float32] * 2)
    assert min(a.grad.count_nonzero(), b.grad.count_nonzero()) > 0
