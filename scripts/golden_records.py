"""The golden records themselves, built by the code that writes such records."""

import msgspec

from pipelines.runtime.dead_letters import dead_letter, disposition
from pipelines.transport.base import OutRecord
from schemas import flows, headers, wire
from schemas.aggregates import Window, window_key
from schemas.answers import Answer, AnswerBatch, AnswerKind
from schemas.control import CREDIT_KEY, Credit, producer_key
from schemas.dead_letters import DROPPED, RETRIED, Decided
from schemas.headers import CONTENT_TYPE, TG, Extra, Header, Origin, Params, RecordHeaders
from schemas.items import ItemId
from schemas.ledger import Mark, MarkBatch, Outcome
from schemas.positions import OWNER_KEY, ForwardPosition, Owner, StreamPosition, forward_key
from schemas.results import Result, ResultBatch
from schemas.topics import SiteTopics
from scripts.golden import Golden

NEWER = 99
"""A version that is not there yet."""

SITE, STREAM, KEY = "site-1", "cam-00", b"cam-00"
EPOCH, AT_US = 1_795_462_365_208, 1_795_462_365_208_948
SIZE_US, TO_SETTLE_US, TO_DEADLINE_US = 10_000_000, 108_008, 2_000_000
MODEL = "model@b51c4b838efd"

PIXELS = bytes(range(6))
"""Two rows of three, grey."""

CAPTURED = Header(
    version=headers.VERSION,
    stream=STREAM,
    epoch=EPOCH,
    first_seq=3,
    count=1,
    capture_us=AT_US,
    deadline_us=AT_US + TO_DEADLINE_US,
    priority=1,
    codec="raw",
    params=Params((2, 3)),
    source_position=3,
)
ESCALATED = msgspec.structs.replace(CAPTURED, model=MODEL, extra=Extra("4", 0.5, "unsure"))
OFFLOADED = msgspec.structs.replace(
    ESCALATED,
    params=Params((2, 3), "uint8", 1),
    source_position="gate/0003.png",
    gate_score=0.25,
    hops=1,
    trace=b"\x01\xff",
    extra=msgspec.structs.replace(ESCALATED.extra, origin=Origin(1, 2, 30), site=SITE),
)
RAW = "application/octet-stream"


class Read(msgspec.Struct, frozen=True):
    """A record as a client gives it."""

    name: str
    content: bytes
    stream: bytes | None = None
    given: RecordHeaders = ()

    def topic(self) -> str:
        """Its topic."""
        return self.name

    def partition(self) -> int:
        """Its partition."""
        return 2

    def offset(self) -> int:
        """Its offset."""
        return 17

    def key(self) -> bytes | None:
        """Its key."""
        return self.stream

    def value(self) -> bytes:
        """Its payload."""
        return self.content

    def headers(self) -> RecordHeaders:
        """Its headers."""
        return self.given

    def timestamp(self) -> tuple[int, int]:
        """Of creation."""
        return 1, AT_US // 1000


def goldens() -> list[Golden]:
    """All of them."""
    return [*_items(), *_dead_letters(), *_batches(), *_single(), *_of_others()]


def _item(name: str, where: str, about: str, header: Header) -> Golden:
    return Golden(name, flows.ITEM, about, KEY, PIXELS, headers.pair(RAW, header), (where,))


def _items() -> list[Golden]:
    return [
        _item("item", "edge.items", "As the producer writes it: a raw image of 2 rows and 3 columns.", CAPTURED),
        _item("item_escalated", "edge.uplink", "On its way to the cloud: `extra` has the edge's answer.", ESCALATED),
        _item("item_offloaded", "cloud.offload", "In the cloud: every field of `tg` has a value.", OFFLOADED),
    ]


def _dead_letters() -> list[Golden]:
    items, letters = SiteTopics(SITE).items, SiteTopics(SITE).dead_letters
    jpeg = msgspec.structs.replace(CAPTURED, codec="jpeg", params=Params())
    item = Read(items, b"no image", KEY, headers.pair("image/jpeg", jpeg))
    foreign = Read(items, b"hello", None, [("source", b"another program")])
    retried = disposition(letters, 2, RETRIED, [Decided(4, ItemId(f"retry/{STREAM}", EPOCH, 3))])
    dropped = disposition(letters, 2, DROPPED, [Decided(5), Decided(7)])
    return [
        _out(
            "dead_letter",
            flows.DEAD_LETTER,
            "An item that could not be decoded; it ended `dead_lettered`.",
            dead_letter(letters, item, "undecodable"),
        ),
        _out(
            "dead_letter_foreign",
            flows.DEAD_LETTER,
            "A record that is not Tidegate's, put aside. It holds no item.",
            dead_letter(letters, foreign, "foreign"),
        ),
        _out(
            "dispositions",
            flows.DISPOSITIONS,
            "The letter at offset 4 was captured as a new item.",
            retried,
            ("edge.dead_letters",),
        ),
        _out("dispositions_dropped", flows.DISPOSITIONS, "Two letters were let go.", dropped),
    ]


def _out(name: str, kind: flows.RecordKind, about: str, out: OutRecord, where: tuple[str, ...] = ()) -> Golden:
    return Golden(name, kind, about, out.key, out.value or b"", out.headers or (), where)


def _result(seq: int, outcome: Outcome, reason: str, edge: tuple[str, float] | None = None) -> Result:
    settled_us = AT_US + TO_SETTLE_US
    result = Result(STREAM, EPOCH, seq, AT_US, settled_us, outcome, "4", 0.986163, MODEL, reason)
    return result if edge is None else msgspec.structs.replace(result, edge_label=edge[0], edge_confidence=edge[1])


def _batches() -> list[Golden]:
    results = [
        _result(3, Outcome.ANSWERED_EDGE, "confident"),
        _result(4, Outcome.ANSWERED_EDGE_FALLBACK, "no_answer", ("4", 0.986163)),
        _result(5, Outcome.ANSWERED_CLOUD, "unsure", ("9", 0.5)),
    ]
    worded = {Outcome.SHED: "retention", Outcome.DEAD_LETTERED: "undecodable"}
    marks = [
        Mark(STREAM, EPOCH, 10 * number, 10 * number + 9, outcome, worded.get(outcome, ""))
        for number, outcome in enumerate(Outcome)
    ]
    item = (STREAM, EPOCH, 3, Origin(1, 2, 30))
    answers = [
        Answer(*item, AnswerKind.ANSWERED, "4", 0.986163, MODEL),
        Answer(*item, AnswerKind.DEAD_LETTERED, model=MODEL, reason="undecodable"),
    ]
    return [
        _json(
            "results", flows.RESULTS, "The three outcomes that are answers.", ResultBatch(wire.VERSION, SITE, results)
        ),
        _json(
            "marks", flows.MARKS, "A mark of each outcome, ten items long.", MarkBatch(wire.VERSION, SITE, marks), KEY
        ),
        _json("answers", flows.ANSWERS, "An answer, and a dead letter's.", AnswerBatch(wire.VERSION, SITE, answers)),
    ]


def _single() -> list[Golden]:
    credit = Credit(SITE, AT_US, 2000, "cloud-0")
    forwarded = ForwardPosition(next_offset=31, records=28, bytes=4096, expired=2, foreign=1)
    window = Window(
        site=SITE,
        stream=STREAM,
        label="4",
        start_us=AT_US - AT_US % SIZE_US,
        size_us=SIZE_US,
        count=2,
        confidence_ppm_sum=1_972_326,
        latency_us_sum=2 * TO_SETTLE_US,
        mean_confidence=0.986163,
        mean_latency_ms=108.008,
        revision=3,
        closed=True,
    )
    key = window_key(SITE, STREAM, "4", window.start_us)
    at = forward_key(SiteTopics(SITE).uplink(0), 3)
    position = flows.STREAM_POSITION
    return [
        _json("stream_position", position, "Four items captured, the last at 3.", StreamPosition(EPOCH, 4, 3), KEY),
        _json("stream_position_text", position, "At a text.", StreamPosition(EPOCH, 4, "gate/0003.png"), KEY),
        _json("stream_position_none", position, "An epoch without an item.", StreamPosition(EPOCH, 0), KEY),
        _json("forward_position", flows.FORWARD_POSITION, "The uplink goes on at offset 31.", forwarded, at),
        _json("owner", flows.OWNER, "The uplink that claimed last.", Owner("uplink-0.ab", AT_US), OWNER_KEY),
        _json("producer_owner", flows.PRODUCER_OWNER, "Who captures.", Owner("produce-0.ab", AT_US), producer_key(0)),
        _json("credit", flows.CREDIT, "The cloud is there.", credit, CREDIT_KEY),
        _json("site_credit", flows.SITE_CREDIT, "The same, in the cloud.", credit, SITE.encode()),
        _json("window", flows.WINDOW, "The third revision of a window that is over.", window, key),
    ]


def _json(name: str, kind: flows.RecordKind, about: str, value: object, key: bytes | None = None) -> Golden:
    return Golden(name, kind, about, key, wire.encode(value))


def _of_others() -> list[Golden]:
    """What this code does not write and must take: of the first writers and of later ones."""
    places = msgspec.msgpack.decode(headers.encode(OFFLOADED))
    later = [*places[:-1], {**places[-1], "later": True}, "later"]
    newer = [NEWER, *places[1:4], 2, {"else": "than today"}]
    results = ResultBatch(wire.VERSION, SITE, [_result(3, Outcome.ANSWERED_EDGE, "confident")])
    batch = {**msgspec.json.decode(wire.encode(results)), "later": {"field": 1}}
    return [
        _other("item_short", "The nine places that a `tg` must have; all others have their defaults.", places[:9]),
        _other(
            "item_later",
            "Of a later writer: a place and a key of `extra` more, to be passed over.",
            later,
            numbered=False,
        ),
        _other(
            "item_newer_version",
            "Of a version that is not known: its first five places say which items it holds, nothing else may be used.",
            newer,
        ),
        Golden(
            "results_later",
            flows.RESULTS,
            "Of a later writer: a field more, to be passed over.",
            None,
            wire.encode(batch),
            written=False,
        ),
    ]


def _other(name: str, about: str, places: list[object], *, numbered: bool = True) -> Golden:
    tg = [(CONTENT_TYPE, RAW.encode()), (TG, msgspec.msgpack.encode(places))]
    return Golden(name, flows.ITEM, about, KEY, PIXELS, tg, written=False, numbered=numbered)
