"""What could not be taken is kept, with the reason and the place it came from, beside what it was.

Two kinds share a topic: items that end `dead_lettered` (they keep their `tg` header), and foreign records (no item).
What was decided about them stands behind them: see `schemas.dead_letters`.
"""

from collections.abc import Sequence

from pipelines.core.dead_letters import Letter, hindrance
from pipelines.errors import ForeignRecord, UnknownVersion
from pipelines.transport.base import OutRecord, Record
from schemas import headers, wire
from schemas.dead_letters import Decided, Disposition
from schemas.headers import CONTENT_TYPE, DISPOSITION, FROM, REASON
from schemas.topics import Tier


def dead_letter(topic: str, record: Record, reason: str) -> OutRecord:
    """`record` as it was, for the dead-letter topic `topic`, with the bounded word `reason` and its origin."""
    where = f"{record.topic()}[{record.partition()}]@{record.offset()}"
    return OutRecord(
        topic=topic,
        value=record.value(),
        key=record.key(),
        partition=record.partition(),
        headers=[*(record.headers() or ()), (REASON, reason), (FROM, where)],
    )


def disposition(topic: str, partition: int, fate: str, letters: Sequence[Decided]) -> OutRecord:
    """That `fate` is what was decided about letters of this partition of `topic`: to be written behind them."""
    return OutRecord(
        topic=topic,
        value=wire.encode(Disposition(wire.VERSION, fate, list(letters))),
        partition=partition,
        headers=[(CONTENT_TYPE, "application/json"), (DISPOSITION, fate)],
    )


def read(tier: Tier, record: Record) -> Letter | Disposition:
    """What a record of a dead-letter topic is. One that is neither is a letter without a reason."""
    given = dict(record.headers() or ())  # The last of a name: what a stranger put there stands before ours.
    if DISPOSITION in given and REASON not in given:
        try:
            return wire.decode_disposition(record.value())
        except ForeignRecord:
            pass  # Somebody else's after all; it is shown as a letter.
    account: tuple[str, int, int, int] = ("", 0, 0, 0)
    header, later_version = None, False
    try:
        header = headers.find(record.headers())
        account = (header.stream, header.epoch, header.first_seq, header.count)
    except UnknownVersion as error:
        account, later_version = error.account[1:], True
    except ForeignRecord:
        pass  # No item: it has no account.
    return Letter(
        tier,
        record.partition(),
        record.offset(),
        max(record.timestamp()[1], 0) * 1000,
        _text(given.get(REASON)),
        _text(given.get(FROM)),
        _text(given.get(CONTENT_TYPE)),
        len(record.value() or b""),
        *account,
        hindrance=hindrance(tier, header, later_version=later_version),
    )


def _text(value: str | bytes | None) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value or ""
