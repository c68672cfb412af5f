"""Names on disk outlive the code that wrote them: a change here loses data that is there."""

import pytest

from schemas.topics import AGGREGATE_GROUP, CLOUD_GROUP, OFFLOADS, SITE_NAME, SiteTopics, Tier, cloud_specs

EDGE = {
    "dock.items",
    "dock.positions",
    "dock.uplink.p0",
    "dock.uplink.p1",
    "dock.uplink.p2",
    "dock.answers",
    "dock.results",
    "dock.ledger",
    "dock.control",
    "dock.dead_letters",
    "dock.down.positions",
}
CLOUD = {"dock.down.answers", "dock.up.results", "dock.up.positions"}
SHARED = {"offload.p0", "offload.p1", "offload.p2", "aggregates", "control", "dead_letters"}


def names(specs, **wanted) -> set[str]:
    return {spec.name for spec in specs if all(getattr(spec, field) == value for field, value in wanted.items())}


def test_the_names_of_all_topics_and_groups():
    site = SiteTopics("dock")
    assert names(site.specs(), tier=Tier.EDGE) == EDGE
    assert names(site.specs(), tier=Tier.CLOUD) == CLOUD
    assert names(cloud_specs(), tier=Tier.CLOUD) == names(cloud_specs()) == SHARED
    assert (site.uplinks, OFFLOADS) == ([f"dock.uplink.p{p}" for p in range(3)], [f"offload.p{p}" for p in range(3)])
    assert (site.edge_group, site.settler_group) == ("dock.edge", "dock.settler")
    assert (CLOUD_GROUP, AGGREGATE_GROUP) == ("cloud", "aggregate")


def test_what_is_not_keyed_has_one_partition_because_one_writer_orders_it():
    specs = [*SiteTopics("dock").specs(), *cloud_specs()]
    assert names(specs, keyed=False) == {"dock.control", "dock.down.positions", "dock.up.positions", "control"}


def test_what_is_kept_and_what_is_not_compressed_twice():
    specs = [*SiteTopics("dock").specs(), *cloud_specs()]
    positions = {"dock.positions", "dock.down.positions", "dock.up.positions"}
    assert names(specs, compacted=True) == positions | {"dock.control", "control", "aggregates"}
    assert names(specs, forever=True) == {"dock.ledger"}
    media = {"dock.items", "dock.dead_letters", *SiteTopics("dock").uplinks}
    assert names(specs, media=True) == media | {*OFFLOADS, "dead_letters"}


@pytest.mark.parametrize("site", ["dock", "control", "offload", "aggregates", "cloud", "a" * 63, "0-a"])
def test_every_topic_of_a_site_carries_its_name_and_is_nobody_elses(site):
    own = [spec.name for spec in SiteTopics(site).specs()]
    assert SITE_NAME.fullmatch(site)
    assert all(name.startswith(f"{site}.") for name in own)
    assert len(set(own)) == len(own)
    assert not set(own) & SHARED
    assert not {SiteTopics(site).edge_group, SiteTopics(site).settler_group} & {CLOUD_GROUP, AGGREGATE_GROUP}


@pytest.mark.parametrize("site", ["", "-a", "Dock", "a.b", "a_b", "a b", "a\n", "a/b", "é", "a" * 64])
def test_what_no_site_may_be_called(site):
    assert not SITE_NAME.fullmatch(site)
