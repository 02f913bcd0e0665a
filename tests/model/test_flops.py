"""The FLOPs of a model and the peaks of GPUs, on which MFU rests."""

from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from logtrain.model.flops import model_flops, peak_flops

LLAMA_8B = SimpleNamespace(
    vocab_size=128256,
    hidden_size=4096,
    intermediate_size=14336,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
)


def test_model_flops_of_llama_8b():
    # 8,030,261,248 parameters, less the embedding (128,256 x 4,096) and the scales of 65 norms
    matrices = 8_030_261_248 - 128_256 * 4096 - 65 * 4096
    assert model_flops(LLAMA_8B, 1, 0) == 6 * matrices
    assert model_flops(LLAMA_8B, 0, 1) == 12 * 32 * 4096
    one_document = model_flops(LLAMA_8B, 8192, 8192 * 8193 // 2)
    documents_of_444 = model_flops(LLAMA_8B, 8192, 8192 * 445 // 2)
    assert one_document / documents_of_444 == pytest.approx(1.134, abs=1e-3)  # what masking saves


@pytest.mark.parametrize("tied", [False, True])
def test_model_flops_are_what_a_run_of_the_model_counts(tied):
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = SimpleNamespace(
        vocab_size=97, hidden_size=64, intermediate_size=160, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=16
    )
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=97,
            hidden_size=64,
            intermediate_size=160,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            tie_word_embeddings=tied,
            attn_implementation="eager",
        )
    )
    tokens = torch.arange(64)[None] % 97
    with FlopCounterMode(display=False) as counter:
        model(input_ids=tokens, labels=tokens).loss.backward()
    assert counter.get_total_flops() == model_flops(shape, 64, 64 * 64)  # eager attention does all pairs


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA H200", 989.4),
        ("NVIDIA GH200 480GB", 989.4),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA B200", 2250),
        ("NVIDIA GB200", 2500),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
        ("NVIDIA L40", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA GeForce RTX 3090", None),
        ("AMD Instinct MI300X", None),
    ],
)
def test_peak_flops(monkeypatch, name, teraflops):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    peak = peak_flops(torch.device("cuda", 0))
    assert peak == (None if teraflops is None else pytest.approx(teraflops * 1e12))
    assert peak_flops(torch.device("cpu")) is None
