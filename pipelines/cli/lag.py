"""`tidegate lag`: how far each group and partition is behind, in records and in seconds."""

from collections.abc import Collection
from contextlib import closing
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console, Group, RenderableType

from pipelines.cli.looking import JsonOption, TierOption, follow, look
from pipelines.cli.standing import concerns, partitions_table, when
from pipelines.config import load
from pipelines.errors import ConfigError
from pipelines.observe.lag import LagReader, Reading, lag_reader

app = typer.Typer()


@app.command()
def lag(
    file: Annotated[Path, typer.Argument(help="The pipeline file.")] = Path("pipeline.yaml"),
    as_json: JsonOption = False,
    group: Annotated[
        list[str] | None, typer.Option(metavar="KIND", help="Only this kind of worker, such as edge. May be repeated.")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Go on until interrupted, a reading a second.")] = False,
    tier: TierOption = None,
) -> None:
    """Show how far behind each group and partition is, and how long it takes to drain. Exit 1 if a cluster is away."""
    with closing(lag_reader(load(file), tier)) as reader:
        kinds = _kinds(reader, group)
        if watch:
            follow(lambda: _only(reader.read(), kinds), _table, as_json=as_json)
            return
        with Console(stderr=True).status("looking") as status:
            reading = _only(look(reader, status.update), kinds)
    if as_json:
        typer.echo(msgspec.json.encode(reading).decode())
    else:
        Console().print(_table(reading))
    raise typer.Exit(1 if reading.unreachable else 0)


def _kinds(reader: LagReader, wanted: list[str] | None) -> Collection[str]:
    unknown = sorted(set(wanted or ()) - set(reader.kinds))
    if unknown:
        raise ConfigError(
            f"--group: '{unknown[0]}' is no kind of worker here", remedy=f"one of {', '.join(reader.kinds)}"
        )
    return wanted or reader.kinds


def _only(reading: Reading, kinds: Collection[str]) -> Reading:
    return msgspec.structs.replace(reading, groups=[one for one in reading.groups if one.kind in kinds])


def _table(reading: Reading) -> RenderableType:
    return Group(partitions_table(reading.groups, f"lag, {when(reading)}"), *concerns(reading))
