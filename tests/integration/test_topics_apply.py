"""What a pipeline stands on is created once, and found again."""

from contextlib import closing

import pytest
from confluent_kafka.admin import AdminClient, ConfigResource

from pipelines.errors import ConfigError
from pipelines.transport.base import Commit, OutRecord
from pipelines.transport.kafka import KafkaCluster
from pipelines.transport.topics import Layout, apply
from schemas import wire
from schemas.positions import ForwardPosition, forward_key
from schemas.topics import AGGREGATE_GROUP, CLOUD_GROUP, OFFLOADS, SiteTopics, Tier, cloud_specs

PARTITIONS = 2
"""Of every test on the session's brokers that applies: the cloud's own topics are there once for all sites."""
HOUR_MS = 3_600_000


@pytest.fixture
def tiers(brokers):
    with (
        closing(KafkaCluster("kafka.edge", brokers.edge.bootstrap)) as edge,
        closing(KafkaCluster("kafka.cloud", brokers.cloud.bootstrap)) as cloud,
    ):
        yield {Tier.EDGE: edge, Tier.CLOUD: cloud}


@pytest.fixture
def run(tiers, site):
    """`run(partitions)`: apply for this test's site."""
    return lambda partitions=PARTITIONS: apply(Layout(site, partitions, HOUR_MS), tiers[Tier.EDGE], tiers[Tier.CLOUD])


def positions(cluster: KafkaCluster, topic: str) -> dict[bytes | None, list[ForwardPosition]]:
    found: dict[bytes | None, list[ForwardPosition]] = {}
    for record in cluster.read_all([topic]):
        found.setdefault(record.key(), []).append(wire.decode_forward_position(record.value()))
    return found


def config(bootstrap: str, topic: str) -> dict[str, str]:
    resource = ConfigResource(ConfigResource.Type.TOPIC, topic)
    admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 2})
    entries = admin.describe_configs([resource])[resource].result()
    return {name: entry.value for name, entry in entries.items()}


def test_all_topics_are_made_on_their_tier_and_a_second_time_none(run, tiers, site):
    topics = SiteTopics(site)
    created = run()
    assert {spec.name for spec in topics.specs()} <= set(created) <= {s.name for s in [*topics.specs(), *cloud_specs()]}
    for spec in [*topics.specs(), *cloud_specs()]:
        count = PARTITIONS if spec.keyed else 1
        assert tiers[spec.tier].partitions([spec.name]) == [(spec.name, number) for number in range(count)]
    assert run() == []


def test_every_reader_has_a_first_position_and_it_is_written_once(run, tiers, site):
    topics, edge, cloud = SiteTopics(site), tiers[Tier.EDGE], tiers[Tier.CLOUD]
    run()

    def firsts(cluster, group, names):
        return {name: cluster.committed(group, [name]) for name in names} == {
            name: {(name, number): Commit(0) for number in range(PARTITIONS)} for name in names
        }

    assert firsts(edge, topics.edge_group, [topics.items])
    assert firsts(edge, topics.settler_group, [*topics.uplinks, topics.answers])
    assert firsts(cloud, CLOUD_GROUP, OFFLOADS)
    assert firsts(cloud, AGGREGATE_GROUP, [topics.up_results])

    up = {forward_key(name, p) for name in [*topics.uplinks, topics.results] for p in range(PARTITIONS)}
    down = {forward_key(topics.down_answers, p) for p in range(PARTITIONS)} | {forward_key("control", 0)}
    assert positions(cloud, topics.up_positions) == {key: [ForwardPosition(0)] for key in up}
    assert positions(edge, topics.down_positions) == {key: [ForwardPosition(0)] for key in down}

    moved, key = ForwardPosition(7, records=5), forward_key(topics.results, 1)
    with closing(cloud.transactions(f"test.{site}")) as writer:
        writer.start()
        writer.write([OutRecord(topics.up_positions, wire.encode(moved), key, 0)])
    run()
    again = positions(cloud, topics.up_positions)
    assert again[key][-1] == moved
    assert sum(map(len, again.values())) == len(up) + 1, "nothing was written anew"
    assert sum(map(len, positions(edge, topics.down_positions).values())) == len(down)


def test_another_number_of_partitions_is_refused_with_what_to_do(run, tiers, site):
    topics = SiteTopics(site)
    run()
    with pytest.raises(
        ConfigError, match=rf"topic '{topics.items}' has 2 partitions and `partitions` says 3: set `partitions` to what"
    ) as raised:
        run(3)
    assert "\n" not in str(raised.value)
    assert len(tiers[Tier.EDGE].partitions([topics.items])) == PARTITIONS


def test_what_must_be_kept_is_kept(run, tiers, site):
    topics = SiteTopics(site)
    run()
    edge = tiers[Tier.EDGE].bootstrap
    assert config(edge, topics.positions)["cleanup.policy"] == "compact"
    assert config(edge, topics.ledger)["retention.ms"] == "-1"
    items = config(edge, topics.items)
    assert (items["cleanup.policy"], items["retention.ms"]) == ("delete", str(HOUR_MS))
    assert int(items["max.message.bytes"]) > 2 << 20
