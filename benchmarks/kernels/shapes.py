"""The sizes of the Llamas whose kernels are held to account: T tokens, D model width, F feed-forward width, N query
heads, K key-value heads, H head width, V vocabulary.
"""

from dataclasses import dataclass

TOKENS = 8192  # of one packed row: what every figure is for


@dataclass(frozen=True)
class Shape:
    """The sizes of one Llama."""

    D: int
    F: int
    N: int
    K: int
    H: int
    V: int = 128_256


MODELS = {
    "8B": Shape(D=4096, F=14_336, N=32, K=8, H=128),
    "70B": Shape(D=8192, F=28_672, N=64, K=8, H=128),
    "1B": Shape(D=2048, F=8192, N=32, K=8, H=64),
    "3B": Shape(D=3072, F=8192, N=24, K=8, H=128),
}
