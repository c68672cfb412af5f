"""The bytes of the records that `test_published.py` leaves out, as literals: what was written must stay readable."""

import msgspec
import pytest

from schemas import headers, wire
from schemas.aggregates import Window, window_key
from schemas.control import CREDIT_KEY, Credit, producer_key
from schemas.errors import ForeignRecord
from schemas.headers import Extra, Header, Origin, Params
from schemas.positions import OWNER_KEY, Owner, StreamPosition, forward_key, owner_id

WINDOW = Window("dock", "cam-00", "4", 10, 5, 2, 1_500_000, 30, 0.75, 0.015, 3, closed=True)
GOLDEN = [
    (wire.decode_owner, Owner("uplink-0.ab", 7), b'{"instance":"uplink-0.ab","since_us":7}'),
    (
        wire.decode_credit,
        Credit("dock", 7, 1500, "cloud-0"),
        b'{"site":"dock","issued_us":7,"ttl_ms":1500,"worker":"cloud-0"}',
    ),
    (
        wire.decode_window,
        WINDOW,
        b'{"site":"dock","stream":"cam-00","label":"4","start_us":10,"size_us":5,"count":2,"confidence_ppm_sum":1500000,'
        b'"latency_us_sum":30,"mean_confidence":0.75,"mean_latency_ms":0.015,"revision":3,"closed":true}',
    ),
    (wire.decode_stream_position, StreamPosition(7, 4), b'{"epoch":7,"next_seq":4,"source_position":null}'),
]
HEADER = Header(
    version=1,
    stream="cam",
    epoch=7,
    first_seq=3,
    count=1,
    capture_us=10,
    deadline_us=20,
    priority=2,
    codec="raw",
    params=Params((2, 3), "uint8", 1),
    source_position="a.jpg",
    gate_score=0.5,
    hops=1,
    model="m@1",
    trace=b"\x01",
    extra=Extra("4", 0.5, "unsure", Origin(2, 1, 9), "dock"),
)
HEADER_BYTES = (
    b"\xdc\x00\x10\x01\xa3cam\x07\x03\x01\x0a\x14\x02\xa3raw\x93\x92\x02\x03\xa5uint8\x01\xa5a.jpg"
    b"\xcb\x3f\xe0\x00\x00\x00\x00\x00\x00\x01\xa3m@1\xc4\x01\x01"
    b"\x85\xaaedge_label\xa14\xafedge_confidence\xcb\x3f\xe0\x00\x00\x00\x00\x00\x00\xa6reason\xa6unsure"
    b"\xa6origin\x93\x02\x01\x09\xa4site\xa4dock"
)


@pytest.mark.parametrize(("decode", "value", "raw"), GOLDEN, ids=[type(golden[1]).__name__ for golden in GOLDEN])
def test_golden_bytes_both_ways(decode, value, raw):
    assert wire.encode(value) == raw
    assert decode(raw) == value


def test_golden_bytes_of_the_header_both_ways():
    assert headers.encode(HEADER) == HEADER_BYTES
    assert headers.decode(HEADER_BYTES) == HEADER
    pair = [("content-type", b"image/jpeg"), ("tg", HEADER_BYTES)]
    assert headers.pair("image/jpeg", HEADER) == pair
    assert headers.find(pair) == HEADER
    assert headers.content_type_of(pair) == "image/jpeg"


def test_a_header_of_the_first_writers_has_the_defaults():
    raw = b"\x99\x01\xa3cam\x07\x03\x01\x0a\x14\x02\xa3raw"
    assert headers.decode(raw) == Header(1, "cam", 7, 3, 1, 10, 20, 2, "raw")


def test_golden_keys():
    assert (OWNER_KEY, CREDIT_KEY, producer_key(1)) == (b"owner", b"credit", b"producer.1")
    assert owner_id("uplink.dock") == "uplink.dock.owner"
    assert forward_key("dock.uplink.p0", 3) == b"dock.uplink.p0:3"
    assert window_key("dock", 'a","b', "4", 10) == b'["dock","a\\",\\"b","4",10]'


@pytest.mark.parametrize("given", [None, [], [("tg", None)], [("tg", "text")], [("TG", HEADER_BYTES)]], ids=str)
def test_a_record_without_our_header_is_foreign(given):
    with pytest.raises(ForeignRecord, match="has no 'tg' header"):
        headers.find(given)


def test_unknown_content_is_said_to_be_bytes():
    assert headers.content_type_of(None) == headers.content_type_of([("content-type", None)])
    assert headers.content_type_of(None) == "application/octet-stream"
    assert headers.content_type_of([("content-type", b"\xff")]) == "�"


@pytest.mark.parametrize("decode", [golden[0] for golden in GOLDEN], ids=lambda decode: decode.kind.__name__)
@pytest.mark.parametrize(
    "raw", [None, b"\xff", b"[]", b"{}", b'{"later":' + b"[" * 100_000], ids=lambda raw: str(raw)[:12]
)
def test_what_is_not_ours_is_foreign(decode, raw):
    with pytest.raises(ForeignRecord, match=f"not a {decode.kind.__name__}"):
        decode(raw)


def test_a_header_nested_without_end_is_foreign():
    appended = msgspec.msgpack.decode(HEADER_BYTES, type=list[msgspec.Raw])
    deep = msgspec.Raw(b"\x91" * 100_000 + b"\xc0")
    for fields in ([*appended, deep], [msgspec.Raw(b"\x02"), *appended[1:5], deep]):
        with pytest.raises(ForeignRecord, match="cannot be read"):
            headers.decode(msgspec.msgpack.encode(fields))


def test_text_that_is_not_utf_8_is_foreign():
    with pytest.raises(ForeignRecord, match="not a Owner"):
        wire.decode_owner(b'{"instance":"\xff","since_us":7}')
    with pytest.raises(ForeignRecord, match="cannot be read"):
        headers.decode(HEADER_BYTES.replace(b"cam", b"c\xffm"))
