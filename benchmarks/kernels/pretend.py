"""A pretended H100, so that both libraries launch on any device what they launch on one.

Every tensor says it is on cuda, while it stays where it is (the CPU, or nowhere: meta); the device's properties are an
H100's; and registered operations run their own code, where they would choose one by the tensor's real device.
"""

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from unittest import mock

import torch
from torch import Tensor
from torch._library.custom_ops import CustomOpDef
from torch.overrides import TorchFunctionMode

from logtrain_kernels.device import H100_PROCESSORS

H100 = SimpleNamespace(multi_processor_count=H100_PROCESSORS)
CUDA = torch.device("cuda")


class OnCuda(TorchFunctionMode):
    """Lets every tensor say that it is on cuda, and makes new ones on `device`."""

    def __init__(self, device: str):
        super().__init__()
        self.device = torch.device(device)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function == Tensor.device.__get__:
            return CUDA
        if function == Tensor.is_cuda.__get__:  # pyright: ignore[reportAttributeAccessIssue]  # typed as its value
            return True
        kwargs = kwargs or {}
        if kwargs.get("device") == CUDA:
            kwargs["device"] = self.device
        return function(*args, **kwargs)


@contextlib.contextmanager
def pretended_h100(device: str) -> Iterator[None]:
    """Let both libraries launch what they launch on an H100. `device`: where tensors really are."""
    with (
        mock.patch("torch.cuda.get_device_properties", lambda device: H100),
        mock.patch("torch.cuda.device", contextlib.nullcontext),  # Liger enters it
        mock.patch.object(CustomOpDef, "__call__", lambda operation, *args: operation._init_fn(*args)),
        OnCuda(device),
    ):
        yield
