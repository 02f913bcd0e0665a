"""The settings of what a run observes of itself. Nothing here imports anything slow."""

from dataclasses import dataclass

from logtrain.core.kinds import Config


@dataclass(frozen=True, kw_only=True)
class HealthConfig(Config, prefix="health."):
    """From when on a run says that something is wrong. Nothing of it changes the training."""

    spike: float = 8.0
    """A step is a spike from this robust z-score of loss or gradient norm among the last 100. 0: never."""
    straggler: float = 1.25
    """A rank is a straggler once it computes for this many times the others' median. 0: never."""
    data_wait: float = 0.1
    """Warn from this share of the steps' time spent in waiting for data. 0: never."""
    disk: float = 2.0
    """Warn when the disk has room for fewer checkpoints than this. 0: never."""

    def __post_init__(self):
        super().__post_init__()
        for name in ("spike", "straggler", "data_wait", "disk"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"health.{name} = {getattr(self, name)} must be a finite number >= 0")
        if 0 < self.straggler <= 1:
            raise ValueError(f"health.straggler = {self.straggler} must be above 1, or 0")
