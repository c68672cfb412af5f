"""Lag on real Kafkas: against Kafka's own tool, against what is known of the items, and with a cluster away."""

import json
import math
import os
import re
import signal
import subprocess
import threading
import time
from contextlib import closing

import pytest
from confluent_kafka import Producer
from typer.testing import CliRunner

from pipelines.cli import lag as lag_command
from pipelines.cli import status as status_command
from pipelines.cli import top as top_command
from pipelines.config.clusters import Clusters
from pipelines.config.pipeline import CloudTier, Pipeline, Source
from pipelines.core.lag import State
from pipelines.core.work import WorkNote
from pipelines.observe.lag import LagReader
from pipelines.runtime.stage import offsets_after
from pipelines.transport.base import Commit, OutRecord
from pipelines.transport.broker import install, start_owned
from pipelines.transport.broker.jars import KAFKA_VERSION, Pin, _fetcher, exclusive, sha256_of
from pipelines.transport.broker.paths import cache_home
from pipelines.transport.kafka import KafkaCluster
from pipelines.transport.topics import Layout, apply
from schemas import headers, wire
from schemas.ledger import Outcome
from schemas.positions import ForwardPosition, Owner, StreamPosition, forward_key
from schemas.results import Result, ResultBatch
from schemas.topics import Tier

PARTITIONS = 2
"""As all tests on the session's brokers have: the cloud's own topics are there once for all sites."""
TOOLS = Pin(
    "b88bc6ccc520d648142515526e4042c285612ce94b032434a88e3e936e38b600", "org.apache.kafka", "kafka-tools", KAFKA_VERSION
)
GROUP_TOOL = "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand"


class Site:
    """A pipeline's topics on two clusters, and hands to put records in and take them out."""

    def __init__(self, edge, cloud, site):
        self.both = Clusters(KafkaCluster("kafka.edge", edge), KafkaCluster("kafka.cloud", cloud))
        self.pipeline = Pipeline(
            name=site,
            source=Source(path="."),
            site=site,
            partitions=PARTITIONS,
            cloud=CloudTier(model="builtin:digits-large"),
        )
        self.topics = self.pipeline.topics
        apply(Layout(site, PARTITIONS, 3_600_000), *self.both)
        self.writers = {tier: one.transactions(f"test.{site}") for tier, one in zip(Tier, self.both, strict=True)}
        for writer in self.writers.values():
            writer.start()
        self.reader = LagReader(self.both, self.pipeline)
        self.members = []

    def assigned(self, partitions):
        """Nothing is kept by partition."""

    revoked = lost = assigned

    def close(self):
        self.reader.close()
        for member in self.members:
            member.close()
        for writer in self.writers.values():
            writer.close()
        for cluster in self.both:
            cluster.close()

    def item(self, topic, partition, age_s, seq=0, deadline_s=60.0):
        capture_us = time.time_ns() // 1000 - int(age_s * 1e6)
        header = headers.Header(
            headers.VERSION, f"cam-{partition}", 0, seq, 1, capture_us, capture_us + int(deadline_s * 1e6), 1, "raw"
        )
        return OutRecord(topic, b"\0" * 64, b"cam-%d" % partition, partition, headers.pair("image/x", header))

    def write(self, records, tier=Tier.EDGE):
        self.writers[tier].write(records)

    def join(self, group, topics, name):
        """A member of a group at the edge that holds all partitions."""
        member = self.both.edge.group_reader(group, topics, self, name)
        self.members.append(member)
        return member

    def commit(self, member, offsets):
        self.writers[Tier.EDGE].write([], offsets, member)

    def group(self, kind):
        reading = self.reader.read()
        assert not reading.unreachable
        return next(one for one in reading.groups if one.kind == kind)

    def until(self, kind, reached):
        """Readings until the group is as wanted; the test's own time limit ends it otherwise."""
        turn = threading.Event()
        while not reached(group := self.group(kind)):
            turn.wait(0.1)
        return group


def partition(group, topic, number):
    return next(one for one in group.partitions if (one.topic, one.partition) == (topic, number))


@pytest.fixture
def line(brokers, site):
    made = Site(brokers.edge.bootstrap, brokers.cloud.bootstrap, site)
    yield made
    made.close()


@pytest.fixture(scope="session")
def group_tool():
    """Kafka's own tool for groups, as a command that takes its arguments."""
    jar = cache_home() / "kafka-tools" / TOOLS.filename
    if not jar.is_file() or sha256_of(jar) != TOOLS.sha256:
        with exclusive(jar.parent) as scratch:
            _fetcher(scratch)(TOOLS).replace(jar)
    assert sha256_of(jar) == TOOLS.sha256
    installed = install(None)

    def run(*arguments):
        command = [installed.java.path, "-cp", ":".join(map(str, [*installed.jars, jar])), GROUP_TOOL, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout

    return run


def offsets_by_the_tool(text):
    """Committed, end, lag, host and client by group, topic and partition. Each group has a heading of its own."""
    found, heading = {}, []
    for row in filter(None, map(str.split, text.splitlines())):
        if row[0] == "GROUP":
            heading = row
            continue
        cells = dict(zip(heading, row, strict=True))
        numbers = (int(cells["CURRENT-OFFSET"]), int(cells["LOG-END-OFFSET"]), int(cells["LAG"]))
        place = (cells["GROUP"], cells["TOPIC"], int(cells["PARTITION"]))
        found[place] = (*numbers, cells["HOST"].removeprefix("/"), cells["CLIENT-ID"])
    return found


def test_offsets_and_owners_are_those_of_kafkas_own_tool(line, group_tool):
    topics = line.topics
    for number in range(3):  # Each transaction leaves a marker.
        line.write([line.item(topics.items, p, 5, seq=number) for p in range(PARTITIONS) for _ in range(4 + p)])
    line.write([line.item(topics.uplink(1), 0, 5), line.item(topics.uplink(2), 1, 5)])
    edge = line.join(topics.edge_group, [topics.items], "edge-0")
    settle = line.join(topics.settler_group, [*topics.uplinks, topics.answers], "settle-0")

    def all_held(group):
        return all(one.owner for one in group.partitions)

    taken = []
    while len(taken) < 27:
        taken += edge.poll(100, 0.2)
        settle.poll(100, 0)
    line.commit(edge, offsets_after([record for record in taken if record.partition() == 0][:6]))
    line.commit(settle, {(topics.uplink(1), 0): Commit(0, "b:AAAA")})
    line.until("edge", all_held)
    line.until("settle", all_held)

    groups = ["--group", topics.edge_group, "--group", topics.settler_group]
    text = group_tool("--bootstrap-server", line.both.edge.bootstrap, "--describe", *groups)
    ours = {}
    for kind in ("edge", "settle"):
        found = line.until(kind, all_held)
        for one in found.partitions:
            numbers = (one.committed, one.end, one.lag_records)
            ours[found.group, one.topic, one.partition] = (*numbers, found.members[0].host, one.owner)
    assert ours == offsets_by_the_tool(text)
    assert {row[-1] for row in ours.values()} == {"edge-0", "settle-0"}


def bracketed(line, kind, topic, number, since_us):
    """Assert that what waits there since then is as many seconds behind as it was at some time in the reading."""
    before_us = time.time_ns() // 1000
    found = partition(line.group(kind), topic, number)
    after_us = time.time_ns() // 1000
    assert (before_us - since_us) / 1e6 <= found.seconds_behind <= (after_us - since_us) / 1e6
    return found


def captured(out):
    return headers.find(out.headers).capture_us


def test_seconds_behind_are_the_age_of_the_oldest_item_that_is_not_done(line):
    items = line.topics.items
    ages_s = [90.0, 40.0, 12.0, 3.0]
    records = [line.item(items, 0, age_s, seq) for seq, age_s in enumerate(ages_s)]
    line.write(records[:2])
    line.write(records[2:])
    found = bracketed(line, "edge", items, 0, captured(records[0]))
    assert found.owner == ""
    assert partition(line.group("edge"), items, 1).seconds_behind == 0

    edge = line.join(line.topics.edge_group, [items], "edge-0")
    taken = []
    while len(taken) < len(records):
        taken += edge.poll(100, 0.2)
    for done, record in enumerate(taken[:-1], 1):
        line.commit(edge, offsets_after([record]))
        bracketed(line, "edge", items, 0, captured(records[done]))
    line.commit(edge, offsets_after(taken))
    nothing = partition(line.until("edge", lambda group: group.seconds_behind == 0), items, 0)
    assert nothing.lag_records == 1  # The marker of the last transaction.
    assert (nothing.state, nothing.drain_s) == (State.OK, 0)


def test_of_results_the_earliest_capture_counts_and_of_answers_the_time_of_the_record(line):
    now_us = time.time_ns() // 1000
    captures = [now_us - 7_000_000, now_us - 31_000_000, now_us - 2_000_000]
    results = [
        Result("cam-0", 0, seq, capture, now_us, Outcome.ANSWERED_EDGE, "7", 0.9, "m", "")
        for seq, capture in enumerate(captures)
    ]
    value = wire.encode(ResultBatch(wire.VERSION, line.topics.site, results))
    line.write([OutRecord(line.topics.results, value, partition=1)])
    line.write([OutRecord(line.topics.up_results, value, partition=1)], Tier.CLOUD)
    bracketed(line, "uplink", line.topics.results, 1, captures[1])
    bracketed(line, "aggregate", line.topics.up_results, 1, captures[1])

    line.write([OutRecord(line.topics.answers, b"{}", partition=0)])
    (answer,) = line.both.edge.read_all([line.topics.answers])
    bracketed(line, "settle", line.topics.answers, 0, answer.timestamp()[1] * 1000)


def test_a_settler_may_hold_what_has_time_until_its_deadline(line):
    uplink = line.topics.uplink(1)
    line.join(line.topics.settler_group, [*line.topics.uplinks, line.topics.answers], "settle-0").poll(1, 0.1)
    line.write([line.item(uplink, 0, age_s=50.0, deadline_s=600.0)])
    late = line.item(uplink, 1, age_s=50.0, deadline_s=20.0)
    line.write([late])
    group = line.group("settle")
    held = partition(group, uplink, 0)
    assert (held.lag_records, held.seconds_behind, held.state) == (2, 0, State.OK)
    bracketed(line, "settle", uplink, 1, captured(late) + 20_000_000)


def test_an_open_transaction_is_seen_and_its_end_too(line):
    items = line.topics.items
    line.group("edge")
    holder = Producer(
        {"transactional.id": f"{items}.open", "bootstrap.servers": line.both.edge.bootstrap, "log_level": 2}
    )
    holder.init_transactions(10)
    holder.begin_transaction()
    holder.produce(items, b"open", partition=0)
    assert holder.flush(10) == 0
    blocked = partition(line.until("edge", lambda group: group.state is State.BLOCKED), items, 0)
    assert (blocked.lag_records, blocked.drain_s) == (0, None)
    holder.abort_transaction(10)
    over = partition(line.until("edge", lambda group: group.state is State.OK), items, 0)
    assert (over.lag_records, over.seconds_behind) == (2, 0)  # What was rolled back, and the marker.


def caught_up(line):
    """Both forwarders stand at the ends of what they read."""
    own = line.topics
    for tier, topics, positions in (
        (Tier.EDGE, ["control", own.down_answers], own.down_positions),
        (Tier.CLOUD, [*own.uplinks, own.results], own.up_positions),
    ):
        source = line.both.cloud if tier is Tier.EDGE else line.both.edge
        marks = [
            OutRecord(positions, wire.encode(ForwardPosition(end)), forward_key(*place), 0)
            for place, end in source.end_offsets(topics).items()
        ]
        line.write([*marks, OutRecord(positions, wire.encode(Owner(f"of-{tier}", 1)), b"owner", 0)], tier)


def test_forwarders_stand_where_their_positions_say(line):
    results = line.topics.results
    line.write([OutRecord(results, b"foreign", partition=0) for _ in range(3)])
    up = line.until("uplink", lambda group: group.lag_records == 4)
    assert (up.members, up.tier) == ([], Tier.EDGE)
    caught_up(line)
    up = line.until("uplink", lambda group: group.lag_records == 0)
    assert [member.name for member in up.members] == ["of-cloud"]
    assert {one.owner for one in up.partitions} == {"of-cloud"}
    down = line.until("downlink", lambda group: bool(group.members))
    assert (down.lag_records, down.tier, len(down.partitions)) == (0, Tier.CLOUD, 1 + PARTITIONS)


def test_a_worker_says_itself_what_it_could_do(line):
    items = line.topics.items
    line.write([line.item(items, 0, 1)])
    edge = line.join(line.topics.edge_group, [items], "edge-0")
    taken = []
    while not taken:
        taken += edge.poll(1, 0.2)
    note = WorkNote("edge-0", 40.0, 3000.0, 23_500.5)
    line.commit(edge, {(items, 0): Commit(0, str(note))})
    found = line.until("edge", lambda group: partition(group, items, 0).capacity_per_s is not None)
    assert partition(found, items, 0).capacity_per_s == 23_500.5
    assert partition(found, items, 1).capacity_per_s is None


# -- the commands ------------------------------------------------------------------------------------------------------


@pytest.fixture
def pipeline_file(line, tmp_path):
    edge, cloud = (one.bootstrap for one in line.both)
    path = tmp_path / "pipeline.yaml"
    path.write_text(
        f"name: seen\nsite: {line.topics.site}\nsource: {{path: .}}\npartitions: {PARTITIONS}\n"
        "cloud: {model: 'builtin:digits-large'}\n"
        f"kafka: {{edge: {{bootstrap: '{edge}'}}, cloud: {{bootstrap: '{cloud}'}}}}\n"
    )
    return str(path)


def test_status_says_who_holds_which_streams_and_what_is_stopped(line, pipeline_file):
    topics = line.topics
    caught_up(line)
    line.write(
        [OutRecord(topics.positions, wire.encode(StreamPosition(1, 5)), b"cam-%d" % n, n % 2) for n in range(10)]
    )
    edge = line.join(topics.edge_group, [topics.items], "edge-0")
    while not all(one.owner for one in line.group("edge").partitions):
        edge.poll(1, 0.1)
    well = CliRunner().invoke(status_command.app, [pipeline_file, "--tier", "edge", "--json"])
    assert well.exit_code == 0, well.stdout
    told = json.loads(well.stdout)
    assert told["well"]
    assert {tier: one["reachable"] for tier, one in told["clusters"].items()} == {"edge": True, "cloud": True}
    assert told["clusters"]["edge"]["brokers"] == 1
    assert told["streams"] == {f"cam-{n}": n % 2 for n in range(10)}
    shown = CliRunner(env={"COLUMNS": "200"}).invoke(status_command.app, [pipeline_file, "--tier", "edge"])
    for words in ("edge-0", f"{topics.items}[0-1]", "10: cam-0, cam-2, cam-4, ...", "of-cloud", "every group does"):
        assert words in shown.stdout

    line.write([OutRecord(topics.answers, b"{}", partition=1)])
    bad = CliRunner(env={"COLUMNS": "200"}).invoke(status_command.app, [pipeline_file, "--tier", "edge"])
    assert bad.exit_code == 1
    assert f"stopped: settle: {topics.answers}[1]" in bad.stdout


def test_lag_shows_partitions_of_the_kinds_asked_for(line, pipeline_file):
    line.write([line.item(line.topics.items, 0, 30)])
    told = CliRunner().invoke(lag_command.app, [pipeline_file, "--group", "edge", "--json"])
    assert told.exit_code == 0
    (group,) = json.loads(told.stdout)["groups"]
    assert (group["kind"], group["state"], group["lag_records"]) == ("edge", "stopped", 2)
    assert group["seconds_behind"] >= 30
    shown = CliRunner(env={"COLUMNS": "200"}).invoke(lag_command.app, [pipeline_file])
    assert f"{line.topics.items}[0]" in shown.stdout
    narrow = CliRunner(env={"COLUMNS": "80"}).invoke(lag_command.app, [pipeline_file, "--group", "edge"]).stdout
    assert max(map(len, narrow.splitlines())) <= 80
    assert re.search(r"\[0\] .* \d+\.\d s │ stopped │", narrow), narrow
    wrong = CliRunner().invoke(lag_command.app, [pipeline_file, "--group", "nobody"])
    assert str(wrong.exception) == (
        "--group: 'nobody' is no kind of worker here: one of edge, settle, uplink, downlink, cloud, aggregate"
    )


def test_top_writes_a_line_a_reading_and_ends_quietly_when_interrupted(line, pipeline_file, user):
    counted = CliRunner().invoke(top_command.app, [pipeline_file, "--json", "--interval", "200ms", "--count", "3"])
    assert [len(json.loads(one)["groups"]) for one in counted.stdout.splitlines()] == [6, 6, 6]
    shown = CliRunner(env={"COLUMNS": "200"}).invoke(top_command.app, [pipeline_file, "--count", "1"])
    assert line.topics.edge_group in shown.stdout
    going = user.start("top", pipeline_file, "--json")
    assert json.loads(going.stdout.readline())["unreachable"] == {}
    going.send_signal(signal.SIGINT)
    _, err = going.communicate(timeout=60)
    assert (going.returncode, err) == (130, "")


def test_how_long_topics_keep_what_waits_is_read_and_read_again(line):
    topics, look = line.topics, line.both.edge.look()
    with closing(look):
        kept_s = look.retentions([topics.items, topics.positions, topics.ledger])
        assert kept_s == {topics.items: 3_600.0, topics.positions: math.inf, topics.ledger: math.inf}
        line.both.edge.alter_topics({topics.items: {"retention.ms": "60000"}})
        while look.retentions([topics.items]) != {topics.items: 60.0}:
            threading.Event().wait(0.1)
    with closing(LagReader(line.both, line.pipeline, retentions=True)) as reader:
        line.write([line.item(topics.items, 0, 30)])
        while not (reading := reader.read()).groups or not partition(reading.groups[0], topics.items, 0).unread_s:
            threading.Event().wait(0.1)
        assert reader.retentions_s[Tier.EDGE, topics.items] == 60.0
        one = partition(reading.groups[0], topics.items, 0)
        assert one.unread_s < 30 <= one.seconds_behind, "the topic keeps it from when it was written there"
    assert line.reader.retentions_s == {}, "who does not ask for it is not made to wait"


# -- a cluster away ----------------------------------------------------------------------------------------------------


def test_a_cloud_that_is_away_hides_nothing_of_the_edge(brokers, site, tmp_path):
    with start_owned(tmp_path / "cloud", name="cloud") as cloud:
        line = Site(brokers.edge.bootstrap, cloud.bootstrap, site)
        with closing(line):
            line.write([OutRecord(line.topics.results, b"foreign", partition=0)])
            line.until("uplink", lambda group: group.lag_records == 2)
            turn = threading.Event()
            os.kill(cloud.pid, signal.SIGSTOP)
            away = line.reader.read()
            os.kill(cloud.pid, signal.SIGCONT)
            assert list(away.unreachable) == [Tier.CLOUD]
            assert away.unreachable[Tier.CLOUD].startswith("kafka.cloud: no Kafka answers at 127.0.0.1:")
            assert "\n" not in away.unreachable[Tier.CLOUD]
            assert [group.kind for group in away.groups] == ["edge", "settle", "uplink"]
            assert next(group for group in away.groups if group.kind == "uplink").lag_records == 2
            while line.reader.read().unreachable:
                turn.wait(0.1)
            cloud.stop(0)
            assert Tier.CLOUD in line.reader.read().unreachable
            cloud.start_again()
            while (reading := line.reader.read()).unreachable:
                turn.wait(0.1)
            assert [group.kind for group in reading.groups] == line.reader.kinds


def test_topics_that_are_not_there_are_said_to_be_missing(brokers, site):
    both = Clusters(
        KafkaCluster("kafka.edge", brokers.edge.bootstrap), KafkaCluster("kafka.cloud", brokers.cloud.bootstrap)
    )
    pipeline = Pipeline(name=site, source=Source(path="."), site=site)
    with closing(LagReader(both, pipeline, [Tier.EDGE])) as reader:
        reading = reader.read()
    assert reader.kinds == ["edge", "settle", "uplink"]  # Without a cloud model there is no downlink.
    assert reading.groups == []
    assert "none of this pipeline's topics is there: create them with" in reading.unreachable[Tier.EDGE]
