"""The distribution of a model over the ranks of a run. FSDP2 shards every parameter by rows over the ranks of a
replica; with fewer shard ranks than ranks (HSDP) the replicas average their gradients.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from logtrain.core.heap import keep_freed_memory
from logtrain.model.config import Float8Config
from logtrain.model.float8 import gather_in_float8, held, share_scales_before_forward, use_float8
from logtrain.model.llama import Block, Llama, LlamaConfig
from logtrain.model.lora import add_adapters
from logtrain.model.weights import WeightSource, empty_model, materialize
from logtrain.training.config import ParallelConfig, RunConfig


def make_mesh(device_type: str, num_ranks: int, config: ParallelConfig) -> DeviceMesh:
    """A mesh with the axis "shard", or for HSDP with "replica" and "shard". Raises ValueError where
    `config.shard_ranks` does not divide the ranks.
    """
    shard = config.shard_ranks or num_ranks
    if shard < 1 or num_ranks % shard:
        raise ValueError(f"parallel.shard_ranks = {shard} does not divide the {num_ranks} ranks")
    if shard == num_ranks:
        return init_device_mesh(device_type, (num_ranks,), mesh_dim_names=("shard",))
    return init_device_mesh(device_type, (num_ranks // shard, shard), mesh_dim_names=("replica", "shard"))


def build_model(
    config: RunConfig,
    shape: LlamaConfig,
    mesh: DeviceMesh,
    dtype: torch.dtype,
    source: WeightSource | None,
    *,
    adapters: bool = True,
) -> Llama:
    """The sharded model of a run on the mesh's device, ready to train, with master weights in fp32 and products in
    `dtype`.

    `source`: where the weights come from; None leaves the memory as it is, for a checkpoint to fill. `adapters`: False
    leaves out the adapters that the config asks for.
    """
    if mesh.device_type == "cpu":
        keep_freed_memory()
    model = sharded_model(config, shape, mesh, dtype, adapters=adapters)
    materialize(model, torch.device(mesh.device_type), source)
    if config.compile:
        for block in model.blocks:  # the forward, within FSDP's hooks; on CPUs attention reads lengths on the host
            block.forward = torch.compile(block.forward, fullgraph=mesh.device_type == "cuda")
    return model


def sharded_model(
    config: RunConfig, shape: LlamaConfig, mesh: DeviceMesh, dtype: torch.dtype, *, adapters: bool = True
) -> Llama:
    """The model of a run on the meta device, sharded over the mesh."""
    model = empty_model(shape)
    for block in model.blocks:
        assert isinstance(block, Block)
        block.recompute = config.recompute
    adapters = adapters and config.lora.rank > 0
    if config.precision == "fp8":
        use_float8(model, config.fp8, adapters=adapters)
    if adapters:
        add_adapters(model, config.lora, dtype)
    shard(model, mesh, config.parallel, dtype, config.fp8 if config.precision == "fp8" else None)
    return model


def shard(
    model: Llama,
    mesh: DeviceMesh,
    config: ParallelConfig,
    compute_dtype: torch.dtype,
    float8: Float8Config | None = None,
) -> None:
    """Apply FSDP2 to every block, the embedding and the head; a matrix that the last two share (tied) stays with the
    root.

    Master weights, gradients and optimizer state are fp32 shards; gathered weights and activations have
    `compute_dtype`. Where every rank holds a whole copy, frozen weights need nothing and stay as they are. A rank that
    is alone and has fp32 everywhere needs nothing at all: what FSDP2 would gather is a second copy of the masters.
    """
    if mesh.size() == 1 and compute_dtype == torch.float32 and config.reduce_dtype == "float32":
        return
    frozen = {p for p in model.parameters() if not p.requires_grad}
    kept_out = frozen if mesh["shard"].size() == 1 else set()
    if float8:
        gather_in_float8(model, float8, mesh["shard"].size(), kept_out)
    policy = MixedPrecisionPolicy(
        param_dtype=compute_dtype,
        reduce_dtype=getattr(torch, config.reduce_dtype),
        cast_forward_inputs=False,  # the rotary tables stay fp32
    )
    free_after_forward = config.reshard_after_forward and not kept_out  # adapters alone are small, and cast each time

    def wrap(module: nn.Module, free: bool) -> FSDPModule:
        return fully_shard(module, mesh=mesh, mp_policy=policy, ignored_params=kept_out, reshard_after_forward=free)

    *others, last = model.blocks
    # The last one's backward comes next: freed, it would be gathered again at once.
    blocks = [*(wrap(block, free_after_forward) for block in others), wrap(last, False)]
    if not model.config.tied:
        embedding = wrap(model.embedding, free_after_forward)
        embedding.set_unshard_in_backward(False)  # its backward reads only which rows were looked up
        wrap(model.head, False)  # its backward comes next
    wrap(model, False)
    if float8:
        share_scales_before_forward(model, mesh)
    prefetch(blocks, config.prefetch)
    if config.symmetric_memory:
        for module in sharded_modules(model):
            module.set_symm_mem_for_comm()


def prefetch(blocks: list[FSDPModule], count: int) -> None:
    """Have each block's weights gathered while `count` blocks before it compute, in the forward and in the backward."""
    for i, block in enumerate(blocks):
        block.set_modules_to_forward_prefetch(blocks[i + 1 : i + 1 + count])
        block.set_modules_to_backward_prefetch(blocks[max(0, i - count) : i][::-1])


def sharded_modules(model: nn.Module) -> Iterator[FSDPModule]:
    """The units that FSDP2 shards and gathers: the blocks, the embedding, the head, and the model for the rest."""
    return (module for module in model.modules() if isinstance(module, FSDPModule))


def full_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """(name, whole tensor) of every parameter. Every rank must walk through all of them, because all take part in
    gathering.
    """
    for name, parameter in model.named_parameters():
        yield name, held(parameter.full_tensor() if isinstance(parameter, DTensor) else parameter.detach())


def last_micro_batch(model: nn.Module, last: bool) -> None:
    """Tell FSDP2 before a forward whether that is the last of its step. Gradients are reduce-scattered after every
    micro-batch (unsharded they would take 4 bytes a parameter), and averaged over replicas after the last.
    """
    if isinstance(model, FSDPModule):
        model.set_requires_all_reduce(last)


def clip_grad_norm(model: nn.Module, max_norm: float) -> Tensor:
    """Scale the gradients to a global L2 norm of at most `max_norm` (0 leaves them); -> the norm before, an fp32
    scalar.
    """
    parameters = [p for p in model.parameters() if p.grad is not None]
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
    if max_norm > 0:
        nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


def free_gathered(model: nn.Module) -> None:
    """Free the weights that a forward without a backward left gathered; the parameters are fp32 shards again."""
    for module in sharded_modules(model):
        module.reshard()
