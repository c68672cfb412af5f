"""The producer against a cluster in memory that fails as Kafka can: every source position once, whatever happens."""

import threading
from collections import defaultdict

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_workers.preprocess import Preprocess
from edge_workers.producer import CaptureSettings, Producer, ProducerLimits
from edge_workers.sources.base import Frame, Split, open_source
from pipelines.codecs.base import find_codec
from pipelines.config.units import Rate
from pipelines.errors import BrokerError, Fenced, SourceError, TakenOver, TransportError
from pipelines.observe.instruments import Instruments
from pipelines.observe.metrics import (
    CAPTURED,
    CAPTURING,
    ITEMS,
    SOURCE_ENDED,
    TRANSACTIONS,
    WRITTEN,
    WRITTEN_BYTES,
)
from pipelines.transport.base import Aborted, OutRecord
from pipelines.transport.storage import Storage
from schemas import headers, wire
from schemas.control import producer_key
from schemas.headers import FROM, REASON
from schemas.ledger import Outcome
from schemas.positions import Owner, owner_id
from schemas.topics import SiteTopics

TOPICS = SiteTopics("site-1")


class Killed(Exception):
    """The process ended here."""


class Stored:
    """A record as read."""

    def __init__(self, out):
        self.key, self.value = (lambda: out.key), (lambda: out.value)


class Claims:
    """Writes what says who owns the slot."""

    def __init__(self, cluster):
        self.cluster = cluster

    def start(self):
        self.cluster.order.append("claim")

    def write(self, records):
        for record in records:
            self.cluster.written[record.topic].append(record)

    def close(self):
        pass


class MemoryCluster:
    """Keeps what transactions write. `fates` says what becomes of each call of `write`, then of all others: done.

    A "fenced" producer finds that `successor`, where there is one, has claimed its slot, and nothing else.
    """

    def __init__(self, fates=(), successor=""):
        self.written = defaultdict(list)
        self.fates = iter(fates)
        self.successor = successor
        self.ids = []
        self.order = []
        """What is asked, but for writes."""
        self.started = 0
        self.kept = Storage("kafka.edge", "kafka:9092", ["/var/lib/kafka"])

    def transactions(self, transactional_id, compression="zstd"):
        if transactional_id == owner_id("producer.site-1.0"):
            return Claims(self)
        self.ids.append((transactional_id, compression))
        return self

    def end_offsets(self, topics, *, stable=True):
        return {(topic, 0): len(self.written[topic]) for topic in topics}

    def storage(self):
        return self.kept

    def start(self):
        self.order.append("start")
        self.started += 1

    def close(self):
        self.started = 0

    def read_all(self, topics, starts=None):
        self.order.append("look" if topics == [TOPICS.control] else "positions")
        assert self.started or topics == [TOPICS.control], "positions must be read after start, never before"
        return [Stored(out) for topic in topics for out in self.written[topic][(starts or {}).get((topic, 0), 0) :]]

    def claims(self):
        return [(out.key, wire.decode_owner(out.value).instance) for out in self.written[TOPICS.control]]

    def write(self, records, offsets=None, group=None):
        fate = next(self.fates, "done")
        if fate in ("done", "done, then unknown", "done, then killed"):
            for record in records:
                self.written[record.topic].append(record)
        if fate == "fenced":
            if self.successor:
                self.written[TOPICS.control].append(
                    OutRecord(TOPICS.control, wire.encode(Owner(self.successor, 1)), producer_key(0))
                )
            raise Fenced("somebody else")
        if fate in ("aborted", "done, then unknown"):
            raise Aborted("again")
        if fate.endswith("killed"):
            raise Killed

    def items(self):
        return [(headers.find(record.headers), record) for record in self.written[TOPICS.items]]


class Digits:
    """Eleven small frames, or what a test gives."""

    recorded = False

    def __init__(self, streams=3, loop=1, contents=None):
        self.contents = contents or [np.full((2, 2), number, np.uint8) for number in range(11)]
        self.split = Split("digits", len(self.contents), streams, loop)
        self.streams = self.split.streams

    def frames(self, stream, after):
        for position, _, index in self.split.positions(stream, after):
            yield Frame(position, self.contents[index])


def producer(
    cluster,
    source,
    codec="raw",
    limits=None,
    stop=None,
    preprocess=None,
    clock_us=lambda: 1_000_000_000,
    instruments=None,
    instance="life-1",
    **given,
):
    options = {"rate": Rate(), "deadline_us": 5_000, **given}
    limits = limits or ProducerLimits(retry_first_s=0)
    return Producer(
        cluster,
        TOPICS,
        source,
        preprocess or Preprocess(find_codec(codec)),
        CaptureSettings(**options),
        instance=instance,
        stop=stop or threading.Event(),
        limits=limits,
        clock_us=clock_us,
        instruments=instruments,
    )


fates = st.lists(st.sampled_from(["done", "aborted", "done, then unknown", "killed", "done, then killed"]), max_size=12)


@given(fates=fates, few=st.integers(1, 5), streams=st.integers(1, 5), loop=st.integers(1, 3))
@settings(deadline=None)
def test_every_source_position_is_captured_once_whatever_dies_when(fates, few, streams, loop):
    cluster = MemoryCluster(fates)
    source = Digits(streams, loop)
    limits = ProducerLimits(transaction_records=few, retry_first_s=0)
    for life in range(len(fates) + 1):
        try:
            named = {"instance": f"life-{life}", "clock_us": lambda life=life: 1_000_000 * (life + 1)}
            producer(cluster, source, limits=limits, **named).run()
        except Killed:
            continue
        break
    found = [header for header, _ in cluster.items()]
    assert sorted(header.source_position for header in found) == list(range(11 * loop))
    for stream in source.streams:
        of_stream = [header for header in found if header.stream == stream]
        assert [header.first_seq for header in of_stream] == list(range(len(of_stream)))
        assert len({header.epoch for header in of_stream}) == 1
        assert [h.source_position for h in of_stream] == [frame.position for frame in source.frames(stream, None)]
        last = [record for record in cluster.written[TOPICS.positions] if record.key == stream.encode()][-1]
        position = wire.decode_stream_position(last.value)
        assert (position.next_seq, position.source_position) == (len(of_stream), of_stream[-1].source_position)


def test_a_header_says_what_the_item_was_given():
    cluster = MemoryCluster()
    producer(cluster, Digits(streams=2), priority=2, priorities={"cam-01": 0}).run()
    header, record = cluster.items()[1]
    assert (header.stream, record.key, record.partition) == ("cam-01", b"cam-01", -1)
    assert (header.epoch, header.capture_us, header.deadline_us) == (1_000_000, 1_000_000_000, 1_000_005_000)
    assert (header.priority, cluster.items()[0][0].priority) == (0, 2)
    assert (header.codec, header.params.shape, record.value) == ("raw", (2, 2), bytes([1] * 4))
    assert headers.content_type_of(record.headers) == "application/octet-stream"


@pytest.mark.parametrize(("codec", "compression"), [("raw", "zstd"), ("jpeg", "none")])
def test_media_are_not_compressed_twice(codec, compression):
    cluster = MemoryCluster()
    producer(cluster, Digits(), codec)
    assert cluster.ids == [("producer.site-1.0", compression)]


def test_a_transaction_that_was_given_up_is_done_again_while_the_claim_is_ours():
    cluster = MemoryCluster(["fenced", "aborted"])
    producer(cluster, Digits(streams=1)).run()
    assert [header.first_seq for header, _ in cluster.items()] == list(range(11))
    assert cluster.claims() == [(b"producer.0", "life-1")]
    # A claim comes before the first start, a look before every other: else the rightful one would be fenced.
    assert cluster.order == ["claim", *["start", "positions"], *["look", "start", "positions"] * 2]


def test_a_producer_ends_where_another_has_claimed_its_slot_and_written_nothing_yet():
    cluster = MemoryCluster(["fenced"], successor="life-2")
    with pytest.raises(TakenOver, match=r"'producer\.site-1\.0': 'life-2' took over from 'life-1'"):
        producer(cluster, Digits(streams=1)).run()
    assert not cluster.items()
    assert cluster.order == ["claim", "start", "positions", "look"]


def test_producers_of_other_slots_are_nobody_s_successors():
    cluster = MemoryCluster(["aborted"])
    other = OutRecord(TOPICS.control, wire.encode(Owner("other", 1)), producer_key(1))
    written = cluster.write
    cluster.write = lambda records: (cluster.written[TOPICS.control].append(other), written(records))
    producer(cluster, Digits(streams=1)).run()
    assert len(cluster.items()) == 11


def outage(cluster, failures, said):
    """A producer whose Kafka takes nothing `failures` times; `said` gets `not_capturing` at each beginning."""

    class Told(Digits):
        def frames(self, stream, after):
            said.append(capturing.not_capturing)
            return super().frames(stream, after)

    cluster.fates = iter(["aborted"] * failures)
    capturing = producer(cluster, Told(streams=1), limits=ProducerLimits(retries=9, retry_first_s=0))
    return capturing


def test_while_kafka_takes_nothing_the_producer_says_which_folder_and_goes_on_with_the_same_seqs():
    cluster, said = MemoryCluster(), []
    capturing = outage(cluster, 5, said)
    capturing.run()
    told = (
        "kafka.edge at kafka:9092 takes no records; its folder is /var/lib/kafka: look there whether that disk is full"
    )
    assert [line[: len(told)] for line in said] == ["", "", "", *[told] * 3]
    assert capturing.not_capturing == ""
    assert [header.first_seq for header, _ in cluster.items()] == list(range(11))


def test_a_full_disk_on_this_machine_is_said_at_once_and_in_the_final_error(tmp_path, monkeypatch):
    cluster, said = MemoryCluster(), []
    cluster.kept = Storage("kafka.edge", "127.0.0.1:9092", [str(tmp_path)])
    monkeypatch.setattr("pipelines.transport.storage.FULL_BYTES", 1 << 62)
    with pytest.raises(TransportError, match=rf"the disk of its folder {tmp_path} is full .* make room there"):
        outage(cluster, 10, said).run()
    assert "is full" in said[1]
    assert cluster.items() == []


@pytest.mark.parametrize("error", [TransportError, BrokerError])
@pytest.mark.parametrize("of", [Claims, MemoryCluster])
def test_a_failure_that_lasts_ends_the_producer_after_the_stated_tries(error, of, monkeypatch):
    tries = []

    def away(self):
        tries.append(self)
        raise error("no broker")

    monkeypatch.setattr(of, "start", away)
    cluster = MemoryCluster()
    with pytest.raises(error):
        producer(cluster, Digits(), limits=ProducerLimits(retries=4, retry_first_s=0)).run()
    assert len(tries) == 5
    assert cluster.claims() == ([] if of is Claims else [(b"producer.0", "life-1")])


def test_what_was_captured_is_written_before_a_stop():
    stop = threading.Event()

    class StopsAtTheFifth(Digits):
        def frames(self, stream, after):
            for frame in super().frames(stream, after):
                if frame.position == 4:
                    stop.set()
                yield frame

    cluster = MemoryCluster()
    producer(cluster, StopsAtTheFifth(streams=1, loop=0), stop=stop).run()
    assert [header.first_seq for header, _ in cluster.items()] == [0, 1, 2, 3]


def test_a_transaction_is_bounded_in_records_and_bytes():
    for limits in (ProducerLimits(transaction_records=4), ProducerLimits(transaction_bytes=400)):
        cluster, sizes = MemoryCluster(), []
        written = cluster.write
        cluster.write = lambda records, written=written, sizes=sizes: (sizes.append(len(records)), written(records))
        producer(cluster, Digits(), limits=limits).run()
        assert len(cluster.items()) == 11
        assert len(sizes) >= 3


def test_foreign_bytes_among_the_positions_change_nothing():
    cluster = MemoryCluster()
    producer(cluster, Digits(streams=1)).run()
    record = cluster.written[TOPICS.positions][-1]
    cluster.written[TOPICS.positions].append(type(record)(TOPICS.positions, b"{", record.key))
    producer(cluster, Digits(streams=1, loop=2)).run()
    assert [header.first_seq for header, _ in cluster.items()] == list(range(22))


def test_a_rate_that_the_source_cannot_give_is_refused_before_anything_starts():
    cluster = MemoryCluster()
    with pytest.raises(SourceError, match="no recorded times"):
        producer(cluster, Digits(), rate=Rate(as_recorded=True))
    assert not cluster.ids


def png(image):
    return cv2.imencode(".png", image)[1].tobytes()


GOOD = np.full((20, 30), 90, np.uint8)
BOMB = png(np.zeros((6_000, 6_000), np.uint8))  # Valid, and 36 megapixels in some kB.
JPEG = find_codec("jpeg").encode(GOOD)[0]


def test_frames_that_cannot_travel_end_as_dead_letters_with_their_bytes():
    bad = [b"nothing", png(GOOD)[:30], BOMB, np.zeros((4_200, 4_200), np.uint8)]
    cluster = MemoryCluster()
    source = Digits(streams=1, contents=[png(GOOD), *bad, png(GOOD)])
    producer(cluster, source).run()
    assert [header.first_seq for header, _ in cluster.items()] == [0, 5]
    marks = [mark for record in cluster.written[TOPICS.ledger] for mark in wire.decode_marks(record.value).marks]
    assert [(m.stream, m.first_seq, m.last_seq, m.outcome, m.reason) for m in marks] == [
        ("cam-00", 1, 3, Outcome.DEAD_LETTERED, "unreadable"),
        ("cam-00", 4, 4, Outcome.DEAD_LETTERED, "too_large"),
    ]
    letters = cluster.written[TOPICS.dead_letters]
    assert [letter.value for letter in letters] == [*bad[:3], b""]
    assert [headers.find(letter.headers).first_seq for letter in letters] == [1, 2, 3, 4]
    assert [dict(letter.headers)[REASON] for letter in letters] == ["unreadable"] * 3 + ["too_large"]
    assert dict(letters[0].headers)[FROM] == "cam-00@1"
    assert {record.key for record in [*letters, *cluster.written[TOPICS.ledger]]} == {b"cam-00"}


def test_a_jpeg_that_needs_nothing_travels_unchanged_even_if_damaged():
    cluster = MemoryCluster()
    producer(cluster, Digits(streams=1, contents=[JPEG, JPEG[:50]])).run()
    assert [(header.codec, record.value) for header, record in cluster.items()] == [("jpeg", JPEG), ("jpeg", JPEG[:50])]


@pytest.mark.parametrize(
    ("options", "unchanged"),
    [
        ({"resize": (30, 20)}, True),
        ({"grey": True}, True),
        ({"resize": (15, 10)}, False),
        ({"resize": (20, 30)}, False),
    ],
)
def test_a_jpeg_is_encoded_anew_only_where_it_must(options, unchanged):
    prepared = Preprocess(find_codec("jpeg"), **options)(JPEG)
    assert (prepared.payload == JPEG) == unchanged
    width, height = options.get("resize", (30, 20))
    assert prepared.codec.decode(prepared.payload, prepared.params).shape == (height, width)


@pytest.mark.parametrize("content", [np.full((20, 30, 3), 90, np.uint8), png(np.full((20, 30, 3), 90, np.uint8))])
def test_colour_is_resized_and_made_grey_as_asked(content):
    codec = find_codec("raw")
    prepared = Preprocess(codec, resize=(60, 10))(content)
    assert codec.decode(prepared.payload, prepared.params).shape == (10, 60, 3)
    prepared = Preprocess(codec, resize=(60, 10), grey=True)(content)
    assert np.array_equal(codec.decode(prepared.payload, prepared.params), np.full((10, 60), 90))


@pytest.mark.parametrize("write", [".png", ".bmp", ".pgm", ".jpg"])
def test_files_of_every_kind_are_read_when_they_are_released(tmp_path, write):
    file = tmp_path / f"one{write}"
    cv2.imwrite(str(file), GOOD)
    cluster = MemoryCluster()
    source = open_source("images", tmp_path)
    producer(cluster, source, preprocess=Preprocess(find_codec("raw"), resize=(15, 10))).run()
    [(header, record)] = cluster.items()
    assert (header.params.shape, record.value) == ((10, 15), bytes([90] * 150))


def test_a_file_that_went_away_is_an_item_all_the_same(tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(png(GOOD))
    source = open_source("images", tmp_path)
    (tmp_path / "a.png").unlink()
    cluster = MemoryCluster()
    producer(cluster, source).run()
    assert [header.first_seq for header, _ in cluster.items()] == [1]
    [letter] = cluster.written[TOPICS.dead_letters]
    assert dict(letter.headers)[FROM] == f"{tmp_path / 'a.png'}@0"


def test_a_producer_s_meters_count_what_was_committed_once():
    cluster, instruments = MemoryCluster(["aborted", "done", "aborted"]), Instruments("produce", "site-1")
    contents = [np.full((2, 2), number, np.uint8) for number in range(9)] + [b"no image"] * 2
    limits = ProducerLimits(transaction_records=4, retry_first_s=0)
    producer(cluster, Digits(contents=contents), codec="jpeg", limits=limits, instruments=instruments).run()

    def counted(name, **labels):
        return instruments.meters.registry.get_sample_value(name, {"site": "site-1", "kind": "produce", **labels})

    assert counted(CAPTURED) == 11
    assert counted(WRITTEN, topic=TOPICS.items) == len(cluster.items()) == 9
    assert counted(WRITTEN, topic=TOPICS.positions) == len(cluster.written[TOPICS.positions])
    written = [out for topic, records in cluster.written.items() if topic != TOPICS.control for out in records]
    assert counted(WRITTEN_BYTES) == sum(out.size_bytes for out in written)
    assert counted(ITEMS, outcome="dead_lettered", reason="unreadable") == 2
    assert (counted(TRANSACTIONS, result="committed"), counted(TRANSACTIONS, result="aborted")) == (3, 2)
    assert (counted(CAPTURING), counted(SOURCE_ENDED)) == (1, 1)
    assert instruments.why_not() == ""
