"""What a user may set of chats. Nothing here imports anything slow, so that `--help` answers at once."""

import datetime
from typing import Literal

TrainOn = Literal["all", "last"]
DATE = "2024-07-26"  # the one that Llama-3.1's template writes by itself


def check_date(date: str) -> None:
    """Raise ValueError unless `date` is a day in the form of DATE."""
    try:
        datetime.date.fromisoformat(date)
    except ValueError:
        raise ValueError(f"date = {date}: not a date as {DATE}") from None
