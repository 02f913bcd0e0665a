"""The optimizer of a run, and the state that a checkpoint keeps of it."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from logtrain.training.optim_config import OptimConfig

MOMENTS: dict[type[torch.optim.Optimizer], tuple[str, ...]] = {  # kept of each parameter, in its own shape and in fp32
    torch.optim.AdamW: ("exp_avg", "exp_avg_sq"),
}


def trained_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """(name, parameter) of every parameter that is not frozen."""
    return ((name, p) for name, p in model.named_parameters() if p.requires_grad)


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101), fused; one-dimensional parameters do not decay."""
    trained = [p for _, p in trained_parameters(model)]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps, fused=True)


def skip_where(optimizer: torch.optim.Optimizer, skipped: Tensor) -> None:
    """Let the next update change nothing if the fp32 scalar `skipped` is 1. Fused AdamW reads it on the device; an
    optimizer that does not read `found_inf` in its `step` would apply gradients that are not finite.
    """
    optimizer.found_inf = skipped  # pyright: ignore[reportAttributeAccessIssue]  (as torch.amp.GradScaler sets it)


def create_moments(model: nn.Module, optimizer: torch.optim.Optimizer, num_updates: int) -> None:
    """Give a fresh optimizer the state that it has after `num_updates` updates, with moments of zeros to fill in.

    The optimizer's counter is the number of updates, the same for every parameter, so no checkpoint stores it.
    """
    for _, parameter in trained_parameters(model):
        state = optimizer.state[parameter]
        state["step"] = torch.tensor(float(num_updates), device=parameter.device)
        state |= {key: torch.zeros_like(parameter) for key in MOMENTS[type(optimizer)]}
