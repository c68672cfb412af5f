"""Reading from Kafka: in a consumer group, and outside one."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import msgspec
import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from pipelines.errors import TransportError
from pipelines.transport.base import Commit, Disconnected, OutOfRange, Partition, RebalanceListener, Record
from pipelines.transport.guard import Guard

log = structlog.get_logger("tidegate.kafka")

REQUEST_TIMEOUT_S = 5.0

RENEW_AFTER_S = 5.0
"""A client whose brokers were all gone, and that has read nothing for so long since, is given up. Since 2.10 librdkafka
forgets brokers that metadata does not name (a restarted or suspended broker names none at first) and may then wait for
a coordinator that it forgot (its issue 5511). A client made anew knows the address that it was given."""

READ = {
    "enable.auto.commit": False,
    "auto.offset.reset": "error",
    "isolation.level": "read_committed",
    # With its default of 1000 a fast consumer stalls at an eighth of its rate.
    "fetch.queue.backoff.ms": 2,
    "fetch.error.backoff.ms": 50,
    "queued.max.messages.kbytes": 16 << 10,
}


MEMBER_S = 0.01
"""An epoch may pass without partitions that come or go: so old may be the one that a commit names. The group refuses a
commit of an older one, and it is done again."""

STATISTICS_MS = 5_000
"""Between two looks of a group's reader at what its client knows."""


class _PartitionStatistics(msgspec.Struct):
    fetchq_cnt: int = 0
    """Fetched, and not handed out."""
    next_offset: int = -1
    ls_offset: int = -1
    """What lies before it can be read."""

    @property
    def has_unread(self) -> bool:
        return self.fetchq_cnt > 0 or 0 <= self.next_offset < self.ls_offset


class _TopicStatistics(msgspec.Struct):
    partitions: dict[str, _PartitionStatistics] = {}


class _Statistics(msgspec.Struct):
    """What is needed of the client's statistics."""

    topics: dict[str, _TopicStatistics] = {}


_decode_statistics = msgspec.json.Decoder(_Statistics).decode

READER_GROUP = "tidegate-reader"
"""Of readers outside any group: the client requires one, and looks for its coordinator. Never joined."""


class _Messages:
    """Takes batches from a client and sorts errors from records."""

    def __init__(self, config: Mapping[str, Any], guard: Guard, topics: Iterable[str]) -> None:
        self.guard = guard
        self._topics = sorted(set(topics))
        self._group = str(config["group.id"])
        self._noted: set[int] = set()
        self._down_since_s: float | None = None
        self.consumer = Consumer({**config, "error_cb": self._note_error})

    def _note_error(self, error: KafkaError) -> None:
        """Log an error of a kind once, until records flow again: a client without a broker has two a second."""
        self.guard.note(error)
        if error.code() == KafkaError._ALL_BROKERS_DOWN and self._down_since_s is None:
            self._down_since_s = time.monotonic()
        if error.code() not in self._noted:
            self._noted.add(error.code())
            log.warning("kafka_connection", error=error.str())

    def poll(self, max_records: int, timeout_s: float) -> list[Record]:
        # Never wait inside consume(N, timeout): it waits for all N. poll() returns with the first.
        first = self.consumer.poll(timeout_s)
        if first is None:
            self.guard.raise_if_refused()
            self._refuse_if_lost()
            return []
        taken = [first, *self.consumer.consume(max_records - 1, 0)] if max_records > 1 else [first]
        bad = [message for message in taken if message.error() is not None]
        if not bad:
            self._noted.clear()
            self._down_since_s = None
            self.guard.connected()
            return cast("list[Record]", taken)
        for message in bad:
            self._sort(message)
        return cast("list[Record]", [message for message in taken if message.error() is None])

    def _refuse_if_lost(self) -> None:
        if self._down_since_s is not None and time.monotonic() - self._down_since_s > RENEW_AFTER_S:
            self._down_since_s = None
            raise Disconnected("all brokers were gone, and nothing has been read since")

    def _sort(self, message: Any) -> None:
        error = message.error()
        self.refuse_if_denied(error, message.topic() or "")
        if error.code() == KafkaError._AUTO_OFFSET_RESET:
            raise OutOfRange(f"{message.topic()}[{message.partition()}]: {error.str()}")
        if error.fatal():
            raise TransportError(f"the consumer failed: {error.str()}")
        if error.code() == KafkaError._PARTITION_EOF:
            self.guard.connected()
        else:
            self._note_error(error)

    def refuse_if_denied(self, error: KafkaError, topic: str = "") -> None:
        """Raise `AccessError` where a permission is missing, on the group or on a topic."""
        if error.code() == KafkaError.GROUP_AUTHORIZATION_FAILED:
            self.guard.raise_if_denied(error, "use", self._group)
        self.guard.raise_if_denied(error, "read", *([topic] if topic else self._topics))


class KafkaGroupReader:
    """A member of a consumer group (KIP-848 unless the options say `group.protocol: classic`)."""

    def __init__(
        self,
        options: Mapping[str, Any],
        group: str,
        topics: Sequence[str],
        listener: RebalanceListener,
        name: str = "",
        guard: Guard | None = None,
    ) -> None:
        known_as = {"client.id": name} if name else {}
        watched = {"statistics.interval.ms": STATISTICS_MS, "stats_cb": self._note_statistics}
        config = {**READ, **watched, "group.id": group, "group.protocol": "consumer", **options, **known_as}
        if config["group.protocol"] == "consumer":
            # The range assignor gives the same partition number of every topic to one member: settlers need that.
            config.setdefault("group.remote.assignor", "range")
        else:
            config.setdefault("partition.assignment.strategy", "range")
        self.group = group
        self._messages = _Messages(config, guard or Guard("Kafka", options), topics)
        self._listener = listener
        self._held: set[Partition] = set()
        self.has_unread = False
        """Whether the client knew of records that it had not handed out, at its last statistics."""
        self._given_up = 0
        self.membership: object = None
        """The group's metadata as of the last poll, for a commit from whatever thread. The client itself is for one
        thread: a second one that asks it waits until no poll is under way."""
        self._member_until_s = 0.0
        self._closing = self._abandoned = False
        self.consumer.subscribe(
            list(topics), on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
        )

    @property
    def consumer(self) -> Consumer:
        """The client, for its group metadata."""
        return self._messages.consumer

    def poll(self, max_records: int, timeout_s: float) -> list[Record]:
        """Up to `max_records`, waiting up to `timeout_s` for the first. Raises `OutOfRange`, `TransportError`."""
        given_up = self._given_up
        records = self._messages.poll(max_records, timeout_s)
        if time.monotonic() >= self._member_until_s:
            self._look_at_membership()
        if given_up == self._given_up:
            return records
        # A partition may go between the first record and the rest of the batch: its next owner reads it again.
        return [record for record in records if (record.topic(), record.partition()) in self._held]

    def _look_at_membership(self) -> None:
        self.membership = self.consumer.consumer_group_metadata()
        self._member_until_s = time.monotonic() + MEMBER_S

    def rewind(self) -> dict[Partition, Commit]:
        """Go back to the committed offsets on every partition held, and say what they are."""
        commits = self._committed(sorted(self._held))
        try:
            for (topic, number), commit in commits.items():
                self.consumer.seek(TopicPartition(topic, number, commit.offset))
        except KafkaException as error:
            raise TransportError(f"cannot go back to the committed offsets: {error.args[0].str()}") from error
        return commits

    def flow(self, pause: Sequence[Partition], resume: Sequence[Partition]) -> None:
        """Read no more of some partitions, and on of others. Raises `TransportError`."""
        try:
            for partitions, change in ((pause, self.consumer.pause), (resume, self.consumer.resume)):
                change([TopicPartition(*partition) for partition in partitions if partition in self._held])
        except KafkaException as error:
            raise TransportError(f"cannot pause or resume partitions: {error.args[0].str()}") from error

    def close(self) -> None:
        """Leave the group."""
        self._closing = True
        self.consumer.close()

    def abandon(self) -> None:
        """Leave the group without waiting for a cluster that may not answer; the listener is told nothing more."""
        self._closing = self._abandoned = True
        threading.Thread(target=self.consumer.close, daemon=True, name="abandoned").start()

    def _note_statistics(self, text: str) -> None:
        topics = _decode_statistics(text).topics
        self.has_unread = any(
            (one := topics[topic].partitions.get(str(number))) is not None and one.has_unread
            for topic, number in self._held
            if topic in topics
        )

    def _committed(self, partitions: Sequence[Partition]) -> dict[Partition, Commit]:
        if not partitions:
            return {}
        try:
            found = self.consumer.committed([TopicPartition(*p) for p in partitions], REQUEST_TIMEOUT_S)
        except KafkaException as error:
            self._messages.refuse_if_denied(error.args[0])
            raise TransportError(f"cannot read the committed offsets: {error.args[0].str()}") from error
        self._messages.guard.connected()
        return {(tp.topic, tp.partition): Commit(max(tp.offset, 0), tp.metadata or "") for tp in found}

    def _on_assign(self, consumer: Consumer, given: list[TopicPartition]) -> None:
        if self._closing:
            return  # Leaving: the coordinator would not answer, and nobody would read.
        partitions = [(tp.topic, tp.partition) for tp in given]
        try:
            commits = self._committed(partitions)
        except TransportError as error:
            # The client does not take an assignment whose callback failed: this member would hold it and read nothing.
            raise Disconnected(str(error)) from error
        self._held.update(partitions)
        self._look_at_membership()
        self._listener.assigned(commits)

    def _on_revoke(self, consumer: Consumer, taken: list[TopicPartition]) -> None:
        self._give_up(taken, self._listener.revoked)

    def _on_lost(self, consumer: Consumer, taken: list[TopicPartition]) -> None:
        self._give_up(taken, self._listener.lost)

    def _give_up(self, taken: list[TopicPartition], tell: Callable[[Sequence[Partition]], None]) -> None:
        if self._abandoned:
            return
        partitions = [(tp.topic, tp.partition) for tp in taken]
        tell(partitions)
        self._held.difference_update(partitions)
        self._given_up += 1


class KafkaReader:
    """Reads the partitions it was given, outside any group."""

    def __init__(
        self,
        options: Mapping[str, Any],
        starts: Mapping[Partition, int],
        max_bytes: int,
        guard: Guard | None = None,
    ) -> None:
        config = {
            **READ,
            **{key: value for key, value in options.items() if not key.startswith("group.")},
            "group.id": READER_GROUP,
            "enable.partition.eof": True,
            # A transaction's marker behind the last record makes reaching the end wait this long, not half a second.
            "fetch.wait.max.ms": 20,
            "queued.max.messages.kbytes": max(max_bytes >> 10, 1),
        }
        self._messages = _Messages(config, guard or Guard("Kafka", options), {topic for topic, _ in starts})
        self._messages.consumer.assign([TopicPartition(*p, offset) for p, offset in starts.items()])
        self._starts = dict(starts)

    def poll(self, max_records: int, timeout_s: float) -> list[Record]:
        """Up to `max_records`, waiting up to `timeout_s` for the first. Raises `OutOfRange`, `TransportError`."""
        return self._messages.poll(max_records, timeout_s)

    def until(self, ends: Mapping[Partition, int], idle_s: float = 10.0) -> Iterator[Record]:
        """Records up to the last stable offsets `ends`. Raises `TransportError` when nothing came for `idle_s`."""
        open_partitions = {partition for partition in self._starts if self._starts[partition] < ends[partition]}
        while open_partitions:
            message = self._messages.consumer.poll(idle_s)
            if message is None:
                raise TransportError(f"nothing was read for {idle_s:.0f} s from {sorted(open_partitions)[0][0]}")
            partition = (message.topic(), message.partition())
            if message.error() is None:
                if message.offset() < ends[partition]:
                    yield cast("Record", message)
                if message.offset() + 1 >= ends[partition]:
                    open_partitions.discard(partition)
            elif message.error().code() == KafkaError._PARTITION_EOF:
                # Transaction markers take offsets: the last record may lie before the end.
                open_partitions.discard(partition)
            else:
                self._messages._sort(message)

    def close(self) -> None:
        """Release its connections."""
        self._messages.consumer.close()
