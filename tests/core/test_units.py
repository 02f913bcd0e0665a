"""Numbers as people read them."""

import pytest

from logtrain.core.units import rate, size


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1 kB"), (61_234, "61.2 kB"), (999_499, "999 kB"),
     (999_500, "1 MB"), (16_060_000_000, "16.1 GB"), (840_000_000_000, "840 GB"), (5e18, "5000 PB")],
)  # fmt: skip
def test_size(num_bytes, text):
    assert size(num_bytes) == text


def test_rate(monkeypatch):
    monkeypatch.setattr("time.monotonic", lambda: 12.0)
    assert rate(3_000_000_000, 10.0) == "1.5 GB/s"
    assert rate(0, 12.0) == "0 bytes/s"
