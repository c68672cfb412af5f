"""The AsyncAPI 3.0 document of all topics, from `schemas.flows`, `schemas.topics` and the published JSON Schemas."""

import re
from typing import Any

from pipelines.core.topic_plan import POLICY, RECORD_BYTES, RETENTION, base_configs
from schemas import flows, headers, wire
from schemas.dead_letters import DROPPED, RETRIED
from schemas.flows import FLOWS, Flow, Key, RecordKind, specs_of
from schemas.topics import PRIORITIES, SITE_NAME, Tier, TopicSpec

Document = dict[str, Any]

BINDING = {"bindingVersion": "0.5.0"}
SITE, PRIORITY = "{site}", "{priority}"

ABOUT = """What Tidegate writes to Kafka and reads from it, at an edge site and in the cloud. Records are written in \
transactions: read them `read_committed`. Payload schemas are JSON Schema 2020-12. A reader passes over fields and \
enum values that it does not know; see docs/records.md."""

SERVERS = {
    Tier.EDGE: "The Kafka of an edge site: `kafka.edge` in the pipeline file.",
    Tier.CLOUD: "The Kafka of the cloud: `kafka.cloud` in the pipeline file. It may be the same as the site's.",
}

HEADERS: dict[str, Document] = {
    headers.CONTENT_TYPE: {"type": "string", "description": "Of the value.", "examples": ["image/jpeg"]},
    headers.TG: {
        "type": "string",
        "format": "binary",
        "contentMediaType": "application/msgpack",
        "description": "A MessagePack array; tg.json is the schema of what it holds.",
        "x-decoded": {"$ref": "./tg.json"},
    },
    headers.REASON: {"type": "string", "description": "Why: a bounded word.", "examples": ["undecodable", "foreign"]},
    headers.FROM: {
        "type": "string",
        "description": "Topic, partition and offset, or the file, that it came from.",
        "examples": ["site-1.items[3]@17"],
    },
    headers.DISPOSITION: {"type": "string", "description": "What was decided.", "examples": [RETRIED, DROPPED]},
}

PARAMETERS: Document = {
    "site": {
        "description": f"The site's name: {SITE_NAME.pattern}",
        "default": "site-1",
        "examples": ["site-1"],
    },
    "priority": {
        "description": "0 goes first.",
        "enum": [str(number) for number in range(PRIORITIES)],
    },
}


def document() -> Document:
    """All of it."""
    kinds = {kind.name: kind for flow in FLOWS for kind in flow.records}
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Tidegate",
            "version": str(flows.VERSION),
            "description": ABOUT,
            "license": {"name": "Apache-2.0"},
            "x-versions": versions(),
        },
        "defaultContentType": "application/json",
        "servers": {tier.value: _server(tier) for tier in Tier},
        "channels": {flow.name: _channel(flow) for flow in FLOWS},
        "operations": dict(operation for flow in FLOWS for operation in _operations(flow)),
        "components": {
            "messages": {name: _message(kind) for name, kind in kinds.items()},
            "parameters": PARAMETERS,
        },
    }


def versions() -> dict[str, int | None]:
    """The version in each record, by the name of its schema; None where it carries none."""
    batches = {name: "version" in kind.__struct_fields__ for name, kind in wire.PUBLISHED.items()}
    return {"tg": headers.VERSION, **{name: wire.VERSION if own else None for name, own in batches.items()}}


def address(spec: TopicSpec) -> str:
    """The name of a topic of the site `{site}`, with its priority left open."""
    return re.sub(r"\.p\d$", f".p{PRIORITY}", spec.name)


def _server(tier: Tier) -> Document:
    return {
        "host": "{bootstrap}",
        "protocol": "kafka",
        "description": SERVERS[tier],
        "variables": {"bootstrap": {"description": "Its bootstrap address.", "default": "localhost:9092"}},
    }


def _channel(flow: Flow) -> Document:
    spec = specs_of(flow, SITE)[0]
    topic = address(spec)
    parameters = [name for name in PARAMETERS if f"{{{name}}}" in topic]
    return {
        "address": topic,
        "summary": flow.about,
        "servers": [{"$ref": f"#/servers/{flow.tier}"}],
        **({"parameters": {name: _ref("parameters", name) for name in parameters}} if parameters else {}),
        "messages": {kind.name: _ref("messages", kind.name) for kind in flow.records},
        "bindings": {"kafka": _topic(spec)},
    }


def _topic(spec: TopicSpec) -> Document:
    """What is the same in every pipeline; how many partitions a keyed topic has, and how long it is kept, is not."""
    configs = base_configs(spec, retention_ms=0)
    kept: Document = {POLICY: [configs.get(POLICY, "delete")]}
    if spec.forever:
        kept[RETENTION] = int(configs[RETENTION])
    if RECORD_BYTES in configs:
        kept[RECORD_BYTES] = int(configs[RECORD_BYTES])
    partitions: Document = {"x-partitions": "`partitions` of the pipeline"} if spec.keyed else {"partitions": 1}
    return {**partitions, "topicConfiguration": kept, **BINDING}


def _message(kind: RecordKind) -> Document:
    names = (*kind.headers, *kind.may_have)
    schema: Document = {"type": "object", "properties": {name: HEADERS[name] for name in names}}
    payload: Document = {"$ref": f"./{kind.payload}.json"}
    if not kind.payload:
        payload = {"type": "string", "format": "binary", "description": "Bytes as the header `content-type` says."}
    return {
        "title": kind.name.replace("_", " ").capitalize(),
        "summary": kind.about,
        "contentType": "application/json" if kind.payload else "application/octet-stream",
        **({"headers": {**schema, "required": list(kind.headers)}} if names else {}),
        "payload": payload,
        "bindings": {"kafka": {"key": _key(kind.key), **BINDING}},
    }


def _key(key: Key) -> Document:
    kinds = [name for name, there in (("string", key.present), ("null", key.absent)) if there]
    schema: Document = {"type": kinds[0] if len(kinds) == 1 else kinds, "description": key.about}
    if key.fixed:
        schema["const"] = key.example
    elif key.example:
        schema["examples"] = [key.example]
    return schema


def _operations(flow: Flow) -> list[tuple[str, Document]]:
    sides = [("send", who) for who in flow.written_by] + [("receive", who) for who in flow.read_by]
    return [
        (
            f"{who}.{action}.{flow.name}",
            {"action": action, "channel": {"$ref": f"#/channels/{flow.name}"}, "tags": [{"name": who}]},
        )
        for action, who in sides
    ]


def _ref(kind: str, name: str) -> Document:
    return {"$ref": f"#/components/{kind}/{name}"}
