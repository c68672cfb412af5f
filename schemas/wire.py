"""The records that are JSON: one encoder, and a decoder a type that tells foreign bytes from ours."""

from typing import Any, Generic, TypeVar

import msgspec

from schemas.aggregates import Window
from schemas.answers import AnswerBatch
from schemas.control import Credit
from schemas.dead_letters import Disposition
from schemas.errors import ForeignRecord
from schemas.ledger import MarkBatch
from schemas.positions import ForwardPosition, Owner, StreamPosition
from schemas.results import ResultBatch

__all__ = [
    "PUBLISHED",
    "VERSION",
    "Decoder",
    "decode_answers",
    "decode_credit",
    "decode_disposition",
    "decode_forward_position",
    "decode_marks",
    "decode_owner",
    "decode_results",
    "decode_stream_position",
    "decode_window",
    "encode",
]

VERSION = 1
"""Of every batch that carries one."""

T = TypeVar("T")

encode = msgspec.json.Encoder().encode
"""The JSON bytes of any of the records below."""


class Decoder(Generic[T]):
    """Reads one kind of record."""

    def __init__(self, kind: type[T]) -> None:
        self.kind = kind
        self._decode = msgspec.json.Decoder(kind).decode

    def __call__(self, raw: bytes | str | None) -> T:
        """Raises `ForeignRecord` for what is not such a record."""
        try:
            return self._decode(raw or b"")
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise ForeignRecord(f"not a {self.kind.__name__}: {error}") from error


decode_results = Decoder(ResultBatch)
decode_marks = Decoder(MarkBatch)
decode_answers = Decoder(AnswerBatch)
decode_stream_position = Decoder(StreamPosition)
decode_forward_position = Decoder(ForwardPosition)
decode_owner = Decoder(Owner)
decode_credit = Decoder(Credit)
decode_window = Decoder(Window)
decode_disposition = Decoder(Disposition)

PUBLISHED: dict[str, type[Any]] = {
    "results": ResultBatch,
    "ledger": MarkBatch,
    "answers": AnswerBatch,
    "positions": StreamPosition,
    "forward_positions": ForwardPosition,
    "owner": Owner,
    "control": Credit,
    "aggregates": Window,
    "dispositions": Disposition,
}
"""The records whose JSON Schemas stand in `schemas/published/`, by file name."""
