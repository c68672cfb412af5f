"""`tidegate dlq` on a real Kafka, as its user has it: looked at, retried, dropped, killed; the account stays exact."""

import json
import os
import pty
import random
import signal
import subprocess
import time
from collections import Counter, defaultdict
from contextlib import closing
from datetime import UTC, datetime
from typing import NamedTuple

import onnx
import pytest
import yaml
from onnx import TensorProto, helper

from pipelines.observe.audit import audit
from pipelines.runtime.dead_letters import dead_letter
from pipelines.runtime.positions import stored_positions
from pipelines.transport.base import OutRecord
from pipelines.transport.broker import start_many_owned
from pipelines.transport.kafka import KafkaCluster
from schemas import headers, wire
from schemas.headers import DISPOSITION, FROM, REASON, Header
from schemas.ledger import Mark, MarkBatch, Outcome
from schemas.positions import StreamPosition
from schemas.topics import CLOUD_DEAD_LETTERS, SiteTopics

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(400)]

PARTITIONS = 2
FAR_US = 4_000_000_000_000_000
EPOCH = 7
CAPTURE_US = 1_700_000_000_000_000
LABELS = ("red", "green", "blue")
DEAD, FAILED, ANSWERED, KILLS, BATCH = 300, 4, 8, 6, 7


@pytest.fixture(scope="module")
def tiers(tmp_path_factory):
    """The clusters of both tiers, with topics of `PARTITIONS` partitions."""
    folder = tmp_path_factory.mktemp("tiers")
    edge, cloud = start_many_owned([(folder / "edge", "edge"), (folder / "cloud", "cloud")])
    with edge, cloud:
        yield edge, cloud


class Place(NamedTuple):
    """A person, their site, and its clusters."""

    user: object
    names: SiteTopics
    edge: KafkaCluster
    cloud: KafkaCluster

    def dlq(self, *arguments, status=0):
        """What `tidegate dlq ARGUMENTS` printed."""
        done = self.user.run("dlq", *arguments)
        assert done.returncode == status, (done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        return done.stdout

    def listed(self, *arguments, tier="edge"):
        """As one object. What other tests left in the cloud's topic is theirs."""
        return json.loads(self.dlq("list", "--json", "--tier", tier, *arguments))

    def refused(self, *arguments):
        """The one line that says why not."""
        done = self.user.run("dlq", *arguments)
        assert (done.returncode, done.stdout) == (2, ""), (done.stdout, done.stderr)
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
        return done.stderr

    def balanced(self, **wanted):
        """The account, which must balance; `wanted` are outcomes that it must have."""
        verdict = audit(self.edge, self.names.site)
        assert verdict.balanced, verdict
        assert {name: verdict.outcomes[name] for name in wanted} == wanted
        return verdict

    def write(self, cluster, records):
        with closing(cluster.transactions(f"test.{self.names.site}")) as writer:
            writer.start()
            writer.write(records)


@pytest.fixture
def place(user, tiers, site):
    edge, cloud = tiers
    user.pipeline = {
        "name": site,
        "site": site,
        "source": {"path": "images", "rate": "100/s"},
        "edge": {"model": "model.onnx"},
        "partitions": PARTITIONS,
        "kafka": {"edge": {"bootstrap": edge.bootstrap}, "cloud": {"bootstrap": cloud.bootstrap}},
    }
    (user.folder / "pipeline.yaml").write_text(yaml.safe_dump(user.pipeline))
    applied = user.run("topics", "apply")
    assert applied.returncode == 0, applied.stderr
    here, there = (KafkaCluster(broker.name, broker.bootstrap) for broker in tiers)
    with closing(here), closing(there):
        yield Place(user, SiteTopics(site), here, there)


def write_failing_model(path):
    """Takes images of any size, and fails on those with fewer rows than its kernel has."""
    graph = helper.make_graph(
        [
            helper.make_node("AveragePool", ["images"], ["pooled"], kernel_shape=[48, 1]),
            helper.make_node("GlobalAveragePool", ["pooled"], ["means"]),
            helper.make_node("Flatten", ["means"], ["scores"]),
        ],
        "not_the_small_ones",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 3, "height", "width"])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


def test_items_get_their_second_chance_once_the_model_is_mended(place, make_model, make_images):
    user, names = place.user, place.names
    images = user.folder / "images"
    labels = make_images(images, 12)  # Every third of them has 40 rows.
    picture = (images / "frame-0000.jpg").read_bytes()
    (images / "frame-0005-cut.jpg").write_bytes(picture[: len(picture) // 2])
    (images / "frame-0006-damaged.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    write_failing_model(user.folder / "model.onnx")
    user.environment["COLUMNS"] = "200"
    ran = user.run("run", "--results", "first.jsonl")
    assert ran.returncode == 0, ran.stderr
    place.balanced(dead_lettered=FAILED + 2, answered_edge=ANSWERED)

    # Looked at.
    found = place.listed()
    assert found["reasons"] == {
        "model_failed": {"waiting": FAILED},
        "undecodable": {"waiting": 1},
        "unreadable": {"waiting": 1},
    }
    assert (found["left_out"], found["unread"]) == (0, {})
    assert [letter["at_us"] for letter in found["letters"]] == sorted(letter["at_us"] for letter in found["letters"])
    table = place.dlq("list", "--limit", "3")
    assert f"and {FAILED - 1} older ones" in table
    assert all(word in table for word in ("cam-00", "model_failed", "reason", "waiting"))
    letters = {letter["reason"]: letter for letter in found["letters"]}
    cut = letters["undecodable"]["id"]
    shown = place.dlq("show", cut, "--out", "kept.jpg")
    assert (user.folder / "kept.jpg").read_bytes() == picture[: len(picture) // 2]
    assert all(word in shown for word in ("undecodable", f"{names.items}[", "image/jpeg", "priority", "wrote"))
    assert "ff d8 ff" in place.dlq("show", cut)

    # What cannot be retried is said so; a dry run does nothing.
    assert "could not be read" in place.refused("retry", letters["unreadable"]["id"], "--yes")
    would = place.dlq("retry", "--all", "--dry-run")
    assert f"would be retried: {FAILED + 1} dead letters ({FAILED} model_failed, 1 undecodable)" in would
    assert "passed over: 1 dead letter: its frame could not be read" in would
    assert place.listed()["reasons"] == found["reasons"]

    # Retried, and in flight; the model is mended only now.
    assert f"retried: {FAILED} dead letters ({FAILED} model_failed)" in place.dlq(
        "retry", "--reason", "model_failed", "--yes"
    )
    verdict = place.balanced(dead_lettered=FAILED + 2, answered_edge=ANSWERED)
    assert (verdict.captured, verdict.in_flight_items) == (14 + FAILED, FAILED)
    assert place.listed()["reasons"].keys() == {"undecodable", "unreadable"}
    make_model(user.folder / "model.onnx", side=None)
    ran = user.run("run", "--results", "second.jsonl")
    assert ran.returncode == 0, ran.stderr
    place.balanced(dead_lettered=FAILED + 2, answered_edge=ANSWERED + FAILED)

    # Each result tells which item it is the answer to.
    results = [json.loads(line) for line in (user.folder / "second.jsonl").read_text().splitlines()]
    states = {letter["id"]: letter for letter in place.listed("--all")["letters"]}
    retried = {tuple(one["item"].values()): one for one in states.values() if one["state"] == "retried"}
    assert {(one["stream"], one["epoch"], one["seq"]) for one in results} == retried.keys()
    # By their paths the two bad files are the frames 5 and 7.
    frames = dict(zip((*range(5), 6, *range(8, 14)), labels, strict=True))
    for result in results:
        letter = retried[result["stream"], result["epoch"], result["seq"]]
        assert result["stream"] == "retry/cam-00"
        assert frames[letter["first_seq"]] in ("", LABELS[int(result["label"])])

    # Never twice; what fails again is a dead letter again; what is dropped is gone.
    assert place.user.run("dlq", "retry", "--reason", "model_failed", "--yes").returncode == 0
    again = place.dlq("retry", *(letter["id"] for letter in retried.values()), "--yes")
    assert f"passed over: {FAILED} dead letters: retried before" in again
    place.dlq("retry", cut, "--yes")
    assert user.run("run").returncode == 0
    verdict = place.balanced(dead_lettered=FAILED + 3, answered_edge=ANSWERED + FAILED)
    assert verdict.captured == 14 + FAILED + 1
    (failed_again,) = place.listed("--stream", "retry/cam-00")["letters"]
    assert failed_again["reason"] == "undecodable"
    assert f"{names.dead_letters}[" in place.dlq("show", failed_again["id"])
    assert "dropped: 2 dead letters" in place.dlq("drop", "--since", "1h", "--yes")
    assert place.dlq("list") == "no dead letter waits\n"
    assert place.listed("--all")["reasons"]["undecodable"] == {"retried": 1, "dropped": 1}
    assert "passed over: 1 dead letter: dropped before" in place.dlq("retry", failed_again["id"], "--yes")
    place.balanced(dead_lettered=FAILED + 3, answered_edge=ANSWERED + FAILED)
    assert user.left_running() == []


def dead_lettered(names, count):
    """What a producer and an edge worker write of `count` items of three streams that all end as dead letters."""
    out, marks, seqs = [], [], Counter()
    for number in range(count):
        stream = f"cam-{number % 3}"
        seq, seqs[stream] = seqs[stream], seqs[stream] + 1
        header = Header(1, stream, EPOCH, seq, 1, CAPTURE_US + number, FAR_US, number % 3, "raw", source_position=seq)
        kept = [*headers.pair("image/x", header), (REASON, "wrong_shape"), (FROM, f"{names.items}[0]@{number}")]
        payload = f"payload {number}".encode() + b"\0" * 2_000
        out.append(OutRecord(names.dead_letters, payload, stream.encode(), number % PARTITIONS, kept))
        marks.append(Mark(stream, EPOCH, seq, seq, Outcome.DEAD_LETTERED, "wrong_shape"))
    for stream, end in seqs.items():
        out.append(OutRecord(names.positions, wire.encode(StreamPosition(EPOCH, end, end - 1)), stream.encode()))
    return [*out, OutRecord(names.ledger, wire.encode(MarkBatch(1, names.site, marks)), partition=0)]


def check_each_was_retried_once(place, count):
    """Against the letters themselves: payload, header, identity, the stored position and what was decided."""
    names = place.names
    letters, decided = {}, {}
    for record in place.edge.read_all([names.dead_letters]):
        if DISPOSITION in dict(record.headers()):
            for one in wire.decode_disposition(record.value()).letters:
                key = record.partition(), one.offset
                assert key not in decided
                decided[key] = one.item
        else:
            letters[record.partition(), record.offset()] = record
    assert decided.keys() == letters.keys()
    assert len(letters) == count
    seqs = defaultdict(list)
    retried = {}
    for record in place.edge.read_all([names.items]):
        header = headers.find(record.headers())
        assert record.key() == header.stream.encode()
        assert header.source_position not in retried
        retried[header.source_position] = header, record.value()
        seqs[header.stream, header.epoch].append(header.first_seq)
    for (partition, offset), letter in letters.items():
        before = headers.find(letter.headers())
        header, payload = retried.pop(f"{names.dead_letters}[{partition}]@{offset}")
        item = decided[partition, offset]
        assert payload == letter.value()
        assert header.stream == f"retry/{before.stream}"
        assert (item.stream, item.epoch, item.seq) == (header.stream, header.epoch, header.first_seq)
        assert (header.capture_us, header.priority, header.codec) == (before.capture_us, before.priority, before.codec)
        assert header.capture_us < header.deadline_us < before.deadline_us
    assert not retried
    positions = stored_positions(place.edge, names)
    for (stream, epoch), of_stream in seqs.items():
        assert of_stream == list(range(len(of_stream)))
        assert (positions[stream].epoch, positions[stream].next_seq) == (epoch, len(of_stream))
    assert len(seqs) == 3


def test_kill_9_at_random_points_retries_each_exactly_once(place):
    names = place.names
    place.write(place.edge, dead_lettered(names, DEAD))
    place.balanced(dead_lettered=DEAD)
    topics = [names.items, names.dead_letters, names.positions]

    def written():
        """Offsets taken, open transactions included."""
        return sum(place.edge.end_offsets(topics, stable=False).values())

    chance, killed = random.Random(11), 0
    for _ in range(KILLS):
        point = written() + chance.randrange(1, 60)
        with place.user.start("dlq", "retry", "--all", "--yes", "--batch", str(BATCH)) as retry:
            while written() < point and retry.poll() is None:
                pass
            retry.kill()
        killed += retry.returncode == -9
        verdict = place.balanced(dead_lettered=DEAD)
        assert verdict.captured == DEAD + verdict.in_flight_items
        assert len(place.listed("--limit", "1000")["letters"]) == DEAD - verdict.in_flight_items
    assert killed
    place.dlq("retry", "--all", "--yes", "--batch", str(BATCH))
    check_each_was_retried_once(place, DEAD)
    assert place.balanced(dead_lettered=DEAD).in_flight_items == DEAD


def test_of_two_retries_at_once_the_later_goes_on(place):
    names = place.names
    place.write(place.edge, dead_lettered(names, DEAD))
    with place.user.start("dlq", "retry", "--all", "--yes", "--batch", "1") as first:
        place.user.until("the first items", first, lambda: sum(place.edge.end_offsets([names.items]).values()) > 5)
        first.send_signal(signal.SIGSTOP)  # However quick it is, the other comes before it is done.
        place.dlq("retry", "--all", "--yes")
        first.send_signal(signal.SIGCONT)
        _, error = first.communicate(timeout=60)
    # Kafka tells a commit that was under way when it was fenced either so, or as an error of its own.
    ended = {5: "error: another `tidegate dlq` has taken over; ", 1: "error: a transaction of 'dlq."}
    assert first.returncode in ended, error
    assert error.startswith(ended[first.returncode])
    assert "run it again" in error
    check_each_was_retried_once(place, DEAD)
    place.balanced(dead_lettered=DEAD)


def test_a_stream_of_a_producer_is_not_numbered_by_a_retry(place):
    names = place.names
    position = OutRecord(names.positions, wire.encode(StreamPosition(EPOCH, 0, 3)), b"retry/cam-0")
    place.write(place.edge, [*dead_lettered(names, 3), position])
    assert "stream 'retry/cam-0'" in place.refused("retry", "--stream", "cam-0", "--yes")
    assert "retried: 1 dead letter" in place.dlq("retry", "--stream", "cam-1", "--yes")
    place.balanced(dead_lettered=3)


class Stray(NamedTuple):
    """A record that somebody else wrote, where a worker met it."""

    content: bytes
    given: list

    def topic(self):
        return "items"

    def partition(self):
        return 1

    def offset(self):
        return 30

    def key(self):
        return None

    def value(self):
        return self.content

    def headers(self):
        return self.given


def test_what_is_not_ours_is_shown_safely_and_dropped_but_not_retried(place):
    evil = b"\x1b]0;owned\x07 text with [red]markup[/]"
    strays = [
        Stray(evil, [("who\x1b[31m", b"\x1b[2J")]),
        Stray(b"\xff\xfe\x00\x01" * 100, [(DISPOSITION, b"dropped"), (REASON, b"mine")]),
        Stray(b"", []),
    ]
    letters = [dead_letter(place.names.dead_letters, stray, "foreign") for stray in strays]
    forged = OutRecord(place.names.dead_letters, b"{}", partition=1, headers=[(DISPOSITION, b"dropped")])
    place.write(place.edge, [*letters, forged])
    found = place.listed()
    assert found["reasons"] == {"": {"waiting": 1}, "foreign": {"waiting": 3}}
    assert place.balanced().foreign[place.names.dead_letters] == 3
    text, binary, empty = (letter["id"] for letter in found["letters"] if letter["reason"])
    shown = [place.dlq("show", letter) for letter in (text, binary, empty)]
    assert "1b 5d 30 3b 6f 77 6e 65 64 07" in shown[0]
    assert "with [red]markup" in shown[0]
    assert "who\\x1b[31m" in shown[0]
    assert "ff fe 00 01" in shown[1]
    assert "and 336 bytes more" in shown[1]
    assert "none was kept" in shown[2]
    assert not any("\x1b" in one for one in (*shown, place.dlq("list"), place.dlq("show", text, "--json")))
    assert "items[1]@30" in shown[0]
    for arguments in ([text], ["--reason", "foreign"]):
        assert "it holds no item of ours" in place.refused("retry", *arguments, "--yes")
    assert "dropped: 4 dead letters (1 (no reason), 3 foreign)" in place.dlq("drop", "--all", "--yes")
    assert place.dlq("list") == "no dead letter waits\n"
    place.balanced()


def test_the_clouds_are_looked_at_and_dropped_there(place):
    header = Header(1, "cam-0", EPOCH, 4, 1, CAPTURE_US, FAR_US, 1, "raw", source_position=4)
    offloaded = Stray(b"pixels", headers.pair("image/x", header))
    place.write(place.cloud, [dead_letter(CLOUD_DEAD_LETTERS, offloaded, "undecodable")])
    (letter,) = place.listed(tier="cloud")["letters"]
    assert (letter["tier"], letter["stream"], letter["first_seq"]) == ("cloud", "cam-0", 4)
    assert "cam-0" in place.dlq("list")
    assert "undecodable" in place.dlq("show", letter["id"], "--tier", "cloud")
    refused = place.refused("retry", letter["id"], "--tier", "cloud", "--yes")
    assert "its site has settled the item" in refused
    assert "show --out" in refused
    assert "dropped: 1 dead letter" in place.dlq("drop", letter["id"], "--tier", "cloud", "--yes")
    assert place.listed(tier="cloud")["letters"] == []


BAD = {
    "neither id nor file": (["show", "3-17"], "'3-17' is no id of a dead letter, and no file either: write PARTITION@"),
    "unknown id": (["show", "1@99"], "there is no dead letter 1@99 of the edge: `tidegate dlq list --all` shows"),
    "no such partition": (["drop", "99@0", "--yes"], "there is no dead letter 99@0 of the edge"),
    "an id too many": (["show", "0@0", "0@1"], "2 ids are given: give one"),
    "no id": (["show", "pipeline.yaml"], "0 ids are given: give one"),
    "nothing said": (["drop", "--yes"], "which ones is not said: give ids, a filter such as --reason, or --all"),
    "both said": (["retry", "0@0", "--all"], "ids and a filter are given: give one of the two"),
    "no time": (["list", "--since", "soon"], "--since: 'soon' is neither a duration nor a time: write `1h` or"),
    "times exchanged": (["list", "--since", "1h", "--until", "2h"], "--since 1h lies after --until 2h: exchange them"),
    "two files": (["drop", "pipeline.yaml", "images", "--all"], "two pipeline files are given"),
    "no such file": (["list", "nowhere.yaml"], "nowhere.yaml cannot be read"),
    "no such folder": (["show", "0@0", "--out", "nowhere/kept"], "--out: nowhere/kept cannot be written (No such file"),
    "nobody to ask": (["drop", "0@0"], "nobody has agreed, so nothing was done: answer y, or give --yes"),
}


def test_bad_input_is_one_line_each(place):
    (place.user.folder / "images").mkdir()
    foreign = OutRecord(place.names.dead_letters, b"?", partition=0, headers=[(REASON, b"undecodable")])
    place.write(place.edge, [foreign])
    for arguments, problem in BAD.values():
        error = place.refused(*arguments) if arguments[-1] != "0@0" else place.user.run("dlq", *arguments).stderr
        assert problem in error
    misspelt = place.dlq("list", "--reason", "undecodeable")
    assert misspelt == "no dead letter has the reason 'undecodeable': did you mean 'undecodable'?\n"
    assert place.dlq("list", "--stream", "cam-9") == "no dead letter waits that matches\n"
    assert place.dlq("drop", "--stream", "cam-9", "--yes") == ""
    assert len(place.listed()["letters"]) == 1


@pytest.mark.parametrize(("answer", "left"), [(b"n\n", 1), (b"y\n", 0)])
def test_a_person_is_asked_first(place, answer, left):
    foreign = OutRecord(place.names.dead_letters, b"?", partition=0, headers=[(REASON, b"foreign")])
    place.write(place.edge, [foreign])
    ours, theirs = pty.openpty()
    os.write(ours, answer)
    done = subprocess.run(
        ["tidegate", "dlq", "drop", "--all"],
        cwd=place.user.folder,
        env=place.user.environment,
        stdin=theirs,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    os.close(ours)
    os.close(theirs)
    assert "drop 1 dead letter (1 foreign) for good? [y/N]" in done.stderr
    assert done.returncode == left
    assert len(place.listed()["letters"]) == left


def test_a_tier_that_is_away_is_said(place):
    away = {**place.user.pipeline, "kafka": {**place.user.pipeline["kafka"], "cloud": {"bootstrap": "127.0.0.1:9"}}}
    (place.user.folder / "pipeline.yaml").write_text(yaml.safe_dump(away))
    done = place.user.run("dlq", "list")
    assert done.returncode == 1
    assert done.stdout == "no dead letter waits\n"
    assert done.stderr.startswith("cloud: not read: kafka.cloud: no Kafka answers at 127.0.0.1:9")
    assert place.dlq("list", "--tier", "edge") == "no dead letter waits\n"


def test_since_and_until_are_about_when_it_was_dead_lettered(place):
    def write(number):
        letter = OutRecord(place.names.dead_letters, b"?", partition=number % 2, headers=[(REASON, b"foreign")])
        place.write(place.edge, [letter])

    write(0)
    (first,) = place.listed()["letters"]
    while time.time_ns() // 1_000_000 <= first["at_us"] // 1000:
        continue  # Kafka's time has milliseconds.
    write(1)
    first, second = place.listed()["letters"]
    at = [datetime.fromtimestamp(one["at_us"] / 1e6, UTC).isoformat() for one in (first, second)]
    assert [one["id"] for one in place.listed("--since", at[1])["letters"]] == [second["id"]]
    assert [one["id"] for one in place.listed("--until", at[0])["letters"]] == [first["id"]]
    assert len(place.listed("--since", at[0], "--until", at[1])["letters"]) == 2
    assert len(place.listed("--since", "1h", "--until", "0s")["letters"]) == 2
