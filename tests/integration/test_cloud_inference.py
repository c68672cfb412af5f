"""The cloud's inference stage and its heartbeat, with a real model: on records in memory, then on real Kafka."""

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from cloud_workers.credit import CreditBeat
from cloud_workers.inference import BATCH_RECORDS, CloudStage
from pipelines.core.engine import EngineLimits
from pipelines.models.release import load_release
from pipelines.runtime.inference import ModelRunner
from pipelines.runtime.stage import StageRunner, Step
from pipelines.transport.base import Aborted, Commit, OutRecord, Partition
from pipelines.transport.kafka import KafkaCluster
from schemas import headers, wire
from schemas.answers import Answer, AnswerKind
from schemas.headers import FROM, REASON, Extra, Header, Origin, Params
from schemas.topics import CLOUD_DEAD_LETTERS, CLOUD_GROUP, CONTROL, OFFLOADS, SiteTopics, cloud_specs, offload

NOW_US = 1_000_000
PARTITIONS = 2
SIDE = 4
DARK, BRIGHT = bytes(SIDE * SIDE), b"\xff" * (SIDE * SIDE)


class LogRecord(msgspec.Struct, frozen=True):
    """A record as a client would give it."""

    where: Partition
    at: int
    content: bytes | None
    heads: Any

    def topic(self) -> str:
        return self.where[0]

    def partition(self) -> int:
        return self.where[1]

    def offset(self) -> int:
        return self.at

    def key(self) -> bytes | None:
        return b"cam-1"

    def value(self) -> bytes | None:
        return self.content

    def headers(self) -> Any:
        return self.heads

    def timestamp(self) -> tuple[int, int]:
        return (1, 0)


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> ModelRunner:
    """A model that tells dark items from bright ones by their mean."""
    weight = np.stack([np.zeros(SIDE * SIDE), np.full(SIDE * SIDE, 0.1 / SIDE / SIDE)], axis=1).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["items"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["pixels"], ["flat"]),
        helper.make_node("Gemm", ["flat", "weight", "bias"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "brightness",
        [helper.make_tensor_value_info("items", TensorProto.UINT8, ["n", SIDE, SIDE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 2])],
        [
            numpy_helper.from_array(weight, "weight"),
            numpy_helper.from_array(np.array([0, -12], np.float32), "bias"),
        ],
    )
    path: Path = tmp_path_factory.mktemp("model") / "brightness.onnx"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    path.write_bytes(onnx.ModelProto.SerializeToString(model))
    return ModelRunner(load_release(path, labels=("dark", "bright")))


def item(seq: int, origin: Origin | None = None, **changes: Any) -> Header:
    plain = Header(
        version=headers.VERSION,
        stream="cam-1",
        epoch=7,
        first_seq=seq,
        count=1,
        capture_us=0,
        deadline_us=NOW_US + 1,
        priority=1,
        codec="raw",
        params=Params(shape=(SIDE, SIDE)),
        extra=Extra(origin=origin or Origin(1, 0, seq), site="north"),
    )
    return msgspec.structs.replace(plain, **changes)


def record_of(header: Header, payload: bytes | None = BRIGHT, priority: int = 1, partition: int = 0) -> LogRecord:
    pair = headers.pair("application/octet-stream", header)
    return LogRecord((offload(priority), partition), 100 + header.first_seq, payload, pair)


def stage_with(runner: ModelRunner) -> CloudStage:
    beat = CreditBeat(["north", "south"], "cloud-1")
    return CloudStage(["north", "south"], runner, beat, partitions=PARTITIONS)


def answers_in(step: Step) -> dict[Partition, list[Answer]]:
    """By topic and partition; one record each."""
    records = [r for r in step.records if r.topic.endswith(".down.answers")]
    found = {(r.topic, r.partition): wire.decode_answers(r.value).answers for r in records}
    assert len(found) == len(records)
    return found


def dead_letters_in(step: Step) -> list[str]:
    """Their reasons."""
    dead = [dict(record.headers or []) for record in step.records if record.topic == CLOUD_DEAD_LETTERS]
    assert all(FROM in found for found in dead)
    return [str(found[REASON]) for found in dead]


def test_answers_go_to_the_partition_that_the_item_has_at_its_site(runner: ModelRunner) -> None:
    south = Extra(origin=Origin(1, 1, 50), site="south")
    step = stage_with(runner).process(
        [
            record_of(item(1, Origin(1, 0, 11))),
            record_of(item(2, Origin(1, 1, 12)), DARK),
            record_of(item(3, Origin(1, 0, 13)), DARK),
            record_of(item(4, extra=south)),
        ],
        NOW_US,
    )
    found = answers_in(step)
    labels = {place: [(a.seq, a.origin.offset, a.label, a.kind) for a in answers] for place, answers in found.items()}
    assert labels == {
        ("north.down.answers", 0): [(1, 11, "bright", AnswerKind.ANSWERED), (3, 13, "dark", AnswerKind.ANSWERED)],
        ("north.down.answers", 1): [(2, 12, "dark", AnswerKind.ANSWERED)],
        ("south.down.answers", 1): [(4, 50, "bright", AnswerKind.ANSWERED)],
    }
    assert all(0.9 < a.confidence <= 1 and a.model == runner.name for answers in found.values() for a in answers)
    assert step.offsets == {(offload(1), 0): Commit(105)}


def test_urgent_items_come_first_and_order_holds_within_a_topic(runner: ModelRunner) -> None:
    batch = [(2, 1), (1, 2), (0, 3), (2, 4), (0, 5)]
    step = stage_with(runner).process([record_of(item(seq), priority=priority) for priority, seq in batch], NOW_US)
    (answers,) = answers_in(step).values()
    assert [answer.seq for answer in answers] == [3, 5, 2, 1, 4]


def test_what_is_past_its_deadline_is_passed_over_and_counted(runner: ModelRunner) -> None:
    stage = stage_with(runner)
    step = stage.process([record_of(item(1, deadline_us=NOW_US)), record_of(item(2))], NOW_US)
    (answers,) = answers_in(step).values()
    assert [answer.seq for answer in answers] == [2]
    assert stage.counts == {"expired": 1, "answered": 1}
    assert step.offsets[offload(1), 0].offset == 103


@pytest.mark.parametrize(
    ("payload", "changes", "reason"),
    [
        (b"short", {}, "undecodable"),
        (None, {}, "undecodable"),
        (b"no image", {"codec": "jpeg", "params": Params()}, "undecodable"),
        (BRIGHT, {"codec": "no such codec"}, "unknown_codec"),
        (BRIGHT, {"params": Params(shape=(SIDE * SIDE,))}, "wrong_shape"),
    ],
)
def test_an_item_that_cannot_be_answered_says_so_and_takes_no_other_with_it(
    runner: ModelRunner, payload: bytes | None, changes: dict[str, Any], reason: str
) -> None:
    stage = stage_with(runner)
    step = stage.process([record_of(item(1, **changes), payload), record_of(item(2))], NOW_US)
    (answers,) = answers_in(step).values()
    assert [(a.seq, a.kind, a.reason, a.label) for a in answers] == [
        (1, AnswerKind.DEAD_LETTERED, reason, ""),
        (2, AnswerKind.ANSWERED, "", "bright"),
    ]
    assert dead_letters_in(step) == [reason]
    assert stage.counts == {"dead_lettered": 1, "answered": 1}


def test_what_cannot_be_answered_to_anybody_is_kept_and_counted(runner: ModelRunner) -> None:
    newer = [("tg", msgspec.msgpack.encode([headers.VERSION + 1, "cam-1", 7, 0, 1, {"new": True}]))]
    records = [
        LogRecord((offload(0), 0), 0, b"hello", None),
        LogRecord((offload(0), 0), 1, b"hello", [("tg", b"\xc1")]),
        LogRecord((offload(0), 0), 2, BRIGHT, newer),
        record_of(item(3, extra=Extra(site="north")), priority=0),
        record_of(item(4, Origin(1, PARTITIONS, 0)), priority=0),
        record_of(item(5, extra=Extra(site="east", origin=Origin(0, 0, 1))), priority=0),
        record_of(item(6, count=3), priority=0),
    ]
    stage = stage_with(runner)
    step = stage.process(records, NOW_US)
    reasons = ["foreign", "foreign", "unknown_version", "no_origin", "no_origin", "unknown_site", "unsupported_count"]
    assert dead_letters_in(step) == reasons
    assert stage.counts == Counter(reasons)
    assert len(step.records) == len(records)
    assert step.offsets == {(offload(0), 0): Commit(107)}


def test_a_heartbeat_goes_to_every_site_when_due() -> None:
    beat = CreditBeat(["north", "south"], "cloud-1", interval_ms=500, ttl_ms=2000)
    records = beat.due(0)
    assert [(r.topic, r.key, r.partition) for r in records] == [(CONTROL, b"north", 0), (CONTROL, b"south", 0)]
    credit = wire.decode_credit(records[1].value)
    assert (credit.site, credit.issued_us, credit.ttl_ms, credit.worker) == ("south", 0, 2000, "cloud-1")
    assert beat.due(499_999) == []
    assert len(beat.due(500_000)) == 2
    assert len(beat.due(100)) == 2, "a clock that was set back must not silence the cloud"


def test_a_worker_that_holds_nothing_grants_nothing(runner: ModelRunner) -> None:
    stage = stage_with(runner)
    assert not stage.tick(0).records
    stage.assigned({(offload(0), 1): Commit(0)})
    assert len(stage.tick(0).records) == 2
    stage.revoked([(offload(0), 1)])
    assert not stage.tick(10_000_000).records


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaCluster]:
    """A broker of this module's own: the offload topics and their group belong to no site."""
    from pipelines.transport.broker import start_owned

    with start_owned(tmp_path_factory.mktemp("cloud"), name="cloud") as running:
        cluster = KafkaCluster("kafka.cloud", running.bootstrap)
        answers = [spec for spec in SiteTopics("north").specs() if spec.name == SiteTopics("north").down_answers]
        cluster.create_topics([*cloud_specs(), *answers], PARTITIONS, 3_600_000)
        yield cluster
        cluster.close()


class Refusing:
    """A cluster on which the first transaction of a stage is rolled back before anything of it is written."""

    def __init__(self, cluster: KafkaCluster) -> None:
        self._cluster, self._refused = cluster, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cluster, name)

    def transactions(self, transactional_id: str) -> Any:
        writer = self._cluster.transactions(transactional_id)
        write = writer.write

        def sometimes(records: Sequence[OutRecord], offsets: Any, group: Any) -> None:
            if offsets and not self._refused:
                self._refused = True
                raise Aborted("refused by the test")
            write(records, offsets, group)

        writer.write = sometimes  # type: ignore[method-assign,assignment]
        return writer


@contextmanager
def running(runner: ModelRunner, cluster: Any) -> Iterator[None]:
    stop = threading.Event()
    beat = CreditBeat(["north"], "cloud-1")
    work = StageRunner(
        CloudStage(["north"], runner, beat, partitions=PARTITIONS),
        cluster,
        group=CLOUD_GROUP,
        transactional_id="cloud.test",
        stop=stop,
        limits=EngineLimits(batch_records=BATCH_RECORDS),
    )
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(work.run)
        try:
            yield
        finally:
            stop.set()
            done.result(30)


def answers_once(cluster: KafkaCluster, expected: int) -> list[tuple[int, Answer]]:
    """All answers with their partitions, as soon as there are so many."""
    found: list[tuple[int, Answer]] = []
    reader = cluster.reader(cluster.start_offsets([SiteTopics("north").down_answers]))
    try:
        for _ in range(60):
            for record in reader.poll(500, 1.0):
                answers = wire.decode_answers(record.value()).answers
                found += ((record.partition(), answer) for answer in answers)
            if len(found) >= expected:
                return found
    finally:
        reader.close()
    raise AssertionError(f"{len(found)} answers of {expected}")


@pytest.mark.kafka
def test_every_item_is_answered_once_on_kafka(cloud: KafkaCluster, runner: ModelRunner) -> None:
    writer = cloud.transactions("uplink.north")
    writer.start()

    def send(seqs: Sequence[int]) -> None:
        far = 1 << 60
        some = [item(seq, Origin(seq % 3, seq % 2, seq), deadline_us=far, priority=seq % 3) for seq in seqs]
        payloads = [BRIGHT if seq % 5 else DARK for seq in seqs]
        writer.write(
            OutRecord(offload(h.priority), payload, b"cam-1", -1, headers.pair("application/octet-stream", h))
            for h, payload in zip(some, payloads, strict=True)
        )

    # A write waits until the new topics are known everywhere, so the positions come after it.
    send(range(150))
    cloud.write_first_positions(CLOUD_GROUP, OFFLOADS)
    with running(runner, Refusing(cloud)):
        answers_once(cloud, 150)
    send(range(150, 300))
    with running(runner, Refusing(cloud)):
        found = answers_once(cloud, 300)
    writer.close()
    assert sorted(answer.seq for _, answer in found) == list(range(300))
    for partition, answer in found:
        assert answer.origin == Origin(answer.seq % 3, answer.seq % 2, answer.seq)
        assert partition == answer.origin.partition
        assert answer.label == ("bright" if answer.seq % 5 else "dark")
    beats = [wire.decode_credit(record.value()) for record in cloud.read_all([CONTROL])]
    assert {(beat.site, beat.worker) for beat in beats} == {("north", "cloud-1")}
