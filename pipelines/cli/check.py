"""`tidegate check`: is a pipeline file right, and does what it names fit together? Nothing is started or contacted.

Each worker kind checks its own part in a child process (`tidegate produce FILE --check`, and so on): the command line
imports no worker. The producer's part tells the shape of its items, which the models' parts are then held against.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from pipelines.config import Pipeline, load
from pipelines.config.clusters import security
from pipelines.config.load import json_schema
from pipelines.errors import TidegateError
from schemas.topics import Tier

app = typer.Typer(add_completion=False)

CHECK_TIMEOUT_S = 120.0
"""Loading a model or listing a folder of a million files takes seconds; a source on a dead network share never ends."""


class CheckFailed(TidegateError):
    """A part does not check. Carries the exit code of the worker that said so."""

    def __init__(self, problem: str, exit_code: int) -> None:
        super().__init__(problem)
        self.exit_code = exit_code


@app.command()
def check(
    file: Annotated[Path, typer.Argument(help="The pipeline file.")] = Path("pipeline.yaml"),
    schema: Annotated[bool, typer.Option("--schema", help="Print the file's JSON Schema, for editors.")] = False,
) -> None:
    """Validate a pipeline file and what it names, without starting anything."""
    if schema:
        typer.echo(json.dumps(json_schema(), indent=2))
        return
    pipeline = load(file)
    for tier in Tier:
        security(pipeline, tier)
    item = check_parts(pipeline, file)
    shape = "x".join(str(side) for side in item["shape"])
    streams = f"{item['streams']} stream{'s' if item['streams'] > 1 else ''}"
    Console().print(
        f"{file} is right: {streams} of {shape} items as {item['codec']}, policy {pipeline.routing.policy}, "
        f"{pipeline.partitions} partitions",
        soft_wrap=True,
        highlight=False,
    )


def check_parts(pipeline: Pipeline, file: Path) -> dict[str, Any]:
    """Have every worker kind check its part; what the producer says of its items. Raises `CheckFailed`."""
    item: dict[str, Any] = json.loads(_part("produce", file))
    shape = ",".join(str(side) for side in item["shape"])
    _part("edge", file, "--item-shape", shape)
    if pipeline.cloud.model is not None:
        _part("cloud", file, "--item-shape", shape)
    return item


def _part(kind: str, file: Path, *options: str) -> str:
    command = [sys.executable, "-P", "-m", "tidegate", kind, str(file), "--check", *options]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=CHECK_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise CheckFailed(f"{kind}: its check took over {CHECK_TIMEOUT_S:.0f} s", 2) from error
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"{kind} ended with exit code {done.returncode}"]
        raise CheckFailed(lines[-1].removeprefix("error: "), done.returncode)
    return done.stdout
