"""Golden records: bytes of every kind of record beside what they mean, one JSON file each, for any language to test by.

Format of `schemas/published/golden/NAME.N.json`
    about      what it is
    record     its kind, as in asyncapi.json               topics   where such records lie, as in asyncapi.json
    written    whether Tidegate writes it; else it only reads it
    key        null, or {"text": UTF-8} or {"hex": bytes}
    headers    [{"name", "value"}], the value as the key
    value      as the key
    reads_as   what a reader makes of it: `value` and headers decoded, with the default of each field that is not there

N counts what was written over time. A file that is there is never changed but in its words: where today's code writes
other bytes, that is the next N, and the records of all earlier ones must still be read as their `reads_as` says. A file
without N is not held so: it shows today's readers what may come.
"""

import base64
import json
import re
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import msgspec

from schemas import headers, wire
from schemas.errors import ForeignRecord, UnknownVersion
from schemas.flows import FLOWS, RecordKind, specs_of
from schemas.headers import FROM, REASON, TG, RecordHeaders
from scripts.asyncapi import SITE, address

Content = bytes | None

_PLAIN_LIST = re.compile(r"\[\n([^][{}]*)\n *\]")


class Golden(msgspec.Struct, frozen=True):
    """A record, and the words about it."""

    name: str
    kind: RecordKind
    about: str
    key: Content
    value: bytes
    headers: RecordHeaders = ()
    where: tuple[str, ...] = ()
    """Names of flows, where not all that carry its kind have such records."""
    written: bool = True
    numbered: bool = True

    @property
    def content(self) -> dict[str, Any]:
        """Its bytes, as the file has them."""
        return {
            "key": shown(self.key),
            "headers": [{"name": name, "value": shown(_bytes(value))} for name, value in self.headers],
            "value": shown(self.value),
        }


def text_of(golden: Golden) -> str:
    """The text of its file."""
    flows = [flow for flow in FLOWS if golden.kind in flow.records and (not golden.where or flow.name in golden.where)]
    whole = {
        "about": golden.about,
        "record": golden.kind.name,
        "topics": [address(specs_of(flow, SITE)[0]) for flow in flows],
        "written": golden.written,
        **golden.content,
        "reads_as": plain(read(golden.kind.name, golden.headers, golden.value)),
    }
    text = json.dumps(whole, indent=2, ensure_ascii=False)
    # Lists of plain values on one line. A line break is never part of a text in JSON.
    return _PLAIN_LIST.sub(lambda match: f"[{' '.join(match[1].split())}]", text) + "\n"


def files(goldens: Sequence[Golden], published: Mapping[str, str]) -> dict[str, str]:
    """Name and text of each file to be written; `published` are those that are there."""
    out: dict[str, str] = {}
    for golden in goldens:
        if not golden.numbered:
            out[f"{golden.name}.json"] = text_of(golden)
            continue
        number = latest(golden.name, published)
        if not number or _changed(golden, json.loads(published[f"{golden.name}.{number}.json"])):
            number += 1
        out[f"{golden.name}.{number}.json"] = text_of(golden)
    return out


def _changed(golden: Golden, there: Mapping[str, Any]) -> bool:
    """Whether the bytes are others, or the same are read otherwise: then what was meant must stay to be seen."""
    other = any(there[part] != content for part, content in golden.content.items())
    return other or bool(differences(there["reads_as"], read(golden.kind.name, golden.headers, golden.value)))


def latest(name: str, published: Mapping[str, str]) -> int:
    """The highest N of a golden; 0 where there is none."""
    found = (re.fullmatch(rf"{name}\.(\d+)\.json", file) for file in published)
    return max((int(match[1]) for match in found if match), default=0)


def read_all(folder: Path) -> dict[str, str]:
    """Text of every golden file by its name."""
    return {file.name: file.read_text("utf-8") for file in sorted(folder.glob("*.json"))}


def read(record: str, given: RecordHeaders, value: bytes) -> Any:
    """What today's code makes of a record of this kind."""
    if record in ("item", "dead_letter"):
        names = {name: (_bytes(content) or b"").decode() for name, content in given if name != TG}
        kept = {name: names[name] for name in (headers.CONTENT_TYPE, REASON, FROM) if name in names}
        try:
            return {**kept, TG: headers.find(given)}
        except UnknownVersion as error:
            return {**kept, "error": "UnknownVersion", "account": list(error.account)}
        except ForeignRecord:
            return {**kept, "error": "ForeignRecord"}
    payload = next(kind.payload for flow in FLOWS for kind in flow.records if kind.name == record)
    decoders = [one for one in vars(wire).values() if isinstance(one, wire.Decoder)]
    return next(one for one in decoders if one.kind is wire.PUBLISHED[payload])(value)


def plain(value: Any) -> Any:
    """A value as JSON has it, no default left out: structs are objects or arrays, bytes base64."""
    if isinstance(value, msgspec.Struct):
        fields = {name: plain(getattr(value, name)) for name in value.__struct_fields__}
        return list(fields.values()) if value.__struct_config__.array_like else fields
    if isinstance(value, Mapping):
        return {name: plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, Enum):
        return value.value
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value


def differences(expected: Any, found: Any, where: str = "") -> list[str]:
    """Where `found`, a value as read today, is not as `expected` says. Fields that were added since are passed over."""
    if isinstance(found, msgspec.Struct):
        names = found.__struct_fields__
        if isinstance(expected, list) and len(expected) <= len(names):
            expected = dict(zip(names, expected, strict=False))
        found = {name: getattr(found, name) for name in names}
    if isinstance(expected, dict) and isinstance(found, Mapping):
        gone = [f"{where}.{name}: gone" for name in expected if name not in found]
        same = [name for name in expected if name in found]
        return gone + [one for name in same for one in differences(expected[name], found[name], f"{where}.{name}")]
    if isinstance(expected, list) and isinstance(found, list | tuple) and len(expected) == len(found):
        pairs = enumerate(zip(expected, found, strict=True))
        return [one for number, (old, new) in pairs for one in differences(old, new, f"{where}[{number}]")]
    return [] if plain(found) == expected else [f"{where}: {plain(found)!r} where {expected!r} was written"]


def shown(content: Content) -> dict[str, str] | None:
    """Bytes for a person: as text where they are printable, else as hex."""
    if content is None:
        return None
    try:
        text = content.decode()
    except UnicodeDecodeError:
        text = "\0"
    return {"text": text} if text.isprintable() else {"hex": content.hex()}


def hidden(content: Mapping[str, str] | None) -> Content:
    """The bytes again."""
    if content is None:
        return None
    return content["text"].encode() if "text" in content else bytes.fromhex(content["hex"])


def _bytes(content: str | bytes | None) -> Content:
    return content.encode() if isinstance(content, str) else content
