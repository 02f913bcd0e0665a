"""Where the figures of a run go beside its own files: trackers, Prometheus, and the monitor of each machine."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from logtrain.observe.goodput import Goodput
from logtrain.observe.metrics import Metrics
from logtrain.observe.monitor import Monitor
from logtrain.observe.prometheus import Prometheus
from logtrain.observe.records import Record
from logtrain.observe.trackers import Trackers, figures_of, figures_of_sample


class Outlets:
    """All outlets of this process. Rank 0 has all; the first rank of another machine has its monitor, others none."""

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        *,
        rank: int,
        is_first_of_machine: bool,
        uuids: Sequence[str],
        metrics: Metrics,
        goodput: Goodput,
        prometheus: Prometheus,
    ):
        """`config`: all settings by dotted key. `uuids`: of this machine's GPUs."""
        self.goodput, self.prometheus, self.step = goodput, prometheus, 0
        names = config["track"] if rank == 0 else ()
        self.trackers = Trackers(names, folder, folder.name, config, metrics.info)
        say = metrics.event if rank == 0 else None
        self.monitor = Monitor(folder, rank, enabled=is_first_of_machine, say=say, also=self.of_machine, uuids=uuids)
        self.monitor.start()
        metrics.outlet = self.of_record

    def of_record(self, record: Record) -> None:
        """Hand on a record."""
        step, figures = record["step"], figures_of(record)
        assert isinstance(step, int)
        self.step = self.monitor.step = step
        self.trackers.log(figures, step)
        self.prometheus.update(figures)

    def of_machine(self) -> None:
        """Hand on the last sample of this machine; in the monitor's thread."""
        self.goodput.write()
        figures = figures_of_sample(self.monitor.last)
        self.trackers.log(figures, self.step)
        self.prometheus.update(figures)

    def exported(self, folder: Path) -> None:
        """Remember where the model was exported to, for the trackers."""
        self.trackers.export = str(folder)

    def close(self) -> None:
        """Hand on what waits, and end the threads."""
        self.monitor.close()
        self.trackers.close()
