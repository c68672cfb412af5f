"""Lag as it is now, of every group and forwarder of a pipeline: what is asked of the clusters, and what it means.

Constraints
- `read` never raises because of a cluster and takes `READ_MOST_S` at most: what is away is named in `unreachable`, and
  the rest is shown. The uplink then stands where it was last seen: its positions cannot move while the cloud is away.
- Commits are read before ends and ends before records, so a sample is of the moment of its commits.
- Nothing is joined and nothing is written.

Operation of one `read`
    both clusters at once: topics, commits, positions, ends, members ─▶ both at once: the first record at each commit
    ─▶ a sample a partition ─▶ LagBook

Which tier is whose: `edge` is what runs at the site: edge workers, settlers, uplink and downlink. The last two need
both clusters. `cloud` is cloud workers and aggregators.
"""

import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NoAnswer

import msgspec

from pipelines.config.clusters import Clusters, cluster, clusters
from pipelines.config.pipeline import Pipeline
from pipelines.core.lag import GroupLag, LagBook, Member, Sample
from pipelines.core.oldest import Oldest
from pipelines.core.work import WorkNote
from pipelines.observe.lag_side import Flow, Side, flows_of
from pipelines.transport.base import Commit, Partition
from schemas.topics import Tier

REQUEST_S = 1.0
"""For one request. A broker on the same machine answers in milliseconds."""

READ_MOST_S = 2.5
"""For one `read`. Who has not answered by then is away."""


class Reading(msgspec.Struct, frozen=True):
    """All groups at one moment."""

    at_us: int
    """When commits were read."""
    groups: list[GroupLag]
    """In the order of the flow. Those of a cluster that is away are left out."""
    streams: dict[str, int]
    """The partition that each stream lies in."""
    unreachable: dict[Tier, str]
    """Clusters that are away, or not as they should be, with one line why."""
    brokers: dict[Tier, int] = {}
    """How many each cluster has that answered."""


class LagReader:
    """Reads one pipeline's lag, about once a second. For one thread."""

    def __init__(
        self,
        both: Clusters,
        pipeline: Pipeline,
        tiers: Collection[Tier] = tuple(Tier),
        *,
        retentions: bool = False,
    ) -> None:
        """`retentions`: look how long topics keep their records, too."""
        self._flows = flows_of(pipeline, tiers)
        self._books = {flow.kind: LagBook(flow.kind, flow.group, flow.tier) for flow in self._flows}
        positions = pipeline.topics.positions if Tier.EDGE in tiers else ""
        self._sides = {
            tier: Side(tier, getattr(both, tier).look(REQUEST_S), self._flows, positions, retentions=retentions)
            for tier in Tier
            if any(flow.tier is tier or flow.positions for flow in self._flows)
        }
        self.kinds = [flow.kind for flow in self._flows]
        """Of workers, in the order of the flow."""
        self.addresses: dict[Tier, str] = {tier: getattr(both, tier).bootstrap for tier in self._sides}
        """Of the clusters that are asked."""
        self._oldest = {flow.kind: Oldest() for flow in self._flows}
        self._pool = ThreadPoolExecutor(len(self._sides), thread_name_prefix="lag")

    def read(self) -> Reading:
        """How everything stands now."""
        until_s = time.monotonic() + READ_MOST_S
        unreachable = self._at_once(Side.look, until_s)
        standing = {
            flow.kind: commits for flow in self._flows if (commits := self._standing(flow, unreachable)) is not None
        }
        wanted = {flow.kind: self._wanted(flow, standing[flow.kind]) for flow in self._flows if flow.kind in standing}

        def peek(side: Side) -> None:
            for flow in self._flows:
                if flow.tier is side.tier and wanted.get(flow.kind):
                    self._oldest[flow.kind].note(side.first_records(flow.kind, wanted[flow.kind]))

        unreachable |= self._at_once(peek, until_s, unreachable)
        groups = []
        for flow in self._flows:
            if flow.kind in standing and flow.tier not in unreachable:
                groups.append(self._group(flow, standing[flow.kind]))
        edge = self._sides.get(Tier.EDGE)
        return Reading(
            at_us=max((side.at_us for tier, side in self._sides.items() if tier not in unreachable), default=_now_us()),
            groups=groups,
            streams=dict(edge.streams) if edge is not None else {},
            unreachable=unreachable,
            brokers={tier: side.known.brokers for tier, side in self._sides.items() if tier not in unreachable},
        )

    @property
    def retentions_s(self) -> dict[tuple[Tier, str], float]:
        """How long each topic that is read keeps a record at the least, as it was seen last, where that is known."""
        return {
            (tier, topic): kept_s for tier, side in self._sides.items() for topic, kept_s in side.retentions_s.items()
        }

    @property
    def undecided(self) -> bool:
        """Whether more readings could show that something is worse than it stands."""
        return any(book.undecided for book in self._books.values())

    def close(self) -> None:
        """Release the connections. Waits for a request that is under way, a second or so."""
        self._pool.shutdown()
        for side in self._sides.values():
            side.close()

    def _at_once(self, task: Callable[[Side], None], until_s: float, skip: Collection[Tier] = ()) -> dict[Tier, str]:
        """Run the task for each cluster; what went wrong, by tier."""
        asked: dict[Tier, Future[str]] = {}
        wrong = {}
        for tier, side in self._sides.items():
            if tier in skip:
                continue
            if side.busy is not None and not side.busy.done():
                wrong[tier] = _no_answer(tier)  # Of the reading before, still: it has its own bounds.
            else:
                side.busy = asked[tier] = self._pool.submit(side.run, task)
        for tier, answer in asked.items():
            try:
                problem = answer.result(max(until_s - time.monotonic(), 0))
            except NoAnswer:
                problem = _no_answer(tier)
            if problem:
                wrong[tier] = problem
        return wrong

    def _standing(self, flow: Flow, unreachable: Mapping[Tier, str]) -> "_Standing | None":
        """Where a group stands, None where that is not known."""
        source = self._sides[flow.tier]
        if flow.tier in unreachable:
            return None
        if not flow.positions:
            owners = {p: member.name for member in source.members[flow.group] for p in member.partitions}
            return _Standing(source.at_us, source.commits[flow.group], owners, source.members[flow.group])
        keeper_tier = _other(flow.tier)
        keeper = self._sides[keeper_tier]
        if flow.positions not in keeper.complete:
            return None
        owner = keeper.owners.get(flow.positions, "")
        positions = dict(keeper.positions[flow.positions])  # Its thread may still be at work.
        commits = {p: Commit(offset) for p, offset in positions.items() if p in source.ends}
        at_us = source.at_us if keeper_tier in unreachable else keeper.followed_us
        members = [Member(owner, "", sorted(commits))] if owner else []
        return _Standing(at_us, commits, dict.fromkeys(commits, owner), members)

    def _wanted(self, flow: Flow, standing: "_Standing") -> dict[Partition, int]:
        ends = self._sides[flow.tier].ends
        return self._oldest[flow.kind].wanted(
            {p: (commit.offset, ends[p][0]) for p, commit in standing.commits.items()}, standing.at_us
        )

    def _group(self, flow: Flow, standing: "_Standing") -> GroupLag:
        ends = self._sides[flow.tier].ends
        samples = {}
        for partition, commit in standing.commits.items():
            stable, high = ends[partition]
            note, waits = WorkNote.read(commit.metadata), self._oldest[flow.kind].waits(partition)
            samples[partition] = Sample(
                at_us=standing.at_us,
                committed=commit.offset,
                end=stable,
                high=high,
                oldest_us=waits.since_us if waits else None,
                owner=standing.owners.get(partition, ""),
                record_us=note.record_us if note else None,
                capacity_per_s=note.capacity_per_s if note else None,
                written_us=waits.written_us if waits else None,
            )
        book = self._books[flow.kind]
        book.take(samples)
        return book.lag(standing.members)


def lag_reader(pipeline: Pipeline, tier: Tier | None = None, *, retentions: bool = False) -> LagReader:
    """A reader of both tiers, or of one; not contacted yet. Raises `ConfigError` where an address is not known."""
    if tier is Tier.CLOUD:
        cloud = cluster(pipeline, Tier.CLOUD)
        # The edge's address may be unknown in the cloud.
        return LagReader(Clusters(cloud, cloud), pipeline, [tier], retentions=retentions)
    return LagReader(clusters(pipeline), pipeline, tuple(Tier) if tier is None else [tier], retentions=retentions)


class _Standing(msgspec.Struct, frozen=True):
    """Where one group stands."""

    at_us: int
    commits: dict[Partition, Commit]
    owners: dict[Partition, str]
    members: list[Member]


def _other(tier: Tier) -> Tier:
    return Tier.CLOUD if tier is Tier.EDGE else Tier.EDGE


def _now_us() -> int:
    return time.time_ns() // 1000


def _no_answer(tier: Tier) -> str:
    return f"kafka.{tier}: no answer in {READ_MOST_S:g} s"
