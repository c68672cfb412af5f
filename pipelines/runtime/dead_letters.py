"""What could not be taken is kept, with the reason and the place it came from, beside what it was.

Two kinds share a topic: items that end `dead_lettered` (they keep their `tg` header), and foreign records (no item).
"""

from pipelines.transport.base import OutRecord, Record
from schemas import headers

REASON, FROM = headers.REASON, headers.FROM


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
