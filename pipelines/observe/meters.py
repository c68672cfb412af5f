"""The metrics of one process, registered with prometheus-client: see `metrics` for the list."""

from collections.abc import Callable, Mapping

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)

from pipelines.observe.metrics import WORKER_METRICS, Kind, Metric

Counts = Mapping[tuple[str, ...], float]
"""What to add to counters: by name and label values."""


class Meters:
    """The metrics of one process. Any thread may count."""

    def __init__(self, kind: str = "", site: str = "") -> None:
        """Those of a kind of worker; all where none is given."""
        self.kind, self.site = kind, site
        # They would double the series, and nobody reads them.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self._metrics = {
            metric.name: self._register(metric) for metric in WORKER_METRICS if not kind or kind in metric.of
        }
        self._children: dict[tuple[str, ...], Counter | Gauge | Histogram] = {}
        for metric in WORKER_METRICS:
            if metric.name in self._metrics:
                for value in [(one,) for one in metric.known] if metric.labels else [()]:
                    self._child((metric.name, *value))

    def _register(self, metric: Metric) -> Counter | Gauge | Histogram:
        given = (metric.name, metric.meaning, ("site", "kind", *metric.labels))
        if metric.kind is Kind.COUNTER:
            return Counter(*given, registry=self.registry)
        if metric.kind is Kind.GAUGE:
            return Gauge(*given, registry=self.registry)
        return Histogram(*given, registry=self.registry, buckets=metric.buckets)

    def _child(self, key: tuple[str, ...]) -> Counter | Gauge | Histogram:
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = self._metrics[key[0]].labels(self.site, self.kind, *key[1:])
        return child

    def add(self, name: str, amount: float = 1, *labels: str) -> None:
        """Add to a counter. `labels` are its values in the order of the list. `KeyError`: this worker has it not."""
        child = self._child((name, *labels))
        assert isinstance(child, Counter)
        child.inc(amount)

    def add_all(self, counts: Counts) -> None:
        """Add to several: by name and label values."""
        for (name, *labels), amount in counts.items():
            self.add(name, amount, *labels)

    def set(self, name: str, value: float, *labels: str) -> None:
        """Set a gauge."""
        child = self._child((name, *labels))
        assert isinstance(child, Gauge)
        child.set(value)

    def watch(self, name: str, value: Callable[[], float]) -> None:
        """Ask for a gauge's value at each scrape; another thread will."""
        child = self._child((name,))
        assert isinstance(child, Gauge)
        child.set_function(value)

    def observe(self, name: str, value: float) -> None:
        """One more value of a histogram."""
        child = self._child((name,))
        assert isinstance(child, Histogram)
        child.observe(value)
