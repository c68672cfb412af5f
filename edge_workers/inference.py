"""The edge worker: route items before they are decoded, answer those that stay, send on what is not good enough.

Constraints
- Every item of a batch leaves it in one of four ways, within one Step: a result and its mark; a record in an uplink
  topic (the settler marks it later); a mark `shed`; a mark `dead_lettered` and a copy among the dead letters.
- Records that are not ours are kept among the dead letters and counted; they are no items and get no mark.
- Results and marks are one record each a partition and Step, written to the partition number they were read from.

Operation
    records ─▶ headers ─▶ admit ─▶ decode and model ─▶ escalate ─▶ _Outbox ─▶ Step
                            ▲                             ▲
    <site>.control ─▶ Reachability (credit, listened to in `tick`, never waited for)
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
import structlog
from numpy.typing import NDArray

from pipelines.core.ledger import MarkBook
from pipelines.errors import ConfigError, ForeignRecord, TransportError, UnknownVersion
from pipelines.observe.metrics import FOREIGN_RECORDS, ITEMS, MODEL_SECONDS
from pipelines.routing.base import EdgeAnswers, Items, Policy, Route, Signals
from pipelines.routing.signals import Reachability
from pipelines.runtime.dead_letters import dead_letter
from pipelines.runtime.inference import ModelRunner
from pipelines.runtime.let_go import FOREIGN, LetGo
from pipelines.runtime.stage import Step, offsets_after
from pipelines.transport.base import Cluster, Commit, OutRecord, Partition, Reader, Record
from schemas import headers, wire
from schemas.control import CREDIT_KEY
from schemas.headers import Header
from schemas.ledger import MarkBatch, Outcome
from schemas.results import Result, ResultBatch
from schemas.topics import SiteTopics

log = structlog.get_logger("tidegate.edge")

UNKNOWN_VERSION = "unknown_version"
UNSUPPORTED_PACK = "unsupported_pack"
"""A record of several items, as later versions may write: all its items are dead-lettered."""
NO_EDGE_MODEL = "no_edge_model"
"""The policy would keep the item, but this site has no model: it is sent, and the settler sees to its deadline."""

CONTROL_RECORDS = 100
"""Most control records taken in one tick; credits come a few times a second."""
FAR_US = 1 << 62
"""Stands for times beyond it."""


class EdgeStage:
    """The stage of the edge workers of one site. `runner` is None at a site without a model.

    Raises `ConfigError` where the policy needs a model and there is none, `BrokerError` where the control topic is
    not there.
    """

    def __init__(self, site: str, runner: ModelRunner | None, policy: Policy, cluster: Cluster) -> None:
        if runner is None and policy.uses_model:
            raise ConfigError(
                f"the policy '{type(policy).__name__}' of site '{site}' answers at the edge, which has no model",
                remedy="give the edge a model, or choose policy cloud_only",
            )
        self._names = SiteTopics(site)
        self.topics: Sequence[str] = [self._names.items]
        self._runner = runner
        self._policy = policy
        self._cluster = cluster
        self._control: Reader | None = self._open_control()
        self.cloud = Reachability()
        """What the credits heard so far say."""
        self.counts: Counter[str] = Counter()
        """Records dead-lettered or shed since the start, by reason. Those of a Step that was dropped count again."""
        self._let_go = LetGo(log)

    def assigned(self, partitions: Mapping[Partition, Commit]) -> None:
        """Nothing is kept between batches."""

    def revoked(self, partitions: Sequence[Partition]) -> None:
        """Nothing is kept between batches."""

    def close(self) -> None:
        """Stop listening for credit; log what was let go."""
        self._let_go.tell()
        self._close_control()

    def _close_control(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None

    def process(self, records: Sequence[Record], now_us: int) -> Step:
        """Route and answer a batch."""
        runner = self._runner
        outbox = _Outbox(self._names, runner.name if runner else "", now_us, self._let_go)
        began_s = runner.model_s if runner else 0.0
        owned, items = _sort(records, outbox)
        if items:
            self._route(owned, items, Signals(now_us, self.cloud.reachable(now_us)), outbox)
        self.counts.update(outbox.counts)
        out = outbox.records()
        if runner:
            outbox.tally[(MODEL_SECONDS,)] = runner.model_s - began_s
        return Step(out, offsets_after(records), outbox.tally)

    def bury(self, record: Record, reason: str, now_us: int) -> Step:
        """Dead-letter an item on which the model or the policy fails."""
        outbox = _Outbox(self._names, "", now_us, self._let_go)
        for _, (header, _payload) in zip(*_sort([record], outbox), strict=True):
            outbox.bury(record, reason, header.stream, header.epoch, header.first_seq, header.count)
        self.counts.update(outbox.counts)
        return Step(outbox.records(), offsets_after([record]), outbox.tally)

    def tick(self, now_us: int) -> Step:
        """Listen for credit; log what was let go."""
        if self._control is None:
            self._control = self._open_control()
        try:
            heard = self._control.poll(CONTROL_RECORDS, 0.0)
        except TransportError as error:
            # Not heard is not answered: the cloud counts as away once the credit runs out.
            log.warning("control_reader_failed", error=str(error))
            self._close_control()
            heard = []
        for record in heard:
            self._hear(record, now_us)
        self._let_go.report(now_us)
        return Step()

    def _open_control(self) -> Reader:
        return self._cluster.reader(self._cluster.start_offsets([self._names.control]))

    def _hear(self, record: Record, now_us: int) -> None:
        if record.key() != CREDIT_KEY:
            return
        try:
            credit = wire.decode_credit(record.value())
        except ForeignRecord:
            self.counts["foreign_control"] += 1
            return
        # A stamp of the future (a clock was set back) would keep the cloud reachable until the clock gets there.
        self.cloud = self.cloud.after(credit, min(record.timestamp()[1] * 1000, now_us))

    def _route(
        self, records: list[Record], items: list[tuple[Header, bytes]], signals: Signals, outbox: "_Outbox"
    ) -> None:
        """Admit, answer what stays, escalate."""
        known = _columns(items, signals.now_us)
        reasons = self._policy.reasons
        routes, why = self._policy.admit(known, signals)
        for row in np.flatnonzero(routes != Route.HERE).tolist():
            leave = outbox.send if routes[row] == Route.CLOUD else outbox.shed
            leave(records[row], items[row][0], reasons[why[row]])
        here = np.flatnonzero(routes == Route.HERE)
        if self._runner is None:
            for row in here.tolist():
                outbox.send(records[row], items[row][0], NO_EDGE_MODEL)
        elif len(here):
            self._answer(self._runner, here, records, items, known, signals, outbox)

    def _answer(
        self,
        runner: ModelRunner,
        here: NDArray[np.intp],
        records: list[Record],
        items: list[tuple[Header, bytes]],
        known: Items,
        signals: Signals,
        outbox: "_Outbox",
    ) -> None:
        """Run the model on the rows `here`, and let the policy look at the answers."""
        label, confidence, undecided = runner.infer([items[row] for row in here.tolist()])
        for at, reason in undecided.items():
            record, (header, _) = records[here[at]], items[here[at]]
            outbox.bury(record, reason, header.stream, header.epoch, header.first_seq, header.count)
        decided = label >= 0
        rows, answers = here[decided], EdgeAnswers(label[decided], confidence[decided])
        routes, why = self._policy.escalate(known.take(rows), answers, signals)
        reasons, labels = self._policy.reasons, runner.labels
        # Six digits are far more than a confidence is worth; a float32 as JSON would have seventeen.
        rounded = np.round(answers.confidence.astype(np.float64), 6).tolist()
        columns = (rows.tolist(), routes.tolist(), why.tolist(), answers.label.tolist(), rounded)
        for row, route, index, answer, value in zip(*columns, strict=True):
            record, header = records[row], items[row][0]
            if route == Route.HERE:
                outbox.answer(record, header, reasons[index], labels[answer], value)
            elif route == Route.CLOUD:
                outbox.send(record, header, reasons[index], labels[answer], value)
            else:
                outbox.shed(record, header, reasons[index])


def _sort(records: Sequence[Record], outbox: "_Outbox") -> tuple[list[Record], list[tuple[Header, bytes]]]:
    """The records that hold one item each, and their headers and payloads; what is not so goes to the outbox."""
    owned: list[Record] = []
    items: list[tuple[Header, bytes]] = []
    for record in records:
        try:
            header = headers.find(record.headers())
        except UnknownVersion as error:
            outbox.bury(record, UNKNOWN_VERSION, *error.account[1:])
        except ForeignRecord:
            outbox.quarantine(record)
        else:
            if header.count == 1:
                owned.append(record)
                items.append((header, record.value() or b""))
            else:
                outbox.bury(record, UNSUPPORTED_PACK, header.stream, header.epoch, header.first_seq, header.count)
    return owned, items


def _columns(items: list[tuple[Header, bytes]], now_us: int) -> Items:
    """What `admit` is shown."""
    return Items(
        size_bytes=np.array([len(payload) for _, payload in items], np.int64),
        age_us=now_us - _times([header.capture_us for header, _ in items]),
        deadline_us=_times([header.deadline_us for header, _ in items]),
        priority=np.array([header.priority for header, _ in items], np.int64),
        # None becomes NaN.
        gate_score=np.array([header.gate_score for header, _ in items], np.float64),
    )


def _times(values_us: list[int]) -> NDArray[np.int64]:
    try:
        return np.array(values_us, np.int64)
    except OverflowError:
        # MessagePack has unsigned 64 bits: a header that uses them must not end the worker.
        return np.array([min(value, FAR_US) for value in values_us], np.int64)


class _Outbox:
    """What one Step writes."""

    def __init__(self, names: SiteTopics, model: str, now_us: int, let_go: LetGo) -> None:
        self._names = names
        self._model = model
        self._now_us = now_us
        self._out: list[OutRecord] = []
        self._results: defaultdict[int, list[Result]] = defaultdict(list)
        self._marks: defaultdict[int, MarkBook] = defaultdict(MarkBook)
        self.counts: Counter[str] = Counter()
        """Records dead-lettered or shed, by reason."""
        self.tally: dict[tuple[str, ...], float] = {}
        """For the metrics: filled by `records`."""
        self._let_go = let_go

    def answer(self, record: Record, header: Header, reason: str, label: str, confidence: float) -> None:
        """The edge's answer stands."""
        partition = record.partition()
        stream, epoch, seq = header.stream, header.epoch, header.first_seq
        # By place: by name it costs twice as much, and this is done for every item.
        self._results[partition].append(
            Result(
                stream,
                epoch,
                seq,
                header.capture_us,
                self._now_us,
                Outcome.ANSWERED_EDGE,
                label,
                confidence,
                self._model,
                reason,
            )
        )
        self._marks[partition].add(stream, epoch, seq, 1, Outcome.ANSWERED_EDGE)

    def send(
        self, record: Record, header: Header, reason: str, label: str | None = None, confidence: float | None = None
    ) -> None:
        """To the uplink, bytes unchanged; the edge's answer, if it has one, goes along in the header."""
        extra = msgspec.structs.replace(header.extra, edge_label=label, edge_confidence=confidence, reason=reason)
        sent = msgspec.structs.replace(header, model=self._model if label is not None else "", extra=extra)
        self._out.append(
            OutRecord(
                topic=self._names.uplink(header.priority),
                value=record.value(),
                key=record.key(),
                partition=record.partition(),
                headers=headers.pair(headers.content_type_of(record.headers()), sent),
            )
        )

    def shed(self, record: Record, header: Header, reason: str) -> None:
        """Let go, because the policy said so."""
        self.counts[reason] += 1
        self._let_go.note(reason, record, (header.stream, header.epoch, header.first_seq))
        book = self._marks[record.partition()]
        book.add(header.stream, header.epoch, header.first_seq, header.count, Outcome.SHED, reason)

    def bury(self, record: Record, reason: str, stream: str, epoch: int, first_seq: int, count: int) -> None:
        """Items that cannot be taken: marked, and the record kept among the dead letters."""
        self.counts[reason] += 1
        self._let_go.note(reason, record, (stream, epoch, first_seq))
        self._marks[record.partition()].add(stream, epoch, first_seq, count, Outcome.DEAD_LETTERED, reason)
        self._out.append(dead_letter(self._names.dead_letters, record, reason))

    def quarantine(self, record: Record) -> None:
        """A record that is not ours: kept among the dead letters; it has no item."""
        self.counts[FOREIGN] += 1
        self._let_go.note(FOREIGN, record)
        self._out.append(dead_letter(self._names.dead_letters, record, FOREIGN))

    def records(self) -> list[OutRecord]:
        """All of it: results and marks as one record each a partition."""
        site, names = self._names.site, self._names
        for partition, results in self._results.items():
            value = wire.encode(ResultBatch(wire.VERSION, site, results))
            self._out.append(OutRecord(names.results, value, partition=partition))
        items: Counter[tuple[str, str]] = Counter()
        for partition, book in self._marks.items():
            value = wire.encode(MarkBatch(wire.VERSION, site, book.marks()))
            self._out.append(OutRecord(names.ledger, value, partition=partition))
            items.update(book.totals())
        self.tally = {(ITEMS, *ending): count for ending, count in items.items()}
        self.tally[(FOREIGN_RECORDS,)] = self.counts[FOREIGN]
        return self._out
