"""Are the windows right? The windows of a site against a batch computation over its settled results."""

from collections import Counter
from typing import NamedTuple

import msgspec

from pipelines.transport.base import Cluster
from schemas import wire
from schemas.aggregates import Window
from schemas.topics import AGGREGATES, SiteTopics

Key = tuple[str, str, int]
"""Stream, class and start of a window."""


class Sums(NamedTuple):
    """What a window counts, in the integers that it is kept in."""

    results: int
    confidence_ppm: int
    latency_us: int


class Comparison(msgspec.Struct, frozen=True):
    """The windows that were published, held against the batch computation."""

    windows: int
    results: int
    differing: list[str]
    """Key and both sides of the first `SHOWN` windows that are missing, too many or different."""

    @property
    def equal(self) -> bool:
        """Every window is as the batch computation has it."""
        return not self.differing


SHOWN = 20


def compare(edge: Cluster, cloud: Cluster, site: str, size_us: int) -> Comparison:
    """Read both topics whole and compare. All results must have reached the aggregator."""
    published = {
        (window.stream, window.label, window.start_us): Sums(
            window.count, window.confidence_ppm_sum, window.latency_us_sum
        )
        for window in _latest(cloud, site)
    }
    expected, results = _batch(edge, site, size_us)
    wrong = [key for key in published.keys() | expected.keys() if published.get(key) != expected.get(key)]
    return Comparison(
        windows=len(expected),
        results=results,
        differing=[f"{key}: {published.get(key)} is {expected.get(key)}" for key in sorted(wrong)[:SHOWN]],
    )


def _latest(cloud: Cluster, site: str) -> list[Window]:
    latest: dict[bytes | None, Window] = {}
    for record in cloud.read_all([AGGREGATES]):
        window = wire.decode_window(record.value())
        if window.site == site:
            latest[record.key()] = window
    return list(latest.values())


def _batch(edge: Cluster, site: str, size_us: int) -> tuple[dict[Key, Sums], int]:
    counts: Counter[Key] = Counter()
    confidence: Counter[Key] = Counter()
    latency: Counter[Key] = Counter()
    for record in edge.read_all([SiteTopics(site).results]):
        for result in wire.decode_results(record.value()).results:
            key = (result.stream, result.label, result.capture_us // size_us * size_us)
            counts[key] += 1
            confidence[key] += round(result.confidence * 1_000_000)
            latency[key] += result.settled_us - result.capture_us
    sums = {key: Sums(counts[key], confidence[key], latency[key]) for key in counts}
    return sums, counts.total()
