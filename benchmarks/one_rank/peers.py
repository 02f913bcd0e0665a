"""transformers' Llama, plain or with Liger-Kernel, behind the arguments of our own: `TrainStep` trains it as it trains
ours, with the same batches, optimizer and attention kernel.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from transformers import AttentionInterface, LlamaForCausalLM
from transformers import LlamaConfig as TransformersConfig
from transformers.masking_utils import AttentionMaskInterface

from logtrain.core.batch import Batch
from logtrain.model.llama import LlamaConfig
from logtrain.model.weights import local_rows
from logtrain_kernels import attention

Peer = Literal["transformers", "liger"]


class PeerLlama(nn.Module):
    """A batch in, the summed loss of its targets out."""

    def __init__(self, shape: LlamaConfig):
        super().__init__()
        self.batch: Batch | None = None  # the one under way, for its attention
        AttentionInterface.register("packed", self.attend)
        AttentionMaskInterface.register("packed", lambda *_args, **_options: None)  # `attend` needs none
        self.whole = LlamaForCausalLM(transformers_config(shape))

    def forward(self, batch: Batch) -> Tensor:
        assert batch.labels_T is not None
        self.batch, labels = batch, batch.labels_T[None]
        # Divided by one target, its mean is the sum.
        return self.whole(
            input_ids=batch.tokens_T[None],
            position_ids=batch.positions_T[None].long(),
            labels=labels,
            shift_labels=labels,
            num_items_in_batch=1,
        ).loss

    def attend(self, _module: nn.Module, q: Tensor, k: Tensor, v: Tensor, *_args: Any, **_options: Any):
        """transformers' attention of q, k and v [1, heads, T, H], by our kernel: ([1, T, heads, H], no weights)"""
        assert self.batch is not None
        q_TNH, k_TKH, v_TKH = (x[0].transpose(0, 1) for x in (q, k, v))
        return attention(q_TNH, k_TKH, v_TKH, self.batch.cu_seqlens, self.batch.max_seqlen)[None], None


def transformers_config(shape: LlamaConfig) -> TransformersConfig:
    """The shape in transformers' words. Positions are not scaled."""
    assert shape.rope_scaling is None
    return TransformersConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        rms_norm_eps=shape.norm_eps,
        max_position_embeddings=shape.max_positions,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        tie_word_embeddings=shape.tied,
        use_cache=False,
        attn_implementation="packed",  # pyright: ignore[reportCallIssue]  # the base class takes it
    )


def use_liger() -> None:
    """Put Liger-Kernel's operations into transformers' Llama, in every model that is made from here on."""
    from liger_kernel.transformers import apply_liger_kernel_to_llama  # noqa: PLC0415  # plain transformers needs none

    apply_liger_kernel_to_llama(
        rope=True, rms_norm=True, swiglu=True, fused_linear_cross_entropy=True, cross_entropy=False
    )


def build_peer(peer: Peer, shape: LlamaConfig, mesh: DeviceMesh, dtype: torch.dtype, recompute: bool) -> PeerLlama:
    """A peer's model sharded as users of transformers shard it with FSDP2, a unit for each layer, on the mesh's device.
    Its memory is not filled. `recompute`: all activations of a layer are computed again in the backward.
    """
    if peer == "liger":
        use_liger()
    with torch.device("meta"):
        model = PeerLlama(shape)
    if recompute:
        model.whole.gradient_checkpointing_enable({"use_reentrant": False})
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for layer in model.whole.model.layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    device = torch.device(mesh.device_type)
    model.to_empty(device=device)
    rotary = model.whole.model.rotary_emb
    fresh = type(rotary)(model.whole.config).to(device)  # to_empty has lost what it had computed
    for name, buffer in fresh.named_buffers():
        setattr(rotary, name, buffer)
    return model.train()


@torch.no_grad()
def draw(model: PeerLlama, device: torch.device, seed: int = 0) -> None:
    """Fill this rank's rows: matrices normal with deviation 0.02, norms 1."""
    generator = torch.Generator(device).manual_seed(seed)
    for parameter in model.parameters():
        _, local = local_rows(parameter)
        if local.ndim == 1:
            local.fill_(1.0)
        else:
            local.normal_(0, 0.02, generator=generator)


@torch.no_grad()
def fill(model: PeerLlama, published: dict[str, Tensor]) -> None:
    """Fill a peer that is on one rank with weights by their published names."""
    for name, parameter in model.whole.named_parameters():
        local_rows(parameter)[1].copy_(published[name])
