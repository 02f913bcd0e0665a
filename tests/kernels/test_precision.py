"""What a training step on a CPU must not lose: the precision of fp32."""

import json
import subprocess
import sys

import torch

from logtrain_kernels import IGNORE, linear_cross_entropy, linear_cross_entropy_reference
from logtrain_kernels.device import VECTOR_FUNCTIONS

VOCABULARY = 49_152  # of SmolLM2: the more terms a softmax's sum has, the more there is to lose


def gradients(x_TD, weight_VD, labels_T, loss_of):
    x_TD, weight_VD = x_TD.detach().requires_grad_(), weight_VD.detach().requires_grad_()
    loss = loss_of(x_TD, weight_VD, labels_T)
    return loss.detach(), *torch.autograd.grad(loss, (x_TD, weight_VD))


def test_gradients_of_a_large_vocabulary_are_within_1e_5_of_fp64():
    """The rows of a published head have a large common part, and the gradient of logits sums to 0: what the softmax's
    sum is off by comes back multiplied by that part.
    """
    random = torch.Generator().manual_seed(0)
    weight_VD = torch.randn(VOCABULARY, 32, generator=random) * 0.1 + torch.randn(32, generator=random)
    x_TD = torch.randn(48, 32, generator=random)
    labels_T = torch.randint(VOCABULARY, (48,), generator=random)
    labels_T[::7] = IGNORE
    found = gradients(x_TD, weight_VD, labels_T, linear_cross_entropy)
    expected = gradients(x_TD.double(), weight_VD.double(), labels_T, exact_loss)
    for value, exact in zip(found, expected, strict=True):
        assert (value - exact).norm() / exact.norm() < 1e-5


def exact_loss(x_TD, weight_VD, labels_T):
    logits_TV, seen = x_TD @ weight_VD.T, labels_T != IGNORE
    return (logits_TV.logsumexp(-1) - logits_TV.gather(1, labels_T.clamp(0)[:, None])[:, 0])[seen].sum()


def test_the_loss_of_bf16_is_that_of_its_logits():
    random = torch.Generator().manual_seed(1)
    weight_VD, x_TD = (torch.randn(n, 16, generator=random).bfloat16() for n in (1000, 24))
    labels_T = torch.randint(1000, (24,), generator=random)
    found = linear_cross_entropy(x_TD, weight_VD, labels_T)
    torch.testing.assert_close(found, linear_cross_entropy_reference(x_TD, weight_VD, labels_T))


FIRST_CALLS = """
import json, torch
called = []
class Watched(torch.overrides.TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        called.append((function.__name__, args[0].numel() if args and isinstance(args[0], torch.Tensor) else 0))
        return function(*args, **(kwargs or {}))
with Watched():
    import logtrain_kernels
print(json.dumps(called))
"""


def test_importing_settles_the_functions_that_threads_share():
    """MKL's race itself takes hundreds of processes to be seen; what keeps it away is a call on one element."""
    done = subprocess.run([sys.executable, "-c", FIRST_CALLS], capture_output=True, text=True, check=True)
    called = [tuple(call) for call in json.loads(done.stdout)]
    assert {(function.__name__, 1) for function in VECTOR_FUNCTIONS} <= set(called)


def test_a_step_calls_no_vector_function_that_is_not_settled():
    """The operations that ATen's vml.h gives to MKL, of those that a step runs."""
    from torch.utils._python_dispatch import TorchDispatchMode

    from logtrain_kernels import add_rms_norm, rope, rope_tables, swiglu

    from_mkl = {"acos", "asin", "atan", "cos", "cosh", "erf", "erfc", "erfinv", "exp", "expm1", "log", "log10", "log1p"}
    from_mkl |= {"log2", "sin", "sinh", "sqrt", "tan", "tanh"}
    seen = set()

    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.add(str(function.overloadpacket).removeprefix("aten.").rstrip("_"))
            return function(*args, **(kwargs or {}))

    with Seen():
        cos, sin = rope_tables(torch.arange(8), 8, 1e4, None)
        rope(torch.randn(8, 4, 8), cos, sin, 2, 1)
        swiglu(torch.randn(8, 8)), add_rms_norm(torch.randn(8, 8), torch.randn(8, 8), torch.ones(8), 1e-5)
        linear_cross_entropy(torch.randn(8, 8, requires_grad=True), torch.randn(16, 8), torch.arange(8)).backward()
    assert {"cos", "sin", "exp", "log"} <= seen
    assert seen & from_mkl <= {function.__name__ for function in VECTOR_FUNCTIONS}
