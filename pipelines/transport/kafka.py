"""Kafka through confluent-kafka: the cluster, and what is asked of it now and then. Readers and writers: see beside.

`KafkaCluster` is one set of addresses and client settings. Objects that it makes own their connections and must be
closed. Settings that matter (FACTS: they decide by factors) are constants here, and a pipeline file may override any
of them with raw librdkafka keys.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, cast

from confluent_kafka import (
    Consumer,
    IsolationLevel,
    KafkaError,
    KafkaException,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, OffsetSpec

from pipelines.core.topic_plan import FoundTopic, WantedTopic, base_configs
from pipelines.errors import BrokerError
from pipelines.transport import kafka_topics
from pipelines.transport.base import Commit, Compression, Partition, RebalanceListener, Record
from pipelines.transport.guard import Guard
from pipelines.transport.kafka_groups import KafkaLook
from pipelines.transport.kafka_read import READ, KafkaGroupReader, KafkaReader
from pipelines.transport.kafka_write import KafkaTransactions, commit_in_transaction
from pipelines.transport.storage import Storage
from schemas.topics import TopicSpec

REQUEST_TIMEOUT_S = 10.0
"""For one administrative request. A broker on the same machine answers in milliseconds, a restarted one in 3.5 s."""

LOOK_AGAIN_S = 0.05
"""Between two looks at what Kafka gives no event for: a new topic's leader, a coordinator that still loads."""

DECIDED_S = 8.0
"""Longest wait of `read_all` for open transactions: those of a dead worker end within 3.3 s."""

_NOT_YET = {
    KafkaError.NOT_COORDINATOR,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError._WAIT_COORD,
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError.FENCED_LEADER_EPOCH,
    KafkaError.UNKNOWN_LEADER_EPOCH,
}

_LOST = {KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN, KafkaError._TIMED_OUT}

COMMON = {
    # What it would print reaches us as errors too, and is logged from there.
    "log_level": 2,
    # Its default, `rebootstrap`, forgets the coordinators when all brokers are down: after the restart of a cluster's
    # only broker, commits and group requests hung for minutes. With `none` they went on within 4 s, 8 times of 8. What
    # `none` leaves (a suspended broker) is mended by `RENEW_AFTER_S`.
    "metadata.recovery.strategy": "none",
    "reconnect.backoff.ms": 50,
    "reconnect.backoff.max.ms": 500,
    "log.connection.close": False,
    "socket.nagle.disable": True,
}


class KafkaCluster:
    """One Kafka cluster, named for error messages by its key in the pipeline file (such as `kafka.edge`)."""

    def __init__(self, name: str, bootstrap: str, options: Mapping[str, Any] | None = None) -> None:
        self.name = name
        self.bootstrap = bootstrap
        self._options = {**COMMON, **(options or {}), "bootstrap.servers": bootstrap}
        self._guard = Guard(name, self._options)
        self._admin_client: AdminClient | None = None
        self._group_clients: dict[str, Consumer] = {}

    @property
    def _admin(self) -> AdminClient:
        if self._admin_client is None:
            self._admin_client = AdminClient({**self._options, "error_cb": self._guard.note})
        return self._admin_client

    def _list_topics(self, timeout_s: float, *only: str) -> Any:
        """Raises `AccessError` as soon as the login is refused."""
        return self._guard.in_slices(
            lambda slice_s: self._admin.list_topics(*only, timeout=slice_s), self._admin.poll, timeout_s
        )

    def check(self, timeout_s: float = 5.0) -> None:
        """Raise `BrokerError` in one line where no broker answers, `AccessError` where one refuses our login."""
        try:
            self._list_topics(timeout_s)
        except KafkaException as error:
            raise BrokerError(
                f"{self.name}: no Kafka answers at {self.bootstrap} ({error.args[0].str()})",
                remedy="start it, or correct the address",
            ) from error

    def ask(self, request: Callable[[AdminClient], "Mapping[Any, Future[Any]]"]) -> dict[Any, Any]:
        """What an administrative request is answered, by what it asks for. Raises `BrokerError`, `AccessError`."""
        return cast(
            "dict[Any, Any]",
            self._call(lambda: {key: future.result() for key, future in request(self._admin).items()}),
        )

    def until(self, what: str, seen: Callable[[], bool]) -> None:
        """Look again until a change is seen that the controller has taken. Raises `BrokerError` naming `what`."""
        until_s = time.monotonic() + REQUEST_TIMEOUT_S
        while not seen():
            if time.monotonic() > until_s:
                problem = f"{self.name}: {what} did not appear in {REQUEST_TIMEOUT_S:.0f} s"
                raise BrokerError(problem, remedy="try again")
            self._admin.poll(LOOK_AGAIN_S)

    @property
    def user(self) -> str:
        """Whom the cluster takes us for; "" where we show neither password nor certificate."""
        return self._guard.login.user

    def group_reader(
        self, group: str, topics: Sequence[str], listener: RebalanceListener, name: str = ""
    ) -> KafkaGroupReader:
        """A new member of `group`, known to others as `name` (its `client.id`)."""
        return KafkaGroupReader(self._options, group, topics, listener, name, self._new_guard())

    def reader(self, starts: Mapping[Partition, int], max_bytes: int = 16 << 20) -> KafkaReader:
        """A reader of the partitions given, from the offsets given; at most `max_bytes` wait in the client."""
        return KafkaReader(self._options, starts, max_bytes, self._new_guard())

    def _new_guard(self) -> Guard:
        """One a client: what one of them sees is not what another does."""
        return Guard(self.name, self._options)

    def transactions(self, transactional_id: str, compression: Compression = "zstd") -> KafkaTransactions:
        """A writer; call its `start` before its first `write`."""
        return KafkaTransactions(self._options, transactional_id, compression, self._new_guard())

    def partitions(self, topics: Sequence[str]) -> list[Partition]:
        """All partitions of the topics. Raises `BrokerError` naming a topic that is not there."""
        known = self._call(lambda: self._list_topics(REQUEST_TIMEOUT_S)).topics
        missing = [topic for topic in topics if topic not in known]
        if missing:
            self._raise_if_hidden(missing[0])
            raise BrokerError(
                f"{self.name}: topic '{missing[0]}' is not there",
                remedy="create the topics with `tidegate topics apply`",
            )
        return [(topic, number) for topic in topics for number in sorted(known[topic].partitions)]

    def _raise_if_hidden(self, topic: str) -> None:
        """Topics that we may not see are left out of a list; asked for by name, Kafka says so."""
        error = self._call(lambda: self._list_topics(REQUEST_TIMEOUT_S, topic)).topics[topic].error
        if error is not None:
            self._guard.raise_if_denied(error, "see", topic)

    def end_offsets(self, topics: Sequence[str], *, stable: bool = True) -> dict[Partition, int]:
        """The last stable offsets: all before them is committed or rolled back. Not `stable`: the high watermarks."""
        isolation = IsolationLevel.READ_COMMITTED if stable else IsolationLevel.READ_UNCOMMITTED
        return self._offsets(topics, OffsetSpec.latest(), isolation)

    def start_offsets(self, topics: Sequence[str]) -> dict[Partition, int]:
        """The log start offsets."""
        return self._offsets(topics, OffsetSpec.earliest(), IsolationLevel.READ_COMMITTED)

    def _offsets(self, topics: Sequence[str], spec: OffsetSpec, isolation: IsolationLevel) -> dict[Partition, int]:
        wanted = {TopicPartition(topic, number): spec for topic, number in self.partitions(topics)}

        def ask() -> dict[Partition, int]:
            futures = self._admin.list_offsets(wanted, isolation_level=isolation, request_timeout=REQUEST_TIMEOUT_S)
            return {(tp.topic, tp.partition): future.result().offset for tp, future in futures.items()}

        return cast("dict[Partition, int]", self._patiently(ask))

    def committed(self, group: str, topics: Sequence[str]) -> dict[Partition, Commit]:
        """Where the group stands; partitions without a commit are left out."""
        wanted = [TopicPartition(topic, number) for topic, number in self.partitions(topics)]
        client = self._group_client(group)

        def ask() -> Any:
            return self._guard.in_slices(
                lambda slice_s: client.committed(wanted, slice_s),
                lambda _: self._refuse_group(group, client),
                REQUEST_TIMEOUT_S,
            )

        found = self._patiently(ask)
        return {(tp.topic, tp.partition): Commit(tp.offset, tp.metadata or "") for tp in found if tp.offset >= 0}

    def _group_client(self, group: str) -> Consumer:
        """A client that asks and sets a group's commits without joining it.

        Not the AdminClient: on a broker that still loads its group coordinator (the first seconds of a fresh one) its
        group requests time out instead of trying again, and crashed the process (confluent-kafka 2.16).
        """
        if group not in self._group_clients:
            config = {**READ, **self._options, "group.id": group, "error_cb": self._guard.note}
            self._group_clients[group] = Consumer(config)
        return self._group_clients[group]

    def _refuse_group(self, group: str, client: Consumer) -> None:
        """A client that may not use its group says so when it is polled; a request of it times out."""
        message = client.poll(0)
        if message is not None and message.error() is not None:
            self._guard.raise_if_denied(message.error(), "use", group)

    def assigned_partitions(self, group: str) -> int:
        """How many partitions the members of `group` hold at this moment."""

        def ask() -> Any:
            return self._admin.describe_consumer_groups([group], request_timeout=REQUEST_TIMEOUT_S)[group].result()

        members = self._patiently(ask, group).members
        return sum(len(member.assignment.topic_partitions) for member in members if member.assignment)

    def look(self, timeout_s: float = 1.0) -> KafkaLook:
        """A look at its groups from outside, each of whose calls takes `timeout_s` at most."""
        return KafkaLook(self.name, self.bootstrap, self._options, timeout_s, self._new_guard())

    def read_all(self, topics: Sequence[str], starts: Mapping[Partition, int] | None = None) -> Iterator[Record]:
        """Every committed record from `starts` (else the log start) to the ends as they are at the call.

        What is still open then is waited for, `DECIDED_S` at the most: a commit returns before all its markers are
        written, and who reads after it expects to see it.
        """
        ends = self._decided_ends(topics)
        begins = {**self.start_offsets(topics), **(starts or {})}
        wanted = {partition: begins[partition] for partition, end in ends.items() if begins[partition] < end}
        if not wanted:
            return
        reader = self.reader(wanted)
        try:
            yield from reader.until(ends)
        finally:
            reader.close()

    def _decided_ends(self, topics: Sequence[str]) -> dict[Partition, int]:
        marks = self.end_offsets(topics, stable=False)
        until_s = time.monotonic() + DECIDED_S
        while True:
            ends = self.end_offsets(topics)
            if all(ends[partition] >= mark for partition, mark in marks.items()) or time.monotonic() > until_s:
                return ends
            self._admin.poll(LOOK_AGAIN_S)

    def topics(self, names: Sequence[str]) -> dict[str, FoundTopic]:
        """Partitions, copies and settings of those that are there."""
        return cast(
            "dict[str, FoundTopic]",
            self._patiently(lambda: kafka_topics.topics_of(self._admin, names, REQUEST_TIMEOUT_S)),
        )

    def topic_names(self) -> list[str]:
        """Of all topics of the cluster."""
        return cast("list[str]", self._patiently(lambda: kafka_topics.topic_names(self._admin, REQUEST_TIMEOUT_S)))

    def broker_configs(self) -> dict[int, dict[str, str]]:
        """Settings of each broker that answers, by its number; empty settings where we may not see them."""
        return cast(
            "dict[int, dict[str, str]]",
            self._patiently(lambda: kafka_topics.broker_configs(self._admin, REQUEST_TIMEOUT_S)),
        )

    def storage(self) -> Storage:
        """Where its brokers keep their data. Raises `BrokerError`."""
        told = [configs.get("log.dirs") or configs.get("log.dir") for configs in self.broker_configs().values()]
        folders = {folder.strip(): None for text in told if text for folder in text.split(",")}
        return Storage(self.name, self.bootstrap, list(folders))

    def offsets_at(self, partitions: Sequence[Partition], at_ms: int) -> dict[Partition, int | None]:
        """The first offset with a timestamp of `at_ms` (milliseconds since 1970) or later; None: none is."""
        return cast(
            "dict[Partition, int | None]",
            self._patiently(lambda: kafka_topics.offsets_at(self._admin, partitions, at_ms, REQUEST_TIMEOUT_S)),
        )

    def create_topics(self, specs: Sequence[TopicSpec], partitions: int, retention_ms: int) -> list[str]:
        """Create those that are missing; the names of the created. Raises `BrokerError` where one cannot be."""
        known = self.topic_names()
        missing = [spec for spec in specs if spec.name not in known]
        return self.create(
            [
                WantedTopic(spec.name, partitions if spec.keyed else 1, base_configs(spec, retention_ms))
                for spec in missing
            ]
        )

    def create(self, wanted: Sequence[WantedTopic]) -> list[str]:
        """Create these, and wait for their leaders; the names of those that nobody else created meanwhile."""
        if not wanted:
            return []
        futures = kafka_topics.create_topics(self._admin, wanted, REQUEST_TIMEOUT_S)
        created = [name for name, future in futures.items() if self._created(name, future)]
        self._await_topics([one.name for one in wanted])
        return created

    def alter_topics(self, configs: Mapping[str, Mapping[str, str]]) -> None:
        """Set these settings of topics, and leave all others. Raises `BrokerError` where one is refused."""
        if not configs:
            return
        futures = kafka_topics.alter_topics(self._admin, configs, REQUEST_TIMEOUT_S)
        for name, future in futures.items():
            try:
                future.result()
            except KafkaException as error:
                told = ", ".join(f"{key}={value}" for key, value in configs[name].items())
                raise BrokerError(
                    f"{self.name}: topic '{name}' cannot have {told} ({error.args[0].str()})",
                    remedy="correct `topics` in the pipeline file",
                ) from error

    def _await_topics(self, names: Sequence[str]) -> None:
        """A topic is created when the controller says so; the broker that we ask next may know it a moment later."""
        until_s = time.monotonic() + REQUEST_TIMEOUT_S
        while time.monotonic() < until_s:
            if self._call(lambda: kafka_topics.are_there(self._admin, names, REQUEST_TIMEOUT_S)):
                return
            self._admin.poll(LOOK_AGAIN_S)
        raise BrokerError(f"{self.name}: new topics did not appear in {REQUEST_TIMEOUT_S:.0f} s", remedy="try again")

    def _created(self, name: str, future: Any) -> bool:
        try:
            future.result()
        except KafkaException as error:
            if error.args[0].code() == KafkaError.TOPIC_ALREADY_EXISTS:
                return False
            raise BrokerError(f"{self.name}: topic '{name}' cannot be created ({error.args[0].str()})") from error
        return True

    def write_first_positions(self, group: str, topics: Sequence[str]) -> None:
        """Commit offset 0 for every partition of the topics that the group has no position on."""
        known = self.committed(group, topics)
        missing = [TopicPartition(*partition, 0) for partition in self.partitions(topics) if partition not in known]
        if not missing:
            return
        client = self._group_client(group)

        def commit() -> None:
            try:
                client.commit(offsets=missing, asynchronous=False)
            except KafkaException as error:
                if error.args[0].code() != KafkaError.UNKNOWN_MEMBER_ID:
                    raise
                # The group has members (a site is added while the cloud's workers run): only they may commit, or a
                # transaction of anybody.
                commit_in_transaction(self._options, client, f"create.{group}", missing)

        self._patiently(commit)

    def _patiently(self, request: Callable[[], Any], *resources: str) -> Any:
        """As `_call`, but asked again while a coordinator or a leader is being elected, found or loaded."""
        until_s = time.monotonic() + REQUEST_TIMEOUT_S
        while True:
            try:
                return request()
            except KafkaException as error:
                again = error.args[0].retriable() or error.args[0].code() in _NOT_YET
                if not again or time.monotonic() > until_s:
                    return self._call(request, *resources)
                self._admin.poll(LOOK_AGAIN_S)

    def _call(self, request: Any, *resources: str) -> Any:
        try:
            return request()
        except KafkaException as error:
            self._guard.raise_if_denied(error.args[0], "use", *resources)
            if error.args[0].code() in _LOST:
                self.close()  # The next request begins with new connections.
            raise BrokerError(
                f"{self.name}: Kafka at {self.bootstrap} refused ({error.args[0].str()})",
                remedy="`tidegate doctor` shows what is wrong",
            ) from error

    def close(self) -> None:
        """Release the administrative connections. They are made again when something is asked."""
        for client in self._group_clients.values():
            client.close()
        self._group_clients.clear()
        self._admin_client = None
