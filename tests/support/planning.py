"""Operations for tests of the plan's cost model."""

from logtrain.planning.operation import Op


def op(kind: str, stream: str = "compute", waits: tuple = (), **changes) -> Op:
    return Op("x", kind, "forward", "", 1, stream, waits, **{"read": 0, "written": 0, **changes})
