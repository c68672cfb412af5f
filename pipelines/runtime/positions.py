"""Where the streams of a site stand, as their producers have stored it."""

import structlog

from pipelines.errors import ForeignRecord
from pipelines.transport.base import Cluster
from schemas import wire
from schemas.positions import StreamPosition
from schemas.topics import SiteTopics

log = structlog.get_logger("tidegate.positions")


def stored_positions(cluster: Cluster, topics: SiteTopics) -> dict[str, StreamPosition]:
    """The last position of every stream of the site. Raises `TransportError`, `BrokerError`."""
    stored: dict[str, StreamPosition] = {}
    foreign = 0
    for record in cluster.read_all([topics.positions]):
        try:
            stored[(record.key() or b"").decode()] = wire.decode_stream_position(record.value())
        except (ForeignRecord, UnicodeDecodeError):
            foreign += 1  # What stood there before stays the truth.
    if foreign:
        log.warning("foreign_records", topic=topics.positions, count=foreign)
    return stored
