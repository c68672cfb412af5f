"""The JSON Schemas of all records: of JSON ones as msgspec has them, of the header `tg` with a name for each place."""

import ast
import inspect
import textwrap
from itertools import pairwise
from typing import Any

import msgspec

from schemas import headers
from schemas.wire import PUBLISHED

Schema = dict[str, Any]

# What `headers.decode` checks beyond types; a test holds the two together.
TG_LIMITS: dict[str, Schema] = {
    "version": {"const": headers.VERSION},
    "stream": {"minLength": 1},
    "first_seq": {"minimum": 0},
    "count": {"minimum": 1, "maximum": headers.COUNT_MOST},
    "priority": {"minimum": 0, "maximum": 2},
}

ABOUT = """The record header `tg`, a MessagePack array, as decoded. The first five places mean the same in every \
version; later versions append and never reorder. Places from the tenth on may be missing, and then hold their \
default. Longer arrays and unknown keys of `extra` are from later writers: pass over what you do not know. Times are \
microseconds since the Unix epoch on the producer's clock. `trace` is a MessagePack bin; where this schema is held \
against JSON it is base64."""

# Where the field has no words of its own in `schemas/headers.py`, or too few for who reads nothing else.
TG_WORDS = {
    "version": "Of this array. In a later version only the first five places can be relied on.",
    "stream": "The camera or sensor; also the record's key.",
    "epoch": "Grows when a stream had to begin anew; milliseconds since the Unix epoch.",
    "first_seq": "Of the first item in this record. Items of an epoch are numbered from 0 without a gap.",
    "count": "Items in this record.",
    "capture_us": "When it was captured.",
    "codec": "What decodes the payload.",
    "params": "How the payload is to be decoded: shape of the array (empty where the payload says it), dtype, rung.",
    "gate_score": "What the gate made of it; null where no gate looked.",
    "trace": "Of a sampled share; null in all others.",
    "extra": "What only some records have.",
}


def record_schemas() -> dict[str, Schema]:
    """Each schema by file name."""
    schemas = {f"{name}.json": _schema(kind) for name, kind in PUBLISHED.items()}
    return {**schemas, "tg.json": tg_schema()}


def tg_schema() -> Schema:
    """The schema of the array, its places named and explained as the fields of `Header` are."""
    schema = _schema(headers.Header)
    for kind in (headers.Header, headers.Params, headers.Origin, headers.Extra):
        _explain(schema["$defs"][kind.__name__], kind)
    header = schema["$defs"]["Header"]
    header["description"] = ABOUT
    for place in header["prefixItems"]:
        name = place["title"]
        place.update({"description": TG_WORDS[name]} if name in TG_WORDS else {})
        place.update(TG_LIMITS.get(name, {}))
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _schema(kind: type) -> Schema:
    """As msgspec makes it, its texts without the indentation of our source, which Python leaves out since 3.13."""
    schema = msgspec.json.schema(kind)
    for one in schema["$defs"].values():
        if "description" in one:
            one["description"] = inspect.cleandoc(one["description"])
    return schema


def _explain(schema: Schema, kind: type[msgspec.Struct]) -> None:
    docs = field_docs(kind)
    if kind.__struct_config__.array_like:
        for name, place in zip(kind.__struct_fields__, schema["prefixItems"], strict=True):
            place.update({"title": name, **({"description": docs[name]} if name in docs else {})})
    else:
        for name, doc in docs.items():
            schema["properties"][name]["description"] = doc


def field_docs(kind: type) -> dict[str, str]:
    """The text that stands below each field of a class, on one line."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    body = next(node for node in tree.body if isinstance(node, ast.ClassDef)).body
    return {
        field.target.id: " ".join(below.value.value.split())
        for field, below in pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) and isinstance(below.value.value, str)
    }
