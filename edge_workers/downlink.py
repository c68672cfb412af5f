"""The downlink: the cloud's answers and credit, from the cloud's cluster to a site's, exactly once.

Credit travels as any record does, and is good for its `ttl_ms` from the moment the edge's Kafka took it: the clocks of
the two tiers are never compared.
"""

import threading

from edge_workers.uplink import to_same_partition
from pipelines.observe.instruments import Instruments
from pipelines.runtime.forwarder import Expired, Forwarder, Lane, Prepare
from pipelines.transport.base import Cluster, OutRecord, Record
from schemas import wire
from schemas.control import CREDIT_KEY
from schemas.topics import CONTROL, SiteTopics


def downlink(
    *,
    site: str,
    edge: Cluster,
    cloud: Cluster,
    instance: str,
    stop: threading.Event,
    instruments: Instruments | None = None,
) -> Forwarder:
    """The downlink of `site`. One is active a site: a second takes over from the first."""
    topics = SiteTopics(site)
    return Forwarder(
        source=cloud,
        destination=edge,
        lanes=[
            Lane(CONTROL, _credit_of(site, topics.control)),
            Lane(topics.down_answers, to_same_partition(topics.answers)),
        ],
        positions_topic=topics.down_positions,
        transactional_id=f"downlink.{site}",
        instance=instance,
        stop=stop,
        instruments=instruments,
    )


def _credit_of(site: str, topic: str) -> Prepare:
    def prepare(record: Record, now_us: int) -> OutRecord | Expired:
        credit = wire.decode_credit(record.value())
        if credit.site != site:
            return Expired()
        return OutRecord(topic, record.value(), CREDIT_KEY, 0)

    return prepare
