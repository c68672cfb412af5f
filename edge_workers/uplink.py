"""The uplink: escalated items and settled results, from a site's cluster to the cloud's, by priority, exactly once.

Lanes: uplink.p0, p1, p2, then the results. An item whose deadline has passed is not sent; the settler accounts for it.
"""

import threading

import msgspec

from pipelines.observe.instruments import Instruments
from pipelines.runtime.forwarder import Expired, Forwarder, Lane, Prepare
from pipelines.transport.base import Cluster, OutRecord, Record
from schemas import headers
from schemas.errors import ForeignRecord, UnknownVersion
from schemas.headers import Extra, Origin
from schemas.topics import PRIORITIES, SiteTopics, offload


def uplink(
    *,
    site: str,
    edge: Cluster,
    cloud: Cluster,
    instance: str,
    stop: threading.Event,
    instruments: Instruments | None = None,
) -> Forwarder:
    """The uplink of `site`. One is active a site: a second takes over from the first."""
    topics = SiteTopics(site)
    lanes = [Lane(topics.uplink(priority), _to_offload(site, priority)) for priority in range(PRIORITIES)]
    lanes.append(Lane(topics.results, to_same_partition(topics.up_results)))
    return Forwarder(
        source=edge,
        destination=cloud,
        lanes=lanes,
        positions_topic=topics.up_positions,
        transactional_id=f"uplink.{site}",
        instance=instance,
        stop=stop,
        instruments=instruments,
    )


def to_same_partition(topic: str) -> Prepare:
    """Send a record as it is to the same partition number of `topic`."""

    def prepare(record: Record, now_us: int) -> OutRecord:
        return OutRecord(topic, record.value(), record.key(), record.partition())

    return prepare


def _to_offload(site: str, priority: int) -> Prepare:
    topic = offload(priority)

    def prepare(record: Record, now_us: int) -> OutRecord | Expired:
        try:
            header = headers.find(record.headers())
        except UnknownVersion as error:
            raise ForeignRecord(str(error)) from error
        if header.deadline_us <= now_us:
            return Expired()
        extra = msgspec.structs.replace(
            header.extra, site=site, origin=Origin(priority, record.partition(), record.offset())
        )
        return _sent_on(record, topic, header, extra)

    return prepare


def _sent_on(record: Record, topic: str, header: headers.Header, extra: Extra) -> OutRecord:
    """The payload unchanged, its header one cluster further; the key chooses the partition in the cloud."""
    content_type = headers.content_type_of(record.headers())
    sent = msgspec.structs.replace(header, hops=header.hops + 1, extra=extra)
    return OutRecord(topic, record.value(), record.key(), -1, headers.pair(content_type, sent))
