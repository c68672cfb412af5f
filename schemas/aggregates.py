"""Aggregates: tumbling event-time windows per stream and class, JSON, in the compacted topic `aggregates`."""

import msgspec

__all__ = ["Window", "window_key"]


class Window(msgspec.Struct, frozen=True):
    """One revision of one window. The latest revision under a key is the truth; `closed` is information only.

    The sums are integers, so that a restored window goes on exactly where it stood.
    """

    site: str
    stream: str
    label: str
    start_us: int
    size_us: int
    count: int
    confidence_ppm_sum: int
    """Sum of round(confidence x 1,000,000)."""
    latency_us_sum: int
    """Sum of settled_us - capture_us."""
    mean_confidence: float
    mean_latency_ms: float
    revision: int
    closed: bool
    """The stream's event time has passed the end of the window and the lateness allowed."""


def window_key(site: str, stream: str, label: str, start_us: int) -> bytes:
    """The key of a window, a JSON array: names may hold any character, and no two windows share a key."""
    return msgspec.json.encode([site, stream, label, start_us])
