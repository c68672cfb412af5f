"""Escalated items in, the cloud's answers out.

Constraints
- A batch is answered first priority first, and what is past its deadline is not answered at all: the settler at the
  edge has let it go. The cloud keeps no account of items, it only counts what it passes over.
- Every item of ours that can be reached by its `origin` gets an answer; one that cannot be answered gets an answer of
  kind `dead_lettered`, so that the settler need not wait for the deadline. Its payload is kept as a dead letter.
- Answers go to the partition that the item has at the edge, one record a site and partition.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

import msgspec
import structlog

from cloud_workers.credit import CreditBeat
from pipelines.errors import ForeignRecord, UnknownVersion
from pipelines.observe.metrics import ANSWERED, FOREIGN_RECORDS, MODEL_SECONDS
from pipelines.runtime.dead_letters import dead_letter
from pipelines.runtime.inference import Inferred, ModelRunner, Undecided
from pipelines.runtime.let_go import FOREIGN, LetGo
from pipelines.runtime.stage import Step, offsets_after
from pipelines.transport.base import Commit, OutRecord, Partition, Record
from schemas import headers, wire
from schemas.answers import Answer, AnswerBatch, AnswerKind
from schemas.headers import Header, Origin
from schemas.topics import CLOUD_DEAD_LETTERS, OFFLOADS, SiteTopics

log = structlog.get_logger("tidegate.cloud")

EXPIRED = "expired"

BATCH_RECORDS = 64
"""Records a poll: what the model takes at once. More would make urgent items and heartbeats wait, and gain nothing."""


class _Item(msgspec.Struct, frozen=True):
    record: Record
    header: Header
    origin: Origin


class CloudStage:
    """Answers items of `sites` with the cloud's model. Every keyed topic of theirs has `partitions` partitions."""

    topics: Sequence[str] = OFFLOADS

    def __init__(self, sites: Sequence[str], runner: ModelRunner, credit: CreditBeat, *, partitions: int) -> None:
        self.counts: Counter[str] = Counter()
        """`answered`, `dead_lettered`, `expired`, and records that are kept as dead letters without an answer:
        `foreign`, `unknown_version`, `unknown_site`, `no_origin`, `unsupported_count`."""
        self._sites = frozenset(sites)
        self._runner = runner
        self._credit = credit
        self._partitions = partitions
        self._held: set[Partition] = set()
        self._let_go = LetGo(log)

    def assigned(self, partitions: Mapping[Partition, Commit]) -> None:
        """Nothing is to be restored: an answer depends on its item alone."""
        self._held.update(partitions)

    def revoked(self, partitions: Sequence[Partition]) -> None:
        """Without a partition there is no work, and no heartbeat."""
        self._held.difference_update(partitions)

    def close(self) -> None:
        """Nothing is held but memory; what was counted is logged."""
        self._let_go.tell()
        log.info("counts", **self.counts)

    def tick(self, now_us: int) -> Step:
        """The heartbeats that are due."""
        self._let_go.report(now_us)
        return Step(self._credit.due(now_us)) if self._held else Step()

    def process(self, records: Sequence[Record], now_us: int) -> Step:
        """Answer a batch."""
        items: list[_Item] = []
        out: list[OutRecord] = []
        seen: Counter[str] = Counter()
        began_s = self._runner.model_s
        # The names sort as the priorities do, and the sort keeps the order within a topic.
        for record in sorted(records, key=_topic):
            found = self._read(record)
            if isinstance(found, str):
                seen[found] += 1
                self._let_go.note(found, record)
                out.append(dead_letter(CLOUD_DEAD_LETTERS, record, found))
            elif found.header.deadline_us <= now_us:
                seen[EXPIRED] += 1
            else:
                items.append(found)
        answers = self._answer(items, seen)
        self.counts.update(seen)
        tally: dict[tuple[str, ...], float] = {(ANSWERED, outcome): count for outcome, count in seen.items()}
        tally[(FOREIGN_RECORDS,)] = tally.pop((ANSWERED, FOREIGN), 0)
        tally[(MODEL_SECONDS,)] = self._runner.model_s - began_s
        return Step([*answers, *out], offsets_after(records), tally)

    def bury(self, record: Record, reason: str, now_us: int) -> Step:
        """Dead-letter an item on which the model fails; the settler is told, so that it need not wait."""
        found = self._read(record)
        if isinstance(found, str):
            return Step([dead_letter(CLOUD_DEAD_LETTERS, record, found)], offsets_after([record]))
        seen: Counter[str] = Counter()
        out = self._write([(found, Undecided(reason))], seen)
        self.counts.update(seen)
        return Step(out, offsets_after([record]), {(ANSWERED, outcome): count for outcome, count in seen.items()})

    def _read(self, record: Record) -> _Item | str:
        """The item in a record, or the reason why it cannot be answered to anybody."""
        try:
            header = headers.find(record.headers())
        except ForeignRecord:
            return FOREIGN
        except UnknownVersion:
            return "unknown_version"
        origin = header.extra.origin
        if origin is None or not 0 <= origin.partition < self._partitions:
            return "no_origin"
        if header.extra.site not in self._sites:
            return "unknown_site"
        if header.count != 1:
            return "unsupported_count"
        return _Item(record, header, origin)

    def _answer(self, items: Sequence[_Item], seen: Counter[str]) -> list[OutRecord]:
        outcomes = self._runner.answer([(item.header, item.record.value() or b"") for item in items]) if items else []
        return self._write(zip(items, outcomes, strict=True), seen)

    def _write(self, answered: Iterable[tuple[_Item, Inferred | Undecided]], seen: Counter[str]) -> list[OutRecord]:
        batches: defaultdict[Partition, list[Answer]] = defaultdict(list)
        dead: list[OutRecord] = []
        for item, outcome in answered:
            header, origin = item.header, item.origin
            identity = (header.stream, header.epoch, header.first_seq, origin)
            if isinstance(outcome, Inferred):
                kind = AnswerKind.ANSWERED
                answer = Answer(*identity, kind, outcome.label, outcome.confidence, self._runner.name)
            else:
                kind = AnswerKind.DEAD_LETTERED
                answer = Answer(*identity, kind, model=self._runner.name, reason=outcome.reason)
                self._let_go.note(outcome.reason, item.record, identity[:3])
                dead.append(dead_letter(CLOUD_DEAD_LETTERS, item.record, outcome.reason))
            seen[kind] += 1
            batches[header.extra.site, origin.partition].append(answer)
        return [*(_batch(site, number, answers) for (site, number), answers in batches.items()), *dead]


def _topic(record: Record) -> str:
    return record.topic()


def _batch(site: str, partition: int, answers: list[Answer]) -> OutRecord:
    value = wire.encode(AnswerBatch(wire.VERSION, site, answers))
    return OutRecord(SiteTopics(site).down_answers, value, partition=partition)
