"""How groups stand, as tables: what `lag`, `status` and `top` have in common."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime

from rich.console import Group, RenderableType
from rich.table import Table

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


def groups_table(groups: Iterable[GroupLag], title: str) -> Table:
    """One row a group."""
    table = Table(title=title, title_justify="left")
    for name in ("", "group", "state"):
        table.add_column(name)
    for name in ("behind", "lag", "in/s", "out/s", "drained in", "members"):
        table.add_column(name, justify="right")
    for group in groups:
        table.add_row(
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


def partitions_table(groups: Iterable[GroupLag], title: str) -> Table:
    """One row a partition, below its group."""
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for name in ("committed", "end", "lag", "behind", "in/s", "out/s", "drained in"):
        table.add_column(name, justify="right")
    for name in ("state", "owner"):
        table.add_column(name)
    for group in groups:
        table.add_section()
        table.add_row(
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
            table.add_row(f"  {one.topic}[{one.partition}]", *_partition_cells(one))
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


def members_table(reading: Reading) -> Table:
    """One row a member of a group: what it holds, and which streams lie there."""
    by_partition: defaultdict[int, list[str]] = defaultdict(list)
    for stream, number in sorted(reading.streams.items()):
        by_partition[number].append(stream)
    table = Table(title="members", title_justify="left")
    for name in ("", "member", "host", "holds", "streams"):
        table.add_column(name, overflow="fold")
    for group in reading.groups:
        for member in sorted(group.members, key=lambda one: one.name):
            numbers = sorted({number for _, number in member.partitions})
            streams = [stream for number in numbers for stream in by_partition[number]]
            table.add_row(group.kind, member.name, member.host, holding(member), _some(streams))
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
