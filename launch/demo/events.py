"""The events that the demo's logs report, by system: see events.toml."""

import tomllib
from pathlib import Path
from typing import NamedTuple


class Event(NamedTuple):
    """A line of a log and what is to be known about it, with `{name}` for each random value."""

    log: str
    says: str
    why: str
    do: tuple[str, ...] = ()

    @property
    def is_fault(self) -> bool:
        """Whether anything is to be done about it."""
        return bool(self.do)


def read_events() -> dict[str, tuple[Event, ...]]:
    """The events of each system, in the order of events.toml."""
    systems = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
    return {
        system: tuple(Event(event["log"], event["says"], event["why"], tuple(event.get("do", ()))) for event in events)
        for system, events in systems.items()
    }


EVENTS = read_events()
