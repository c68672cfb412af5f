"""The plan of topics: it names exactly what differs, and what would break the account is never to be done."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.core.topic_plan import (
    Action,
    Change,
    Found,
    FoundTopic,
    Layout,
    Thing,
    Unread,
    plan,
    readers,
    retention_ms,
    same_value,
    wanted_topics,
    why_not_config,
)
from schemas.topics import SiteTopics, Tier, cloud_specs, topic_kinds

HOUR_MS = 3_600_000
LAYOUT = Layout("dock", 3, HOUR_MS, ("dock", "pier"), HOUR_MS)
tiers = st.sampled_from(list(Tier))
layouts = st.builds(
    Layout,
    st.sampled_from(["dock", "a"]),
    st.integers(1, 5),
    st.integers(1, 10**12),
    st.sampled_from([(), ("pier",), ("dock", "pier", "a")]),
    st.integers(0, 10**9),
    st.none() | st.integers(1, 5),
    st.none() | st.integers(1, 5),
    st.just({}) | st.just({"items": {"segment.ms": "5"}, "control": {"segment.ms": "7"}}),
)


def complete(layout: Layout, tier: Tier, partitions: int | None = None) -> Found:
    """A cluster that has all that is wanted, with settings of its own besides."""
    return Found(
        brokers=9,
        topics={
            topic.name: FoundTopic(
                partitions or topic.partitions, topic.replication or 2, {"compression.type": "zstd", **topic.configs}
            )
            for topic in wanted_topics(layout, tier)
        },
        positions={reader.name: frozenset(reader.partitions) for reader in readers(layout, tier)},
    )


def with_topic(found: Found, name: str, **changes: object) -> Found:
    topic = msgspec.structs.replace(found.topics[name], **changes)
    return msgspec.structs.replace(found, topics={**found.topics, name: topic})


def brief(changes: list[Change]) -> list[tuple[str, str]]:
    return [(change.action, change.name) for change in changes]


@given(layouts, tiers)
def test_on_an_empty_cluster_everything_is_made_and_after_it_nothing_is_to_be_done(layout, tier):
    wanted, first = wanted_topics(layout, tier), plan(layout, tier, Found(brokers=9))
    made = {change.name for change in first if change.action is Action.CREATE}
    begun = {change.name for change in first if change.action is Action.POSITIONS}
    assert made == {topic.name for topic in wanted}
    assert begun == {reader.name for reader in readers(layout, tier)}
    assert len(first) == len(made) + len(begun)
    assert plan(layout, tier, complete(layout, tier)) == []


@given(layouts)
def test_both_tiers_together_have_every_topic_and_every_reader_of_every_site_once(layout):
    sites = {layout.site, *(layout.sites or [layout.site])}
    names = [topic.name for tier in Tier for topic in wanted_topics(layout, tier)]
    assert len(set(names)) == len(names)
    if sites == {layout.site}:
        assert set(names) == {spec.name for spec in [*SiteTopics(layout.site).specs(), *cloud_specs()]}
    for tier in Tier:
        here = {topic.name for topic in wanted_topics(layout, tier)}
        for reader in readers(layout, tier):
            assert len(set(reader.partitions)) == len(reader.partitions)
            read = {name for name, _ in reader.partitions}
            assert (reader.name in here and not read & here) if reader.forwarder else read <= here


@given(layouts, tiers, st.data())
def test_a_plan_names_what_differs_and_nothing_else(layout, tier, data):
    found = complete(layout, tier)
    names = sorted(found.topics)
    some = st.sets(st.sampled_from(names))
    missing, other = data.draw(some), data.draw(some)
    for name in other:
        setting = data.draw(st.sampled_from(sorted(set(found.topics[name].configs) - {"compression.type"})))
        found = with_topic(found, name, configs={**found.topics[name].configs, setting: "12345"})
    topics = {name: topic for name, topic in found.topics.items() if name not in missing}
    changes = plan(layout, tier, msgspec.structs.replace(found, topics=topics))
    of = {action: {change.name for change in changes if change.action is action} for action in Action}
    assert of[Action.CREATE] == missing
    assert of[Action.ALTER] <= other - missing
    for change in changes:
        if change.action is Action.ALTER:
            there, wanted = topics[change.name], {t.name: t for t in wanted_topics(layout, tier)}[change.name]
            assert change.configs.items() <= wanted.configs.items()
            assert not any(same_value(value, there.configs[name]) for name, value in change.configs.items())
            assert all(name in change.what for name in change.configs)
    after = {
        name: FoundTopic(
            topic.partitions,
            topic.replication,
            {**topic.configs, **next((c.configs for c in changes if c.name == name and c.action is Action.ALTER), {})},
        )
        for name, topic in topics.items()
    }
    again = plan(layout, tier, msgspec.structs.replace(found, topics=after))
    assert {change.name for change in again if change.action is not Action.POSITIONS} == missing


@given(layouts, tiers, st.integers(1, 9))
def test_another_number_of_partitions_is_always_refused_and_never_altered(layout, tier, there):
    changes = plan(layout, tier, complete(layout, tier, there))
    differing = {t.name for t in wanted_topics(layout, tier) if t.partitions != there}
    assert {change.name for change in changes if change.action is Action.REFUSED} == differing
    assert {change.action for change in changes} <= {Action.REFUSED}
    assert all(change.remedy and f"has {there} partitions" in change.what for change in changes)


def test_the_way_out_depends_on_what_the_topic_is():
    changes = plan(LAYOUT, Tier.CLOUD, complete(LAYOUT, Tier.CLOUD, 2))
    remedy = {change.name: change.remedy for change in changes}
    assert "begin a new site" in remedy["dock.up.results"]
    assert "all sites of this cloud share it" in remedy["offload.p0"]
    assert "delete this topic" in remedy["control"]


def test_refusals_come_first():
    found = msgspec.structs.replace(
        complete(LAYOUT, Tier.EDGE), topics={"dock.results": FoundTopic(7, 1, {})}, offsets_retention_ms=60_000
    )
    actions = [change.action for change in plan(LAYOUT, Tier.EDGE, found)]
    assert actions[:2] == [Action.REFUSED] * 2
    assert Action.REFUSED not in actions[2:]


@pytest.mark.parametrize(("kept_ms", "refused"), [(None, False), (HOUR_MS, False), (HOUR_MS - 1, True), (60_000, True)])
def test_a_cluster_that_forgets_positions_within_the_outage_budget_is_refused(kept_ms, refused):
    found = msgspec.structs.replace(complete(LAYOUT, Tier.EDGE), offsets_retention_ms=kept_ms)
    changes = plan(LAYOUT, Tier.EDGE, found)
    assert [change.remedy for change in changes] == (
        ["set offsets.retention.minutes to 60 or more on every broker"] if refused else []
    )


def test_copies_are_compared_only_where_the_file_says_how_many():
    found = complete(LAYOUT, Tier.EDGE)
    assert plan(LAYOUT, Tier.EDGE, with_topic(found, "dock.items", replication=1)) == []
    three = msgspec.structs.replace(LAYOUT, replication=3)
    [change] = [
        c for c in plan(three, Tier.EDGE, with_topic(found, "dock.items", replication=1)) if "1 copies" in c.what
    ]
    assert (change.action, change.name) == (Action.BY_HAND, "dock.items")
    [few] = plan(three, Tier.EDGE, msgspec.structs.replace(complete(three, Tier.EDGE), brokers=2))
    assert (few.action, few.thing) == (Action.REFUSED, Thing.CLUSTER)
    assert str(few) == "`topics.replication` is 3 and the cluster has 2 brokers"


def test_a_retention_that_shrinks_over_unread_records_is_refused_and_all_else_of_the_topic_waits_for_it():
    found = complete(LAYOUT, Tier.EDGE)
    longer = {**found.topics["dock.results"].configs, "retention.ms": "-1", "message.timestamp.type": "LogAppendTime"}
    found = with_topic(found, "dock.results", configs=longer)
    unread = [Unread("dock.up.positions", "dock.results", 1_234)]
    changes = plan(LAYOUT, Tier.EDGE, msgspec.structs.replace(found, unread=unread))
    assert brief(changes) == [(Action.REFUSED, "dock.results")]
    assert "would remove 1,234 records that dock.up.positions has not read" in changes[0].what
    unchecked = [("dock.up.positions", "dock.results")]
    changes = plan(LAYOUT, Tier.EDGE, msgspec.structs.replace(found, unchecked=unchecked))
    assert brief(changes) == [(Action.ALTER, "dock.results"), (Action.NOTE, "dock.results")]


def test_a_missing_position_is_begun_on_an_empty_partition_and_refused_on_one_that_has_had_records():
    found = complete(LAYOUT, Tier.EDGE)
    positions = {**found.positions, "dock.edge": frozenset({("dock.items", 0)})}
    found = msgspec.structs.replace(found, positions=positions)
    [change] = plan(LAYOUT, Tier.EDGE, found)
    assert (change.action, change.what) == (Action.POSITIONS, "first positions on 2 partitions")
    [change] = plan(LAYOUT, Tier.EDGE, msgspec.structs.replace(found, filled=frozenset({("dock.items", 2)})))
    assert (change.action, change.thing, change.name) == (Action.REFUSED, Thing.GROUP, "dock.edge")


def test_topics_of_others_are_noted_only_under_a_sites_own_prefix():
    found = complete(LAYOUT, Tier.EDGE)
    strange = dict.fromkeys(["dock.mine", "dock-2.items", "docks", "dock.up.results"], FoundTopic(1, 1, {}))
    changes = plan(LAYOUT, Tier.EDGE, msgspec.structs.replace(found, topics={**found.topics, **strange}))
    assert brief(changes) == [(Action.NOTE, "dock.mine")], (
        "with one Kafka for both tiers the other tier's are there too"
    )


@pytest.mark.parametrize(
    ("kind", "name", "value", "said"),
    [
        ("items", "cleanup.policy", "compact", "follows from what the topic is for"),
        ("ledger", "retention.ms", "99999999999", "or the account would not balance"),
        ("positions", "retention.bytes", "-1", "or the account would not balance"),
        ("items", "retention.ms", "1000", "shorter than `outage_budget`"),
        ("items", "retention.ms", "-1", ""),
        ("items", "retention.ms", str(HOUR_MS), ""),
        ("results", "retention.bytes", "1000", "removes records however new they are"),
        ("results", "retention.bytes", "-1", ""),
        ("items", "max.message.bytes", "1000000", "must be 16777216 or more"),
        ("results", "max.message.bytes", "1000000", ""),
        ("uplink", "segment.ms", "5", ""),
    ],
)
def test_what_may_not_be_set(kind, name, value, said):
    told = why_not_config(kind, name, value, HOUR_MS)
    assert (said in told) if said else (told == "")
    assert not said or told.startswith(f"`topics.configs.{kind}.{name}`")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [("0.1", "0.10", True), ("true", "TRUE", True), ("1", "1.0", True), ("", "0", False), ("a,b", "a", False)],
)
def test_settings_are_compared_by_what_they_mean(one, other, same):
    assert same_value(one, other) == same


def test_a_compacted_topic_keeps_forever():
    assert retention_ms({"cleanup.policy": "compact", "retention.ms": "5"}) == retention_ms({"retention.ms": "-1"})
    assert retention_ms({"cleanup.policy": "delete", "retention.ms": "5"}) == 5


def test_kinds_are_names_without_site_and_priority():
    assert {"items", "uplink", "up.results", "down.answers", "offload", "control", "aggregates"} <= set(topic_kinds())
    assert not [kind for kind in topic_kinds() if kind.startswith("site") or kind[-1].isdigit()]
