"""`/metrics`, `/healthz` and `/livez` of several workers as one: the supervisor asks each and answers for all.

Constraints
- Each worker listens on a Unix socket in a folder that only its supervisor can enter.
- What a worker exports is handed on as it is, with the label `worker` (`edge-0`): as many values as there are workers.
- A worker that does not answer within `ASK_S` has `tidegate_healthy` 0 and no other series, and `/healthz` names it.
- All are asked at once; no answer is larger than `ANSWER_BYTES_MOST`.

Operation
    Prometheus ─▶ Board.exposed ─┬─▶ edge-0.sock ─┐
                                 └─▶ edge-1.sock ─┴─▶ merged, with the supervisor's own counts
"""

import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from socket import AF_UNIX, SOCK_STREAM, socket

import msgspec
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from pipelines.core.progress import START_S
from pipelines.core.rolling import Reason
from pipelines.observe.metrics import HEALTHY, HELD, RESTARTS, SUPERVISOR_METRICS, WORKER_METRICS

ASK_S = 2.0
ASKED_MOST = 32
"""At a time."""
ANSWER_BYTES_MOST = 4 << 20
TURN_MOST_S = 60.0
"""The supervisor's own loop turns several times a second; asking workers that hang takes it seconds."""


class Reply(msgspec.Struct, frozen=True):
    """What a worker answered."""

    status: int
    body: str


def ask(path: Path, what: str) -> Reply | None:
    """Ask the worker that listens there; None where it does not answer."""
    connection = _Connection(path)
    try:
        connection.request("GET", what)
        answer = connection.getresponse()
        body = answer.read(ANSWER_BYTES_MOST)
    except (OSError, HTTPException):
        return None
    finally:
        connection.close()
    return Reply(answer.status, body.decode("utf-8", "replace").strip())


class _Connection(HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("worker", timeout=ASK_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket(AF_UNIX, SOCK_STREAM)
        self.sock.settimeout(ASK_S)
        self.sock.connect(str(self._path))


def parse(text: str) -> list[Metric]:
    """What a worker exports. Raises `ValueError`."""
    return list(text_string_to_metric_families(text + "\n"))


def merge(exported: Mapping[str, Iterable[Metric]]) -> dict[str, Metric]:
    """What several workers export, by the names of families, with the label `worker`."""
    merged: dict[str, Metric] = {}
    for worker, families in exported.items():
        for family in families:
            into = merged.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            into.samples += [one._replace(labels={**one.labels, "worker": worker}) for one in family.samples]
    return merged


class Board(Collector):
    """What is known of the workers of one supervisor. Its loop writes, the thread that serves reads."""

    def __init__(
        self, kind: str, site: str, sockets: Mapping[str, Path], clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._kind, self._site, self._sockets, self._clock_s = kind, site, sockets, clock_s
        self._lived_s: dict[str, float] = dict.fromkeys(sockets, 0.0)
        self._restarts = {(worker, reason): 0 for worker in sockets for reason in Reason}
        self._turned_s = clock_s()
        self.stopping = False
        self._pool = ThreadPoolExecutor(min(len(sockets), ASKED_MOST), thread_name_prefix="ask")
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def turned(self, lived_s: Mapping[str, float]) -> None:
        """The supervisor's loop turned; how long each worker has run, 0 where it does not."""
        self._turned_s = self._clock_s()
        self._lived_s.update(lived_s)

    def restarted(self, worker: str, reason: Reason) -> None:
        """Count a restart."""
        self._restarts[worker, reason] += 1

    def ask_all(self, what: str) -> dict[str, Reply | None]:
        """The answers of all workers."""
        replies = self._pool.map(lambda path: ask(path, what), self._sockets.values())
        return dict(zip(self._sockets, replies, strict=True))

    def held(self) -> dict[str, int]:
        """Partitions that each worker holds; 0 where it does not answer."""
        held = dict.fromkeys(self._sockets, 0)
        family = merge(self._exported()).get(HELD)
        for one in family.samples if family is not None else ():
            held[one.labels["worker"]] += int(one.value)
        return held

    def _exported(self) -> dict[str, list[Metric]]:
        found: dict[str, list[Metric]] = {}
        for worker, reply in self.ask_all("/metrics").items():
            if reply is not None and reply.status == 200:
                with suppress(ValueError):  # Cut off, or no worker of ours: it counts as no answer.
                    found[worker] = parse(reply.body)
        return found

    def collect(self) -> Iterable[Metric]:
        """What Prometheus is told."""
        exported = self._exported()
        merged = merge(exported)
        for worker in self._sockets.keys() - exported.keys():
            if HEALTHY not in merged:
                merged[HEALTHY] = GaugeMetricFamily(HEALTHY, _MEANINGS[HEALTHY])
            merged[HEALTHY].add_sample(HEALTHY, {"site": self._site, "kind": self._kind, "worker": worker}, 0.0)
        restarts = CounterMetricFamily(RESTARTS, _MEANINGS[RESTARTS], labels=("site", "kind", "worker", "reason"))
        for (worker, reason), count in self._restarts.items():
            restarts.add_metric((self._site, self._kind, worker, reason), count)
        return [*merged.values(), restarts]

    def exposed(self) -> CollectorRegistry:
        """All of them; the workers are asked when it is collected."""
        return self._registry

    def why_not(self) -> str:
        """Which workers make no progress, and why; "" where all do."""
        if self.stopping:
            return "stopping"
        own = self._why_standing()
        found = {worker: self._why(worker, reply) for worker, reply in self.ask_all("/healthz").items()}
        return "; ".join(filter(None, [own, *(f"{worker}: {why}" for worker, why in found.items() if why)]))

    def why_hung(self) -> str:
        """Which workers hang: their loop stands still, or they have run for long and do not answer."""
        found = [
            f"{worker}: {why}"
            for worker, reply in self.ask_all("/livez").items()
            if (why := self._why(worker, reply)) and (reply is not None or self._lived_s[worker] > START_S)
        ]
        return "; ".join(filter(None, [self._why_standing(), *found]))

    @property
    def doing(self) -> str:
        """What is said where all is well."""
        count = len(self._sockets)
        return "1 worker is well" if count == 1 else f"{count} workers are well"

    def _why(self, worker: str, reply: Reply | None) -> str:
        if reply is not None:
            return "" if reply.status == 200 else reply.body
        return "no answer" if self._lived_s[worker] else "it does not run"

    def _why_standing(self) -> str:
        stood_s = self._clock_s() - self._turned_s
        return f"the supervisor's loop has stood still for {stood_s:.0f} s" if stood_s > TURN_MOST_S else ""

    def close(self) -> None:
        """The end."""
        self._pool.shutdown(wait=False, cancel_futures=True)


_MEANINGS = {metric.name: metric.meaning for metric in (*WORKER_METRICS, *SUPERVISOR_METRICS)}
