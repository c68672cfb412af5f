"""What is published stays: every kind of break, planted and refused, with the field and the rule in what is said."""

import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.ledger import Outcome
from scripts import publish_schemas
from scripts.compatibility import (
    APPEND,
    ASYNCAPI,
    DEFAULT,
    ENUM,
    GONE,
    NARROWER,
    NOT_NEEDED,
    STAYS,
    TOPIC,
    WIDER,
    breaks,
)
from scripts.publish_schemas import REMEDY, documents, published
from scripts.surface import fields

ROOT = Path(__file__).resolve().parents[2]
TODAY = {name: json.loads(text) for name, text in documents().items()}


class Inner(msgspec.Struct):
    kind: Outcome
    places: tuple[int, str]


class Record(msgspec.Struct):
    """What the planted breaks are made of."""

    version: int
    name: str
    position: int | str
    inner: list[Inner]
    share: float = 0.5
    word: str | None = None


def test_today_breaks_nothing_that_is_published():
    found = publish_schemas.broken(published(), documents())
    assert not found, "\n".join(["", *map(str, found), REMEDY])


def after(change):
    """What is found where `change` is done to the schema of `Record`."""
    old = {"record.json": msgspec.json.schema(Record)}
    new = copy.deepcopy(old)
    change(new["record.json"]["$defs"])
    return [(one.where.removeprefix("record.json: "), one.what, one.rule) for one in breaks(old, new)]


def put(*path, **changes):
    """A change of the words at a path of the schema; None takes a word away."""

    def change(defs):
        at = defs
        for step in path:
            at = at[step]
        at.update(changes)
        for word in [word for word, value in changes.items() if value is None]:
            del at[word]

    return change


def rename(defs):
    properties = defs["Record"]["properties"]
    properties["title"] = properties.pop("name")
    defs["Record"]["required"][1] = "title"


def remove(defs):
    del defs["Record"]["properties"]["inner"]


OF = ("Record", "properties")
OUTCOMES = sorted(Outcome)
PLANTED = {
    "removed": (remove, [("inner", "removed", GONE)]),
    "renamed": (rename, [("name", "removed", GONE), ("title", "new and required", NOT_NEEDED)]),
    "one type less": (put(*OF, "position", anyOf=[{"type": "string"}]), [("position", "no longer integer", NARROWER)]),
    "never null": (put(*OF, "word", anyOf=[{"type": "string"}]), [("word", "no longer null", NARROWER)]),
    "no fractions": (put(*OF, "share", type="integer"), [("share", "no longer number", NARROWER)]),
    "another type": (
        put(*OF, "name", type="integer"),
        [("name", "no longer string", NARROWER), ("name", "may now be integer", WIDER)],
    ),
    "a limit": (put(*OF, "name", maxLength=5), [("name", "limited: maxLength 5", NARROWER)]),
    "one type more": (put(*OF, "version", type=["integer", "null"]), [("version", "may now be null", WIDER)]),
    "fractions": (put(*OF, "version", type="number"), [("version", "may now be number", WIDER)]),
    "new and required": (
        lambda defs: (put(*OF, later={"type": "string"})(defs), defs["Record"]["required"].append("later")),
        [("later", "new and required", NOT_NEEDED)],
    ),
    "required": (
        lambda defs: defs["Record"]["required"].append("share"),
        [("share", "required now", NOT_NEEDED)],
    ),
    "may be missing": (
        lambda defs: defs["Record"]["required"].remove("name"),
        [("name", "may be missing now", STAYS)],
    ),
    "another default": (put(*OF, "share", default=1.0), [("share", "its default was 0.5 and is 1.0", DEFAULT)]),
    "an enum value less": (
        put("Outcome", enum=OUTCOMES[1:]),
        [("inner[].kind", "no longer knows answered_cloud", ENUM)],
    ),
    "an enum value renamed": (
        put("Outcome", enum=[*OUTCOMES[1:], "cloud"]),
        [("inner[].kind", "no longer knows answered_cloud", ENUM)],
    ),
    "no enum": (
        put("Outcome", enum=None, type="string"),
        [("inner[].kind", f"no longer one of {', '.join(OUTCOMES)}", WIDER)],
    ),
    "now an enum": (put(*OF, "name", enum=["a", "b"]), [("name", "only a, b now", NARROWER)]),
    "a place less": (
        lambda defs: defs["Inner"]["properties"]["places"].update(
            prefixItems=[{"type": "integer"}], minItems=1, maxItems=1
        ),
        [
            ("inner[].places", "no longer limited: maxItems 2", WIDER),
            ("inner[].places", "limited: maxItems 1", NARROWER),
            ("inner[].places[1]", "removed", APPEND),
        ],
    ),
}


@pytest.mark.parametrize(("change", "expected"), PLANTED.values(), ids=PLANTED)
def test_a_planted_break_is_refused(change, expected):
    assert after(change) == expected


ALLOWED = {
    "nothing": lambda defs: None,
    "an optional field": put(*OF, later={"type": "string", "default": ""}),
    "an enum value": put("Outcome", enum=[*OUTCOMES, "zzz"]),
    "words": put(*OF, "name", description="What it is called.", title="Name", examples=["a"]),
    "the order of types": put(*OF, "position", anyOf=[{"type": "string"}, {"type": "integer"}]),
}


@pytest.mark.parametrize("change", ALLOWED.values(), ids=ALLOWED)
def test_an_addition_is_allowed(change):
    assert after(change) == []


def with_places(change):
    """What is found where `change` is done to the places of `tg`."""
    new = copy.deepcopy(TODAY)
    header = new["tg.json"]["$defs"]["Header"]
    change(header["prefixItems"], header)
    return [(one.where, one.what, one.rule) for one in breaks(TODAY, new)]


def test_the_header_is_append_only():
    later = {"type": "string", "title": "later", "default": ""}
    assert with_places(lambda places, _: places.append(later)) == []
    assert with_places(lambda places, _: places.pop()) == [("tg.json: [15]", "removed", APPEND)]
    assert with_places(lambda places, _: places.insert(14, later)) == [
        ("tg.json: [14]", "was 'trace' and is 'later'", APPEND),
        ("tg.json: [15]", "was 'extra' and is 'trace'", APPEND),
    ]
    swapped = with_places(lambda places, _: places.__setitem__(slice(1, 3), [places[2], places[1]]))
    assert swapped == [
        ("tg.json: [1]", "was 'stream' and is 'epoch'", APPEND),
        ("tg.json: [2]", "was 'epoch' and is 'stream'", APPEND),
    ]
    required = {"type": "string", "title": "later"}
    assert with_places(lambda places, header: (places.append(required), header.update(minItems=17)))[-1] == (
        "tg.json: [16]",
        "new and required",
        NOT_NEEDED,
    )


def with_topics(change):
    """What is found where `change` is done to the AsyncAPI document."""
    new = copy.deepcopy(TODAY)
    change(new[ASYNCAPI]["channels"], new[ASYNCAPI]["components"]["messages"])
    found = breaks(TODAY, new)
    assert {one.rule for one in found} <= {TOPIC}
    return [f"{one.where}: {one.what}" for one in found]


def test_topics_stay():
    assert with_topics(lambda channels, _: channels.pop("edge.items")) == ["topic edge.items: removed"]
    assert with_topics(lambda channels, _: channels["edge.items"].update(address="{site}.frames")) == [
        "topic edge.items: name {site}.items is now {site}.frames"
    ]
    moved = [{"$ref": "#/servers/cloud"}]
    assert with_topics(lambda channels, _: channels["edge.items"].update(servers=moved)) == [
        "topic edge.items: cluster ['edge'] is now ['cloud']"
    ]
    assert with_topics(lambda channels, _: channels["edge.control"]["bindings"]["kafka"].update(partitions=2)) == [
        "topic edge.control: partitions 1 is now 2"
    ]
    kept = {"cleanup.policy": ["delete"]}
    changed = with_topics(
        lambda channels, _: channels["cloud.aggregates"]["bindings"]["kafka"].update(topicConfiguration=kept)
    )
    assert changed == [
        "topic cloud.aggregates: kept {'cleanup.policy': ['compact']} is now {'cleanup.policy': ['delete']}"
    ]


def test_keys_and_what_lies_under_them_stay():
    def key(message, **changes):
        return lambda _, messages: messages[message]["bindings"]["kafka"]["key"].update(changes)

    assert with_topics(key("credit", const="beat")) == [
        "topic edge.control: key of credit {'type': 'string', 'const': 'credit'} is now "
        "{'type': 'string', 'const': 'beat'}"
    ]
    assert with_topics(key("window", description="Another order.")) == []
    assert len(with_topics(key("item", type="null"))) == 3
    assert with_topics(lambda _, messages: messages["window"]["payload"].update({"$ref": "./results.json"})) == [
        "topic cloud.aggregates: value of window ./aggregates.json is now ./results.json"
    ]
    assert with_topics(lambda channels, _: channels["cloud.offload"]["messages"].pop("item")) != []
    assert with_topics(lambda _, messages: messages["dead_letter"]["headers"]["required"].pop(0)) == [
        f"topic {tier}.dead_letters: header tidegate-reason of dead_letter required is now gone"
        for tier in ("cloud", "edge")
    ]


def test_a_schema_that_is_gone_is_missed():
    new = {name: schema for name, schema in TODAY.items() if name != "owner.json"}
    assert [str(one) for one in breaks(TODAY, new)] == [f"owner.json: removed (rule: {GONE})"]


@pytest.mark.parametrize(
    ("raised", "free"),
    [
        ({}, set()),
        ({"tg": 2}, {"tg.json"}),
        ({"results": 2, "ledger": 2, "answers": 2}, {"results.json", "ledger.json", "answers.json"}),
        ({"tg": 0}, set()),
    ],
    ids=str,
)
def test_a_raised_version_allows_what_goes_by_it_and_nothing_else(raised, free):
    new = {ASYNCAPI: copy.deepcopy(TODAY[ASYNCAPI])}
    new[ASYNCAPI]["info"]["x-versions"].update(raised)
    assert {one.where for one in breaks(TODAY, new)} == TODAY.keys() - {ASYNCAPI} - free


def test_the_version_of_the_whole_allows_topics_and_what_carries_no_version():
    new = copy.deepcopy(TODAY)
    new[ASYNCAPI]["info"]["version"] = "2"
    del new[ASYNCAPI]["channels"]["edge.items"], new["positions.json"], new["tg.json"]
    assert [one.where for one in breaks(TODAY, new)] == ["tg.json"]


places = st.sampled_from(
    [
        (file, name, field)
        for file, schema in TODAY.items()
        if file != ASYNCAPI
        for name, one in schema["$defs"].items()
        for field in one.get("properties", ())
    ]
)


@given(places)
def test_no_field_of_any_record_can_go(place):
    file, name, field = place
    new = copy.deepcopy(TODAY)
    gone = new[file]["$defs"][name]
    del gone["properties"][field]
    found = breaks(TODAY, new)
    assert found
    assert {(one.rule, one.where.startswith(f"{file}: ")) for one in found} == {(GONE, True)}
    assert any(one.where.endswith(field) for one in found)


@given(st.sampled_from(sorted(TODAY.keys() - {ASYNCAPI})))
def test_a_table_has_every_field_once(file):
    text = json.dumps(TODAY[file])
    assert all(f'"{path.rpartition(".")[2]}"' in text for path in fields(TODAY[file]) if path and path[-1] != "]")


def test_a_schema_without_end_is_refused():
    loop = {"$ref": "#/$defs/A", "$defs": {"A": {"type": "array", "items": {"$ref": "#/$defs/A"}}}}
    with pytest.raises(ValueError, match="deep at"):
        fields(loop)
    with pytest.raises(ValueError, match="leads nowhere"):
        fields({"$ref": "#/$defs/A", "$defs": {"A": {"$ref": "#/$defs/A"}}})


def test_publishing_what_breaks_writes_nothing(tmp_path):
    publish_schemas.publish(tmp_path)
    assert published(tmp_path) == documents()
    promised = json.loads((tmp_path / "positions.json").read_text())
    promised["$defs"]["StreamPosition"]["properties"]["lost"] = {"type": "integer"}
    (tmp_path / "positions.json").write_text(json.dumps(promised))
    (tmp_path / "owner.json").unlink()
    before = published(tmp_path)
    assert [one.where for one in publish_schemas.publish(tmp_path)] == ["positions.json: lost"]
    assert published(tmp_path) == before


def test_publishing_may_be_done_again(tmp_path):
    publish_schemas.publish(tmp_path)
    first = {file: file.read_bytes() for file in tmp_path.rglob("*.json")}
    assert publish_schemas.publish(tmp_path) == []
    assert {file: file.read_bytes() for file in tmp_path.rglob("*.json")} == first


def test_the_script_says_field_rule_and_remedy(tmp_path):
    """In a copy of what it needs, where `reason` was taken from results."""
    for package in ("schemas", "scripts", "pipelines"):
        shutil.copytree(ROOT / package, tmp_path / package)
    results = tmp_path / "schemas" / "results.py"
    results.write_text(results.read_text().replace("    reason: str\n", "    why: str\n"))
    done = subprocess.run(
        [sys.executable, "-m", "scripts.publish_schemas"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines() == [
        "error: this breaks what is published, and nothing was written:",
        f"  results.json: results[].reason: removed (rule: {GONE})",
        f"  results.json: results[].why: new and required (rule: {NOT_NEEDED})",
        f"remedy: {REMEDY}",
    ]
