"""`tidegate status`: both clusters, every group and its members. Exit 0 only if work is done everywhere."""

from contextlib import closing
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console

from pipelines.cli.fitted import Column, Fitted
from pipelines.cli.looking import JsonOption, TierOption, look
from pipelines.cli.standing import concerns, groups_table, is_well, members_table, when
from pipelines.config import load
from pipelines.core.lag import GroupLag
from pipelines.observe.lag import Reading, lag_reader
from schemas.topics import Tier

app = typer.Typer()


class ClusterStatus(msgspec.Struct, frozen=True):
    """One cluster."""

    address: str
    reachable: bool
    brokers: int
    problem: str = ""


class Status(msgspec.Struct, frozen=True):
    """What `--json` prints."""

    pipeline: str
    site: str
    well: bool
    """Nothing is stalled, stopped, blocked or unreachable: the exit code is 0."""
    at_us: int
    clusters: dict[Tier, ClusterStatus]
    groups: list[GroupLag]
    streams: dict[str, int]
    """The partition that each stream lies in."""


@app.command()
def status(
    file: Annotated[Path, typer.Argument(help="The pipeline file.")] = Path("pipeline.yaml"),
    as_json: JsonOption = False,
    tier: TierOption = None,
) -> None:
    """Show clusters, groups, members and what is wrong. Exit 1 if anything is stalled, stopped, blocked or away.

    Takes a second where all is well, and ten where only that tells stalled from busy.
    """
    pipeline = load(file)
    with closing(lag_reader(pipeline, tier)) as reader:
        with Console(stderr=True).status("looking") as progress:
            reading = look(reader, progress.update)
        found = Status(
            pipeline=pipeline.name,
            site=pipeline.site,
            well=is_well(reading),
            at_us=reading.at_us,
            clusters={tier: _cluster(address, tier, reading) for tier, address in reader.addresses.items()},
            groups=reading.groups,
            streams=reading.streams,
        )
    if as_json:
        typer.echo(msgspec.json.encode(found).decode())
    else:
        show(found, reading, Console())
    raise typer.Exit(0 if found.well else 1)


def _cluster(address: str, tier: Tier, reading: Reading) -> ClusterStatus:
    problem = reading.unreachable.get(tier, "")
    return ClusterStatus(address, not problem, reading.brokers.get(tier, 0), problem)


def show(found: Status, reading: Reading, console: Console) -> None:
    """Print tables of clusters, groups and members, then what is wrong."""
    title = f"pipeline {found.pipeline}, site {found.site}, {when(reading)}"
    table = Fitted(title, (Column("cluster"), Column("address"), Column()))
    for tier, one in found.clusters.items():
        brokers = f"{one.brokers} broker{'s' if one.brokers > 1 else ''}"
        table.add(tier, one.address, f"[green]{brokers}[/]" if one.reachable else "[red]away[/]")
    console.print(table)
    if reading.groups:  # Not where every cluster is away.
        console.print(groups_table(reading.groups, "groups"))
        console.print(members_table(reading))
    for line in concerns(reading):
        console.print(line, highlight=False, soft_wrap=True)
    if found.well:
        console.print("[green]well[/]: every group does its work")
