"""The audit on a real Kafka: at rest, while the pipeline runs, and from the command line."""

import json
import threading

import pytest
from typer.testing import CliRunner

from pipelines.cli.audit import app
from pipelines.core.ledger import Finding, MarkBook
from pipelines.errors import BrokerError
from pipelines.observe.audit import Auditor, audit, drain
from pipelines.runtime.stage import offsets_after
from pipelines.transport.base import OutRecord
from pipelines.transport.kafka import KafkaCluster
from schemas import headers, wire
from schemas.ledger import Mark, MarkBatch, Outcome
from schemas.positions import StreamPosition
from schemas.topics import SiteTopics, Tier

PARTITIONS = 2
STREAMS = {"cam-0": 0, "cam-1": 1, "cam-2": 0}
POLL_S = 0.2


class Line:
    """A producer, an edge worker and a settler, each a transaction at a time."""

    def __init__(self, cluster, site):
        self.topics = SiteTopics(site)
        specs = [spec for spec in self.topics.specs() if spec.tier is Tier.EDGE]
        cluster.create_topics(specs, PARTITIONS, 3_600_000)
        cluster.write_first_positions(self.topics.edge_group, [self.topics.items])
        cluster.write_first_positions(self.topics.settler_group, self.topics.uplinks)
        self.next_seq = dict.fromkeys(STREAMS, 0)
        self.writers = {}
        for role in ("producer", "edge", "settler"):
            self.writers[role] = cluster.transactions(f"{role}.{site}")
            self.writers[role].start()
        self.edge = cluster.group_reader(self.topics.edge_group, [self.topics.items], self)
        self.settler = cluster.group_reader(self.topics.settler_group, self.topics.uplinks, self)

    def assigned(self, partitions):
        """Nothing is kept by partition."""

    revoked = lost = assigned

    def close(self):
        for reader in (self.edge, self.settler):
            reader.close()
        for writer in self.writers.values():
            writer.close()

    def capture(self, items):
        """Every third item of each stream is gated."""
        out, book = [], MarkBook()
        for stream, number in STREAMS.items():
            for seq in range(self.next_seq[stream], self.next_seq[stream] + items):
                if seq % 3:
                    out.append(self.carrying(self.topics.items, number, stream, seq))
                else:
                    book.add(stream, 0, seq, 1, Outcome.GATED)
            self.next_seq[stream] += items
            position = wire.encode(StreamPosition(0, self.next_seq[stream]))
            out.append(OutRecord(self.topics.positions, position, stream.encode(), number))
        self.writers["producer"].write([*out, self.marking(0, book.marks())])

    def infer(self):
        """Answer every second item, send the others on; the number of records taken."""
        taken = self.edge.poll(500, POLL_S)
        out, book = [], MarkBook()
        for record in taken:
            header = headers.find(record.headers())
            if header.first_seq % 2:
                book.add(header.stream, 0, header.first_seq, 1, Outcome.ANSWERED_EDGE)
            else:
                out.append(self.carrying(self.topics.uplink(1), record.partition(), header.stream, header.first_seq))
        if taken:
            self.writers["edge"].write([*out, self.marking(0, book.marks())], offsets_after(taken), self.edge)
        return len(taken)

    def settle(self):
        """Answer all that there is; the number of records taken."""
        taken = self.settler.poll(500, POLL_S)
        book = MarkBook()
        for record in taken:
            header = headers.find(record.headers())
            book.add(header.stream, 0, header.first_seq, 1, Outcome.ANSWERED_CLOUD)
        if taken:
            self.writers["settler"].write([self.marking(1, book.marks())], offsets_after(taken), self.settler)
        return len(taken)

    def carrying(self, topic, number, stream, seq):
        header = headers.Header(headers.VERSION, stream, 0, seq, 1, 0, 0, 1, "raw")
        return OutRecord(topic, b"\0" * 784, stream.encode(), number, headers.pair("image/x", header))

    def marking(self, number, marks):
        value = wire.encode(MarkBatch(wire.VERSION, self.topics.site, marks))
        return OutRecord(self.topics.ledger, value, partition=number)


def until(step, wanted):
    """Call `step` until it has taken `wanted`; the test's own time limit ends it otherwise."""
    taken = 0
    while taken < wanted:
        taken += step()


@pytest.fixture
def cluster(broker):
    made = KafkaCluster("kafka.edge", broker.bootstrap)
    yield made
    made.close()


@pytest.fixture
def line(cluster, site):
    made = Line(cluster, site)
    yield made
    made.close()


def test_items_are_accounted_for_at_every_station(cluster, site, line):
    topics = line.topics
    assert audit(cluster, site).captured == 0

    line.capture(60)
    verdict = audit(cluster, site)
    assert verdict.balanced
    assert verdict.captured == 180
    assert verdict.outcomes["gated"] == 60
    assert verdict.in_flight == {topics.items: 120, **dict.fromkeys(topics.uplinks, 0)}

    until(line.infer, 120)
    verdict = audit(cluster, site)
    assert verdict.balanced
    assert verdict.outcomes["answered_edge"] == 60
    assert verdict.in_flight == {topics.items: 0, **dict.fromkeys(topics.uplinks, 0), topics.uplink(1): 60}

    until(line.settle, 60)
    verdict = drain(cluster, site, 60.0)
    assert verdict.balanced
    assert verdict.in_flight_items == 0
    assert {k: n for k, n in verdict.outcomes.items() if n} == {"gated": 60, "answered_edge": 60, "answered_cloud": 60}


def test_a_running_pipeline_gives_no_false_alarm(cluster, site, line):
    stop = threading.Event()

    def run(*steps):
        while not stop.is_set():
            for step in steps:
                step()

    threads = [
        threading.Thread(target=run, args=(lambda: line.capture(5),)),
        threading.Thread(target=run, args=(line.infer,)),
        threading.Thread(target=run, args=(line.settle,)),
    ]
    auditor = Auditor(cluster, site, stop)
    for thread in threads:
        thread.start()
    try:
        verdicts = [auditor.look() for _ in range(12)]
    finally:
        stop.set()
        for thread in threads:
            thread.join()

    for verdict in verdicts:
        assert (verdict.lost, verdict.doubled, verdict.beyond) == ([], [], [])
        assert verdict.captured == sum(verdict.outcomes.values()) + verdict.in_flight_items
    assert verdicts[-1].captured > verdicts[0].captured
    at_rest = Auditor(cluster, site).look()
    assert at_rest.balanced
    assert at_rest.captured == sum(line.next_seq.values())


def pipeline_file(folder, site, bootstrap):
    path = folder / "pipeline.yaml"
    address = f"{{bootstrap: '{bootstrap}'}}"
    path.write_text(f"name: audited\nsite: {site}\nsource: {{path: .}}\nkafka: {{edge: {address}, cloud: {address}}}\n")
    return str(path)


def test_the_command_exits_0_only_if_the_account_balances(cluster, site, line, broker, tmp_path):
    file = pipeline_file(tmp_path, site, broker.bootstrap)
    line.capture(9)
    until(line.infer, 18)
    until(line.settle, 9)
    drained = CliRunner().invoke(app, [file, "--drain", "30s"])
    assert drained.exit_code == 0, drained.output
    assert "balanced" in drained.output

    line.writers["producer"].write([line.marking(0, [Mark("cam-1", 0, 3, 3, Outcome.EXPIRED)])])
    position = wire.encode(StreamPosition(0, 11))
    line.writers["producer"].write([OutRecord(line.topics.positions, position, b"cam-2", 0)])
    told = CliRunner().invoke(app, [file, "--json"])
    shown = CliRunner().invoke(app, [file])

    assert (told.exit_code, shown.exit_code) == (1, 1)
    answer = json.loads(told.stdout)
    assert list(answer) == [
        *("site", "balanced", "captured", "outcomes", "reasons", "in_flight", "lost", "doubled", "beyond"),
        *("foreign", "ledger_offsets_removed"),
    ]
    assert not answer["balanced"]
    assert answer["lost"] == [{"stream": "cam-2", "epoch": 0, "first_seq": 9, "last_seq": 10, "seen_as": []}]
    assert answer["doubled"] == [
        {"stream": "cam-1", "epoch": 0, "first_seq": 3, "last_seq": 3, "seen_as": ["expired", "gated"]}
    ]
    assert Finding("cam-2", 0, 9, 10) in audit(cluster, site).lost
    for word in ("not balanced", "cam-1", "expired, gated", "cam-2", "9-10"):
        assert word in shown.output


def test_a_site_without_topics_is_one_line_with_a_remedy(cluster, site):
    with pytest.raises(BrokerError, match="is not there: create the topics"):
        audit(cluster, site)
