"""`tidegate top`: every group, live."""

from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.looking import JsonOption, TierOption, follow
from pipelines.cli.standing import overview
from pipelines.config import load
from pipelines.config.units import Duration
from pipelines.errors import ConfigError
from pipelines.observe.lag import lag_reader

app = typer.Typer()

SHORTEST_US = 200_000
"""A reading costs some 10 ms of processor here and a dozen requests on each cluster."""


@app.command()
def top(
    file: Annotated[Path, typer.Argument(help="The pipeline file.")] = Path("pipeline.yaml"),
    interval: Annotated[str, typer.Option(metavar="1s", help="Between two readings.")] = "1s",
    count: Annotated[int, typer.Option(min=0, help="End after so many readings; 0 goes on until interrupted.")] = 0,
    as_json: JsonOption = False,
    tier: TierOption = None,
) -> None:
    """Show every group live: its state, seconds behind, rates, drain time, and what is wrong."""
    pipeline = load(file)
    between = _interval(interval)
    with closing(lag_reader(pipeline, tier)) as reader:
        follow(
            reader.read,
            lambda reading: overview(reading, f"pipeline {pipeline.name}, site {pipeline.site}"),
            as_json=as_json,
            interval_s=between.s,
            count=count,
        )


def _interval(text: str) -> Duration:
    try:
        found = Duration.parse(text)
    except ValueError as error:
        raise ConfigError(f"--interval: {error}") from error
    if found < SHORTEST_US:
        raise ConfigError(f"--interval: {text} is shorter than 200 ms", remedy="give 200ms or more")
    return found
