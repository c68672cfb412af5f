"""The ledger: marks as they are made, and the account of every item.

`MarkBook` is for those who write marks. `account` is the audit without its reading: what was captured, against what
has a mark and what was seen in flight.

The account of a running system
- The evidence is gathered in this order: the positions (`before`); how far each group is; marks and records from there
  on; the positions once more (`after`).
- An item that moved meanwhile is seen twice, and counts where it moved to: a mark beats every record, a later stage's
  record an earlier one's.
- Seqs captured after `before` was read are left out. Only what lies beyond `after` too was never captured.
- Positions are compacted: of an epoch that is over only marks and records remain. Its seqs are dense from 0, so it
  reaches at least to the last one seen.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from operator import attrgetter

import msgspec

from pipelines.core.ranges import Labelled, Range, above, below, minus, shared, size, union
from schemas.ledger import Mark, Outcome

__all__ = ["Finding", "Verdict"]

Epoch = tuple[str, int]
"""Stream and epoch."""

Sighting = tuple[str, int, int, int]
"""Stream, epoch, first seq and count of a record in flight."""


class MarkBook:
    """Collects how items ended and gives it back as few marks.

    `add` is on the hot path (about 0.3 us an item); sorting and merging wait for `marks`. A seq that was added twice
    stays in two marks: to hide it would hide a fault from the audit.
    """

    __slots__ = ("_runs",)

    def __init__(self) -> None:
        # First seq and the one after the last, by turns: a flat list is cheaper to extend than one of pairs.
        self._runs: dict[tuple[str, int, Outcome, str], list[int]] = {}

    def add(self, stream: str, epoch: int, first_seq: int, count: int, outcome: Outcome, reason: str = "") -> None:
        """Items `first_seq` to `first_seq + count - 1` ended as `outcome`; `reason` is a bounded word or nothing."""
        key = (stream, epoch, outcome, reason)
        runs = self._runs.get(key)
        if runs is None:
            self._runs[key] = [first_seq, first_seq + count]
        elif runs[-1] == first_seq:
            runs[-1] = first_seq + count
        else:
            runs += (first_seq, first_seq + count)

    def marks(self) -> list[Mark]:
        """One mark for every run of adjacent seqs that ended alike, sorted by stream, epoch and first seq."""
        marks = []
        for (stream, epoch, outcome, reason), runs in self._runs.items():
            for first, end in _joined(sorted(zip(runs[::2], runs[1::2], strict=True))):
                marks.append(Mark(stream, epoch, first, end - 1, outcome, reason))
        marks.sort(key=_FIELDS)
        return marks

    def totals(self) -> Counter[tuple[str, str]]:
        """Items by outcome and reason."""
        found: Counter[tuple[str, str]] = Counter()
        for (_stream, _epoch, outcome, reason), runs in self._runs.items():
            found[outcome, reason] += sum(runs[1::2]) - sum(runs[::2])
        return found


_FIELDS = attrgetter(*Mark.__struct_fields__)


def _joined(runs: list[Range]) -> list[Range]:
    """Join each of the sorted runs to the one before it where they meet; those that overlap stay apart."""
    joined = runs[:1]
    for first, end in runs[1:]:
        if first == joined[-1][1]:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((first, end))
    return joined


class Evidence(msgspec.Struct, frozen=True):
    """What was read, in the order of its fields."""

    before: Mapping[Epoch, int]
    """Next seq by stream and epoch."""
    stages: Sequence[Mapping[str, Sequence[Sighting]]]
    """Records in flight by topic, for each stage in the order of the flow."""
    marks: Sequence[Mark]
    after: Mapping[Epoch, int]
    """As `before`, read last."""
    site: str = ""
    foreign: Mapping[str, int] = {}
    """Records that are not ours, by topic."""
    ledger_offsets_removed: int = 0
    """By retention."""


class Finding(msgspec.Struct, frozen=True, order=True):
    """Seqs `first_seq` to `last_seq`, both included, that do not add up."""

    stream: str
    epoch: int
    first_seq: int
    last_seq: int
    seen_as: tuple[str, ...] = ()
    """Outcomes and topics: none where lost, two or more where doubled."""


class Verdict(msgspec.Struct, frozen=True):
    """The account. Numbers are items unless said otherwise.

    `captured` = outcomes + in flight + lost, less the second and further times of what is doubled.
    """

    site: str
    balanced: bool
    """Nothing lost, doubled or beyond."""
    captured: int
    outcomes: dict[str, int]
    """Every outcome, also those that nothing ended as. A doubled item counts each time."""
    reasons: dict[str, dict[str, int]]
    """Of those outcomes that have any."""
    in_flight: dict[str, int]
    """Every topic of the flow. An item that is twice in flight counts once a topic."""
    lost: list[Finding]
    """Captured, yet neither marked nor in flight."""
    doubled: list[Finding]
    """In more than one mark, or in more than one record of a stage."""
    beyond: list[Finding]
    """Marked or in flight, yet never captured."""
    foreign: dict[str, int]
    """Records without an item by topic; under the dead-letter topic those that were quarantined."""
    ledger_offsets_removed: int
    """By retention. What they marked looks lost."""

    @property
    def in_flight_items(self) -> int:
        """In flight in all topics together."""
        return sum(self.in_flight.values())


class _Seen(msgspec.Struct):
    """All that was seen of one epoch, under the outcome or the topic it was seen as."""

    marks: list[tuple[int, int, Mark]]
    stages: list[list[Labelled]]

    def as_labelled(self) -> list[Labelled]:
        return [(first, end, mark.outcome) for first, end, mark in self.marks]


def account(evidence: Evidence) -> Verdict:
    """Account for every captured item. Time is n log n in the marks and records."""
    verdict = Verdict(
        site=evidence.site,
        balanced=False,
        captured=0,
        outcomes={outcome.value: 0 for outcome in Outcome},
        reasons={},
        in_flight={topic: 0 for stage in evidence.stages for topic in stage},
        lost=[],
        doubled=[],
        beyond=[],
        foreign=dict(evidence.foreign),
        ledger_offsets_removed=evidence.ledger_offsets_removed,
    )
    captured = 0
    last_before, last_after = _last_epochs(evidence.before), _last_epochs(evidence.after)
    seen_of = _by_epoch(evidence)
    for stream, epoch in sorted(seen_of):
        seen = seen_of[stream, epoch]
        everything = [*seen.as_labelled(), *(record for stage in seen.stages for record in stage)]
        reach = max((end for _, end, _ in everything), default=0)
        end = _end(evidence.before, last_before, stream, epoch, reach)
        captured += end
        _settle(verdict, stream, epoch, seen, end)
        ceiling = _end(evidence.after, last_after, stream, epoch, reach)
        _find(verdict.beyond, stream, epoch, shared(above(everything, ceiling), times=1))
    for findings in (verdict.lost, verdict.doubled, verdict.beyond):
        findings.sort()
    return msgspec.structs.replace(
        verdict, captured=captured, balanced=not (verdict.lost or verdict.doubled or verdict.beyond)
    )


def _by_epoch(evidence: Evidence) -> dict[Epoch, _Seen]:
    seen = {key: _Seen([], [[] for _ in evidence.stages]) for key in (*evidence.before, *evidence.after)}

    def of(stream: str, epoch: int) -> _Seen:
        found = seen.get((stream, epoch))
        if found is None:
            found = seen[stream, epoch] = _Seen([], [[] for _ in evidence.stages])
        return found

    for mark in evidence.marks:
        of(mark.stream, mark.epoch).marks.append((mark.first_seq, mark.last_seq + 1, mark))
    for number, stage in enumerate(evidence.stages):
        for topic, sightings in stage.items():
            for stream, epoch, first, count in sightings:
                of(stream, epoch).stages[number].append((first, first + count, topic))
    return seen


def _last_epochs(positions: Mapping[Epoch, int]) -> dict[str, int]:
    last: dict[str, int] = {}
    for stream, epoch in positions:
        last[stream] = max(epoch, last.get(stream, epoch))
    return last


def _end(positions: Mapping[Epoch, int], last: Mapping[str, int], stream: str, epoch: int, reach: int) -> int:
    """The seq after the last one captured, as far as `positions` say."""
    if stream not in last or epoch > last[stream]:
        return 0
    known = positions.get((stream, epoch), 0)
    return known if epoch == last[stream] else max(known, reach)


def _settle(verdict: Verdict, stream: str, epoch: int, seen: _Seen, end: int) -> None:
    """Enter one epoch, of which the seqs below `end` were captured, into the verdict."""
    for first, mark_end, mark in seen.marks:
        count = max(min(mark_end, end) - first, 0)
        verdict.outcomes[mark.outcome] += count
        if mark.reason and count:
            reasons = verdict.reasons.setdefault(mark.outcome.value, {})
            reasons[mark.reason] = reasons.get(mark.reason, 0) + count
    marks = below(seen.as_labelled(), end)
    _find(verdict.doubled, stream, epoch, shared(marks))
    covered = union(marks)
    for stage in reversed(seen.stages):
        here = below(stage, end)
        # Each of these sets is in one topic, or in several records: what has moved on counts where it moved to.
        for topics, ranges in shared(here, times=1).items():
            left = minus(ranges, covered)
            for topic in set(topics):
                verdict.in_flight[topic] += size(left)
            if len(topics) > 1:
                _find(verdict.doubled, stream, epoch, {topics: left})
        covered = union([*covered, *here])
    _find(verdict.lost, stream, epoch, {(): minus([(0, end)] if end else [], covered)})


def _find(findings: list[Finding], stream: str, epoch: int, found: Mapping[tuple[str, ...], Iterable[Range]]) -> None:
    for seen_as, ranges in found.items():
        findings += (Finding(stream, epoch, first, end - 1, seen_as) for first, end in ranges)
