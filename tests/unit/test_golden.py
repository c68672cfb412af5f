"""Golden records: what was ever written is read as it was meant, and today's code writes the latest of each."""

import base64
import json
from pathlib import Path

import msgspec
import pytest
from jsonschema import Draft202012Validator

from schemas import headers, wire
from schemas.errors import ForeignRecord
from schemas.flows import FLOWS, OWNER
from schemas.headers import COUNT_MOST, TG, VERSION, Header, Params
from schemas.positions import Owner
from scripts.golden import Golden, differences, files, hidden, latest, plain, read, read_all, shown
from scripts.golden_records import NEWER, goldens
from scripts.publish_schemas import FOLDER, GOLDEN
from scripts.record_schemas import TG_LIMITS, record_schemas, tg_schema

PUBLISHED = {name: json.loads(text) for name, text in read_all(FOLDER / GOLDEN).items()}
KINDS = {kind.name: kind for flow in FLOWS for kind in flow.records}
SCHEMAS = {name: Draft202012Validator(schema) for name, schema in record_schemas().items()}


def record_of(golden):
    """Kind, headers and value of a golden file."""
    return (
        golden["record"],
        [(header["name"], hidden(header["value"])) for header in golden["headers"]],
        hidden(golden["value"]),
    )


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_was_ever_written_is_read_as_it_was_meant(name):
    golden = PUBLISHED[name]
    assert differences(golden["reads_as"], read(*record_of(golden))) == []


@pytest.mark.parametrize("golden", goldens(), ids=lambda golden: golden.name)
def test_today_s_code_writes_the_latest(golden):
    number = latest(golden.name, PUBLISHED)
    file = f"{golden.name}.{number}.json" if golden.numbered else f"{golden.name}.json"
    there = PUBLISHED.get(file, {})
    assert {part: there.get(part) for part in golden.content} == golden.content, "run `make schemas`"


def test_the_files_are_up_to_date_in_their_words():
    texts = read_all(FOLDER / GOLDEN)
    assert {name: texts.get(name) for name in files(goldens(), texts)} == files(goldens(), texts), "run `make schemas`"


def test_every_kind_of_record_has_a_golden():
    assert {golden["record"] for golden in PUBLISHED.values()} == KINDS.keys()


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_it_reads_as_is_as_the_schemas_say(name):
    """The header as its array, everything else as the text that lies in Kafka."""
    golden = PUBLISHED[name]
    payload = KINDS[golden["record"]].payload
    if payload:
        SCHEMAS[f"{payload}.json"].validate(json.loads(golden["value"]["text"]))
        SCHEMAS[f"{payload}.json"].validate(golden["reads_as"])
    elif TG in golden["reads_as"]:
        SCHEMAS["tg.json"].validate(golden["reads_as"][TG])


def test_a_newer_version_is_accounted_for_by_five_places():
    golden = PUBLISHED["item_newer_version.1.json"]
    tg = dict(record_of(golden)[1])[TG]
    assert msgspec.msgpack.decode(tg)[:5] == golden["reads_as"]["account"]
    assert golden["reads_as"] == {
        "content-type": "application/octet-stream",
        "error": "UnknownVersion",
        "account": [NEWER, "cam-00", 1_795_462_365_208, 3, 2],
    }
    assert VERSION < NEWER
    assert not SCHEMAS["tg.json"].is_valid(msgspec.msgpack.decode(tg))


GOOD = Header(VERSION, "cam-00", 7, 3, 1, 10, 20, 1, "raw", Params((2, 3)))


@pytest.mark.parametrize(
    "change",
    [{"count": 0}, {"count": COUNT_MOST + 1}, {"first_seq": -1}, {"stream": ""}, {"priority": 3}, {"priority": -1}],
    ids=str,
)
def test_the_schema_of_the_header_has_the_limits_of_the_code(change):
    assert change.keys() <= TG_LIMITS.keys()
    assert SCHEMAS["tg.json"].is_valid(plain(GOOD))
    bad = msgspec.structs.replace(GOOD, **change)
    assert not SCHEMAS["tg.json"].is_valid(plain(bad))
    with pytest.raises(ForeignRecord):
        headers.decode(headers.encode(bad))


def test_limits_are_met_exactly():
    for change in ({"count": 1}, {"count": COUNT_MOST}, {"first_seq": 0}, {"priority": 0}, {"priority": 2}):
        edge = msgspec.structs.replace(GOOD, **change)
        assert SCHEMAS["tg.json"].is_valid(plain(edge))
        assert headers.decode(headers.encode(edge)) == edge


def test_every_place_of_the_header_is_named_and_explained():
    definitions = tg_schema()["$defs"]
    assert [place["title"] for place in definitions["Header"]["prefixItems"]] == list(Header.__struct_fields__)
    assert all(place["description"] for place in definitions["Header"]["prefixItems"])
    assert definitions["Header"]["minItems"] == 9


OWNERS = [Golden("owner", OWNER, "Somebody.", b"owner", wire.encode(Owner("a", 7)))]


def test_other_bytes_become_another_file_and_the_first_stays():
    first = files(OWNERS, {})
    assert list(first) == ["owner.1.json"]
    again = [msgspec.structs.replace(OWNERS[0], about="Somebody else.")]
    assert list(files(again, first)) == ["owner.1.json"]
    assert json.loads(files(again, first)["owner.1.json"])["about"] == "Somebody else."
    changed = [msgspec.structs.replace(OWNERS[0], value=wire.encode(Owner("a", 8)))]
    assert list(files(changed, first)) == ["owner.2.json"]
    assert list(files(changed, first | files(changed, first))) == ["owner.2.json"]
    assert list(files([msgspec.structs.replace(changed[0], numbered=False)], first)) == ["owner.json"]


def test_the_same_bytes_read_otherwise_do_not_change_what_was_meant():
    first = files(OWNERS, {})
    meant = {"owner.1.json": first["owner.1.json"].replace('"instance": "a"', '"instance": "b"')}
    assert meant != first
    assert list(files(OWNERS, meant)) == ["owner.2.json"]


def test_names_that_begin_alike_are_numbered_apart():
    assert latest("item", {"item.1.json": "", "item_later.3.json": "", "item.json": ""}) == 1
    assert latest("item", {}) == 0


def test_differences_are_named_and_what_was_added_is_passed_over():
    position = wire.decode_stream_position(b'{"epoch":7,"next_seq":4,"source_position":3}')
    assert differences({"epoch": 7, "next_seq": 4}, position) == []
    assert differences({"epoch": 8, "lost": 1}, position) == [
        ".lost: gone",
        ".epoch: 7 where 8 was written",
    ]
    assert differences([1, "cam-00", 7], GOOD) == []
    assert differences([1, "cam-00", 8], GOOD) == [".epoch: 7 where 8 was written"]
    assert differences([*plain(GOOD)[:9], [[2, 4]]], GOOD) == [".params.shape[1]: 3 where 4 was written"]
    assert differences([*plain(GOOD), "more"], GOOD) != []
    assert differences({"tg": [1]}, {"error": "ForeignRecord"}) == [".tg: gone"]
    assert differences([1, 2], (1, 2, 3)) != []


@pytest.mark.parametrize("content", [None, b"", b"cam-00", '"é"'.encode(), b"a\nb", b"\xff\x00", b"\x00"], ids=str)
def test_bytes_are_shown_and_found_again(content):
    assert hidden(shown(content)) == content


def test_another_program_can_read_them():
    """With no code of ours: MessagePack and JSON are all that it takes."""
    for file in sorted(Path(FOLDER / GOLDEN).glob("item*.json")):
        golden = json.loads(file.read_text("utf-8"))
        raw = next(bytes.fromhex(one["value"]["hex"]) for one in golden["headers"] if one["name"] == "tg")
        places = msgspec.msgpack.decode(raw)
        expected = golden["reads_as"].get("tg") or golden["reads_as"]["account"]
        assert places[:5] == expected[:5]
        if len(places) > 14 and places[14] is not None:
            assert base64.b64encode(places[14]).decode() == expected[14]
