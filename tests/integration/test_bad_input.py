"""Bad input. At start: one line, exit 2, nothing started. On items: each ends with its reason, the rest goes on.

The starts run two at a time, once for the module, and each is then looked at by itself.
"""

import contextlib
import json
import signal
import socket
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
import yaml
from confluent_kafka import Producer

from pipelines.transport.broker import start_many_owned
from pipelines.transport.kafka import KafkaCluster
from schemas import headers, wire
from schemas.headers import REASON
from schemas.positions import StreamPosition
from schemas.topics import CLOUD_DEAD_LETTERS, SiteTopics

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]

GOOD = {"name": "mine", "source": {"path": "images"}, "edge": {"model": "model.onnx"}}

# What is changed in the good file (a key may be a path of keys), and what the one line must say, the remedy included.
BAD_STARTS = {
    "misspelt_key": ({"sorce": {}}, ["pipeline.yaml", "`sorce`", "did you mean `source`?"]),
    "misspelt_inner_key": ({"source.rates": "1/s"}, ["pipeline.yaml", "`source.rates`", "did you mean `source.rate`?"]),
    "no_unit": ({"deadline": 10}, ["pipeline.yaml", "deadline", "write it as `5s`"]),
    "source_missing": ({"source.path": "nowhere"}, ["nowhere is not a folder", "`source.path`"]),
    "source_empty": ({"source.path": "empty"}, ["empty holds no images", "put files there"]),
    "source_unreadable": ({"source.path": "damaged"}, ["damaged", "can be read", "`source.path`"]),
    "broker_not_there": ({"kafka.edge.bootstrap": "127.0.0.1:{port}"}, ["kafka.edge", "127.0.0.1:", "correct the add"]),
    "model_missing": ({"edge.model": "nowhere.onnx"}, ["nowhere.onnx", "correct the path"]),
    "model_not_onnx": ({"edge.model": "text.onnx"}, ["text.onnx", "not an ONNX model", "export it to ONNX again"]),
    "model_of_wrong_rank": ({"edge.model": "flat.onnx"}, ["flat.onnx", "takes tensor(float)", "export it to take"]),
    "model_of_wrong_channels": ({"edge.model": "four.onnx"}, ["four.onnx", "x4", "40x64x3", "name a model that fits"]),
    "no_model": ({"edge": {}}, ["`edge.model` is not set", "name an ONNX file"]),
    "labels_too_few": ({"edge.labels": ["red"]}, ["model.onnx", "3 classes and 1 labels", "give one label a class"]),
    "unknown_policy": ({"routing.policy": "treshold"}, ["'treshold'", "perhaps 'threshold'", "choose one of"]),
    "unknown_codec": ({"encode.codec": "jpg"}, ["'jpg'", "choose one of jpeg, raw"]),
    "unknown_source": ({"source.type": "camera"}, ["'camera'", "choose one of idx, images"]),
    "unknown_option": (
        {"routing": {"policy": "edge_only", "options": {"threshold": 1}}},
        ["'edge_only'", "no option 'threshold'", "remove it"],
    ),
    "threshold_without_cloud": (
        {"routing": {"policy": "threshold", "options": {"threshold": 0.8}}},
        ["'threshold'", "`cloud.model` is not set", "edge_only"],
    ),
}


def changed(changes: dict[str, object], port: int) -> str:
    """The good pipeline file with `changes`."""
    whole: dict[str, object] = json.loads(json.dumps(GOOD))
    for path, value in changes.items():
        *outer, last = path.split(".")
        section: dict = whole
        for key in outer:
            section = section.setdefault(key, {})
        section[last] = value.format(port=port) if isinstance(value, str) else value
    return yaml.safe_dump(whole)


@pytest.fixture(scope="module")
def starts(make_user, make_model, make_images):
    """Every bad start, done: who did it and what came of it, by name."""
    with socket.socket() as listener:  # Bound and not listening: who connects is refused.
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]

        people = {}
        for name, (changes, _) in BAD_STARTS.items():
            people[name] = person = make_user()
            for folder in ("empty", "damaged"):
                (person.folder / folder).mkdir()
            (person.folder / "damaged" / "a.png").write_bytes(b"no image")
            make_images(person.folder / "images", 2)
            make_model(person.folder / "model.onnx")
            make_model(person.folder / "four.onnx", channels=4)
            make_model(person.folder / "flat.onnx", flat=True)
            (person.folder / "text.onnx").write_text("no model")
            (person.folder / "pipeline.yaml").write_text(changed(changes, port))
        with ThreadPoolExecutor(2) as pool:
            ended = pool.map(lambda person: person.run("run"), people.values())
            yield {name: (people[name], done) for name, done in zip(people, ended, strict=True)}


def assert_one_line(done, said: list[str]) -> None:
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert [part for part in said if part not in done.stderr] == [], done.stderr


@pytest.mark.parametrize("name", BAD_STARTS)
def test_a_bad_start_is_one_line_and_starts_nothing(starts, name):
    person, done = starts[name]
    assert_one_line(done, BAD_STARTS[name][1])
    assert person.running() == []
    assert list(person.data.rglob("kafka-*")) == []


def test_a_pipeline_file_that_is_not_there(user):
    assert_one_line(user.run("run", "nowhere.yaml"), ["nowhere.yaml cannot be read", "`tidegate init` writes one"])


def test_results_cannot_be_written(user, make_model, make_images):
    (user.folder / "pipeline.yaml").write_text(changed({}, 0))
    done = user.run("run", "--results", "nowhere/results.jsonl")
    assert_one_line(done, ["--results: nowhere/results.jsonl", "No such file", "name another"])


SITE = "bad"
LATER = ("newer", 7, 0, 1)
"""Stream, epoch, seq and count of the item that a later version captured."""


def write_foreign(edge: str) -> None:
    """What a foreign producer, and one of a later version, put into the site's topics."""
    names = SiteTopics(SITE)
    writer = Producer({"bootstrap.servers": edge})
    writer.produce(names.items, b"hello", b"who", partition=0)
    writer.produce(names.items, b"hello", b"who", headers=[(headers.TG, b"\xff\x00")], partition=0)
    writer.produce(names.uplink(1), b"hello", partition=0)
    writer.produce(names.answers, b"hello", partition=0)
    writer.produce(names.results, b"hello", partition=0)
    stream, epoch, seq, count = LATER
    header = msgspec.msgpack.encode([2, stream, epoch, seq, count, {"all": "new"}])
    writer.produce(names.items, b"?", stream.encode(), headers=[(headers.TG, header)], partition=0)
    position = StreamPosition(epoch=epoch, next_seq=seq + count, source_position=0)
    writer.produce(names.positions, wire.encode(position), stream.encode(), partition=0)
    assert writer.flush(30) == 0


def reasons(cluster: KafkaCluster, topic: str) -> list[str]:
    return [dict(record.headers())[REASON].decode() for record in cluster.read_all([topic])]


def test_bad_items_end_with_their_reason_and_the_rest_goes_on(user, make_model, make_images, tmp_path: Path):
    make_images(user.folder / "images", 40)
    picture = (user.folder / "images" / "frame-0000.jpg").read_bytes()
    (user.folder / "images" / "frame-0005-cut.jpg").write_bytes(picture[: len(picture) // 2])
    (user.folder / "images" / "frame-0006-damaged.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    make_model(user.folder / "model.onnx", side=32)
    names = SiteTopics(SITE)
    edge, cloud = start_many_owned([(tmp_path / "edge", "edge"), (tmp_path / "cloud", "cloud")])
    with edge, cloud:
        pipeline = {
            **GOOD,
            "site": SITE,
            "source": {"path": "images", "rate": "20/s", "loop": 0},
            "cloud": {"model": "model.onnx"},
            "routing": {"policy": "threshold", "options": {"threshold": 0.9}},
            "partitions": 2,
            "kafka": {"edge": {"bootstrap": edge.bootstrap}, "cloud": {"bootstrap": cloud.bootstrap}},
        }
        (user.folder / "pipeline.yaml").write_text(yaml.safe_dump(pipeline))
        applied = user.run("topics", "apply")
        assert applied.returncode == 0, applied.stderr
        write_foreign(edge.bootstrap)
        process = user.start("run", "--json", "--results", "results.jsonl")
        with contextlib.ExitStack() as stack:
            here, there = (
                stack.enter_context(closing(KafkaCluster(broker.name, broker.bootstrap))) for broker in (edge, cloud)
            )

            def all_seen() -> bool:
                found = Counter(reasons(here, names.dead_letters))
                return found["foreign"] >= 4 and {"undecodable", "unreadable", "unknown_version"} <= found.keys()

            user.until("every bad item's reason", process, all_seen)
            user.until("the cloud's foreign record", process, lambda: bool(reasons(there, CLOUD_DEAD_LETTERS)))
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=120)
            assert process.returncode == 0, err
            assert "Traceback" not in err
            kept = [record.value() for record in here.read_all([names.dead_letters])]
            assert reasons(here, names.dead_letters).count("foreign") == 4
            assert reasons(there, CLOUD_DEAD_LETTERS) == ["foreign"]
        logs = "".join(log.read_text() for log in (user.data / "pipelines" / "mine" / "logs").iterdir())
        assert "Traceback" not in logs

    account = json.loads(out)
    assert account["balanced"]
    assert set(account["in_flight"].values()) == {0}
    ended = account["reasons"]["dead_lettered"]
    assert set(ended) == {"undecodable", "unreadable", "unknown_version"}
    assert ended["unknown_version"] == 1
    assert account["outcomes"]["answered_edge"] > 0
    assert account["outcomes"]["answered_cloud"] > 0
    assert account["foreign"][names.dead_letters] == 4
    assert kept.count(b"hello") == 4
    assert picture[: len(picture) // 2] in kept
    assert len((user.folder / "results.jsonl").read_text().splitlines()) == sum(
        account["outcomes"][outcome] for outcome in ("answered_edge", "answered_cloud", "answered_edge_fallback")
    )
    assert user.left_running() == []
