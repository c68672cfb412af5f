"""What the cloud says of an escalated record: `<site>.down.answers` and `<site>.answers`, JSON without headers."""

from enum import StrEnum

import msgspec

from schemas.headers import Origin

__all__ = ["Answer", "AnswerBatch", "AnswerKind"]


class AnswerKind(StrEnum):
    """Whether the cloud could answer."""

    ANSWERED = "answered"
    DEAD_LETTERED = "dead_lettered"


class Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    """The cloud's answer for one item of the record at `origin` in the site's uplink topics."""

    stream: str
    epoch: int
    seq: int
    origin: Origin
    kind: AnswerKind
    label: str = ""
    confidence: float = 0.0
    model: str = ""
    reason: str = ""
    """For a dead letter: a bounded word, such as `undecodable`."""


class AnswerBatch(msgspec.Struct, frozen=True):
    """The value of a record in `<site>.down.answers` and `<site>.answers`."""

    version: int
    site: str
    answers: list[Answer]
