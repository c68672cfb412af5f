"""What a worker passes over or keeps aside, told in the log: a line a reason every ten seconds at most.

Each line has how many there were and where the first of them stands, so that it can be read again: topic, partition and
offset, and the item if there is one. Reasons are bounded words, so lines are too.
"""

from collections import Counter
from typing import Any

from pipelines.transport.base import Record

REPORT_US = 10_000_000

FOREIGN = "foreign"
"""The reason of a record that is not ours."""


class LetGo:
    """Collects for one stage. What was in a transaction that was rolled back counts again."""

    def __init__(self, log: Any) -> None:
        self._log = log
        self._counts: Counter[str] = Counter()
        self._firsts: dict[str, dict[str, Any]] = {}
        self._due_us = 0

    def note(self, reason: str, record: Record, item: tuple[str, int, int] | None = None) -> None:
        """One record; `item` is stream, epoch and first seq where it is known."""
        self._counts[reason] += 1
        if reason not in self._firsts:
            place = {"topic": record.topic(), "partition": record.partition(), "offset": record.offset()}
            named = {} if item is None else dict(zip(("stream", "epoch", "seq"), item, strict=True))
            self._firsts[reason] = place | named

    def report(self, now_us: int) -> None:
        """Tell what there was, if it is time."""
        if self._counts and now_us >= self._due_us:
            self.tell()
            self._due_us = now_us + REPORT_US

    def tell(self) -> None:
        """Tell what there was."""
        for reason, records in self._counts.items():
            self._log.warning("let_go", reason=reason, records=records, **self._firsts[reason])
        self._counts.clear()
        self._firsts.clear()
