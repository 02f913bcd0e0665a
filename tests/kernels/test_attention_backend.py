"""What attention runs on a GPU: chosen by name, refused where its package is not there."""

import sys
from types import SimpleNamespace
from typing import get_args

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import logtrain_kernels as kernels
from logtrain.model.config import AttentionBackend
from logtrain.model.recompute import KEPT
from logtrain_kernels.attention import BACKENDS


@pytest.fixture(autouse=True)
def torch_again():
    yield
    kernels.use_attention("torch")


def on_pretended_gpu():
    q, k, v = (torch.randn(8, heads, 16) for heads in (4, 2, 2))
    with kernels.pretended_gpu():
        return kernels.attention(q, k, v, torch.tensor([0, 3, 8], dtype=torch.int32), 5)


@pytest.mark.parametrize(
    ("backend", "package"), [("fa3", "flash_attn_3"), ("fa4", "flash-attn-4"), ("flash_attn", "flash-attn")]
)
def test_a_backend_whose_package_is_missing_is_refused_with_its_name(backend, package, monkeypatch):
    monkeypatch.setitem(sys.modules, "flash_attn.cute.interface", None)
    monkeypatch.setitem(sys.modules, "flash_attn", None)  # as if not installed, also where it is
    monkeypatch.setitem(sys.modules, "flash_attn_interface", None)
    with pytest.raises(ValueError, match=rf"attention by {backend}: .*; install {package}, or choose torch"):
        kernels.use_attention(backend)


def test_what_a_user_may_choose_is_what_there_is():
    assert get_args(AttentionBackend) == ("auto", *BACKENDS)


@pytest.mark.parametrize(
    ("installed", "capability", "head_dim", "told"),
    [
        ({"FA3", "FA4"}, 9, 128, "attention by fa3"),
        ({"FA4"}, 9, 128, "attention by fa4; no FA3 here"),
        ({"FA3", "FA4"}, 10, 128, "attention by fa4; fa3 has nothing for compute capability 10"),
        ({"FA4"}, 9, 256, "attention by torch; no FA3 here; fa4 has no heads of 256"),
        (set(), 9, 64, "attention by torch; no FA3 here; no FA4 here"),
        (
            {"FA3", "FA4"},
            8,
            64,
            "attention by torch; fa3 has nothing for compute capability 8; fa4 has nothing for compute capability 8",
        ),
    ],
)
def test_auto_takes_the_newest_that_is_there_and_says_why(installed, capability, head_dim, told, monkeypatch):
    active = []

    def activate(name):
        if name not in installed:
            raise ImportError(f"no {name} here")
        active.append(name)

    module = sys.modules["logtrain_kernels.attention"]
    monkeypatch.setattr(module, "activate_flash_attention_impl", activate)
    monkeypatch.setattr(module, "restore_flash_attention_impl", lambda **_: active.clear())
    assert kernels.use_best_attention(capability, head_dim) == told
    chosen = told.split(";")[0].removeprefix("attention by ")
    assert active == ([] if chosen == "torch" else [chosen.upper()])


def test_flash_attn_gets_the_documents_and_the_causal_mask(monkeypatch):
    calls = []

    def varlen(q, k, v, cu_q, cu_k, max_q, max_k, *, causal):
        calls.append((cu_q.tolist(), cu_k.tolist(), max_q, max_k, causal))
        return kernels.attention_reference(q, k, v, cu_q)

    monkeypatch.setitem(sys.modules, "flash_attn", SimpleNamespace(flash_attn_varlen_func=varlen))
    kernels.use_attention("flash_attn")
    assert on_pretended_gpu().shape == (8, 4, 16)
    assert calls == [([0, 3, 8], [0, 3, 8], 5, 5, True)]


class Operations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.names.add(str(operation))
        return operation(*args, **(kwargs or {}))


def test_torchs_is_one_operation_that_selective_recomputation_keeps():
    with FakeTensorMode(), Operations() as seen:
        on_pretended_gpu()
    assert "torch_attn._varlen_attn.default" in seen.names & KEPT
    assert not any("scaled_dot_product" in name for name in seen.names)


@pytest.mark.parametrize("asks", [True, False], ids=["torch 2.13", "torch 2.11"])
def test_grouped_heads_are_asked_for_where_torch_wants_to_be_asked(asks, monkeypatch):
    given = []

    def varlen(q, k, v, *_lengths, **options):
        given.append(options)
        return q

    module = sys.modules["logtrain_kernels.attention"]
    monkeypatch.setattr(module, "varlen_attn", varlen)
    monkeypatch.setattr(module, "ASKS_FOR_GROUPS", asks)
    on_pretended_gpu()
    assert given == [{"window_size": (-1, 0)} | ({"enable_gqa": True} if asks else {})]


class CacheCalls(TorchDispatchMode):
    """Keeps the arguments of FlashAttention's forward by name."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if operation is torch.ops.aten._flash_attention_forward.default:
            names = [argument.name for argument in operation._schema.arguments]
            self.found.append(dict(zip(names, args, strict=False)) | (kwargs or {}))
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize(("new", "causal", "right"), [([1, 1], False, -1), ([3, 1], True, 0)], ids=["decode", "prompt"])
def test_attention_over_a_cache_tells_where_each_sequence_ends(new, causal, right):
    """A window stands in the way of splitting a long sequence over the processors, so that one token each has none."""
    lengths = torch.tensor([5, 9], dtype=torch.int32)
    with FakeTensorMode(allow_non_fake_inputs=True), kernels.pretended_gpu(), CacheCalls() as calls:
        q, k, v = (torch.empty(sum(new), heads, 16, dtype=torch.bfloat16) for heads in (4, 2, 2))
        keys, values = (torch.empty(32, 2, 16, dtype=torch.bfloat16) for _ in range(2))
        slots = kernels.CacheSlots(torch.arange(sum(new)), torch.tensor([0, 9, 0], dtype=torch.int32), lengths, 9)
        ends = torch.tensor([0, *new], dtype=torch.int32).cumsum(0).int()
        out = kernels.cached_attention(q, k, v, ends, max(new), keys, values, slots)
    (call,) = calls.found
    assert out.shape == (sum(new), 4, 16)
    assert (call["is_causal"], call["window_size_left"], call["window_size_right"]) == (causal, -1, right)
    assert (call["max_q"], call["max_k"], call["seqused_k"] is lengths) == (max(new), 9, True)
