"""A block's linear layers in float8: their products, and under FSDP2 the gathering of their weights.

The weights stay what they are, fp32 shards or frozen ones in bf16. FSDP2 asks a shard that is a `SharedWeight` what to
send, which is the shard in float8, and makes a `GatheredWeight` of what has come: a byte goes over the links where bf16
sends two, and no rank casts more than its own rows. Rowwise, each row's scale is sent with it. Tensorwise, all ranks
need the largest element of all; `share_scales` finds those of all matrices in one collective before every forward.
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_leaves, tree_map_only

from logtrain.model.config import Float8Config, Recompute
from logtrain.model.llama import Block, Llama, LlamaConfig, Sequences
from logtrain.model.recompute import recomputed
from logtrain_kernels import (
    ONLY,
    Float8,
    Float8Recipe,
    Pass,
    Scaling,
    float8_amax,
    float8_feed_forward,
    float8_linear,
    float8_norm_rope,
    float8_scale,
    float8_weight,
)

MATRICES = ("attention.qkv", "attention.out", "feed_forward.gate_up", "feed_forward.down")
TILE = 16  # of which float8 products on GPUs ask all sides to be a multiple
aten = torch.ops.aten


class Float8Linear(nn.Linear):
    """A linear layer whose products are in float8: [T, D] -> [T, O]."""

    def __init__(self, linear: nn.Linear, recipe: Float8Recipe):
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias, self.recipe = linear.weight, None, recipe

    def forward(self, x_TD: Tensor) -> Tensor:
        return float8_linear(x_TD, self.weight, self.recipe, gathered(self.weight))


def recipe_of(config: Float8Config) -> Float8Recipe:
    """The recipe that a config asks for."""
    return Float8Recipe(config.recipe, config.weight_gradient == "fp8")


class Float8Block(Block):
    """A block whose norms, rope and SwiGLU write the operands of its products in float8, tensorwise."""

    def __init__(self, block: Block):
        nn.Module.__init__(self)
        self.attention_norm, self.feed_forward_norm = block.attention_norm, block.feed_forward_norm
        self.attention, self.feed_forward, self.recompute = block.attention, block.feed_forward, block.recompute

    def forward(self, x_TD: Tensor, residual_TD: Tensor | None, sequences: Sequences) -> tuple[Tensor, Tensor]:
        passes = iter(PASSES[self.recompute] if torch.is_grad_enabled() else [Pass(saves=False)])

        def compute(x_TD: Tensor, residual_TD: Tensor | None, sequences: Sequences) -> tuple[Tensor, Tensor]:
            return self.compute(x_TD, residual_TD, sequences, next(passes))

        return recomputed(self.recompute, compute, x_TD, residual_TD, sequences)

    def compute(
        self, x_TD: Tensor, residual_TD: Tensor | None, sequences: Sequences, of: Pass = ONLY
    ) -> tuple[Tensor, Tensor]:
        norm, attention, out = self.attention_norm, self.attention, self.attention.out
        stream = x_TD, residual_TD, norm.weight, norm.eps
        sum_TD, q, k, v = float8_norm_rope(*stream, both(attention.qkv), sequences.rotations, attention.heads, of)
        attended_TO = attention.attend(q, k, v, sequences)
        x_TD = float8_linear(attended_TO, out.weight, Float8Recipe(), gathered(out.weight), of)
        norm, layer = self.feed_forward_norm, self.feed_forward
        matrices = both(layer.gate_up), both(layer.down)
        sum_TD, x_TD = float8_feed_forward(x_TD, sum_TD, norm.weight, norm.eps, *matrices, of)
        return x_TD, sum_TD


PASSES: dict[Recompute, tuple[Pass, ...]] = {
    "none": (ONLY,),
    "selective": (Pass(saves=False), Pass(multiplies=False)),
    "full": (Pass(saves=False), ONLY),
}
"""The passes of a block's forward, by how it is recomputed."""


def both(linear: nn.Linear) -> tuple[Tensor, Float8 | None]:
    """A layer's weight, and what it is in float8 where it was gathered so."""
    return linear.weight, gathered(linear.weight)


def use_float8(model: Llama, config: Float8Config, *, adapters: bool) -> None:
    """Let the linear layers of all blocks but those of `config.keep` compute in float8. `adapters`: some will be put
    beside them, which read their inputs, too; as does a weight's gradient in bf16.
    """
    recipe = recipe_of(config)
    for i, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        if i in config.keep:
            continue
        if recipe == Float8Recipe() and not adapters:
            model.blocks[i] = Float8Block(block)
            continue
        for path in MATRICES:
            linear = block.get_submodule(path)
            assert isinstance(linear, nn.Linear)
            block.set_submodule(path, Float8Linear(linear, recipe))


def check_kept_blocks(shape: LlamaConfig, config: Float8Config) -> None:
    """Raises ValueError where the config names a block that a model of this shape does not have."""
    beyond = [i for i in config.keep if i >= shape.num_layers]
    if beyond:
        raise ValueError(f"fp8.keep = {beyond[0]}: the model has blocks 0 to {shape.num_layers - 1}")


def check_sides(shape: LlamaConfig, tokens: int) -> None:
    """Raises ValueError where a model of this shape, or a micro-batch of `tokens`, has a side that float8 products on
    GPUs cannot take.
    """
    heads = (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim
    sides = {
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "heads of queries together": shape.num_heads * shape.head_dim,
        "heads of queries, keys and values together": heads,
        "tokens of a micro-batch": tokens,
    }
    for name, side in sides.items():
        if side % TILE:
            raise ValueError(f"precision = fp8: {name}: {side} is no multiple of {TILE}, as GPUs need; set it to bf16")


# ---- under FSDP2


class SharedWeight(torch.Tensor):
    """A rank's rows of a weight, of which FSDP2 sends float8. held: the rows. scale: tensorwise, (amax, 1 / m) of all
    ranks' rows, in a list that is shared with all tensors that are made of this one: FSDP2 pads a rank's rows anew
    within the first forward, after `share_scales`.
    """

    held: Tensor
    scaling: Scaling
    scale: list[tuple[Tensor, Tensor]]

    @staticmethod
    def __new__(cls, held: Tensor, scaling: Scaling, scale: list):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=held.device,
            requires_grad=held.requires_grad,
        )

    def __init__(self, held: Tensor, scaling: Scaling, scale: list):
        self.held, self.scaling, self.scale = held, scaling, scale

    def __repr__(self, *, tensor_contents=None):
        return f"SharedWeight({self.held}, {self.scaling})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        first = next(x for x in tree_leaves((args, kwargs)) if isinstance(x, cls))
        out = func(*tree_map_only(cls, held, args), **tree_map_only(cls, held, kwargs or {}))
        if func in IN_PLACE:
            return args[0]
        return tree_map_only(Tensor, lambda x: cls(x, first.scaling, first.scale), out) if func in STILL_SHARED else out

    def fsdp_pre_all_gather(
        self, mesh: DeviceMesh, outer_size: torch.Size, outer_stride, module: nn.Module, mp_policy: MixedPrecisionPolicy
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """What this rank sends, and what the receiver knows besides."""
        if self.scaling == "rowwise":
            return tuple(float8_weight(self.held, "rowwise")), ()
        amax, inverse = self.scale[0]
        values, missing = (
            float8_weight(self.held, "tensorwise", amax)[0],
            -(-outer_size[0] // mesh.size()) - len(self.held),
        )
        if missing:  # rows of the last ranks, which FSDP2 wants to be as many as the others'
            values = F.pad(values.view(torch.uint8), (0, 0, 0, missing)).view(values.dtype)
        return (values,), (inverse,)

    def fsdp_post_all_gather(
        self, outputs: tuple[Tensor, ...], more: tuple[Tensor, ...], dtype: torch.dtype, *, out: Any = None
    ) -> tuple[Tensor, tuple[Tensor, ...]] | None:
        """The weight that has come; `out`: the one that has come before, to whose memory this one has come."""
        values, inverse = (*outputs, *more)
        if out is None:
            return GatheredWeight(values, inverse, dtype), outputs
        out.inverse = inverse
        return None


class GatheredWeight(torch.Tensor):
    """A whole weight in float8, to autograd one of `dtype`. values, inverse: as in `Float8`."""

    values: Tensor
    inverse: Tensor

    @staticmethod
    def __new__(cls, values: Tensor, inverse: Tensor, dtype: torch.dtype):
        return torch.Tensor._make_wrapper_subclass(cls, values.size(), dtype=dtype, device=values.device)

    def __init__(self, values: Tensor, inverse: Tensor, dtype: torch.dtype):
        self.values, self.inverse = values, inverse

    def __repr__(self, *, tensor_contents=None):
        return f"GatheredWeight({self.values}, {self.inverse})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        weight = args[0]
        assert func in (aten.detach.default, aten.as_strided.default), f"{func} of a weight in float8"
        rows = args[1][0] if func is aten.as_strided.default else len(weight)  # FSDP2 cuts off the padding so
        return cls(weight.values[:rows], weight.inverse, weight.dtype)


IN_PLACE = {aten.copy_.default, aten.fill_.Scalar, aten.zero_.default}
STILL_SHARED = {
    *(aten.detach.default, aten.empty_like.default, aten.new_zeros.default, aten.slice.Tensor, aten.view.default),
    *(aten.as_strided.default, aten._to_copy.default, aten.split.Tensor, aten.clone.default),
}


def held(weight: Tensor) -> Tensor:
    """A rank's rows as an ordinary tensor, which shares their memory."""
    return weight.held if isinstance(weight, SharedWeight) else weight


def gathered(weight: Tensor) -> Float8 | None:
    """A weight in float8 where it was gathered so."""
    return Float8(weight.values, weight.inverse) if isinstance(weight, GatheredWeight) else None


def gather_in_float8(model: Llama, config: Float8Config, ranks: int, kept_out: Iterable[nn.Parameter]) -> None:
    """Let FSDP2, to be applied next over `ranks`, gather the weights of float8 layers in float8, but for those that it
    will not shard, and rowwise scaled ones of which the ranks would have unequal parts: FSDP2 pads the rows, but not
    their scales. A rank alone sends nothing.
    """
    if ranks == 1:
        return
    out = set(kept_out)
    for i, block in enumerate(model.blocks):
        for path in () if i in config.keep else MATRICES:
            linear = block.get_submodule(path)
            weight = linear.weight
            assert isinstance(weight, nn.Parameter)
            if weight not in out and not (config.recipe == "rowwise" and len(weight) % ranks):
                shared = SharedWeight(weight.detach(), config.recipe, [])
                linear.weight = nn.Parameter(shared, requires_grad=weight.requires_grad)


def share_scales_before_forward(model: Llama, mesh: DeviceMesh) -> None:
    """Let every forward of a sharded model begin with `share_scales`. FSDP2's own work of a forward waits for whatever
    was launched before it: on another stream it would read a scale that is not there yet. So this comes first.
    """
    group = mesh["shard"].get_group()
    model.register_forward_pre_hook(lambda *_: share_scales(model, group), prepend=True)


@torch.no_grad()
def share_scales(model: nn.Module, group: dist.ProcessGroup) -> None:
    """Give the tensorwise scaled weights of a sharded model the scales of the whole matrices, by one collective."""
    shards = [p._local_tensor for p in model.parameters() if isinstance(p, DTensor)]
    shards = [shard for shard in shards if isinstance(shard, SharedWeight) and shard.scaling == "tensorwise"]
    if not shards:
        return
    amax = torch.stack([float8_amax(shard.held, "tensorwise") for shard in shards])
    if group.size() > 1:
        bits = amax.view(torch.int32)  # in their order NaN comes last, which a maximum of numbers may lose
        dist.all_reduce(bits, dist.ReduceOp.MAX, group)
    for shard, largest, inverse in zip(shards, amax, float8_scale(amax)[1], strict=True):
        shard.scale[:] = [(largest, inverse)]
