"""Logs and transactions of a simulated Kafka.

Constraints
- Markers take offsets. Readers see what is committed, up to the last stable offset: the first record of what is open.
- A transactional id has one holder: `begin` (init) ends what the one before had open and fences it by a higher epoch.
- What is decided is carried out partition by partition, each a little later; until then the id's next call waits.
- A transaction that is open for too long is rolled back by a sweep, and its holder fenced.
"""

from collections.abc import Callable, Iterator, Mapping

from pipelines.sim.chance import Chance
from pipelines.sim.clock import Clock, Signal
from pipelines.transport.base import Commit, Partition

TRANSACTION_MOST_US = 1_500_000
SWEEP_US = 250_000
MARKER_MOST_US = 15_000
"""From a decision to its last marker."""


class ProducerFenced(Exception):
    """Somebody holds the id with a higher epoch, or the coordinator gave the transaction up."""


class Busy(Exception):
    """What was decided before is still being carried out."""


class Transaction:
    """One transaction of one holder."""

    def __init__(self, owner: "Producer", began_us: int) -> None:
        self.owner, self.began_us = owner, began_us
        self.firsts: dict[Partition, int] = {}
        """The first record of each partition."""
        self.offsets: dict[Partition, Commit] = {}
        self.noted: tuple[Partition, ...] = ()
        """Whose positions the group holds back for it."""
        self.committed: bool | None = None
        """None: not decided."""


class Producer:
    """A transactional id, as the coordinator knows it."""

    def __init__(self, name: str) -> None:
        self.name, self.epoch = name, 0
        self.current: Transaction | None = None


class Entry:
    """What lies at an offset: a record (`key` is free for its writer's use), or a marker, whose value is None."""

    __slots__ = ("key", "transaction", "value")

    def __init__(self, value: bytes | None, transaction: Transaction | None, key: bytes | None = None) -> None:
        self.value, self.transaction, self.key = value, transaction, key


class Log:
    """One partition."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.open: dict[Transaction, int] = {}

    @property
    def stable(self) -> int:
        """The last stable offset: all before it is decided, and can be read."""
        return min(self.open.values(), default=len(self.entries))

    def visible(self, start: int, most: int) -> Iterator[tuple[int, Entry]]:
        """Committed records from an offset on."""
        for offset in range(start, self.stable):
            if most <= 0:
                return
            entry = self.entries[offset]
            if entry.value is not None and (entry.transaction is None or entry.transaction.committed):
                most -= 1
                yield offset, entry


class Kafka:
    """The brokers of one cluster: logs, the transaction coordinator, and who is told what was written."""

    def __init__(self, clock: Clock, chance: Chance) -> None:
        self._clock, self._chance = clock, chance
        self.logs: dict[Partition, Log] = {}
        self.producers: dict[str, Producer] = {}
        self.written = Signal(clock)
        """Something can be read that could not."""
        self.on_pending: Callable[[Transaction, str], None] = lambda _, __: None
        self.on_ended: Callable[[Transaction], None] = lambda _: None
        clock.every(SWEEP_US, self._sweep)

    def log(self, partition: Partition) -> Log:
        """It is made where it is not there."""
        return self.logs.setdefault(partition, Log())

    def append(self, partition: Partition, value: bytes, key: bytes | None = None) -> None:
        """Outside any transaction."""
        self.log(partition).entries.append(Entry(value, None, key))
        self.written.notify()

    def begin(self, name: str) -> int:
        """The epoch of a new holder. Raises `Busy` until what was open is ended: ask again."""
        producer = self.producers.setdefault(name, Producer(name))
        if producer.current is not None:
            if producer.current.committed is None:
                producer.epoch += 1
                self._decide(producer.current, committed=False)
            raise Busy
        producer.epoch += 1
        return producer.epoch

    def add(self, name: str, epoch: int, partition: Partition, value: bytes | None, key: bytes | None) -> None:
        """A record of the holder's transaction, which begins with it. Raises `Busy`, `ProducerFenced`."""
        transaction = self._open(name, epoch)
        log = self.log(partition)
        if partition not in transaction.firsts:
            transaction.firsts[partition] = log.open[transaction] = len(log.entries)
        log.entries.append(Entry(value, transaction, key))

    def add_offsets(self, name: str, epoch: int, offsets: Mapping[Partition, Commit], member: str) -> None:
        """Where a member has its group go on, if it is committed. Raises `Busy`, `ProducerFenced`."""
        transaction = self._open(name, epoch)
        transaction.offsets.update(offsets)
        self.on_pending(transaction, member)

    def end(self, name: str, epoch: int, *, committed: bool) -> None:
        """Decide. Raises `ProducerFenced`."""
        producer = self.producers[name]
        if producer.epoch != epoch:
            raise ProducerFenced
        if producer.current is not None and producer.current.committed is None:
            self._decide(producer.current, committed=committed)

    def _open(self, name: str, epoch: int) -> Transaction:
        producer = self.producers[name]
        if producer.epoch != epoch:
            raise ProducerFenced
        if producer.current is None:
            producer.current = Transaction(producer, self._clock.now_us)
        elif producer.current.committed is not None:
            raise Busy
        return producer.current

    def _decide(self, transaction: Transaction, *, committed: bool) -> None:
        transaction.committed = committed
        left = list(transaction.firsts)

        def mark(partition: Partition) -> None:
            log = self.log(partition)
            del log.open[transaction]
            log.entries.append(Entry(None, transaction))
            left.remove(partition)
            self.written.notify()

        last_us = self._clock.now_us
        for partition in list(left):
            at_us = self._clock.now_us + self._chance.randrange(1, MARKER_MOST_US)
            last_us = max(last_us, at_us)
            self._clock.at(at_us, lambda partition=partition: mark(partition))  # type: ignore[misc]
        self._clock.at(last_us, lambda: self._ended(transaction))

    def _ended(self, transaction: Transaction) -> None:
        transaction.owner.current = None
        self.on_ended(transaction)

    def _sweep(self) -> None:
        for producer in self.producers.values():
            current = producer.current
            if current is None or current.committed is not None:
                continue
            if self._clock.now_us - current.began_us > TRANSACTION_MOST_US:
                producer.epoch += 1
                self._decide(current, committed=False)
