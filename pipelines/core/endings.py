"""How an escalated record ends: one outcome an item, from what the cloud and the edge said.

| the cloud | the edge had an answer | it had none |
| --- | --- | --- |
| answered | `answered_cloud` | `answered_cloud` |
| dead-lettered it | `answered_edge_fallback`, reason `cloud_dead_letter` | `dead_lettered`, the cloud's reason |
| said nothing in time | `answered_edge_fallback`, reason `deadline` | `expired` |
| said nothing, and there is no room to wait | `answered_edge_fallback`, reason `settler_full` | `shed(settler_full)` |
"""

from collections.abc import Iterator, Mapping
from enum import StrEnum

import msgspec

from pipelines.core.ledger import MarkBook
from schemas.answers import Answer, AnswerKind
from schemas.headers import Header
from schemas.ledger import Outcome
from schemas.results import Result

CLOUD_DEAD_LETTER = "cloud_dead_letter"


class Missing(StrEnum):
    """Why a record ends although not all of its items were answered."""

    DEADLINE = "deadline"
    FULL = "settler_full"
    """Too many records wait behind it."""


class Ending(msgspec.Struct, frozen=True):
    """Items `first_seq` to `first_seq + count - 1` of the record of `header` end as `outcome`."""

    header: Header
    first_seq: int
    count: int
    outcome: Outcome
    reason: str
    answer: Answer | None = None
    """The cloud's, where it stands; then `count` is 1."""

    def enter(self, book: MarkBook) -> None:
        """Enter these items into `book`; a mark has a reason only where nobody answered."""
        reason = self.reason if self.outcome in (Outcome.SHED, Outcome.DEAD_LETTERED) else ""
        book.add(self.header.stream, self.header.epoch, self.first_seq, self.count, self.outcome, reason)

    def results(self, settled_us: int) -> list[Result]:
        """The settled answers, empty where there are none; `settled_us` is microseconds since the Unix epoch."""
        header, extra, answer = self.header, self.header.extra, self.answer
        if answer is not None:
            label, confidence, model = answer.label, answer.confidence, answer.model
        elif self.outcome is Outcome.ANSWERED_EDGE_FALLBACK and extra.edge_label is not None:
            label, confidence, model = extra.edge_label, extra.edge_confidence or 0.0, header.model
        else:
            return []
        return [
            Result(
                stream=header.stream,
                epoch=header.epoch,
                seq=seq,
                capture_us=header.capture_us,
                settled_us=settled_us,
                outcome=self.outcome,
                label=label,
                confidence=confidence,
                model=model,
                reason=self.reason,
                edge_label=extra.edge_label if answer is not None else None,
                edge_confidence=extra.edge_confidence if answer is not None else None,
            )
            for seq in range(self.first_seq, self.first_seq + self.count)
        ]


def endings(header: Header, answers: Mapping[int, Answer], missing: Missing) -> Iterator[Ending]:
    """How the items of a record end, given the cloud's answers by seq; `missing` is for those that have none."""
    if not answers:
        yield _without_answer(header, header.first_seq, header.count, missing)
        return
    for seq in range(header.first_seq, header.first_seq + header.count):
        answer = answers.get(seq)
        if answer is None:
            yield _without_answer(header, seq, 1, missing)
        elif answer.kind is AnswerKind.ANSWERED:
            yield Ending(header, seq, 1, Outcome.ANSWERED_CLOUD, header.extra.reason, answer)
        elif header.extra.edge_label is not None:
            yield Ending(header, seq, 1, Outcome.ANSWERED_EDGE_FALLBACK, CLOUD_DEAD_LETTER)
        else:
            yield Ending(header, seq, 1, Outcome.DEAD_LETTERED, answer.reason or CLOUD_DEAD_LETTER)


def _without_answer(header: Header, first_seq: int, count: int, missing: Missing) -> Ending:
    if header.extra.edge_label is not None:
        outcome = Outcome.ANSWERED_EDGE_FALLBACK
    else:
        outcome = Outcome.EXPIRED if missing is Missing.DEADLINE else Outcome.SHED
    return Ending(header, first_seq, count, outcome, missing.value)
