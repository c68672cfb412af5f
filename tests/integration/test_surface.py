"""What a running pipeline writes is as AsyncAPI and the JSON Schemas say: every record in every topic of both tiers."""

import contextlib
import json
import signal
from collections import defaultdict
from contextlib import closing

import msgspec
import pytest
from confluent_kafka import Producer
from jsonschema import Draft202012Validator

from pipelines.transport.kafka import KafkaCluster
from schemas.flows import FLOWS, specs_of
from schemas.headers import TG
from schemas.topics import SiteTopics, Tier
from scripts.asyncapi import document
from scripts.record_schemas import record_schemas

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]

SITE = "site-1"
PIPELINE = """\
name: mine
source: {path: ./images, streams: 2, rate: 10/s, loop: 0}
edge: {model: ./model.onnx, labels: [red, green, blue]}
cloud: {model: ./model.onnx, labels: [red, green, blue]}
routing: {policy: threshold, options: {threshold: 1.0}}
windows: {size: 1s}
"""
TOPICS = {spec.name: (flow.tier, flow.name) for flow in FLOWS for spec in specs_of(flow, SITE)}
MESSAGES = document()["components"]["messages"]
CHANNELS = document()["channels"]
SCHEMAS = {f"./{name}": Draft202012Validator(schema) for name, schema in record_schemas().items()}
FOREIGN = b"hello"


def problems(message, record):
    """Why a record is not such a message."""
    key, value, given = record.key(), record.value(), dict(record.headers() or ())
    said = MESSAGES[message]
    found = [*Draft202012Validator(said["bindings"]["kafka"]["key"]).iter_errors(key and key.decode())]
    found += [f"no header {name}" for name in said.get("headers", {}).get("required", ()) if name not in given]
    if "headers" not in said and given:
        found.append("headers")
    if "$ref" in said["payload"]:
        try:
            found += SCHEMAS[said["payload"]["$ref"]].iter_errors(json.loads(value))
        except ValueError as error:
            found.append(error)
    if TG in given:
        places = msgspec.msgpack.decode(given[TG])
        found += SCHEMAS["./tg.json"].iter_errors(msgspec.to_builtins(places))
    return found


def test_every_record_is_as_it_is_published(user, make_model, make_images):
    make_images(user.folder / "images", 40)
    (user.folder / "images" / "frame-0005-damaged.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    make_model(user.folder / "model.onnx", side=32)
    (user.folder / "pipeline.yaml").write_text(PIPELINE)
    process = user.start("run", "--json")
    running = user.until_results(process, user.data / "pipelines" / "mine", SITE, 1)
    writer = Producer({"bootstrap.servers": running.edge})
    for topic in (SiteTopics(SITE).items, SiteTopics(SITE).results):
        writer.produce(topic, FOREIGN, partition=0)
    assert writer.flush(30) == 0
    seen = defaultdict(list)
    with contextlib.ExitStack() as stack:
        addresses = {Tier.EDGE: running.edge, Tier.CLOUD: running.cloud}
        clusters = {
            tier: stack.enter_context(closing(KafkaCluster(tier, address))) for tier, address in addresses.items()
        }

        def every_topic_has_records() -> bool:
            seen.clear()
            for tier, cluster in clusters.items():
                for record in cluster.read_all([name for name, (where, _) in TOPICS.items() if where is tier]):
                    seen[tier, TOPICS[record.topic()][1]].append(record)
            kept = [record.value() for name in ("edge.dead_letters", "cloud.dead_letters") for record in seen_of(name)]
            return {name for _, name in seen} == CHANNELS.keys() and kept.count(FOREIGN) == 2

        def seen_of(name):
            return [record for (_, one), records in seen.items() if one == name for record in records]

        user.until("a record in every topic", process, every_topic_has_records)
        for tier in Tier:
            dropped = user.run("dlq", "drop", "--all", "--yes", "--tier", tier)
            assert dropped.returncode == 0, dropped.stderr
        assert every_topic_has_records()  # The decisions too.
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    matched = set()
    for (_, name), records in seen.items():
        for record in records:
            if record.value() == FOREIGN and name in ("edge.items", "edge.results", "cloud.up.results"):
                continue
            found = {message: problems(message, record) for message in CHANNELS[name]["messages"]}
            right = {message for message, wrong in found.items() if not wrong}
            assert right, (name, record.key(), record.value()[:200], record.headers(), found)
            matched |= {(name, message) for message in right}
    assert matched == {(name, message) for name, channel in CHANNELS.items() for message in channel["messages"]}
