"""How far a group is behind, partition by partition: in seconds, and why.

Pure: whoever samples hands in what it saw; `LagBook` keeps a short window of it per partition and says how it stands.

Constraints
- A window spans at least `window_us` once that long was watched, and holds `SAMPLES_MOST` samples or so at most.
- It begins anew where offsets or the clock went back: the group was reset, or the topic is another one.
- What was watched too briefly is `ok`: `undecided` says that a longer look could tell otherwise.

Rules, of one partition, in this order (the last three follow LinkedIn's Burrow, "Consumer Lag Evaluation Rules")
    stopped   records wait, nobody owned the partition and nothing was done for `SURE_US`
    blocked   nothing waits that a reader may see, and the same transaction has been open for `SURE_US`
    ok        at some time in the window nothing waited, or nothing was due
    stalled   nothing was done for the whole window
    slow      over the whole window the lag never fell, and grew or was longer than the window
Everything else is `ok`: what waits gets less.
"""

from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from itertools import pairwise

import msgspec

from schemas.topics import Tier

WINDOW_US = 10_000_000
"""Over which rates are means and states are decided. Longer than a take-over (3.3 s at most)."""

SAMPLES_MOST = 100
"""A window, and two more: of what comes more often than ten times a second, the newest counts."""

SURE_US = 1_000_000
"""So long must a partition be without an owner, or a transaction open: a rebalance and a commit take less."""

KEEPS_UP_S = 1.0
"""Who is behind by less has no backlog."""

HOT_FACTOR = 3.0
"""A hot partition takes in more than this many times the mean. Of 2 to 4 partitions one cannot, and (n + 1) / 2 do."""

HOT_RECORDS = 100
"""In the window, at the least: less is chance."""


class State(StrEnum):
    """How a partition, a group or a pipeline stands. Listed from good to bad: the worst of its parts is a whole's."""

    OK = "ok"
    """Nothing waits, or what waits gets less."""
    SLOW = "slow"
    """Work is done, and more comes in than goes out."""
    BLOCKED = "blocked"
    """Records are there that no reader may see yet: a transaction is open."""
    STALLED = "stalled"
    """Somebody owns the partition, records wait, and nothing was done for the whole window."""
    STOPPED = "stopped"
    """Records wait and nobody owns the partition."""


class Sample(msgspec.Struct, frozen=True):
    """What was seen of one partition of one group at one moment."""

    at_us: int
    committed: int
    """The offset that the group goes on at."""
    end: int
    """The last stable offset: what a read_committed reader may see ends before it."""
    high: int
    """The high watermark; beyond `end` lie open transactions."""
    oldest_us: int | None
    """When the oldest unprocessed item was captured (without a header: the record's timestamp). None: nothing waits.
    Of a settler: its deadline, until which it may wait for the cloud's answer. What lies ahead is not yet due."""
    owner: str = ""
    """The worker that holds the partition; "" where nobody does."""
    record_us: float | None = None
    """Time that the owner spends on one record, as it says itself (see `core.work`)."""
    capacity_per_s: float | None = None
    """Records a second that the owner could do, as it says itself."""
    written_us: int | None = None
    """When the record of `oldest_us` was written to this topic: its retention counts from then."""


class PartitionLag(msgspec.Struct, frozen=True):
    """How one partition of one group stands."""

    topic: str
    partition: int
    owner: str
    committed: int
    end: int
    lag_records: int
    """Offsets, so transaction markers count too: one in 20 to 500."""
    seconds_behind: float
    """Age of the oldest unprocessed item; 0 where nothing waits."""
    in_per_s: float
    out_per_s: float
    drain_s: float | None
    """Until nothing waits at the present rates; None: never."""
    state: State
    capacity_per_s: float | None = None
    hot: bool = False
    """Takes in far more than the mean of its topic's partitions."""
    unread_s: float = 0.0
    """Since the oldest unprocessed record was written to this topic; 0 where nothing waits."""


class Member(msgspec.Struct, frozen=True):
    """A member of a group."""

    name: str
    """The worker's own name (`client.id`)."""
    host: str
    partitions: list[tuple[str, int]]


class GroupLag(msgspec.Struct, frozen=True):
    """How one group (or one forwarder, which reads outside any group) stands."""

    kind: str
    """Of worker: edge, settle, uplink, downlink, cloud, aggregate."""
    group: str
    tier: Tier
    """Of the cluster that it reads from."""
    members: list[Member]
    partitions: list[PartitionLag]
    lag_records: int
    seconds_behind: float
    """Of the partition that is furthest behind."""
    in_per_s: float
    out_per_s: float
    drain_s: float | None
    state: State


class LagBook:
    """What was seen of one group, or forwarder, over the last seconds."""

    def __init__(self, kind: str, group: str, tier: Tier, window_us: int = WINDOW_US) -> None:
        self.kind, self.group, self.tier = kind, group, tier
        self._window_us = window_us
        self._windows: dict[tuple[str, int], deque[Sample]] = {}

    def take(self, samples: Mapping[tuple[str, int], Sample]) -> None:
        """Take what was seen of each partition. One that was not seen for a whole window is forgotten."""
        for partition, sample in samples.items():
            window = self._windows.setdefault(partition, deque())
            if window and _went_back(window[-1], sample):
                window.clear()
            if len(window) > 1 and sample.at_us - window[-2].at_us < self._window_us / SAMPLES_MOST:
                window.pop()  # The newest takes the place of the one before: more often tells nothing more.
            window.append(sample)
            while len(window) > 2 and sample.at_us - window[1].at_us >= self._window_us:
                window.popleft()
        newest_us = max((sample.at_us for sample in samples.values()), default=0)
        for partition in [p for p, w in self._windows.items() if newest_us - w[-1].at_us > self._window_us]:
            del self._windows[partition]

    @property
    def undecided(self) -> bool:
        """Whether some partition may turn out worse than it stands, if it is watched for a whole window."""
        return any(_undecided(window, self._window_us) for window in self._windows.values())

    def lag(self, members: Sequence[Member] = ()) -> GroupLag:
        """How the group stands by the newest samples."""
        hot = self._hot()
        partitions = [
            _partition_lag(partition, window, self._window_us, partition in hot)
            for partition, window in sorted(self._windows.items())
        ]
        drains = [one.drain_s for one in partitions]
        return GroupLag(
            kind=self.kind,
            group=self.group,
            tier=self.tier,
            members=list(members),
            partitions=partitions,
            lag_records=sum(one.lag_records for one in partitions),
            seconds_behind=max((one.seconds_behind for one in partitions), default=0.0),
            in_per_s=sum(one.in_per_s for one in partitions),
            out_per_s=sum(one.out_per_s for one in partitions),
            drain_s=None if None in drains else max((s for s in drains if s is not None), default=0.0),
            state=worst(one.state for one in partitions),
        )

    def _hot(self) -> set[tuple[str, int]]:
        came = {partition: window[-1].end - window[0].end for partition, window in self._windows.items()}
        totals: Counter[str] = Counter()
        counts: Counter[str] = Counter()
        for (topic, _), records in came.items():
            totals[topic] += records
            counts[topic] += 1
        return {
            (topic, number)
            for (topic, number), records in came.items()
            if counts[topic] > 1
            and records >= HOT_RECORDS
            and records * counts[topic] > min(HOT_FACTOR, (counts[topic] + 1) / 2) * totals[topic]
        }


def worst(states: Iterable[State]) -> State:
    """The worst of several; `ok` of none."""
    return max(states, key=list(State).index, default=State.OK)


def _went_back(before: Sample, now: Sample) -> bool:
    return (
        now.at_us <= before.at_us or now.committed < before.committed or now.end < before.end or now.high < before.high
    )


def _lag(sample: Sample) -> int:
    """Records. Ends are asked for after commits, and of forwarders elsewhere, so they may lie before."""
    return max(sample.end - sample.committed, 0)


def _due(sample: Sample) -> bool:
    return sample.oldest_us is not None and sample.oldest_us <= sample.at_us


def _seconds_behind(sample: Sample) -> float:
    return 0.0 if sample.oldest_us is None else max(sample.at_us - sample.oldest_us, 0) / 1e6


def _unmoved_us(window: Sequence[Sample]) -> int:
    """For how long records waited that nobody owned, and nothing was done."""
    newest = window[-1]
    since_us = newest.at_us
    for sample in reversed(window):
        if sample.owner or sample.oldest_us is None or sample.committed != newest.committed:
            break
        since_us = sample.at_us
    return newest.at_us - since_us


def _open_us(window: Sequence[Sample]) -> int:
    """For how long the same transaction was open: the last stable offset is where it began."""
    newest = window[-1]
    since_us = newest.at_us
    for sample in reversed(window):
        if sample.high <= sample.end or sample.end != newest.end:
            break
        since_us = sample.at_us
    return newest.at_us - since_us


def _span_us(window: Sequence[Sample]) -> int:
    return window[-1].at_us - window[0].at_us


def _suspect(window: Sequence[Sample]) -> State:
    """`stalled` or `slow` where nothing in the window speaks against it, however short the window is."""
    if not all(_due(sample) for sample in window):
        return State.OK
    first, newest = window[0], window[-1]
    if newest.committed == first.committed:
        return State.STALLED if newest.owner else State.OK
    fell = any(_lag(after) < _lag(before) for before, after in pairwise(window))
    left = _lag(newest) > _lag(first) or newest.committed < first.end
    return State.SLOW if not fell and left else State.OK


def _state(window: Sequence[Sample], window_us: int) -> State:
    newest = window[-1]
    if newest.oldest_us is None:
        return State.BLOCKED if _open_us(window) >= SURE_US else State.OK
    if _unmoved_us(window) >= SURE_US:
        return State.STOPPED
    return _suspect(window) if _span_us(window) >= window_us else State.OK


def _undecided(window: Sequence[Sample], window_us: int) -> bool:
    newest, span_us = window[-1], _span_us(window)
    if newest.oldest_us is None:
        return newest.high > newest.end and _open_us(window) == span_us < SURE_US
    if span_us >= window_us:
        return False
    if not newest.owner:
        return _unmoved_us(window) < SURE_US
    suspect = _suspect(window)
    return suspect is State.STALLED or (suspect is State.SLOW and _seconds_behind(newest) > KEEPS_UP_S)


def _drain_s(window: Sequence[Sample], state: State, in_per_s: float, out_per_s: float) -> float | None:
    newest = window[-1]
    if state in (State.BLOCKED, State.STALLED, State.STOPPED):
        return None
    if any(sample.oldest_us is None for sample in window) or _seconds_behind(newest) <= KEEPS_UP_S:
        return 0.0
    return _lag(newest) / (out_per_s - in_per_s) if out_per_s > in_per_s else None


def _partition_lag(partition: tuple[str, int], window: Sequence[Sample], window_us: int, hot: bool) -> PartitionLag:
    first, newest = window[0], window[-1]
    span_s = _span_us(window) / 1e6
    in_per_s = (newest.end - first.end) / span_s if span_s else 0.0
    out_per_s = (newest.committed - first.committed) / span_s if span_s else 0.0
    state = _state(window, window_us)
    return PartitionLag(
        topic=partition[0],
        partition=partition[1],
        owner=newest.owner,
        committed=newest.committed,
        end=newest.end,
        lag_records=_lag(newest),
        seconds_behind=_seconds_behind(newest),
        in_per_s=in_per_s,
        out_per_s=out_per_s,
        drain_s=_drain_s(window, state, in_per_s, out_per_s),
        state=state,
        capacity_per_s=newest.capacity_per_s,
        hot=hot,
        unread_s=0.0 if newest.written_us is None else max(newest.at_us - newest.written_us, 0) / 1e6,
    )
