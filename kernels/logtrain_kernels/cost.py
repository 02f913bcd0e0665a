"""What an operation asks of a GPU: bytes, launches, matrix products. Each operation's file says it beside the kernels
that it follows from, as a function of the operation's own arguments; `COSTS` of the package has them all.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

from torch import Tensor
from torch.utils.flop_counter import register_flop_formula


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one call of an operation takes on a GPU."""

    read: int
    """Bytes that come from memory. What every program of a launch reads, such as a norm's weight, counts once: the L2
    cache has it from then on.
    """
    written: int
    """Bytes that go to memory."""
    launches: int = 1
    """Kernels, with those that PyTorch launches around ours."""
    workspace: int = 0
    """Bytes of memory that live only within the call."""
    product: tuple[int, int, int, int] | None = None
    """M, N, K and number of the matrix products, where their shape decides how long the call takes."""

    @property
    def flops(self) -> int:
        """Floating-point operations of the matrix products."""
        return 2 * prod(self.product) if self.product else 0


def nbytes(*tensors: Tensor | None) -> int:
    """Bytes of all these tensors; None has none."""
    return sum(x.nbytes for x in tensors if x is not None)


def count_flops(operation: object, cost: Callable[..., Cost]) -> None:
    """Let PyTorch's `FlopCounterMode` count an operation's FLOPs as `cost` says them."""
    formula = register_flop_formula(operation, get_raw=True)
    formula(lambda *args, out_val=None, **options: cost(*args, **options).flops)
