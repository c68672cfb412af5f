"""How the groups of a Kafka cluster stand, seen from outside: nothing is joined, nothing committed.

Every request has its own bound in time, so that a cluster that is away is told within it. Connections are kept between
calls: a client for administrative requests, one a group (see `KafkaCluster._group_client`), one that reads single
records, and one that follows compacted topics.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar, cast

from confluent_kafka import Consumer, ConsumerGroupState, IsolationLevel, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, OffsetSpec, ResourceType

from pipelines.core.lag import Member
from pipelines.core.topic_plan import retention_ms
from pipelines.errors import AccessError, BrokerError
from pipelines.transport.base import Commit, Known, Partition, Record
from pipelines.transport.guard import Guard
from pipelines.transport.kafka_read import READ

T = TypeVar("T")

LOOK = {
    "group.id": "tidegate-reader",  # Required by the client; never joined, never committed to.
    # It keeps no account: what retention removed is passed over.
    "auto.offset.reset": "earliest",
    "enable.partition.eof": True,
    # A transaction's marker behind the last record makes reaching the end wait this long.
    "fetch.wait.max.ms": 20,
}

ONE_RECORD = {"queued.min.messages": 1, "fetch.message.max.bytes": 16 << 10, "queued.max.messages.kbytes": 1 << 10}
"""Kafka gives a whole batch at the least. More than that is not wanted."""

FOLLOW = {"queued.max.messages.kbytes": 4 << 10}

_AWAY = {KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN, KafkaError._TIMED_OUT}

FOLLOW_RECORDS = 1_000
"""A turn."""


class KafkaLook:
    """Implements `Look`."""

    def __init__(self, name: str, bootstrap: str, options: Mapping[str, Any], timeout_s: float, guard: Guard) -> None:
        self._name, self._bootstrap, self._timeout_s, self._guard = name, bootstrap, timeout_s, guard
        self._options = {key: value for key, value in options.items() if not key.startswith("group.")}
        self._admin_client: AdminClient | None = None
        self._consumers: dict[str, Consumer] = {}
        self._next: dict[Partition, int] = {}

    @property
    def _admin(self) -> AdminClient:
        if self._admin_client is None:
            self._admin_client = AdminClient({**self._options, "error_cb": self._guard.note})
        return self._admin_client

    def _consumer(self, purpose: str, config: Mapping[str, Any]) -> Consumer:
        if purpose not in self._consumers:
            self._consumers[purpose] = Consumer({**READ, **self._options, **LOOK, **config, "error_cb": _noted_above})
        return self._consumers[purpose]

    def known(self) -> Known:
        """Brokers and topics."""
        found = self._call(
            lambda: self._guard.in_slices(
                lambda slice_s: self._admin.list_topics(timeout=slice_s), self._admin.poll, self._timeout_s
            )
        )
        return Known(len(found.brokers), {name: len(topic.partitions) for name, topic in found.topics.items()})

    def ends(self, partitions: Sequence[Partition]) -> dict[Partition, tuple[int, int]]:
        """The last stable offset and the high watermark of each."""
        wanted = {TopicPartition(*partition): OffsetSpec.latest() for partition in partitions}
        if not wanted:
            return {}

        def ask(isolation: IsolationLevel) -> Any:
            return self._admin.list_offsets(wanted, isolation_level=isolation, request_timeout=self._timeout_s)

        # Both are asked for at once.
        asked = self._call(lambda: [ask(IsolationLevel.READ_COMMITTED), ask(IsolationLevel.READ_UNCOMMITTED)])
        stable, high = (
            {(tp.topic, tp.partition): self._result(future, tp.topic).offset for tp, future in futures.items()}
            for futures in asked
        )
        return {partition: (offset, max(offset, high[partition])) for partition, offset in stable.items()}

    def committed(self, group: str, partitions: Sequence[Partition]) -> dict[Partition, Commit]:
        """Where the group stands; partitions without a commit are left out."""
        wanted = [TopicPartition(*partition) for partition in partitions]
        consumer = self._consumer(f"group {group}", {"group.id": group})
        found = self._call(lambda: consumer.committed(wanted, self._timeout_s), group) if wanted else []
        return {(tp.topic, tp.partition): Commit(tp.offset, tp.metadata or "") for tp in found if tp.offset >= 0}

    def members(self, groups: Sequence[str]) -> dict[str, list[Member]]:
        """The members of each group, and what they hold at this moment."""
        if not groups:
            return {}
        asked = self._call(lambda: self._admin.describe_consumer_groups(list(groups), request_timeout=self._timeout_s))
        return {group: self._members_of(group, future) for group, future in asked.items()}

    def _members_of(self, group: str, future: "Future[Any]") -> list[Member]:
        try:
            found = future.result(self._timeout_s)
        except KafkaException as error:
            if error.args[0].code() == KafkaError.GROUP_ID_NOT_FOUND:
                return []
            raise self._refused(error, group) from error
        except TimeoutError as error:
            raise self._silent() from error
        if found.state == ConsumerGroupState.DEAD:
            return []
        return [
            Member(
                name=member.client_id,
                host=member.host.removeprefix("/"),
                partitions=sorted((tp.topic, tp.partition) for tp in member.assignment.topic_partitions)
                if member.assignment
                else [],
            )
            for member in found.members
        ]

    def retentions(self, topics: Sequence[str]) -> dict[str, float]:
        """How long each topic keeps a record at the least, seconds; infinite where age removes none.

        Topics whose settings our login may not see are left out: to read a topic does not include that.
        """
        if not topics:
            return {}
        asked = self._call(
            lambda: self._admin.describe_configs(
                [ConfigResource(ResourceType.TOPIC, topic) for topic in topics], request_timeout=self._timeout_s
            )
        )
        found = {}
        for resource, future in asked.items():
            try:
                configs = self._result(future, resource.name)
            except AccessError:
                continue
            found[resource.name] = retention_ms({name: entry.value or "" for name, entry in configs.items()}) / 1000
        return found

    def records_at(self, starts: Mapping[Partition, int]) -> dict[Partition, Record | None]:
        """The first committed record at or after each offset; None where there is none up to the end."""
        found: dict[Partition, Record | None] = {}
        if not starts:
            return found
        consumer = self._consumer("one record", ONE_RECORD)
        until_s = time.monotonic() + self._timeout_s
        self._call(lambda: consumer.assign([TopicPartition(*p, offset) for p, offset in starts.items()]))
        try:
            while len(found) < len(starts) and (left_s := until_s - time.monotonic()) > 0:
                message = consumer.poll(left_s)
                if message is None:
                    continue
                partition = (message.topic(), message.partition())
                if message.error() is None:
                    found.setdefault(partition, cast("Record", message))
                elif message.error().code() == KafkaError._PARTITION_EOF:
                    found.setdefault(partition, None)
        finally:
            self._call(consumer.unassign)  # Nothing is fetched until the next call.
        return found

    def follow(self, ends: Mapping[Partition, int]) -> Iterator[Record]:
        """Records of these partitions up to `ends`, from where the call before ended, at first from the log start."""
        new = any(partition not in self._next or self._next[partition] > end for partition, end in ends.items())
        consumer = self._consumer("follow", FOLLOW)
        if new or not self._call(consumer.assignment):
            # A topic that ends before where we stood is another one: it is read from its start.
            starts = {p: self._next[p] if self._next.get(p, end + 1) <= end else 0 for p, end in ends.items()}
            self._next.update(starts)
            self._call(lambda: consumer.assign([TopicPartition(*p, offset) for p, offset in starts.items()]))
        until_s = time.monotonic() + self._timeout_s
        while any(self._next[partition] < end for partition, end in ends.items()):
            left_s = until_s - time.monotonic()
            first = consumer.poll(left_s) if left_s > 0 else None
            if first is None:
                return
            for message in [first, *consumer.consume(FOLLOW_RECORDS, 0)]:
                partition = (message.topic(), message.partition())
                if message.error() is None:
                    self._next[partition] = message.offset() + 1
                    yield cast("Record", message)
                elif message.error().code() == KafkaError._PARTITION_EOF:
                    self._next[partition] = max(self._next[partition], message.offset())

    def followed(self, partition: Partition) -> int:
        """The offset that `follow` goes on at."""
        return self._next.get(partition, 0)

    def renew(self) -> None:
        """Begin with new connections: a client that lost its cluster may never recover."""
        self.close()

    def close(self) -> None:
        """Release its connections."""
        for consumer in self._consumers.values():
            consumer.close()
        self._consumers.clear()
        self._admin_client = None

    def _result(self, future: "Future[T]", resource: str) -> T:
        try:
            return self._call(lambda: future.result(self._timeout_s), resource)
        except TimeoutError as error:
            raise self._silent() from error

    def _call(self, request: Callable[[], T], *resources: str) -> T:
        try:
            return request()
        except KafkaException as error:
            raise self._refused(error, *resources) from error

    def _refused(self, error: KafkaException, *resources: str) -> BrokerError:
        """What it means. Raises `AccessError` where a permission is missing."""
        cause = error.args[0]
        self._guard.raise_if_denied(cause, "see", *resources)
        if cause.code() in _AWAY:
            return BrokerError(f"{self._name}: no Kafka answers at {self._bootstrap} ({cause.str()})")
        return BrokerError(f"{self._name}: Kafka at {self._bootstrap} refused ({cause.str()})")

    def _silent(self) -> BrokerError:
        return BrokerError(f"{self._name}: no Kafka answers at {self._bootstrap} (none came in {self._timeout_s:g} s)")


def _noted_above(_error: KafkaError) -> None:
    """What is wrong with a connection, the administrative client meets first: every look begins with `known`."""
