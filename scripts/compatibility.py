"""What of a published surface is broken by another: pure, on the published JSON documents as parsed.

A change is compatible where old readers take new records and new readers old ones, as long as readers pass over fields
and enum values that they do not know. Whatever is not known to be compatible is a break.

Operation: `scripts.surface` makes a flat table of each document, and tables are compared line by line. A deliberate
break raises a version: a record's own where it carries one, else that of the whole (`info.version` in asyncapi.json);
what was raised is not compared.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from scripts.surface import Field, Schema, fields, parent, topics

Documents = Mapping[str, Schema]
"""Parsed JSON by file name."""

ASYNCAPI = "asyncapi.json"


class Break(NamedTuple):
    """One broken promise."""

    where: str
    """The file and field, or the topic."""
    what: str
    rule: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what} (rule: {self.rule})"


GONE = "nothing published is removed or renamed"
NARROWER = "no type is narrowed: records that were written must stay readable"
WIDER = "no type is widened: those who read today must be able to read on"
NOT_NEEDED = "no new field is required: records that were written do not have it"
STAYS = "a field that was always there stays so"
DEFAULT = "a default stays: it is what a missing field means"
APPEND = "arrays are append-only"
ENUM = "enum values are only added"
TOPIC = "names, clusters, keys and kinds of retention of topics stay"


def breaks(old: Documents, new: Documents) -> list[Break]:
    """What `new` breaks of `old`."""
    versions, raised = _versions(old), _versions(new)
    found: list[Break] = []
    for file, schema in old.items():
        if _is_raised(file, versions, raised):
            continue
        if file not in new:
            found.append(Break(file, "removed", GONE))
        elif file == ASYNCAPI:
            found += _topic_breaks(topics(schema), topics(new[file]))
        else:
            found += _field_breaks(file, fields(schema), fields(new[file]))
    return found


def _versions(documents: Documents) -> dict[str, int]:
    if ASYNCAPI not in documents:
        return {}
    info = documents[ASYNCAPI]["info"]
    own = {f"{name}.json": version for name, version in info["x-versions"].items() if version is not None}
    return {ASYNCAPI: int(info["version"]), **own}


def _is_raised(file: str, old: Mapping[str, int], new: Mapping[str, int]) -> bool:
    """Whether the version that `file` goes by was raised."""
    name = file if file in old else ASYNCAPI
    return name in old and new.get(name, 0) > old[name]


def _field_breaks(file: str, old: Mapping[str, Field], new: Mapping[str, Field]) -> list[Break]:
    found: list[Break] = []
    moved: set[str] = set()
    for path, was in old.items():
        where = f"{file}: {path or 'the whole'}"
        if parent(path) in moved:
            moved.add(path)  # What it was part of is another thing now, which is said once.
        elif path in new and was.name not in ("", new[path].name):
            moved.add(path)
            found.append(Break(where, f"was '{was.name}' and is '{new[path].name}'", APPEND))
        elif path in new:
            found += [Break(where, what, rule) for what, rule in _differences(was, new[path])]
        elif parent(path) in new:  # Else what it was part of is gone, which is said once.
            found.append(Break(where, "removed", APPEND if path.endswith("]") else GONE))
    found += [
        Break(f"{file}: {path}", "new and required", NOT_NEEDED)
        for path, field in new.items()
        if path not in old and field.required and parent(path) in old.keys() - moved and not path.endswith("[]")
    ]
    return found


def _differences(was: Field, now: Field) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    lost, won = _beyond(was.types, now.types), _beyond(now.types, was.types)
    if lost:
        found.append((f"no longer {_list(lost)}", NARROWER))
    if won:
        found.append((f"may now be {_list(won)}", WIDER))
    if was.enum is None and now.enum is not None:
        found.append((f"only {_list(now.enum)} now", NARROWER))
    elif was.enum is not None and now.enum is None:
        found.append((f"no longer one of {_list(was.enum)}", WIDER))
    elif was.enum is not None and now.enum is not None and was.enum - now.enum:
        found.append((f"no longer knows {_list(was.enum - now.enum)}", ENUM))
    if was.limits - now.limits:
        found.append((f"no longer limited: {_list(was.limits - now.limits)}", WIDER))
    if now.limits - was.limits:
        found.append((f"limited: {_list(now.limits - was.limits)}", NARROWER))
    if now.required and not was.required:
        found.append(("required now", NOT_NEEDED))
    if was.required and not now.required:
        found.append(("may be missing now", STAYS))
    elif not _goes_on(was.default, now.default):
        found.append((f"its default was {was.default!r} and is {now.default!r}", DEFAULT))
    return found


def _goes_on(was: Any, now: Any) -> bool:
    """Whether a default is still the same, but for what was added to it."""
    if isinstance(was, list) and isinstance(now, list):
        return len(was) <= len(now) and all(_goes_on(*pair) for pair in zip(was, now, strict=False))
    if isinstance(was, Mapping) and isinstance(now, Mapping):
        return all(name in now and _goes_on(value, now[name]) for name, value in was.items())
    return type(was) is type(now) and bool(was == now)


def _beyond(some: frozenset[str], others: frozenset[str]) -> frozenset[str]:
    """Types that `others` do not take; a number may be an integer."""
    return some - others - ({"integer"} if "number" in others else set())


def _list(names: frozenset[str]) -> str:
    return ", ".join(sorted(names))


def _topic_breaks(old: Mapping[str, Mapping[str, Any]], new: Mapping[str, Mapping[str, Any]]) -> list[Break]:
    found: list[Break] = []
    for topic, facts in old.items():
        if topic not in new:
            found.append(Break(f"topic {topic}", "removed", TOPIC))
            continue
        found += [
            Break(f"topic {topic}", f"{fact} {value} is now {new[topic].get(fact, 'gone')}", TOPIC)
            for fact, value in facts.items()
            if new[topic].get(fact) != value
        ]
    return found
