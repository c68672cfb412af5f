"""Reads one tier's dead letters, and carries out what a person decides about them.

Constraints
- A retried item, the position of its stream and the disposition of its letter are one transaction, so is what is
  dropped together: after a kill at any moment each letter either waits or is decided, and is captured at most once.
- Whoever writes here does so under one transactional id a site (in the cloud one in all). `take_over` fences everybody
  before; what is read after it stays the truth until our own next write, or that write is refused.
- Nothing is judged by what may still change: open transactions are waited for.
- Payloads pass through one transaction at a time, bounded in records and bytes.

Operation
    take_over ─▶ read: letters, and behind them what was decided ─▶ a person says which ─▶ retry or drop
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice

from pipelines.core.capture import Capture
from pipelines.core.dead_letters import (
    DeadLetters,
    Letter,
    Wanted,
    captured_anew,
    place,
    refuse_producers,
    retry_stream,
)
from pipelines.errors import TransportError
from pipelines.observe.audit import wait_until_decided
from pipelines.runtime.dead_letters import disposition, read
from pipelines.runtime.positions import stored_positions
from pipelines.transport.base import Cluster, OutRecord, Partition, Record
from schemas import headers, wire
from schemas.dead_letters import DROPPED, RETRIED, Decided
from schemas.items import ItemId
from schemas.topics import CLOUD_DEAD_LETTERS, SiteTopics, Tier

RETRY_RECORDS = 500
"""Letters retried in one transaction, at most."""
RETRY_BYTES = 8 << 20
"""Of their payloads: a commit of so much takes 120 ms at most, see `ProducerLimits`."""
DROP_LETTERS = 5_000
"""Dropped in one transaction; they are only named."""


class Desk:
    """The dead letters of one tier: of a site at the edge, of all sites in the cloud."""

    def __init__(self, cluster: Cluster, tier: Tier, site: str, retry_records: int = RETRY_RECORDS) -> None:
        self._cluster = cluster
        self._tier = tier
        self._topics = SiteTopics(site)
        self._retry_records = retry_records
        self.topic = self._topics.dead_letters if tier is Tier.EDGE else CLOUD_DEAD_LETTERS
        self._writer = cluster.transactions(f"dlq.{site}" if tier is Tier.EDGE else "dlq", "none")

    def take_over(self) -> None:
        """Be the only one that decides. Call it before `read` where something is to be written."""
        self._writer.start()

    def close(self) -> None:
        """Release the writer's connections."""
        self._writer.close()

    def read(self, wanted: Wanted) -> DeadLetters:
        """The letters that are meant, as they stand. Raises `BrokerError`, `TransportError`, `ConfigError`."""
        found = DeadLetters(wanted)
        ends = wait_until_decided(self._cluster, [self.topic], again="try")
        for record in self._cluster.read_all([self.topic], self._starts(wanted, ends)):
            one = read(self._tier, record)
            if isinstance(one, Letter):
                found.add(one)
            else:
                found.decide(record.partition(), one)
        return found

    def _starts(self, wanted: Wanted, ends: Mapping[Partition, int]) -> dict[Partition, int]:
        """The first offsets that matter: all that was decided about a letter lies behind it."""
        floors = self._cluster.start_offsets([self.topic])
        if wanted.ids:
            first: dict[int, int] = {}
            for number, offset in wanted.ids:
                first[number] = min(offset, first.get(number, offset))
            return {at: max(floor, first.get(at[1], ends[at])) for at, floor in floors.items()}
        if wanted.since_us is not None:
            found = self._cluster.offsets_at(list(floors), wanted.since_us // 1000)
            return {at: ends[at] if offset is None else offset for at, offset in found.items()}
        return floors

    def records(self, letters: Iterable[Letter]) -> Iterator[tuple[Letter, Record]]:
        """Each letter with its record, in no order. Raises `TransportError` where retention was quicker."""
        left = {letter.key: letter for letter in letters}
        if not left:
            return
        starts = self._starts(Wanted(ids=frozenset(left)), self._cluster.end_offsets([self.topic]))
        for record in self._cluster.read_all([self.topic], starts):
            letter = left.pop((record.partition(), record.offset()), None)
            if letter is not None:
                yield letter, record
            if not left:
                return
        raise TransportError(
            f"{len(left)} dead letters are no longer there", remedy="retention removed them: list again"
        )

    def drop(self, letters: Sequence[Letter]) -> Iterator[int]:
        """Let them go; how many, after each transaction. Raises `Aborted`, `Fenced`: those before are decided."""
        each = iter(letters)
        while some := list(islice(each, DROP_LETTERS)):
            decided = [(letter, Decided(letter.offset)) for letter in some]
            self._writer.write(self._dispositions(DROPPED, decided))
            yield len(some)

    def retry(self, letters: Sequence[Letter], deadline_us: int, clock_us: Callable[[], int]) -> Iterator[int]:
        """Capture each payload as a new item, `deadline_us` from now; how many, after each transaction.

        For letters without `hindrance`. Raises as `drop` does, and `ConfigError` where a producer has such a stream.
        """
        streams = sorted({retry_stream(letter.stream) for letter in letters})
        wait_until_decided(self._cluster, [self._topics.positions], again="try")
        stored = stored_positions(self._cluster, self._topics)
        refuse_producers(((name, stored[name].source_position) for name in streams if name in stored), self.topic)
        capture = Capture(streams, stored, clock_us() // 1000)
        items: list[OutRecord] = []
        decided: list[tuple[Letter, Decided]] = []
        size_bytes = 0
        for letter, record in self.records(letters):
            source_position = place(self.topic, letter.key)
            item = ItemId(retry_stream(letter.stream), *capture.take(retry_stream(letter.stream), source_position))
            header = captured_anew(headers.find(record.headers()), item, source_position, clock_us() + deadline_us)
            kept = headers.pair(headers.content_type_of(record.headers()), header)
            items.append(OutRecord(self._topics.items, record.value(), item.stream.encode(), headers=kept))
            decided.append((letter, Decided(letter.offset, item)))
            size_bytes += items[-1].size_bytes
            if len(items) >= self._retry_records or size_bytes >= RETRY_BYTES:
                yield self._write_retried(items, decided, capture)
                items, decided, size_bytes = [], [], 0
        if items:
            yield self._write_retried(items, decided, capture)

    def _write_retried(self, items: list[OutRecord], decided: list[tuple[Letter, Decided]], capture: Capture) -> int:
        stored = capture.changed().items()
        positions = [OutRecord(self._topics.positions, wire.encode(at), name.encode()) for name, at in stored]
        self._writer.write([*items, *positions, *self._dispositions(RETRIED, decided)])
        return len(items)

    def _dispositions(self, fate: str, decided: Iterable[tuple[Letter, Decided]]) -> list[OutRecord]:
        by_partition: defaultdict[int, list[Decided]] = defaultdict(list)
        for letter, one in decided:
            by_partition[letter.partition].append(one)
        return [disposition(self.topic, number, fate, some) for number, some in by_partition.items()]
