"""The published surface as flat tables: a line a field of a JSON Schema (`results[].outcome`), a line a topic. Pure."""

from collections.abc import Mapping
from typing import Any, NamedTuple

Schema = Mapping[str, Any]

DEPTH_MOST = 32
"""Of a schema: one that refers to itself has no end."""

# Words of a schema that limit nothing, or become lines of the table; all others are limits.
_STRUCTURE = {"type", "properties", "required", "prefixItems", "anyOf", "enum", "default"}
_WORDS = {"title", "description", "examples", "$schema", "$defs", "$ref"}


class Field(NamedTuple):
    """What a schema says of one place."""

    types: frozenset[str]
    required: bool
    default: Any
    enum: frozenset[str] | None
    limits: frozenset[str]
    name: str
    """Of a place in an array."""


def fields(schema: Schema) -> dict[str, Field]:
    """Every place of a JSON Schema by its path; "" is the whole. Raises `ValueError` where it has no end."""
    table: dict[str, Field] = {}
    _walk(schema, schema.get("$defs", {}), "", table, required=True, depth=0)
    return table


def _walk(schema: Schema, defs: Schema, path: str, table: dict[str, Field], *, required: bool, depth: int) -> None:
    if depth > DEPTH_MOST:
        raise ValueError(f"the schema nests more than {DEPTH_MOST} deep at {path}")
    whole = _resolved(schema, defs)
    branches = [_resolved(branch, defs) for branch in whole.get("anyOf", [whole])]
    enums = [frozenset(map(str, branch["enum"])) for branch in branches if "enum" in branch]
    table[path] = Field(
        types=frozenset(kind for branch in branches for kind in _types(branch)),
        required=required,
        default=whole.get("default", ...),
        enum=frozenset().union(*enums) if enums else None,
        limits=frozenset(limit for branch in (whole, *branches) for limit in _limits(branch)),
        name=str(schema.get("title", "")) if path.endswith("]") else "",
    )
    for branch in branches:
        for name, one in branch.get("properties", {}).items():
            inner = f"{path}.{name}" if path else name
            needed = name in branch.get("required", ())
            _walk(one, defs, inner, table, required=needed, depth=depth + 1)
        for number, one in enumerate(branch.get("prefixItems", ())):
            needed = number < branch.get("minItems", 0)
            _walk(one, defs, f"{path}[{number}]", table, required=needed, depth=depth + 1)
        if isinstance(branch.get("items"), Mapping):
            _walk(branch["items"], defs, f"{path}[]", table, required=True, depth=depth + 1)


def _resolved(schema: Schema, defs: Schema) -> Schema:
    """What a `$ref` into `$defs` names, with what stands beside it."""
    seen = 0
    while "$ref" in schema:
        beside = {word: value for word, value in schema.items() if word != "$ref"}
        schema = {**defs[str(schema["$ref"]).removeprefix("#/$defs/")], **beside}
        if (seen := seen + 1) > DEPTH_MOST:
            raise ValueError(f"`$ref` leads nowhere: {schema}")
    return schema


def _types(branch: Schema) -> list[str]:
    kind = branch.get("type", "string" if "enum" in branch else "anything")
    return [kind] if isinstance(kind, str) else list(kind)


def _limits(branch: Schema) -> list[str]:
    apart = {*_STRUCTURE, *_WORDS, *(["minItems"] if "prefixItems" in branch else [])}
    every = [(word, value) for word, value in branch.items() if word not in apart]
    return [f"{word} {value}" for word, value in every if not (word == "items" and isinstance(value, Mapping))]


def topics(document: Schema) -> dict[str, dict[str, Any]]:
    """Of each channel of an AsyncAPI document what must stay: a table of plain values."""
    messages = document["components"]["messages"]
    table: dict[str, dict[str, Any]] = {}
    for name, channel in document["channels"].items():
        kafka = channel["bindings"]["kafka"]
        table[name] = {
            "name": channel["address"],
            "cluster": [server["$ref"].rpartition("/")[2] for server in channel["servers"]],
            "kept": {word: value for word, value in kafka["topicConfiguration"].items() if word != "max.message.bytes"},
            "partitions": kafka.get("partitions"),
        }
        for message in channel["messages"]:
            key = messages[message]["bindings"]["kafka"]["key"]
            table[name][f"key of {message}"] = {word: key[word] for word in ("type", "const") if word in key}
            table[name][f"value of {message}"] = messages[message]["payload"].get("$ref")
            for header in messages[message].get("headers", {}).get("required", ()):
                table[name][f"header {header} of {message}"] = "required"
    return table


def parent(path: str) -> str:
    """What a place is part of."""
    return path[: path.rindex("[")] if path.endswith("]") else path.rpartition(".")[0]
