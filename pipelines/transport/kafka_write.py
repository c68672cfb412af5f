"""Writing to Kafka: one transaction at a time under one transactional id.

How a failure is told apart (KIP-98, KIP-360, KIP-447, and librdkafka's error properties):
- the error says that the transaction must be rolled back: it is, and `Aborted` is raised;
- the error is retriable: the same call is made again, for `RETRY_S` at most;
- somebody else holds the id, or the coordinator gave this transaction up: `Fenced`, and the client is thrown away;
- anything else, a commit whose end is unknown included: the client is thrown away and `Aborted` is raised. The next
  `start` makes a new one, and the coordinator then decides what became of the transaction before it answers. Whoever
  reads the committed positions after `start` therefore reads the truth.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

from pipelines.errors import Fenced, TransportError
from pipelines.transport.base import Aborted, Commit, Compression, GroupReader, OutRecord, Partition
from pipelines.transport.guard import Guard
from pipelines.transport.kafka_read import KafkaGroupReader
from schemas.topics import RECORD_BYTES_MOST

log = structlog.get_logger("tidegate.kafka")

TRANSACTION_TIMEOUT_MS = 1500
"""An open transaction of a dead worker holds up every reader of its partitions until its successor starts, or for
this long and one abort sweep (0.5 s). A transaction is begun when its records are ready, so open for 3 to 90 ms as a
rule."""

REQUEST_TIMEOUT_S = 5.0
RETRY_LIMIT = 2
"""Tries of one call, each up to `REQUEST_TIMEOUT_S`. Soon after the time-out the transaction is lost in any case:
longer waits would only keep a client that may never recover (see `RENEW_AFTER_S`)."""

HANDED_RECORDS = 500
"""To the client in one call, during which no other thread runs: about 0.2 ms."""

WRITE = {
    "message.max.bytes": RECORD_BYTES_MOST,
    "partitioner": "murmur2_random",
    "transaction.timeout.ms": TRANSACTION_TIMEOUT_MS,
    "linger.ms": 5,
    # While the coordinator still ends the transaction before, a request is retried: with the default of 100 ms
    # `send_offsets` took 37 to 104 ms, with 10 ms 15 to 16 ms.
    "retry.backoff.ms": 10,
    "delivery.report.only.error": True,
    "queue.buffering.max.messages": 100_000,
    "queue.buffering.max.kbytes": 64 << 10,
}

_QUIET = logging.getLogger("tidegate.librdkafka")
"""The client prints fatal errors whatever its level is, even behind our own last line. They reach us as errors too."""
_QUIET.addHandler(logging.NullHandler())
_QUIET.propagate = False

_FENCED = {
    KafkaError._FENCED,
    KafkaError._FATAL,
    KafkaError.INVALID_PRODUCER_EPOCH,
    KafkaError.INVALID_PRODUCER_ID_MAPPING,
}
_PRODUCER_FENCED = 90
"""PRODUCER_FENCED of the protocol, which the client does not name."""


_Message = dict[str, Any]
"""As `produce_batch` takes it; `_error` is there once it was refused."""


class KafkaTransactions:
    """Writes atomically under one transactional id."""

    def __init__(
        self,
        options: Mapping[str, Any],
        transactional_id: str,
        compression: Compression,
        guard: Guard | None = None,
    ) -> None:
        own = {"transactional.id": transactional_id, "compression.type": compression}
        if compression == "zstd":
            own["compression.level"] = "1"
        self._config = {**WRITE, **own, **{key: v for key, v in options.items() if not key.startswith("group.")}}
        self._guard = guard or Guard("Kafka", options)
        self._producer: Producer | None = None
        self._noted: set[int] = set()
        self.transactional_id = transactional_id

    def start(self) -> None:
        """Fence every earlier holder of the id and roll back what it had open.

        Raises `TransportError`, `Fenced`, `AccessError`.
        """
        if self._producer is not None:
            return
        producer = Producer({**self._config, "error_cb": self._note_error, "logger": _QUIET})
        try:
            self._retrying(lambda: self._guard.in_slices(producer.init_transactions, producer.poll, REQUEST_TIMEOUT_S))
        except KafkaException as error:
            cause = error.args[0]
            self._guard.raise_if_denied(cause, "write under", self.transactional_id)
            refusal = Fenced if _is_fenced(cause) else TransportError
            raise refusal(f"'{self.transactional_id}' cannot begin to write: {cause.str()}") from error
        self._producer = producer

    def write(
        self,
        records: Iterable[OutRecord],
        offsets: Mapping[Partition, Commit] | None = None,
        group: GroupReader | None = None,
    ) -> None:
        """One transaction: the records, and where `group` goes on. Raises `Aborted`, `Fenced` or `AccessError`."""
        producer = self._producer
        if producer is None:
            raise Aborted(f"the writer '{self.transactional_id}' must be started again")
        # As of now: while records are produced, partitions may go and the member get a new epoch.
        metadata = group.membership if isinstance(group, KafkaGroupReader) else None
        outbox = _Outbox(producer)
        try:
            producer.begin_transaction()
            outbox.hand_over(records)
            if offsets and isinstance(group, KafkaGroupReader):
                positions = [TopicPartition(*p, c.offset, c.metadata) for p, c in offsets.items()]
                self._retrying(lambda: producer.send_offsets_to_transaction(positions, metadata, REQUEST_TIMEOUT_S))
            self._retrying(lambda: producer.commit_transaction(REQUEST_TIMEOUT_S))
            self._noted.clear()
        except KafkaException as error:
            refusal = self._rolled_back(producer, error)
            self._raise_if_denied(error.args[0], sorted(outbox.topics), group)
            raise refusal from error

    def _raise_if_denied(self, error: KafkaError, topics: Sequence[str], group: GroupReader | None) -> None:
        """Raise `AccessError` where it failed because a permission is missing: nothing was written."""
        if error.code() == KafkaError.GROUP_AUTHORIZATION_FAILED and isinstance(group, KafkaGroupReader):
            self._guard.raise_if_denied(error, "use", group.group)
        if error.code() == KafkaError._INCONSISTENT and topics:  # Some could not be delivered; it does not say why.
            self._guard.raise_if_lacking("write", topics)
        self._guard.raise_if_denied(error, "write", *topics)

    def close(self) -> None:
        """Release its connections. Nothing is open: `write` ends what it begins."""
        self._producer = None

    def _retrying(self, call: Callable[[], object]) -> None:
        for remaining in reversed(range(RETRY_LIMIT)):
            try:
                call()
                return
            except KafkaException as error:
                if not error.args[0].retriable() or not remaining:
                    raise

    def _rolled_back(self, producer: Producer, error: KafkaException) -> Aborted | Fenced:
        """Leave nothing open, and say which refusal it was."""
        cause = error.args[0]
        log.warning("transaction_failed", id=self.transactional_id, error=cause.str(), code=cause.name())
        if _is_fenced(cause):
            self._producer = None
            return Fenced(f"'{self.transactional_id}' was fenced: {cause.str()}")
        if cause.txn_requires_abort() or cause.code() == KafkaError._QUEUE_FULL:
            try:
                self._retrying(lambda: producer.abort_transaction(REQUEST_TIMEOUT_S))
            except KafkaException as second:
                log.warning("abort_failed", id=self.transactional_id, error=second.args[0].str())
                self._producer = None
        else:
            self._producer = None
        return Aborted(f"a transaction of '{self.transactional_id}' was rolled back: {cause.str()}")

    def _note_error(self, error: KafkaError) -> None:
        """Log an error of a kind once, until a transaction is written again."""
        self._guard.note(error)
        if error.code() not in self._noted:
            self._noted.add(error.code())
            log.warning("kafka_connection", id=self.transactional_id, error=error.str())


class _Outbox:
    """Hands records to the client, in order within each partition.

    Records without headers whose partition is given go many at a time, by partition (`produce_batch` takes no headers):
    that costs half as much. Any other record waits until those before it that may share its partition are gone.
    """

    def __init__(self, producer: Producer) -> None:
        self._producer = producer
        self._waiting: dict[Partition, list[_Message]] = {}
        self.topics: set[str] = set()
        """Of all that was handed over, or was to be."""

    def hand_over(self, records: Iterable[OutRecord]) -> None:
        """All of them. Raises `KafkaException`."""
        waiting = self._waiting
        for record in records:
            topic, number = record.topic, record.partition
            if record.headers is not None or number < 0:
                self._hand_over_one(record)
                continue
            messages = waiting.get((topic, number))
            if messages is None:
                self.topics.add(topic)
                messages = waiting[topic, number] = []
            key = record.key
            messages.append({"value": record.value} if key is None else {"value": record.value, "key": key})
            if len(messages) == HANDED_RECORDS:
                del waiting[topic, number]
                self._hand_over_many((topic, number), messages)
        self._empty(list(waiting))

    def _hand_over_one(self, record: OutRecord) -> None:
        topic, number = record.topic, record.partition
        self.topics.add(topic)
        self._empty([p for p in self._waiting if p[0] == topic and (number < 0 or p[1] == number)])
        for _ in range(RETRY_LIMIT):
            try:
                self._producer.produce(topic, record.value, record.key, number, headers=record.headers)
                return
            except BufferError:
                self._make_room()
        raise KafkaException(KafkaError(KafkaError._QUEUE_FULL))

    def _empty(self, partitions: Iterable[Partition]) -> None:
        for partition in partitions:
            self._hand_over_many(partition, self._waiting.pop(partition))

    def _hand_over_many(self, partition: Partition, messages: list[_Message]) -> None:
        topic, number = partition
        tries = RETRY_LIMIT
        while tries:
            taken = self._producer.produce_batch(topic, messages, number)
            if taken == len(messages):
                return
            left = [message for message in messages if "_error" in message]
            for message in left:
                if message["_error"].code() != KafkaError._QUEUE_FULL:
                    raise KafkaException(message["_error"])
            # The client took the first of them and, once it was full, none after: the order holds.
            messages = [{"value": message["value"], "key": message.get("key")} for message in left]
            tries = RETRY_LIMIT if taken else tries - 1
            self._make_room()
        raise KafkaException(KafkaError(KafkaError._QUEUE_FULL))

    def _make_room(self) -> None:
        """The local queue is full: wait until deliveries make room."""
        self._producer.poll(TRANSACTION_TIMEOUT_MS / 1000 / RETRY_LIMIT)


def _is_fenced(error: KafkaError) -> bool:
    return error.code() in _FENCED or error.code() == _PRODUCER_FENCED or error.fatal()


def commit_in_transaction(
    options: Mapping[str, Any], consumer: Consumer, transactional_id: str, offsets: list[TopicPartition]
) -> None:
    """Set a group's offsets, without being a member, while it has members. Raises `KafkaException`."""
    own = {key: value for key, value in options.items() if not key.startswith("group.")}
    producer = Producer({**WRITE, **own, "transactional.id": transactional_id, "error_cb": lambda _error: None})
    producer.init_transactions(REQUEST_TIMEOUT_S)
    producer.begin_transaction()
    producer.send_offsets_to_transaction(offsets, consumer.consumer_group_metadata(), REQUEST_TIMEOUT_S)
    producer.commit_transaction(REQUEST_TIMEOUT_S)
