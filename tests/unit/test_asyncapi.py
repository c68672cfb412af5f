"""The AsyncAPI document, by its structure and against the code that it speaks of.

AsyncAPI's own JSON Schema comes as an npm package only, so what it asks of the parts used here stands in `KNOWN`.
"""

import json
import re
from pathlib import PurePosixPath

import pytest
from jsonschema import Draft202012Validator

from pipelines.core.topic_plan import Layout, readers, wanted_topics
from pipelines.observe.metrics import ALL, STAGES, WRITERS
from pipelines.transport.access import site_rules
from schemas import headers, wire
from schemas.flows import FLOWS, USERS, specs_of
from schemas.topics import AGGREGATE_GROUP, CLOUD_GROUP, SiteTopics, Tier, cloud_specs
from scripts.asyncapi import document, versions
from scripts.golden import hidden, read_all
from scripts.publish_schemas import FOLDER, GOLDEN, documents

DOCUMENT = document()
SITE = SiteTopics("site-1")
SPECS = [*SITE.specs(), *cloud_specs()]
BY_NAME = {flow.name: flow for flow in FLOWS}

# Fields that AsyncAPI 3.0 knows, and those that must be there. `x-` may stand anywhere.
KNOWN = {
    "": (
        {"asyncapi", "info", "defaultContentType", "servers", "channels", "operations", "components"},
        {"asyncapi", "info"},
    ),
    "info": ({"title", "version", "description", "license"}, {"title", "version"}),
    "servers/*": ({"host", "protocol", "description", "variables"}, {"host", "protocol"}),
    "channels/*": ({"address", "summary", "servers", "parameters", "messages", "bindings"}, set()),
    "channels/*/bindings/kafka": ({"partitions", "topicConfiguration", "bindingVersion"}, set()),
    "operations/*": ({"action", "channel", "tags"}, {"action", "channel"}),
    "components": ({"messages", "parameters"}, set()),
    "components/messages/*": ({"title", "summary", "contentType", "headers", "payload", "bindings"}, set()),
    "components/messages/*/bindings/kafka": ({"key", "bindingVersion"}, set()),
    "components/parameters/*": ({"description", "default", "examples", "enum"}, set()),
}


def nodes(value, path=()):
    """Every object of the document by its path."""
    if isinstance(value, dict):
        yield path, value
        for name, one in value.items():
            yield from nodes(one, (*path, name))
    elif isinstance(value, list):
        for number, one in enumerate(value):
            yield from nodes(one, (*path, str(number)))


def resolved(reference):
    """What a `$ref` names, in this document or in a file beside it."""
    file, _, pointer = reference.partition("#")
    at = json.loads(documents()[str(PurePosixPath(file))]) if file else DOCUMENT
    for step in filter(None, pointer.split("/")):
        at = at[step]
    return at


@pytest.mark.parametrize("pattern", KNOWN, ids=lambda pattern: pattern or "root")
def test_every_part_has_only_what_asyncapi_knows(pattern):
    known, needed = KNOWN[pattern]
    parts = [node for path, node in nodes(DOCUMENT) if PurePosixPath("/", *path).match(f"/{pattern}")]
    parts = parts if pattern else [DOCUMENT]
    assert parts
    for part in parts:
        assert {name for name in part if not name.startswith("x-")} <= known
        assert needed <= part.keys()


def test_every_reference_leads_somewhere():
    references = [node["$ref"] for _, node in nodes(DOCUMENT) if "$ref" in node]
    assert len(references) > len(FLOWS)
    assert all(resolved(reference) for reference in references)


def test_names_are_what_asyncapi_takes():
    names = [*DOCUMENT["channels"], *DOCUMENT["operations"], *DOCUMENT["servers"]]
    names += [name for part in DOCUMENT["components"].values() for name in part]
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+", name) for name in names)
    assert DOCUMENT["asyncapi"] == "3.0.0"


@pytest.mark.parametrize("name", DOCUMENT["channels"])
def test_every_channel_has_messages_bindings_and_its_parameters(name):
    channel = DOCUMENT["channels"][name]
    assert channel["messages"]
    assert channel["bindings"]["kafka"]["topicConfiguration"]["cleanup.policy"]
    assert set(re.findall(r"{(\w+)}", channel["address"])) == channel.get("parameters", {}).keys()
    assert [server["$ref"] for server in channel["servers"]] == [f"#/servers/{BY_NAME[name].tier}"]
    for message in map(resolved, (one["$ref"] for one in channel["messages"].values())):
        assert message["bindings"]["kafka"]["key"]["type"]
        assert message["payload"]


@pytest.mark.parametrize("action", ["send", "receive"])
def test_every_channel_is_written_and_read_by_somebody(action):
    used = {one["channel"]["$ref"] for one in DOCUMENT["operations"].values() if one["action"] == action}
    assert used == {f"#/channels/{name}" for name in DOCUMENT["channels"]}


def test_every_topic_is_a_channel_under_its_own_name():
    """The addresses filled in are the topics of a site and of the cloud, no more and no less."""
    filled = []
    for name, channel in DOCUMENT["channels"].items():
        numbers = (
            DOCUMENT["components"]["parameters"]["priority"]["enum"] if "{priority}" in channel["address"] else [""]
        )
        address = channel["address"].replace("{site}", "site-1")
        filled += [(BY_NAME[name].tier, address.replace("{priority}", number)) for number in numbers]
    assert sorted(filled) == sorted((spec.tier, spec.name) for spec in SPECS)
    assert sorted(spec.name for flow in FLOWS for spec in specs_of(flow, "site-1")) == sorted(
        spec.name for spec in SPECS
    )


def test_topics_are_kept_as_they_are_created():
    for tier in Tier:
        wanted = {topic.name: topic for topic in wanted_topics(Layout("site-1", 6, 1000), tier)}
        for flow in (flow for flow in FLOWS if flow.tier is tier):
            binding = DOCUMENT["channels"][flow.name]["bindings"]["kafka"]
            said = binding["topicConfiguration"]
            for spec in specs_of(flow, "site-1"):
                topic = wanted[spec.name]
                assert said["cleanup.policy"] == [topic.configs.get("cleanup.policy", "delete")]
                assert (said.get("retention.ms") == -1) == (topic.configs.get("retention.ms") == "-1")
                assert str(said.get("max.message.bytes")) == topic.configs.get("max.message.bytes", "None")
                assert binding.get("partitions") == (None if topic.keyed else 1)


def test_every_published_record_lies_in_a_topic():
    assert {kind.payload for flow in FLOWS for kind in flow.records} == {"", *wire.PUBLISHED}
    assert {decoder.kind for decoder in vars(wire).values() if isinstance(decoder, wire.Decoder)} == {
        *wire.PUBLISHED.values()
    }


def test_versions_are_those_in_the_records():
    assert versions() == {
        "tg": headers.VERSION,
        **dict.fromkeys(("results", "ledger", "answers", "dispositions"), wire.VERSION),
        **dict.fromkeys(("positions", "forward_positions", "owner", "control", "aggregates")),
    }


READERS = {
    SITE.edge_group: "edge",
    SITE.settler_group: "settle",
    SITE.down_positions: "downlink",
    CLOUD_GROUP: "cloud",
    AGGREGATE_GROUP: "aggregate",
    SITE.up_positions: "uplink",
}


def test_readers_are_those_whose_positions_are_kept():
    """Whoever has a group or positions reads exactly that, and whole what tells it where it stands."""
    whole = {"edge": {SITE.control}, "downlink": {SITE.down_positions}, "uplink": {SITE.up_positions}}
    whole["aggregate"] = {"aggregates"}
    found = [reader for tier in Tier for reader in readers(Layout("site-1", 1, 1000), tier)]
    assert {reader.name for reader in found} == READERS.keys()
    for reader in found:
        who = READERS[reader.name]
        said = {spec.name for flow in FLOWS if who in flow.read_by for spec in specs_of(flow, "site-1")}
        assert said - whole.get(who, set()) == {topic for topic, _ in reader.partitions}


def test_a_site_s_login_may_do_in_the_cloud_what_its_forwarders_do():
    forwarders = {"uplink", "downlink"}
    for flow in (flow for flow in FLOWS if flow.tier is Tier.CLOUD):
        for spec in specs_of(flow, "site-1"):
            for operation, who in (("write", flow.written_by), ("read", flow.read_by)):
                allowed = any(rule.allows("topic", spec.name, operation) for rule in site_rules("site-1"))
                assert allowed == bool(forwarders & {*who}), (spec.name, operation)


def test_who_writes_and_reads_is_called_as_its_command():
    who = {name for flow in FLOWS for name in (*flow.written_by, *flow.read_by)}
    assert who == {*WRITERS, "topics", "audit", "dlq", USERS}
    assert {*STAGES} < {*ALL}


@pytest.mark.parametrize("name", sorted(read_all(FOLDER / GOLDEN)))
def test_the_golden_records_have_the_keys_and_headers_that_it_tells(name):
    golden = json.loads(read_all(FOLDER / GOLDEN)[name])
    message = DOCUMENT["components"]["messages"][golden["record"]]
    key = hidden(golden["key"])
    Draft202012Validator(message["bindings"]["kafka"]["key"]).validate(None if key is None else key.decode())
    assert {*message.get("headers", {}).get("required", ())} <= {one["name"] for one in golden["headers"]}
    channels = [one for one in DOCUMENT["channels"].values() if golden["record"] in one["messages"]]
    assert {*golden["topics"]} <= {one["address"] for one in channels}
    assert golden["topics"]


def test_examples_of_keys_are_as_they_tell():
    for message in DOCUMENT["components"]["messages"].values():
        key = message["bindings"]["kafka"]["key"]
        for example in [*key.get("examples", ()), *([key["const"]] if "const" in key else [])]:
            Draft202012Validator(key).validate(example)
