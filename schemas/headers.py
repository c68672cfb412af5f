"""The two headers of a record that carries items: `content-type`, and `tg`, a MessagePack array.

A record's value is the payload itself, so that any tool reads it (a JPEG is a JPEG). All that Tidegate needs besides
stands in `tg`. Its first five fields (version, stream, epoch, first_seq, count) never change meaning: a record of a
version that this code does not know can still be accounted for. Later versions append; they never reorder.
"""

from collections.abc import Sequence

import msgspec

from schemas.errors import ForeignRecord, UnknownVersion

__all__ = [
    "CONTENT_TYPE",
    "COUNT_MOST",
    "DISPOSITION",
    "FROM",
    "REASON",
    "TG",
    "VERSION",
    "Extra",
    "Header",
    "Origin",
    "Params",
    "RecordHeaders",
    "content_type_of",
    "decode",
    "encode",
    "find",
    "pair",
]

CONTENT_TYPE = "content-type"
TG = "tg"
VERSION = 1

REASON = "tidegate-reason"
FROM = "tidegate-from"
"""What a dead letter has besides: a bounded word, and `topic[partition]@offset` (or the file) that it came from."""
DISPOSITION = "tidegate-disposition"
"""What was decided about dead letters (`schemas.dead_letters`). What has a reason as well is a dead letter itself."""

COUNT_MOST = 4_096
"""Items in one record: a clip of over two minutes at 30 a second. More is no record of ours."""

RecordHeaders = Sequence[tuple[str, str | bytes | None]]


class Params(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How the payload is to be decoded."""

    shape: tuple[int, ...] = ()
    """Of the decoded array; () where the payload says it itself (a JPEG does)."""
    dtype: str = "uint8"
    rung: int = 0
    """Of the quality ladder; 0 is full quality."""


class Origin(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Where an escalated record lies in the site's uplink topics: what a cloud answer is matched by."""

    priority: int
    partition: int
    offset: int


class Extra(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """What only some records have. Absent fields cost nothing; fields of later versions are passed over."""

    edge_label: str | None = None
    """The edge's own answer, kept when the item was sent on."""
    edge_confidence: float | None = None
    """Calibrated, 0 to 1."""
    reason: str = ""
    """Why the router sent the item to the cloud."""
    origin: Origin | None = None
    """Set by the uplink when it sends."""
    site: str = ""
    """Set by the uplink when it sends."""


class Header(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The `tg` header. Times are microseconds since the Unix epoch on the producer's clock."""

    version: int
    stream: str
    epoch: int
    first_seq: int
    count: int
    capture_us: int
    deadline_us: int
    """After this an answer is of no use: the settler falls back to what it has."""
    priority: int
    """0 (first) to 2: which uplink topic an escalated item takes."""
    codec: str
    params: Params = Params()
    source_position: int | str = 0
    """Opaque to all but the source that wrote it."""
    gate_score: float | None = None
    hops: int = 0
    """Clusters passed; the uplink adds one."""
    model: str = ""
    """The model that gave the edge's answer in `extra`."""
    trace: bytes | None = None
    extra: Extra = Extra()


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Header)
_version_decoder = msgspec.msgpack.Decoder(list[msgspec.Raw])
_account_decoder = msgspec.msgpack.Decoder(tuple[int, str, int, int, int])

_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What the decoders raise for foreign bytes; the last for arrays nested a thousand deep."""


def encode(header: Header) -> bytes:
    """The bytes of the `tg` header."""
    return _encoder.encode(header)


def decode(raw: bytes) -> Header:
    """Read a `tg` header. Raises `ForeignRecord` for bytes that are not one, `UnknownVersion` for a later version."""
    try:
        header = _decoder.decode(raw)
    except _UNREADABLE as error:
        raise _not_readable(raw, error) from error
    if header.version != VERSION:
        raise _not_readable(raw, None)
    if (
        not 1 <= header.count <= COUNT_MOST
        or header.first_seq < 0
        or not header.stream
        or not 0 <= header.priority <= 2
    ):
        raise ForeignRecord(f"header '{TG}' of stream '{header.stream}' has impossible values")
    return header


def find(headers: RecordHeaders | None) -> Header:
    """The decoded `tg` among a record's headers. Raises as `decode` does; a record without one is foreign."""
    for name, value in headers or ():
        if name == TG and isinstance(value, bytes):
            return decode(value)
    raise ForeignRecord(f"the record has no '{TG}' header")


def pair(content_type: str, header: Header) -> list[tuple[str, str | bytes | None]]:
    """Both headers of a record, as a client takes them."""
    return [(CONTENT_TYPE, content_type.encode()), (TG, encode(header))]


def content_type_of(headers: RecordHeaders | None) -> str:
    """The `content-type` among a record's headers, or the type of unknown bytes."""
    for name, value in headers or ():
        if name == CONTENT_TYPE and value is not None:
            return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    return "application/octet-stream"


def _not_readable(raw: bytes, cause: Exception | None) -> ForeignRecord | UnknownVersion:
    """Tell a later version of ours, whose first five fields can be trusted, from bytes that are not ours."""
    try:
        fields = _version_decoder.decode(raw)
        account = _account_decoder.decode(msgspec.msgpack.encode(fields[:5]))
    except _UNREADABLE:
        return ForeignRecord(f"header '{TG}' cannot be read ({cause})")
    version, stream, _epoch, first_seq, count = account
    if version <= VERSION or not stream or first_seq < 0 or not 1 <= count <= COUNT_MOST:
        return ForeignRecord(f"header '{TG}' cannot be read ({cause or 'impossible values'})")
    return UnknownVersion(f"header '{TG}' has version {version}; this code knows {VERSION}", account)
