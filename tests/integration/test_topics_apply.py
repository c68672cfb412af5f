"""What a pipeline stands on is created once, and found again."""

import time
from contextlib import closing

import msgspec
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource
from typer.testing import CliRunner

from pipelines.cli.topics import app
from pipelines.config.clusters import ENVIRONMENT
from pipelines.core.topic_plan import Action, Thing
from pipelines.errors import ConfigError, TransportError
from pipelines.transport import topics as transport_topics
from pipelines.transport.base import Commit, OutRecord
from pipelines.transport.broker.node import free_port
from pipelines.transport.kafka import KafkaCluster
from pipelines.transport.topics import Layout, apply, apply_tier, plan_tier
from schemas import wire
from schemas.positions import ForwardPosition, forward_key
from schemas.topics import AGGREGATE_GROUP, CLOUD_GROUP, OFFLOADS, SiteTopics, Tier, TopicSpec, cloud_specs

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


def to_do(changes):
    """What is to be done, by name; notes apart."""
    return {change.name: change.action for change in changes if change.action is not Action.NOTE}


def refusals(changes):
    return [str(change) for change in changes if change.action is Action.REFUSED]


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


def test_each_tier_is_made_without_the_other_and_the_forwarders_begin_all_the_same(tiers, site, tmp_path, monkeypatch):
    """The cloud serves three sites, and no address of the other tier answers."""
    sites = [site, f"{site}-b", f"{site}-c"]
    nowhere = f"127.0.0.1:{free_port()}"
    file = tmp_path / "pipeline.yaml"
    lines = ["name: x", "source: {path: .}", f"site: {site}", f"cloud: {{sites: [{', '.join(sites)}]}}"]
    file.write_text("\n".join([*lines, f"partitions: {PARTITIONS}"]), "utf-8")
    for tier, other in ((Tier.EDGE, Tier.CLOUD), (Tier.CLOUD, Tier.EDGE)):
        monkeypatch.setenv(ENVIRONMENT[tier], tiers[tier].bootstrap)
        monkeypatch.setenv(ENVIRONMENT[other], nowhere)

        def asked(command, *options, tier=tier):
            return CliRunner().invoke(app, [command, str(file), "--tier", tier, *options])

        assert asked("plan").exit_code == asked("check").exit_code == 1
        assert "partitions a keyed topic" in asked("apply").stdout
        assert asked("plan").exit_code == asked("check").exit_code == asked("apply").exit_code == 0
        told = msgspec.json.decode(asked("plan", "--json").stdout)
        assert [(one["tier"], to_do_of(one)) for one in told["tiers"]] == [(tier, [])]

    edge, cloud = tiers[Tier.EDGE], tiers[Tier.CLOUD]
    topics = SiteTopics(site)
    down = {forward_key(topics.down_answers, p) for p in range(PARTITIONS)} | {forward_key("control", 0)}
    assert positions(edge, topics.down_positions).keys() == down
    for one in map(SiteTopics, sites):
        up = {forward_key(name, p) for name in [*one.uplinks, one.results] for p in range(PARTITIONS)}
        assert positions(cloud, one.up_positions).keys() == up
        assert set(cloud.committed(AGGREGATE_GROUP, [one.up_results]).values()) == {Commit(0)}
    assert not set(edge.topic_names()) & {spec.name for one in sites[1:] for spec in SiteTopics(one).specs()}


def to_do_of(told):
    return [change for change in told["changes"] if change["action"] != "note"]


class Nobody:
    def assigned(self, partitions):
        self.held = set(partitions)

    def revoked(self, partitions):
        pass

    lost = revoked


def test_a_site_is_added_while_the_clouds_workers_run(run, tiers, site):
    run()
    cloud, listener = tiers[Tier.CLOUD], Nobody()
    with closing(cloud.group_reader(AGGREGATE_GROUP, [SiteTopics(site).up_results], listener)) as member:
        while not hasattr(listener, "held"):
            member.poll(1, 0.1)
        apply_tier(Layout(f"{site}-b", PARTITIONS, HOUR_MS), Tier.CLOUD, cloud)
        added = SiteTopics(f"{site}-b").up_results
        assert cloud.committed(AGGREGATE_GROUP, [added]) == {(added, p): Commit(0) for p in range(PARTITIONS)}


def test_what_differs_is_shown_then_set_and_what_was_set_by_hand_stays(run, tiers, site):
    run()
    edge, topics = tiers[Tier.EDGE], SiteTopics(site)
    edge.alter_topics(
        {topics.items: {"segment.ms": "7200000", "retention.ms": "1"}, topics.answers: {"segment.ms": "9"}}
    )
    layout = Layout(site, PARTITIONS, 2 * HOUR_MS, configs={"items": {"segment.ms": "3600000"}})
    longer = {spec.name for spec in topics.specs() if spec.tier is Tier.EDGE and not (spec.compacted or spec.forever)}
    assert to_do(plan_tier(layout, Tier.EDGE, edge)) == dict.fromkeys(longer, Action.ALTER)
    apply_tier(layout, Tier.EDGE, edge)
    assert to_do(plan_tier(layout, Tier.EDGE, edge)) == {}
    items, answers = config(edge.bootstrap, topics.items), config(edge.bootstrap, topics.answers)
    assert (items["retention.ms"], items["segment.ms"]) == (str(2 * HOUR_MS), "3600000")
    assert (answers["retention.ms"], answers["segment.ms"]) == (str(2 * HOUR_MS), "9")


def test_a_setting_that_kafka_does_not_know_is_refused_with_the_one_meant(run, tiers, site):
    run()
    layout = Layout(site, PARTITIONS, HOUR_MS, configs={"items": {"segment.mss": "1"}})
    assert refusals(plan_tier(layout, Tier.EDGE, tiers[Tier.EDGE])) == [
        f"topic '{site}.items' Kafka knows no setting `segment.mss` of a topic"
    ]
    with pytest.raises(ConfigError, match=r"did you mean `segment.ms`"):
        apply_tier(layout, Tier.EDGE, tiers[Tier.EDGE])


def write(cluster, topic, partition, count, age_ms=0):
    """Records with a timestamp that lies in the past."""
    producer = Producer({"bootstrap.servers": cluster.bootstrap})
    for number in range(count):
        at_ms = int(time.time() * 1000) - age_ms
        producer.produce(topic, b"x%d" % number, partition=partition, timestamp=at_ms)
    assert producer.flush(30) == 0


def test_a_retention_that_would_remove_unread_records_is_refused_and_names_them(run, tiers, site):
    run()
    edge, cloud, topics = tiers[Tier.EDGE], tiers[Tier.CLOUD], SiteTopics(site)
    write(edge, topics.items, 0, 5, age_ms=HOUR_MS // 2)
    write(edge, topics.items, 0, 3)
    write(edge, topics.results, 1, 4, age_ms=HOUR_MS // 2)
    layout = Layout(site, PARTITIONS, HOUR_MS // 4)
    remove = f"retention.ms {HOUR_MS // 4} would remove"
    assert refusals(plan_tier(layout, Tier.EDGE, edge, cloud)) == [
        f"topic '{topics.items}' {remove} 5 records that {topics.edge_group} has not read",
        f"topic '{topics.results}' {remove} 4 records that {topics.up_positions} has not read",
    ]
    alone = plan_tier(layout, Tier.EDGE, edge)
    assert len(refusals(alone)) == 1
    told = [change for change in alone if change.action is Action.NOTE and change.name == topics.results]
    assert "which was not asked" in told[0].what
    with pytest.raises(ConfigError, match="would remove 5 records"):
        apply_tier(layout, Tier.EDGE, edge, cloud)
    assert config(edge.bootstrap, topics.items)["retention.ms"] == str(HOUR_MS)

    with closing(Consumer({"bootstrap.servers": edge.bootstrap, "group.id": topics.edge_group})) as group:
        group.commit(offsets=[TopicPartition(topics.items, 0, 5)], asynchronous=False)
    moved = OutRecord(topics.up_positions, wire.encode(ForwardPosition(4)), forward_key(topics.results, 1), 0)
    with closing(cloud.transactions(f"test.{site}")) as writer:
        writer.start()
        writer.write([moved])
    assert refusals(plan_tier(layout, Tier.EDGE, edge, cloud)) == []


def test_positions_that_were_forgotten_are_never_begun_anew(run, tiers, site):
    """They expire with `offsets.retention.minutes`; beginning at 0 would do every item a second time."""
    run()
    edge, topics = tiers[Tier.EDGE], SiteTopics(site)
    write(edge, topics.items, 1, 1)
    admin = AdminClient({"bootstrap.servers": edge.bootstrap, "log_level": 2})
    admin.delete_consumer_groups([topics.edge_group])[topics.edge_group].result()
    with pytest.raises(ConfigError, match=rf"group '{topics.edge_group}' has no position on {topics.items}"):
        run()
    assert edge.committed(topics.edge_group, [topics.items]) == {}


def test_what_is_not_ours_is_named_and_left_alone(run, tiers, site):
    run()
    edge = tiers[Tier.EDGE]
    edge.create_topics([TopicSpec(f"{site}.mine", Tier.EDGE)], 1, HOUR_MS)
    assert [(c.action, c.thing, c.name) for c in plan_tier(Layout(site, PARTITIONS, HOUR_MS), Tier.EDGE, edge)] == [
        (Action.NOTE, Thing.TOPIC, f"{site}.mine")
    ]


def test_more_copies_than_brokers_and_positions_kept_too_briefly_are_refused_before_anything_is_made(tiers, site):
    edge = tiers[Tier.EDGE]
    with pytest.raises(ConfigError, match=r"`topics.replication` is 3 and the cluster has 1 broker: start the others"):
        apply_tier(Layout(site, PARTITIONS, HOUR_MS, replication=3), Tier.EDGE, edge)
    century_ms = 100 * 365 * 24 * HOUR_MS
    with pytest.raises(ConfigError, match=r"forgets where a group stands .* set offsets.retention.minutes to 52560000"):
        apply_tier(Layout(site, PARTITIONS, HOUR_MS, outage_budget_ms=century_ms), Tier.EDGE, edge)
    assert not [name for name in edge.topic_names() if name.startswith(site)]


class Loading:
    """A writer whose coordinator still loads, a few times."""

    def __init__(self, times):
        self.left = times

    def start(self):
        self.left -= 1
        if self.left >= 0:
            raise TransportError("Coordinator load in progress")


def test_a_fresh_kafka_is_waited_for_and_one_that_stays_away_not_for_ever(monkeypatch):
    patient = Loading(3)
    transport_topics._start_patiently(patient)
    assert patient.left == -1
    monkeypatch.setattr(transport_topics, "FRESH_S", -1.0)
    with pytest.raises(TransportError, match="load in progress"):
        transport_topics._start_patiently(Loading(1))
