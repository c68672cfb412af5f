"""The producer on real Kafka: killed at random points, fenced by another, every source position is captured once."""

import random
import struct
import subprocess
import sys
import threading
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from edge_workers.preprocess import Preprocess
from edge_workers.producer import CaptureSettings, Producer, ProducerLimits
from edge_workers.sources.base import open_source
from pipelines.codecs.base import find_codec
from pipelines.config.units import Rate
from pipelines.errors import TakenOver
from pipelines.runtime.positions import stored_positions
from pipelines.runtime.process import life_name
from pipelines.transport.kafka import KafkaCluster
from schemas import headers, wire
from schemas.control import producer_key
from schemas.topics import SiteTopics, Tier

STREAMS, IMAGES, LOOPS, KILLS, PARTITIONS = 5, 400, 6, 5, 3


def make_producer(cluster, site, archive, loop=LOOPS, instance=None, stop=None):
    return Producer(
        cluster,
        SiteTopics(site),
        open_source("idx", archive, streams=STREAMS, loop=loop),
        Preprocess(find_codec("raw")),
        # 2,400 items at 750 a second: 3 s in all.
        CaptureSettings(rate=Rate(150), deadline_us=1_000_000),
        instance=instance or life_name(None),
        stop=stop or threading.Event(),
        limits=ProducerLimits(commit_interval_ms=20),
    )


@pytest.fixture
def cluster(broker, site):
    cluster = KafkaCluster("kafka.edge", broker.bootstrap)
    edge = [spec for spec in SiteTopics(site).specs() if spec.tier is Tier.EDGE]
    cluster.create_topics(edge, PARTITIONS, retention_ms=3_600_000)
    yield cluster
    cluster.close()


@pytest.fixture
def archive(tmp_path):
    images = np.arange(IMAGES * 16, dtype=np.uint8).reshape(IMAGES, 4, 4)
    (tmp_path / "images").write_bytes(struct.pack(">4B3I", 0, 0, 8, 3, *images.shape) + images.tobytes())
    return tmp_path / "images"


def take(reader, wanted):
    """As many records, within the time that a test has."""
    taken = []
    while len(taken) < wanted:
        taken += reader.poll(wanted - len(taken), 30.0)
    return taken


def check_exactly_once(cluster, site, records):
    found = defaultdict(list)
    for record in records:
        header = headers.find(record.headers())
        assert record.key() == header.stream.encode()
        found[header.stream].append(header)
    assert len(found) == STREAMS
    for number, (stream, of_stream) in enumerate(sorted(found.items())):
        assert [header.first_seq for header in of_stream] == list(range(len(of_stream)))
        expected = [p for p in range(IMAGES * LOOPS) if p % IMAGES % STREAMS == number]
        assert [header.source_position for header in of_stream] == expected
        assert len({header.epoch for header in of_stream}) == 1
        position = stored_positions(cluster, SiteTopics(site))[stream]
        assert (position.next_seq, position.source_position) == (len(of_stream), expected[-1])


def test_kill_9_at_random_points_loses_and_doubles_nothing(cluster, site, broker, archive):
    points = sorted(random.Random(7).sample(range(1, IMAGES * LOOPS - 500), KILLS))
    starts = dict.fromkeys(((SiteTopics(site).items, number) for number in range(PARTITIONS)), 0)
    command = [sys.executable, __file__, broker.bootstrap, site, str(archive)]
    taken = []
    with closing(cluster.reader(starts)) as reader:
        for point in points:
            child = subprocess.Popen(command)
            try:
                taken += take(reader, max(point - len(taken), 1))
            finally:
                child.kill()
                child.wait()
        assert child.returncode == -9
        subprocess.run(command, check=True, timeout=60)
        taken += take(reader, IMAGES * LOOPS - len(taken))
    assert len(list(cluster.read_all([SiteTopics(site).items]))) == IMAGES * LOOPS
    check_exactly_once(cluster, site, taken)


def test_a_second_producer_of_the_slot_fences_the_first_and_goes_on_where_it_stood(cluster, site, archive):
    starts = dict.fromkeys(((SiteTopics(site).items, number) for number in range(PARTITIONS)), 0)
    first = make_producer(cluster, site, archive)
    with closing(cluster.reader(starts)) as reader, ThreadPoolExecutor(1) as pool:
        running = pool.submit(first.run)
        take(reader, 100)
        make_producer(cluster, site, archive).run()
        with pytest.raises(TakenOver):
            running.result(timeout=60)
    check_exactly_once(cluster, site, cluster.read_all([SiteTopics(site).items]))


def test_whoever_starts_last_goes_on_whatever_comes_between(cluster, site, archive, broker, make_race):
    race = make_race(broker.bootstrap)
    older = make_producer(race.older, site, archive, instance="older", stop=race.stop)
    newer = make_producer(race.newer, site, archive, instance="newer", stop=race.stop)
    error = race.run(older.run, newer.run)
    assert isinstance(error, TakenOver)
    assert str(error) == f"'producer.{site}.0': 'newer' took over from 'older'"
    records = cluster.read_all([SiteTopics(site).control])
    claims = [(record.key(), wire.decode_owner(record.value()).instance) for record in records]
    assert claims[-1] == (producer_key(0), "newer")
    assert sorted(claims) == sorted(set(claims)), "none claims twice"
    check_exactly_once(cluster, site, cluster.read_all([SiteTopics(site).items]))


if __name__ == "__main__":
    given_bootstrap, given_site, given_archive = sys.argv[1:]
    make_producer(KafkaCluster("kafka.edge", given_bootstrap), given_site, Path(given_archive)).run()
