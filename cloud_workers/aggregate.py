"""Settled results in, event-time windows out: the shell around `pipelines.core.windows`, exactly once.

Constraints
- A window lies in the partition of `aggregates` that has the number of its results' partition, so nothing is merged.
- Revisions and the offsets of the results that they count are one transaction. Between two of them (`FLUSH_US`) a
  window changes in memory only: one revision then, however many results came.
- The commit's metadata names the last revision written (`_Marker`). Whoever restores reads `aggregates` until it has
  seen that one: commits and records become visible on their own, and offsets may do so first.
- Run it with `LIMITS`: an emission is written in the turn that made it, so what was evicted can be read back.

Operation
    process: decode ─▶ WindowBook.add ─▶ (recall what was evicted from `aggregates`) ─▶ held, offsets too
    tick:    every FLUSH_US the changed windows, and the offsets
"""

import hashlib
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing

import msgspec
import structlog

from pipelines.core.engine import EngineLimits
from pipelines.core.windows import MAX_WINDOWS, WindowBook
from pipelines.errors import ConfigError, ForeignRecord, TransportError
from pipelines.observe.metrics import FOREIGN_RECORDS, WINDOWS
from pipelines.runtime.dead_letters import dead_letter
from pipelines.runtime.let_go import LetGo
from pipelines.runtime.stage import NOTHING, Step
from pipelines.transport.base import Cluster, Commit, OutRecord, Partition, Record
from schemas import wire
from schemas.aggregates import Window, window_key
from schemas.results import Result
from schemas.topics import AGGREGATE_GROUP, AGGREGATES, CLOUD_DEAD_LETTERS, SiteTopics

log = structlog.get_logger("tidegate.aggregate")

FLUSH_US = 250_000
"""Between two revisions of a window."""

LIMITS = EngineLimits(commit_interval_us=0)
"""The stage coalesces by itself."""

READ_RECORDS = 500

RESTORE_IDLE_S = 10.0
"""How long a restore waits for the next window: a dead worker's open transaction ends within 3.3 s."""


class _Marker(msgspec.Struct, frozen=True):
    """Names one revision of one window, in 40 characters or so whatever the key's length."""

    revision: int
    key_digest: str

    @classmethod
    def of(cls, window: Window) -> "_Marker":
        key = window_key(window.site, window.stream, window.label, window.start_us)
        return cls(window.revision, hashlib.blake2b(key, digest_size=16).hexdigest())

    @classmethod
    def read(cls, metadata: str) -> "_Marker | None":
        revision, _, digest = metadata.partition(":")
        return cls(int(revision), digest) if revision.isdecimal() and digest else None

    def __str__(self) -> str:
        return f"{self.revision}:{self.key_digest}"

    def names(self, window: Window) -> bool:
        return window.revision == self.revision and self == self.of(window)


class _Held(msgspec.Struct):
    """What is known of one partition of one site's results."""

    book: WindowBook
    commit: Commit
    changed: bool = False
    dead_letters: list[OutRecord] = []


class AggregateStage:
    """Windows of `size_us` a site, stream and class over the results of `sites`. Times are microseconds."""

    def __init__(
        self,
        sites: Sequence[str],
        cluster: Cluster,
        size_us: int,
        lateness_us: int,
        max_windows: int = MAX_WINDOWS,
    ) -> None:
        self._site_of = {SiteTopics(site).up_results: site for site in sites}
        self.topics: Sequence[str] = list(self._site_of)
        self.counts: Counter[str] = Counter()
        """`results`, `windows` (revisions), `recalls`, `evicted_open` (windows, see `WindowBook`), and what was passed
        over: `foreign`, `unknown_version`, `wrong_site`, `foreign_window`."""
        self._cluster = cluster
        self._size_us, self._lateness_us, self._max_windows = size_us, lateness_us, max_windows
        self._held: dict[Partition, _Held] = {}
        self._changed_since_us: int | None = None
        self._let_go = LetGo(log)
        self._foreign = 0

    def assigned(self, partitions: Mapping[Partition, Commit]) -> None:
        """Restore the windows of these partitions. Raises `TransportError`, `ConfigError` (see `WindowBook`)."""
        for partition, commit in partitions.items():
            site = self._site_of[partition[0]]
            book = WindowBook(site, self._size_us, self._lateness_us, self._max_windows)
            self._held[partition] = _Held(book, commit)
        self._check_unwritten([p for p, commit in partitions.items() if _Marker.read(commit.metadata) is None])
        for partition, window in self._written(list(partitions)):
            self._held[partition].book.restore(window)
        for partition in partitions:
            log.info("restored", topic=partition[0], partition=partition[1], windows=len(self._held[partition].book))

    def revoked(self, partitions: Sequence[Partition]) -> None:
        """Forget these; what was not emitted is read again by their next owner."""
        for partition in partitions:
            self._held.pop(partition, None)

    def process(self, records: Sequence[Record], now_us: int) -> Step:
        """Count results. Emits at once where dead letters wait or too much is held."""
        by_partition: defaultdict[Partition, list[Record]] = defaultdict(list)
        for record in records:
            by_partition[record.topic(), record.partition()].append(record)
        for partition, group in by_partition.items():
            held = self._held[partition]
            self._count(partition, self._read(held, group))
            held.commit = Commit(group[-1].offset() + 1, held.commit.metadata)
            held.changed = True
        if self._changed_since_us is None:
            self._changed_since_us = now_us
        at_once = any(held.dead_letters or held.book.full for held in self._held.values())
        return self._emit() if at_once else NOTHING

    def close(self) -> None:
        """Nothing is held but memory; what was counted is logged."""
        self._let_go.tell()
        log.info("counts", **self.counts)

    def tick(self, now_us: int) -> Step:
        """Emit what has waited for `FLUSH_US`."""
        self._let_go.report(now_us)
        since_us = self._changed_since_us
        if since_us is None or 0 <= now_us - since_us < FLUSH_US:
            return NOTHING
        return self._emit()

    def _read(self, held: _Held, records: Sequence[Record]) -> list[Result]:
        results: list[Result] = []
        for record in records:
            try:
                batch = wire.decode_results(record.value())
            except ForeignRecord:
                reason = "foreign"
            else:
                reason = _refusal(batch.version, batch.site, held.book.site)
                if not reason:
                    results += batch.results
                    continue
            self.counts[reason] += 1
            self._foreign += 1
            self._let_go.note(reason, record)
            held.dead_letters.append(dead_letter(CLOUD_DEAD_LETTERS, record, reason))
        return results

    def _count(self, partition: Partition, results: list[Result]) -> None:
        book = self._held[partition].book
        evicted = book.add(results)
        if evicted:
            self.counts["recalls"] += 1
            book.recall(evicted, (window for _, window in self._written([partition])))
            book.add(results)
        self.counts["results"] += len(results)

    def _emit(self) -> Step:
        records: list[OutRecord] = []
        offsets: dict[Partition, Commit] = {}
        revisions = 0
        for partition, held in self._held.items():
            if not held.changed:
                continue
            evicted_open = held.book.evicted_open
            windows = held.book.emit()
            records += (_record(window, partition[1]) for window in windows)
            records += held.dead_letters
            if windows:
                held.commit = Commit(held.commit.offset, str(_Marker.of(windows[-1])))
            offsets[partition] = held.commit
            held.changed, held.dead_letters = False, []
            self.counts["windows"] += len(windows)
            revisions += len(windows)
            if held.book.evicted_open and not evicted_open:
                log.warning("evicted_open_windows", partition=partition, remedy="shorten `windows.lateness`")
            self.counts["evicted_open"] += held.book.evicted_open - evicted_open
        self._changed_since_us = None
        tally: dict[tuple[str, ...], float] = {(WINDOWS,): revisions, (FOREIGN_RECORDS,): self._foreign}
        self._foreign = 0
        return Step(records, offsets, tally)

    def _check_unwritten(self, partitions: Sequence[Partition]) -> None:
        """Raise `ConfigError` where windows were written for partitions whose commits name none."""
        if not partitions:
            return
        for record in self._cluster.read_all([AGGREGATES]):
            for partition, _ in self._of([record], dict.fromkeys(partitions)):
                raise ConfigError(
                    f"topic '{AGGREGATES}' holds windows over {partition[0]}[{partition[1]}], and group "
                    f"'{AGGREGATE_GROUP}' has no position that goes with them",
                    remedy="its offsets were reset or expired: put them back, or begin a new site",
                )

    def _written(self, partitions: Sequence[Partition]) -> Iterator[tuple[Partition, Window]]:
        """All windows written for these partitions, in order, up to the last one that their commits name."""
        awaited: dict[Partition, _Marker | None] = {}
        for partition in partitions:
            marker = _Marker.read(self._held[partition].commit.metadata)
            if marker is not None:
                awaited[partition] = marker
        if not awaited:
            return
        begins = self._cluster.start_offsets([AGGREGATES])
        numbers = {number for _, number in awaited}
        reader = self._cluster.reader({(AGGREGATES, number): begins[AGGREGATES, number] for number in numbers})
        with closing(reader):
            idle_since_s = time.monotonic()
            while awaited:
                records = reader.poll(READ_RECORDS, 1.0)
                if records:
                    idle_since_s = time.monotonic()
                elif time.monotonic() - idle_since_s > RESTORE_IDLE_S:
                    raise TransportError(
                        f"topic '{AGGREGATES}' lacks windows that {sorted(awaited)} had written",
                        remedy="if it was emptied or created anew, begin a new site",
                    )
                yield from self._of(records, awaited)

    def _of(
        self, records: Sequence[Record], awaited: dict[Partition, _Marker | None]
    ) -> Iterator[tuple[Partition, Window]]:
        """Windows of the partitions awaited. A partition is awaited until the window that its marker names."""
        for record in records:
            try:
                window = wire.decode_window(record.value())
            except ForeignRecord:
                self.counts["foreign_window"] += 1
                continue
            partition = (SiteTopics(window.site).up_results, record.partition())
            if partition in awaited:
                yield partition, window
                marker = awaited[partition]
                if marker is not None and marker.names(window):
                    del awaited[partition]


def _refusal(version: int, site: str, expected_site: str) -> str:
    """Why a batch cannot be counted, or nothing."""
    if version != wire.VERSION:
        return "unknown_version"
    return "" if site == expected_site else "wrong_site"


def _record(window: Window, partition: int) -> OutRecord:
    key = window_key(window.site, window.stream, window.label, window.start_us)
    return OutRecord(AGGREGATES, wire.encode(window), key, partition)
