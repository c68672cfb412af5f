"""What a given Kafka allows its groups, and how soon a dead worker's work is taken over on it."""

import msgspec
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, ConfigResource, ResourceType

from pipelines.errors import BrokerError

TRANSACTION_TIMEOUT_MS = 1500
ASK_TIMEOUT_S = 10.0


class GroupLimits(msgspec.Struct, frozen=True):
    """Settings of a broker that decide on a take-over; None where it does not know one (no KIP-848 before Kafka 4)."""

    session_timeout_ms: int | None = None
    heartbeat_interval_ms: int | None = None
    abort_sweep_ms: int | None = None
    classic_min_session_timeout_ms: int | None = None
    offsets_retention_minutes: int | None = None


NAMES = {
    "session_timeout_ms": "group.consumer.session.timeout.ms",
    "heartbeat_interval_ms": "group.consumer.heartbeat.interval.ms",
    "abort_sweep_ms": "transaction.abort.timed.out.transaction.cleanup.interval.ms",
    "classic_min_session_timeout_ms": "group.min.session.timeout.ms",
    "offsets_retention_minutes": "offsets.retention.minutes",
}


def take_over_s(limits: GroupLimits, transaction_timeout_ms: int = TRANSACTION_TIMEOUT_MS) -> float | None:
    """Longest silence to expect, in seconds, of a partition whose worker died; None where groups are classic ones.

    The session must end and each survivor hear of it with its next heartbeat; an open transaction must time out and
    be swept up, which goes on at the same time. Measured against: docs/broker.md.
    """
    if limits.session_timeout_ms is None or limits.heartbeat_interval_ms is None:
        return None
    noticed_ms = limits.session_timeout_ms + limits.heartbeat_interval_ms
    aborted_ms = transaction_timeout_ms + (limits.abort_sweep_ms or 0)
    return max(noticed_ms, aborted_ms) / 1000


def group_limits(bootstrap: str, timeout_s: float = ASK_TIMEOUT_S) -> GroupLimits:
    """Ask a Kafka for its limits. Raises `BrokerError` where none answers within `timeout_s`, or it refuses."""
    admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})
    try:
        broker_id = next(iter(admin.list_topics(timeout=timeout_s).brokers))
        resource = ConfigResource(ResourceType.BROKER, str(broker_id))
        asked = admin.describe_configs([resource], request_timeout=timeout_s)
        known = asked[resource].result(timeout=timeout_s)
    except KafkaException as error:
        raise BrokerError(
            f"no Kafka at {bootstrap} answers ({error.args[0].str()})",
            remedy="check the address, or start one with 'tidegate broker start'",
        ) from error
    values = {field: known[name].value for field, name in NAMES.items() if name in known}
    return GroupLimits(**{field: int(value) for field, value in values.items() if value is not None})
