from numpy import int32
from numpy.typing import NDArray

def look_ahead_fit(lengths: NDArray[int32], capacity: int, row_of_piece: NDArray[int32], /) -> int: ...
