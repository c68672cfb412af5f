"""What a person sees while a pipeline runs: one table, a few times a second."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from pipelines.observe.watch import Snapshot


@contextmanager
def showing(console: Console) -> Iterator[Live]:
    """A display that is updated in place; where there is no terminal, its last state is printed once."""
    with Live(console=console, refresh_per_second=4) as live:
        yield live
    if not console.is_terminal:
        console.line()  # Without a terminal the display leaves its last line open.


def live_table(title: str, snapshot: Snapshot, notes: str = "") -> Group:
    """The state of a pipeline: a table, the share of each outcome, and what is worth noting."""
    table = Table(title=title, title_justify="left")
    for name in ("captured", "settled", "items/s", "edge backlog", "cloud backlog", "uplink", "downlink"):
        table.add_column(name, justify="right")
    table.add_row(
        f"{snapshot.captured:,}",
        f"{snapshot.settled:,}",
        f"{snapshot.settled_per_s:,.0f}",
        seconds(snapshot.edge_backlog_s),
        seconds(snapshot.cloud_backlog_s),
        f"{byte_count(snapshot.uplink_bytes_per_s)}/s",
        f"{byte_count(snapshot.downlink_bytes_per_s)}/s",
    )
    return Group(table, *(line for line in (route_mix(snapshot), notes) if line))


def route_mix(snapshot: Snapshot) -> str:
    """Outcomes with their shares, such as `answered_edge 94.1%`."""
    total = sum(snapshot.outcomes.values())
    names = sorted(snapshot.outcomes, key=lambda name: -snapshot.outcomes[name])
    return "  ".join(f"{name} {snapshot.outcomes[name] / total:.1%}" for name in names) if total else ""


def seconds(value: float) -> str:
    """A backlog; unknown where nothing moves yet."""
    return "?" if value == float("inf") else f"{value:.1f} s"


def byte_count(value: float) -> str:
    """Bytes in the largest unit that keeps a digit before the point."""
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"
