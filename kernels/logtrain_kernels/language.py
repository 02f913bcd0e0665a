"""`constexpr`, the mark of a kernel's parameters that are fixed when it is compiled, as a type checker should see it: a
launch gives an int or a bool, and within the kernel it has the operators of Triton's values.

(Triton's loops, `tl.range` and `tl.static_range`, have no such name here, since its interpreter looks for theirs. Their
class counts within kernels alone, so each has a `pyright: ignore`.)
"""

from typing import TYPE_CHECKING, Any

import triton.language as tl

if TYPE_CHECKING:
    constexpr = Any
else:
    constexpr = tl.constexpr
