"""How groups stand, as tables: what `lag`, `status` and `top` have in common."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime

from rich.console import Group, RenderableType

from pipelines.cli.fitted import Column, Fitted
from pipelines.core.lag import GroupLag, Member, PartitionLag, State
from pipelines.observe.lag import Reading

STREAMS_SHOWN = 3

COLOURS = {State.OK: "green", State.SLOW: "yellow", State.BLOCKED: "red", State.STALLED: "red", State.STOPPED: "red"}
BAD = frozenset({State.BLOCKED, State.STALLED, State.STOPPED})


def is_well(reading: Reading) -> bool:
    """Whether nothing is stalled, stopped, blocked or unreachable."""
    return not reading.unreachable and all(group.state not in BAD for group in reading.groups)


def when(reading: Reading) -> str:
    """The time of a reading, on this machine's clock."""
    return datetime.fromtimestamp(reading.at_us / 1e6).astimezone().strftime("%H:%M:%S")


GROUP_COLUMNS = (
    Column("kind", rank=4),  # The group's name nearly says it.
    Column("group"),
    Column("state"),
    Column("behind", right=True),
    Column("lag", rank=5, right=True),
    Column("in/s", rank=1, right=True),
    Column("out/s", rank=2, right=True),
    Column("drained in", rank=1, right=True),
    Column("members", rank=3, right=True),
)

PARTITION_COLUMNS = (
    Column("partition"),
    Column("committed", rank=7, right=True),
    Column("end", rank=6, right=True),
    Column("lag", rank=2, right=True),
    Column("behind", right=True),
    Column("in/s", rank=4, right=True),
    Column("out/s", rank=3, right=True),
    Column("drained in", rank=5, right=True),
    Column("state"),
    Column("owner", rank=1),
)

MEMBER_COLUMNS = (
    Column("kind", rank=1),
    Column("member"),
    Column("host", rank=3),
    Column("holds", wraps=True),
    Column("streams", rank=2, wraps=True),
)


def groups_table(groups: Iterable[GroupLag], title: str) -> Fitted:
    """One row a group."""
    table = Fitted(title, GROUP_COLUMNS)
    for group in groups:
        table.add(
            group.kind,
            group.group,
            state_text(group.state),
            seconds(group.seconds_behind),
            f"{group.lag_records:,}",
            rate(group.in_per_s),
            rate(group.out_per_s),
            drain(group.drain_s),
            str(len(group.members)),
        )
    return table


def partitions_table(groups: Iterable[GroupLag], title: str) -> Fitted:
    """One row a partition, below its group."""
    table = Fitted(title, PARTITION_COLUMNS)
    for group in groups:
        table.section()
        table.add(
            f"[bold]{group.kind}[/] {group.group}",
            "",
            "",
            f"{group.lag_records:,}",
            seconds(group.seconds_behind),
            rate(group.in_per_s),
            rate(group.out_per_s),
            drain(group.drain_s),
            state_text(group.state),
            f"{len(group.members)} in all",
        )
        for one in group.partitions:
            table.add(f"  {one.topic}\\[{one.partition}]", *_partition_cells(one))
    return table


def _partition_cells(one: PartitionLag) -> Sequence[str]:
    return (
        f"{one.committed:,}",
        f"{one.end:,}",
        f"{one.lag_records:,}",
        seconds(one.seconds_behind),
        rate(one.in_per_s),
        rate(one.out_per_s),
        drain(one.drain_s),
        state_text(one.state) + (" hot" if one.hot else ""),
        one.owner,
    )


def members_table(reading: Reading) -> Fitted:
    """One row a member of a group: what it holds, and which streams lie there."""
    by_partition: defaultdict[int, list[str]] = defaultdict(list)
    for stream, number in sorted(reading.streams.items()):
        by_partition[number].append(stream)
    table = Fitted("members", MEMBER_COLUMNS)
    for group in reading.groups:
        for member in sorted(group.members, key=lambda one: one.name):
            numbers = sorted({number for _, number in member.partitions})
            streams = [stream for number in numbers for stream in by_partition[number]]
            table.add(group.kind, member.name, member.host, holding(member), _some(streams))
    return table


def _some(streams: Sequence[str]) -> str:
    if not streams:
        return ""
    more = ", ..." if len(streams) > STREAMS_SHOWN else ""
    return f"{len(streams)}: {', '.join(streams[:STREAMS_SHOWN])}{more}"


def holding(member: Member) -> str:
    """What a member holds, such as `site-1.items[0-2,5]`."""
    numbers: defaultdict[str, list[int]] = defaultdict(list)
    for topic, number in sorted(member.partitions):
        numbers[topic].append(number)
    return " ".join(f"{topic}\\[{_ranges(held)}]" for topic, held in numbers.items())


def _ranges(numbers: Sequence[int]) -> str:
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ",".join("-".join(map(str, run)) for run in runs)


def concerns(reading: Reading) -> list[str]:
    """What is wrong or worth knowing, a line each."""
    found = [f"[red]away[/]: {problem}" for problem in reading.unreachable.values()]
    for group in reading.groups:
        for state, meaning in _MEANING.items():
            named = [f"{one.topic}\\[{one.partition}]" for one in group.partitions if one.state is state]
            if named:
                found.append(f"{state_text(state)}: {group.kind}: {', '.join(named)}: {meaning}")
        hot = [f"{one.topic}\\[{one.partition}] {rate(one.in_per_s)}/s" for one in group.partitions if one.hot]
        if hot:
            found.append(f"hot: {group.kind}: {', '.join(hot)}: far more than the mean of the topic's partitions")
    return found


_MEANING = {
    State.STOPPED: "records wait, and nobody works on them",
    State.STALLED: "its worker has done nothing for 10 s",
    State.BLOCKED: "a transaction is open, and holds back what lies behind it",
    State.SLOW: "more comes in than goes out",
}


def overview(reading: Reading, title: str) -> RenderableType:
    """What `top` shows."""
    return Group(groups_table(reading.groups, f"{title}, {when(reading)}"), *concerns(reading))


def state_text(state: State) -> str:
    """A state in its colour."""
    return f"[{COLOURS[state]}]{state}[/]"


def seconds(value: float) -> str:
    """Seconds behind; a dash where nothing waits."""
    return f"{value:.1f} s" if value else "-"


def rate(value: float) -> str:
    """Records a second."""
    return f"{value:,.0f}" if value >= 10 or not value else f"{value:.1f}"


def drain(value: float | None) -> str:
    """Until nothing waits; a dash where there is no backlog."""
    if value is None:
        return "never"
    return f"{value:,.0f} s" if value else "-"
