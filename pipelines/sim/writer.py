"""The transactional client of a worker: what `transport/kafka_write.py` promises, kept over a simulated network."""

from collections.abc import Generator, Mapping, Sequence

from pipelines.errors import Fenced, TransportError
from pipelines.sim.clock import Wait
from pipelines.sim.group import Group, StaleMember
from pipelines.sim.kafka import Kafka, ProducerFenced
from pipelines.sim.link import Away, Link
from pipelines.sim.reader import Reader
from pipelines.transport.base import Aborted, Commit, OutRecord, Partition

PRODUCE_US = 200
"""From one partition's records to the next one's."""


class Writer:
    """Writes atomically under one transactional id."""

    def __init__(self, kafka: Kafka, group: Group, link: Link, name: str) -> None:
        self._kafka, self._group, self._link, self.name = kafka, group, link, name
        self._epoch: int | None = None

    def start(self) -> Generator[Wait, None, None]:
        """Fence every earlier holder of the id and roll back what it had open. Raises `TransportError`."""
        if self._epoch is not None:
            return
        try:
            self._epoch = yield from self._link.call(lambda: self._kafka.begin(self.name))
        except Away:
            raise TransportError(f"'{self.name}' cannot begin to write") from None

    def write(
        self, records: Sequence[OutRecord], offsets: Mapping[Partition, Commit], reader: Reader
    ) -> Generator[Wait, None, None]:
        """One transaction. Raises `Aborted`, `Fenced`."""
        epoch = self._epoch
        if epoch is None:
            raise Aborted("the writer must be started again")
        member = reader.membership
        try:
            yield from self._add(epoch, records)
            yield from self._link.call(lambda: self._add_offsets(epoch, offsets, member))
            yield from self._link.call(lambda: self._kafka.end(self.name, epoch, committed=True), commits=True)
        except ProducerFenced:
            self._epoch = None
            raise Fenced(f"'{self.name}' was fenced") from None
        except StaleMember:
            yield from self._roll_back(epoch)
            raise Aborted("the group has gone on") from None
        except Away:
            self._epoch = None
            raise Aborted("no answer came") from None

    def _add(self, epoch: int, records: Sequence[OutRecord]) -> Generator[Wait, None, None]:
        by_partition: dict[Partition, list[OutRecord]] = {}
        for record in records:
            by_partition.setdefault((record.topic, record.partition), []).append(record)
        for partition, some in by_partition.items():

            def add(partition: Partition = partition, some: list[OutRecord] = some) -> None:
                for record in some:
                    self._kafka.add(self.name, epoch, partition, record.value, record.key)

            yield from self._link.call(add)
            yield PRODUCE_US, None

    def _add_offsets(self, epoch: int, offsets: Mapping[Partition, Commit], member: tuple[str, int]) -> None:
        self._group.check(*member)
        self._kafka.add_offsets(self.name, epoch, offsets, member[0])

    def _roll_back(self, epoch: int) -> Generator[Wait, None, None]:
        try:
            yield from self._link.call(lambda: self._kafka.end(self.name, epoch, committed=False))
        except (Away, ProducerFenced):
            self._epoch = None
