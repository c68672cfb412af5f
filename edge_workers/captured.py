"""What one transaction of a producer writes: items, marks and bytes of frames that cannot travel, positions."""

from collections import Counter
from collections.abc import Mapping
from itertools import groupby

import structlog

from edge_workers.preprocess import Refused
from pipelines.core.ledger import MarkBook
from pipelines.transport.base import OutRecord
from schemas import headers, wire
from schemas.headers import FROM, REASON, Header
from schemas.ledger import MarkBatch, Outcome
from schemas.positions import StreamPosition
from schemas.topics import SiteTopics

log = structlog.get_logger("tidegate.producer")


class Captured:
    """Collects; the partition of every record is its stream's, by key."""

    def __init__(self, topics: SiteTopics) -> None:
        self._topics = topics
        self._records: list[OutRecord] = []
        self._marks = MarkBook()
        self._first_refused = ""
        self.reasons: Counter[str] = Counter()
        """Of frames that became no item record."""
        self.size_bytes = 0

    def __len__(self) -> int:
        """Frames taken."""
        return len(self._records)

    def add(self, header: Header, key: bytes, content_type: str, payload: bytes) -> None:
        """An item."""
        self._append(OutRecord(self._topics.items, payload, key, headers=headers.pair(content_type, header)))

    def refuse(self, header: Header, key: bytes, refused: Refused, origin: str) -> None:
        """A frame that cannot travel: its item ends here, and what was read of `origin` goes to the dead letters."""
        self._marks.add(header.stream, header.epoch, header.first_seq, 1, Outcome.DEAD_LETTERED, refused.reason)
        kept = [*headers.pair("application/octet-stream", header), (REASON, refused.reason), (FROM, origin)]
        self._append(OutRecord(self._topics.dead_letters, refused.content, key, headers=kept))
        self.reasons[refused.reason] += 1
        self._first_refused = self._first_refused or f"{origin}: {refused.why}"

    def _append(self, record: OutRecord) -> None:
        self._records.append(record)
        self.size_bytes += record.size_bytes

    def records(self, positions: Mapping[str, StreamPosition]) -> list[OutRecord]:
        """All to be written, with the positions behind it."""
        if self.reasons:
            log.warning("frames_refused", count=self.reasons.total(), first=self._first_refused)
        marks = [
            OutRecord(
                self._topics.ledger,
                wire.encode(MarkBatch(version=wire.VERSION, site=self._topics.site, marks=list(of_stream))),
                stream.encode(),
            )
            for stream, of_stream in groupby(self._marks.marks(), key=lambda mark: mark.stream)
        ]
        stored = [OutRecord(self._topics.positions, wire.encode(at), name.encode()) for name, at in positions.items()]
        return self._records + marks + stored
