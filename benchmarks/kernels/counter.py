"""Bytes to and from memory, counted while Triton's interpreter runs kernels on the CPU.

Every lane of a load or store that its mask lets through counts, with one exception: a load of what another program of
the same launch has loaded (a norm's weight: every row wants it) finds it in the 50 MB L2 cache. What one program loads
twice counts twice. PyTorch's own operations around the kernels (a sum of partial results, a copy, a fill) count their
inputs and outputs; views and uninitialised memory are free.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from unittest import mock

import numpy as np
import triton.language as tl
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpretedFunction, InterpreterBuilder, TensorHandle


@dataclass
class Count:
    """Bytes and launches counted so far."""

    loaded: int = 0
    stored: int = 0
    cached: int = 0  # loads that find in L2 what another program brought there
    around: int = 0  # loaded and stored by PyTorch's operations
    launches: int = 0  # kernels and PyTorch's operations
    in_kernel: bool = False
    loader: dict[tuple[int, int, int], tuple] = field(default_factory=dict)  # block -> program, in the running launch

    @property
    def moved(self) -> int:
        """Bytes to and from memory."""
        return self.loaded + self.stored + self.around

    def load(self, pointers: TensorHandle, mask: TensorHandle) -> None:
        """Count what the lanes that the mask lets through load."""
        at = pointers.data[np.broadcast_to(mask.data, pointers.data.shape)]
        if not at.size:
            return
        block, program = (int(at.min()), int(at.max()), at.size), interpreter.interpreter_builder.grid_idx
        if self.loader.setdefault(block, program) == program:
            self.loaded += at.size * itemsize(pointers)
        else:
            self.cached += at.size * itemsize(pointers)

    def store(self, pointers: TensorHandle, mask: TensorHandle) -> None:
        """Count what the lanes that the mask lets through store."""
        lanes = np.count_nonzero(np.broadcast_to(mask.data, pointers.data.shape))
        self.stored += int(lanes) * itemsize(pointers)


def itemsize(pointers: TensorHandle) -> int:
    """Bytes of one element that the pointers point at."""
    return pointers.get_element_ty().primitive_bitwidth // 8


class AroundKernels(TorchDispatchMode):
    """Counts what PyTorch's operations read and write while it is entered."""

    def __init__(self, count: Count):
        super().__init__()
        self.count = count

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = function._schema.name.removeprefix("aten::")
        is_view = any(r.alias_info is not None and not r.alias_info.is_write for r in function._schema.returns)
        if not (self.count.in_kernel or is_view or "empty" in name or name == "_local_scalar_dense"):  # a host's number
            read = args[1:] if name in ("copy_", "fill_", "zero_") else args  # these write their first without a look
            written = result if isinstance(result, tuple | list) else (result,)
            self.count.around += sum(nbytes(x) for x in (*read, *written))
            self.count.launches += 1
        return result


def nbytes(x: object) -> int:
    """Bytes of a tensor, of an expanded one what its storage holds; 0 for anything else."""
    return min(x.nbytes, x.untyped_storage().nbytes()) if isinstance(x, Tensor) else 0


@contextlib.contextmanager
def counting() -> Iterator[Count]:
    """Count what runs meanwhile."""
    count = Count()
    run, convert = InterpretedFunction.run, interpreter._implicit_cvt
    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store
    atomic = InterpreterBuilder.create_atomic_rmw

    def counted_run(kernel: InterpretedFunction, *args, **options):
        count.loader, count.in_kernel, count.launches = {}, True, count.launches + 1
        try:
            return run(kernel, *args, **options)
        finally:
            count.in_kernel = False

    def counted_load(builder: InterpreterBuilder, pointers: TensorHandle, mask: TensorHandle, *rest):
        count.load(pointers, mask)
        return load(builder, pointers, mask, *rest)

    def counted_store(builder: InterpreterBuilder, pointers: TensorHandle, value, mask: TensorHandle, *rest):
        count.store(pointers, mask)
        return store(builder, pointers, value, mask, *rest)

    def counted_atomic(builder: InterpreterBuilder, operation, pointers: TensorHandle, value, mask, *rest):
        count.load(pointers, mask)
        count.store(pointers, mask)
        return atomic(builder, operation, pointers, value, mask, *rest)

    with (
        mock.patch.object(InterpretedFunction, "run", counted_run),
        mock.patch.object(InterpreterBuilder, "create_masked_load", counted_load),
        mock.patch.object(InterpreterBuilder, "create_masked_store", counted_store),
        mock.patch.object(InterpreterBuilder, "create_atomic_rmw", counted_atomic),
        mock.patch.object(interpreter, "_implicit_cvt", lambda x: fp32(x) if isinstance(x, float) else convert(x)),
        np.errstate(all="ignore"),  # the interpreter adds and multiplies bf16 as integers; where they go is right
        AroundKernels(count),
    ):
        yield count


def fp32(x: float) -> tl.tensor:
    """A float argument as a compiled kernel sees it; the interpreter leaves it Python's, which has no `.to`."""
    return tl.tensor(TensorHandle(np.array([x], dtype=np.float32), tl.float32), tl.float32)


def count_of(call: Callable[[], object]) -> Count:
    """What one call moves and launches."""
    with counting() as count:
        call()
    return count
