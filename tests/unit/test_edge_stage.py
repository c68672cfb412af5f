"""The edge worker's stage on records made here: what each becomes, and that no item is lost or doubled on the way."""

from collections import Counter
from pathlib import Path
from typing import ClassVar

import msgspec
import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from edge_workers.inference import EdgeStage
from pipelines.codecs.base import find_codec
from pipelines.errors import ConfigError, TransportError
from pipelines.models.release import load_release
from pipelines.observe.metrics import FOREIGN_RECORDS, ITEMS, MODEL_SECONDS
from pipelines.routing.base import Route, decide
from pipelines.routing.find import build_policy
from pipelines.runtime.inference import Inferred, ModelRunner, Undecided
from pipelines.transport.base import Commit
from schemas import headers, wire
from schemas.control import CREDIT_KEY, Credit
from schemas.headers import FROM, REASON, Extra, Header, Params
from schemas.ledger import Mark, Outcome

NOW_US = 1_700_000_000_000_000
SURE = bytes([200] + [0] * 15)
"""Logits 20, 0, 0: class a."""
UNSURE = bytes([0, 5] + [0] * 14)
"""Logits 0, 0.5, 0: class b at 0.45."""
LABELS = ("a", "b", "c")


class Fake(msgspec.Struct):
    payload: bytes | None
    given: list[tuple[str, str | bytes | None]] | None
    number: int = 0
    at: int = 0
    name: bytes | None = b"cam"
    stamp_ms: int = NOW_US // 1000

    def topic(self):
        return "s.items"

    def partition(self):
        return self.number

    def offset(self):
        return self.at

    def key(self):
        return self.name

    def value(self):
        return self.payload

    def headers(self):
        return self.given

    def timestamp(self):
        return 1, self.stamp_ms


class FakeCluster:
    """A cluster that has nothing but the control topic."""

    def __init__(self):
        self.waiting: list[Fake | TransportError] = []
        self.opened = 0

    def start_offsets(self, topics):
        return {(topic, 0): 0 for topic in topics}

    def reader(self, starts):
        assert starts == {("s.control", 0): 0}
        self.opened += 1
        return self

    def poll(self, max_records, timeout_s):
        assert timeout_s == 0
        taken, self.waiting = self.waiting, []
        if any(isinstance(record, TransportError) for record in taken):
            raise taken[0]
        return taken

    def close(self):
        pass


def write_model(folder: Path, sides: tuple[int | str, int | str] = (4, 4), kernel: int = 0) -> Path:
    """Logits are a tenth of an item's first three pixels; with `kernel`, of what a convolution leaves of it."""
    constants = [
        helper.make_tensor("flat", TensorProto.INT64, [2], [0, -1]),
        helper.make_tensor("begin", TensorProto.INT64, [1], [0]),
        helper.make_tensor("end", TensorProto.INT64, [1], [3]),
        helper.make_tensor("axis", TensorProto.INT64, [1], [1]),
        helper.make_tensor("tenth", TensorProto.FLOAT, [], [0.1]),
    ]
    nodes = [helper.make_node("Cast", ["items"], ["floats"], to=TensorProto.FLOAT)]
    pixels = "floats"
    if kernel:
        constants.append(helper.make_tensor("kernel", TensorProto.FLOAT, [1, 1, kernel, kernel], [1.0] * kernel**2))
        nodes += [
            helper.make_node("Unsqueeze", ["floats", "axis"], ["channels"]),
            helper.make_node("Conv", ["channels", "kernel"], ["left"]),
        ]
        pixels = "left"
    nodes += [
        helper.make_node("Reshape", [pixels, "flat"], ["rows"]),
        helper.make_node("Slice", ["rows", "begin", "end", "axis"], ["three"]),
        helper.make_node("Mul", ["three", "tenth"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "three",
        [helper.make_tensor_value_info("items", TensorProto.UINT8, ["n", *sides])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 3])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = folder / "three.onnx"
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def runner(tmp_path_factory) -> ModelRunner:
    return ModelRunner(load_release(write_model(tmp_path_factory.mktemp("model")), labels=LABELS))


@pytest.fixture
def cluster() -> FakeCluster:
    return FakeCluster()


def header(seq: int = 0, **changes) -> Header:
    fields = {
        "version": 1,
        "stream": "cam",
        "epoch": 2,
        "first_seq": seq,
        "count": 1,
        "capture_us": NOW_US - 1000,
        "deadline_us": NOW_US + 2_000_000,
        "priority": 1,
        "codec": "raw",
        "params": Params(shape=(4, 4)),
    }
    return Header(**{**fields, **changes})


def item(payload: bytes | None = SURE, seq: int = 0, partition: int = 0, **changes) -> Fake:
    return Fake(payload, headers.pair("image/x", header(seq, **changes)), partition, at=seq)


def stage(runner, cluster, policy: str = "threshold", reachable: bool = True, **options) -> EdgeStage:
    options = {"threshold": 0.9} if policy == "threshold" and not options else options
    made = EdgeStage("s", runner, build_policy(policy, options), cluster)
    if reachable:
        hear(made, cluster, NOW_US - 600_000, NOW_US)
    return made


def hear(made: EdgeStage, cluster: FakeCluster, *times_us: int) -> None:
    value = wire.encode(Credit(site="s", issued_us=0, ttl_ms=1500, worker="w"))
    cluster.waiting = [Fake(value, None, name=CREDIT_KEY, stamp_ms=time_us // 1000) for time_us in times_us]
    assert not made.tick(NOW_US).records


def written(step, topic: str):
    return [record for record in step.records if record.topic == topic]


def results(step):
    return [result for record in written(step, "s.results") for result in wire.decode_results(record.value).results]


def marks(step):
    return [mark for record in written(step, "s.ledger") for mark in wire.decode_marks(record.value).marks]


def buried(step):
    return [dict(record.headers)[REASON] for record in written(step, "s.dead_letters")]


def test_a_sure_answer_stands(runner, cluster):
    step = stage(runner, cluster).process([item(seq=7)], NOW_US)
    (result,) = results(step)
    assert (result.stream, result.epoch, result.seq) == ("cam", 2, 7)
    assert (result.label, result.outcome, result.reason) == ("a", Outcome.ANSWERED_EDGE, "confident")
    assert (result.capture_us, result.settled_us, result.model) == (NOW_US - 1000, NOW_US, runner.name)
    assert result.confidence == pytest.approx(1, abs=1e-6)
    assert marks(step) == [Mark("cam", 2, 7, 7, Outcome.ANSWERED_EDGE)]
    assert step.offsets == {("s.items", 0): Commit(8)}
    assert len(step.records) == 2


def test_results_and_marks_are_one_record_a_partition(runner, cluster):
    batch = [item(seq=seq, partition=seq % 3, stream=f"cam{seq % 3}") for seq in range(30)]
    step = stage(runner, cluster).process(batch, NOW_US)
    assert [record.partition for record in written(step, "s.results")] == [0, 1, 2]
    assert [record.partition for record in written(step, "s.ledger")] == [0, 1, 2]
    for record in written(step, "s.results"):
        found = wire.decode_results(record.value)
        assert (found.version, found.site) == (wire.VERSION, "s")
        assert {result.stream for result in found.results} == {f"cam{record.partition}"}
    assert step.offsets == {("s.items", number): Commit(28 + number) for number in range(3)}


def test_an_unsure_answer_goes_along_to_the_cloud(runner, cluster):
    sent = item(UNSURE, seq=3, partition=2, priority=0, source_position="file/9", gate_score=0.5)
    step = stage(runner, cluster).process([sent], NOW_US)
    (record,) = step.records
    assert (record.topic, record.partition, record.key, record.value) == ("s.uplink.p0", 2, b"cam", UNSURE)
    assert headers.content_type_of(record.headers) == "image/x"
    found = headers.find(record.headers)
    assert found.extra.edge_label == "b"
    assert found.extra.edge_confidence == pytest.approx(np.exp(0.5) / (np.exp(0.5) + 2), abs=1e-5)
    assert (found.extra.reason, found.model) == ("unsure", runner.name)
    assert msgspec.structs.replace(found, extra=Extra(), model="") == headers.find(sent.headers())
    assert step.offsets == {("s.items", 2): Commit(4)}


@pytest.mark.parametrize(
    ("reachable", "left_us", "reason"),
    [(False, 10**6, "cloud_away"), (True, 0, "past_deadline"), (True, -5, "past_deadline")],
)
def test_an_unsure_answer_stands_where_the_cloud_cannot_help(runner, cluster, reachable, left_us, reason):
    made = stage(runner, cluster, reachable=reachable)
    (result,) = results(made.process([item(UNSURE, deadline_us=NOW_US + left_us)], NOW_US))
    assert (result.label, result.reason) == ("b", reason)


def test_cloud_only_sends_unopened_bytes_and_falls_back_to_the_model(runner, cluster):
    made = stage(runner, cluster, "cloud_only")
    (record,) = made.process([item(b"not to be decoded")], NOW_US).records
    found = headers.find(record.headers)
    assert (found.extra, found.model) == (Extra(reason="policy_cloud_only"), "")
    (result,) = results(made.process([item()], NOW_US + 1_500_000))
    assert (result.label, result.reason) == ("a", "cloud_away")


def test_a_site_without_a_model_sends_what_it_cannot_answer(cluster):
    made = stage(None, cluster, "cloud_only", reachable=False)
    (record,) = made.process([item()], NOW_US).records
    assert headers.find(record.headers).extra == Extra(reason="no_edge_model")


def test_a_policy_that_needs_a_model_is_refused_without_one(cluster):
    with pytest.raises(ConfigError, match="give the edge a model"):
        EdgeStage("s", None, build_policy("edge_only"), cluster)


class ShedUnsure(msgspec.Struct, frozen=True):
    reasons: ClassVar[tuple[str, ...]] = ("too_large", "kept", "not_worth_it")
    uses_model: ClassVar[bool] = True

    def admit(self, items, signals):
        return decide(items.n, (items.size_bytes > 16, Route.SHED, 0), (True, Route.HERE, 1))

    def escalate(self, items, answers, signals):
        return decide(items.n, (answers.confidence < 0.9, Route.SHED, 2), (True, Route.HERE, 1))


def test_what_a_policy_lets_go_is_marked_and_counted(runner, cluster):
    made = EdgeStage("s", runner, ShedUnsure(), cluster)
    step = made.process([item(SURE * 2, 0), item(UNSURE, 1), item(SURE, 2), item(SURE * 2, 3)], NOW_US)
    assert marks(step) == [
        Mark("cam", 2, 0, 0, Outcome.SHED, "too_large"),
        Mark("cam", 2, 1, 1, Outcome.SHED, "not_worth_it"),
        Mark("cam", 2, 2, 2, Outcome.ANSWERED_EDGE),
        Mark("cam", 2, 3, 3, Outcome.SHED, "too_large"),
    ]
    assert [result.seq for result in results(step)] == [2]
    assert made.counts == {"too_large": 2, "not_worth_it": 1}


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (item(SURE[:-1], 1), "undecodable"),
        (item(None, 1), "undecodable"),
        (item(b"\xff\xd8 no picture", 1, codec="jpeg", params=Params()), "undecodable"),
        (item(SURE, 1, codec="not_installed"), "unknown_codec"),
        (item(SURE, 1, params=Params(shape=(4, 4), dtype="float32")), "undecodable"),
        (item(SURE, 1, params=Params(shape=(16,))), "wrong_shape"),
        (item(SURE, 1, params=Params(shape=(0, 4))), "wrong_shape"),
        (item(SURE * 2, 1, params=Params(shape=(4, 4, 2))), "wrong_shape"),
    ],
)
def test_a_bad_item_ends_dead_lettered_and_the_rest_goes_on(runner, cluster, bad, reason):
    made = stage(runner, cluster)
    step = made.process([item(seq=0), bad, item(seq=2)], NOW_US)
    assert [result.seq for result in results(step)] == [0, 2]
    assert Mark("cam", 2, 1, 1, Outcome.DEAD_LETTERED, reason) in marks(step)
    (record,) = written(step, "s.dead_letters")
    assert (record.value, record.key, record.partition) == (bad.value(), b"cam", 0)
    assert headers.find(record.headers) == headers.find(bad.headers())
    assert dict(record.headers)[REASON] == reason
    assert dict(record.headers)[FROM] == "s.items[0]@1"
    assert made.counts == {reason: 1}
    assert step.offsets == {("s.items", 0): Commit(3)}


def test_a_record_of_several_items_is_accounted_for_whole(runner, cluster):
    step = stage(runner, cluster).process([item(SURE * 3, 5, count=3)], NOW_US)
    assert marks(step) == [Mark("cam", 2, 5, 7, Outcome.DEAD_LETTERED, "unsupported_pack")]
    assert buried(step) == ["unsupported_pack"]


def test_a_record_of_a_later_version_is_accounted_for(runner, cluster):
    later = msgspec.msgpack.encode([9, "cam", 2, 5, 4, {"all": "new"}])
    made = stage(runner, cluster)
    step = made.process([Fake(b"?", [("tg", later)], at=0), item(seq=9)], NOW_US)
    assert marks(step) == [
        Mark("cam", 2, 5, 8, Outcome.DEAD_LETTERED, "unknown_version"),
        Mark("cam", 2, 9, 9, Outcome.ANSWERED_EDGE),
    ]
    assert buried(step) == ["unknown_version"]


@pytest.mark.parametrize(
    "given_headers", [None, [], [("other", b"x")], [("tg", b"\x00junk")], [("tg", "text")], [("tg", None)]]
)
def test_a_foreign_record_is_kept_and_counted_and_is_no_item(runner, cluster, given_headers):
    made = stage(runner, cluster)
    step = made.process([Fake(b"who?", given_headers, at=4)], NOW_US)
    (record,) = step.records
    assert (record.topic, record.value) == ("s.dead_letters", b"who?")
    assert buried(step) == ["foreign"]
    assert made.counts == {"foreign": 1}
    assert step.offsets == {("s.items", 0): Commit(5)}


@pytest.mark.parametrize("far_us", [2**63, 2**64 - 1])
def test_times_of_another_age_end_no_worker(runner, cluster, far_us):
    step = stage(runner, cluster).process([item(UNSURE, deadline_us=far_us, capture_us=far_us)], NOW_US)
    assert [record.topic for record in step.records] == ["s.uplink.p1"]


KINDS = {
    "sure": lambda seq: item(SURE, seq),
    "unsure": lambda seq: item(UNSURE, seq),
    "late": lambda seq: item(UNSURE, seq, deadline_us=NOW_US),
    "broken": lambda seq: item(b"", seq),
    "resized": lambda seq: item(SURE * 4, seq, params=Params(shape=(8, 8))),
    "foreign": lambda seq: Fake(b"", None, at=seq),
    "later": lambda seq: Fake(b"", [("tg", msgspec.msgpack.encode([2, "cam", 2, seq, 1]))], at=seq),
}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(
    kinds=st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=150),
    policy=st.sampled_from(["edge_only", "cloud_only", "threshold"]),
    reachable=st.booleans(),
    with_model=st.booleans(),
)
def test_every_item_leaves_exactly_once(runner, kinds, policy, reachable, with_model):
    cluster = FakeCluster()
    made = stage(runner if with_model or policy != "cloud_only" else None, cluster, policy, reachable)
    batch = [KINDS[kind](seq) for seq, kind in enumerate(kinds)]
    step = made.process(batch, NOW_US)
    marked = Counter(seq for mark in marks(step) for seq in range(mark.first_seq, mark.last_seq + 1))
    sent = Counter(
        headers.find(record.headers).first_seq for record in step.records if record.topic.startswith("s.uplink")
    )
    items = {seq for seq, kind in enumerate(kinds) if kind != "foreign"}
    assert marked + sent == Counter(items)
    answered = {
        m for mark in marks(step) if mark.outcome == "answered_edge" for m in range(mark.first_seq, mark.last_seq + 1)
    }
    assert sorted(result.seq for result in results(step)) == sorted(answered)
    assert len(buried(step)) == sum(made.counts.values())
    assert step.offsets == {("s.items", 0): Commit(len(kinds))}
    assert reachable or not with_model or not sent


def test_credit_is_heard_and_runs_out(runner, cluster):
    made = stage(runner, cluster, "cloud_only", reachable=False)
    assert results(made.process([item()], NOW_US))
    hear(made, cluster, NOW_US - 600_000, NOW_US)
    assert not results(made.process([item()], NOW_US + 1_499_999))
    assert results(made.process([item()], NOW_US + 1_500_000))


def test_a_credit_stamped_in_the_future_counts_from_now(runner, cluster):
    made = stage(runner, cluster, "cloud_only", reachable=False)
    hear(made, cluster, NOW_US - 600_000, NOW_US + 10**9)
    assert not results(made.process([item()], NOW_US))
    assert results(made.process([item()], NOW_US + 1_500_000))


def test_control_records_that_are_not_credit_are_passed_over(runner, cluster):
    made = stage(runner, cluster, reachable=False)
    cluster.waiting = [Fake(b"{", None, name=CREDIT_KEY), Fake(b"pressure", None, name=b"other")]
    made.tick(NOW_US)
    assert made.counts == {"foreign_control": 1}


def test_a_failed_control_reader_is_opened_anew(runner, cluster):
    made = stage(runner, cluster, reachable=False)
    cluster.waiting = [TransportError("gone")]
    made.tick(NOW_US)
    assert cluster.opened == 1
    made.tick(NOW_US)
    assert cluster.opened == 2


def test_what_was_let_go_is_logged_once_in_a_while(runner, cluster, capsys):
    made = stage(runner, cluster)
    for seq in range(3):
        made.process([Fake(b"", None, at=seq), item(b"short", seq)], NOW_US)
        made.tick(NOW_US + seq)
    made.tick(NOW_US + 10_000_000)
    made.tick(NOW_US + 30_000_000)
    lines = [line for line in capsys.readouterr().out.splitlines() if "let_go" in line]
    assert [dict(word.split("=") for word in line.split() if "=" in word) for line in lines] == [
        {
            "reason": reason,
            "records": str(records),
            "topic": "s.items",
            "partition": "0",
            "offset": str(offset),
            **named,
        }
        for records, offset in ((1, 0), (2, 1))
        for reason, named in (
            ("foreign", {}),
            ("undecodable", {"stream": "cam", "epoch": "2", "seq": str(offset)}),
        )
    ]


def test_a_step_says_what_is_to_be_counted_once_it_is_committed(runner, cluster):
    made = stage(runner, cluster)
    records = [item(SURE, 0), item(SURE, 1, 1), item(UNSURE, 2), item(b"short", 3), Fake(b"", None, at=4)]
    counts = dict(made.process(records, NOW_US).counts)
    assert counts.pop((MODEL_SECONDS,)) > 0
    assert counts == {
        (ITEMS, "answered_edge", ""): 2,
        (ITEMS, "dead_lettered", "undecodable"): 1,
        (FOREIGN_RECORDS,): 1,
    }


def test_the_runner_answers_in_order_whatever_the_codec_and_size(runner):
    jpeg = find_codec("jpeg", quality=100)
    payload, params = jpeg.encode(np.full((8, 8), 255, np.uint8))
    answers = runner.answer(
        [
            (header(codec="jpeg", params=params), payload),
            (header(), UNSURE),
            (header(), b"short"),
            (header(params=Params(shape=(4, 4, 1))), SURE),
            (header(params=Params(shape=(2, 2))), b"\x00\xff\x00\xff"),
        ]
    )
    labels = [answer.label if isinstance(answer, Inferred) else answer for answer in answers]
    # All pixels alike: the first class. Two columns stretched to four: the third pixel is brighter than the second.
    assert labels == ["a", "b", Undecided("undecodable"), "a", "c"]
    assert runner.answer([]) == []


def test_batches_longer_than_a_chunk_keep_their_order(runner):
    payloads = [bytes([50 * (index % 3 == column) for column in range(3)] + [0] * 13) for index in range(200)]
    answers = runner.answer([(header(), payload) for payload in payloads])
    assert [answer.label for answer in answers] == [LABELS[index % 3] for index in range(200)]


def test_a_model_that_fails_on_a_size_takes_no_other_with_it(tmp_path):
    runner = ModelRunner(load_release(write_model(tmp_path, ("h", "w"), kernel=3)))
    tiny = (header(params=Params(shape=(1, 1))), b"x")
    large = (header(params=Params(shape=(8, 8))), bytes(64))
    answers = runner.answer([tiny, large])
    assert answers[0] == Undecided("model_failed")
    assert isinstance(answers[1], Inferred)
