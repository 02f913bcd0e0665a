"""The settings of what a run observes of itself. Nothing here imports anything slow."""

from dataclasses import dataclass

from logtrain.core.kinds import Config


@dataclass(frozen=True, kw_only=True)
class HealthConfig(Config, prefix="health."):
    """From when on a run says that something is wrong. Nothing of it changes the training."""

    spike: float = 8.0
    """Robust z-score of a step's loss or gradient norm among the last 100 from which it is a spike. 0: never."""
    straggler: float = 1.25
    """Time that a rank computes for, over that of the others' median, from which it is a straggler. 0: never."""
    data_wait: float = 0.1
    """Share of the steps' time that is spent in waiting for data from which that is said. 0: never."""
    disk: float = 2.0
    """Checkpoints that the disk has room for below which it is filling up. 0: never."""

    def __post_init__(self):
        super().__post_init__()
        for name in ("spike", "straggler", "data_wait", "disk"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"health.{name} = {getattr(self, name)} must be a finite number >= 0")
        if 0 < self.straggler <= 1:
            raise ValueError(f"health.straggler = {self.straggler} must be above 1, or 0")
