"""`tidegate broker`: a detached embedded Kafka that has a name."""

import sys
from collections import deque
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console

from pipelines.errors import BrokerError
from pipelines.transport.broker import DetachedBroker, start_detached, status_detached, stop_detached
from pipelines.transport.storage import free_bytes

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Start, stop and look at an embedded Kafka of your own."
)

Name = Annotated[str, typer.Option("--name", help="Which broker; several may run side by side.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


class Report(msgspec.Struct, frozen=True):
    """What `--json` prints; the others are null where the broker was never started."""

    name: str
    running: bool
    bootstrap: str | None = None
    pid: int | None = None
    data_dir: str | None = None
    log: str | None = None
    free_bytes: int | None = None
    """On the disk of the data."""


def _report(name: str, broker: DetachedBroker | None) -> Report:
    if broker is None:
        return Report(name=name, running=False)
    return Report(
        name=name,
        running=broker.running,
        bootstrap=broker.bootstrap,
        pid=broker.pid,
        data_dir=str(broker.data_dir),
        log=str(broker.log_path),
        free_bytes=free_bytes(str(broker.data_dir)),
    )


def _show(report: Report, as_json: bool, sentence: str) -> None:
    typer.echo(msgspec.json.encode(report).decode() if as_json else sentence)


@app.command()
def start(
    name: Name = "default",
    data: Annotated[Path | None, typer.Option("--data", help="Data directory; kept when the broker stops.")] = None,
    as_json: Json = False,
) -> None:
    """Start a broker that stays until it is stopped; one that runs already is left as it is."""
    with Console(stderr=True).status("Starting Kafka") as status:
        broker = start_detached(data, name, progress=status.update)
    _show(
        _report(name, broker),
        as_json,
        f"broker '{name}' is ready at {broker.bootstrap} (process {broker.pid}, data in {broker.data_dir})",
    )


@app.command()
def stop(name: Name = "default", as_json: Json = False) -> None:
    """Stop a broker; its data stays."""
    was_running = stop_detached(name)
    _show(
        Report(name=name, running=False),
        as_json,
        f"broker '{name}' is stopped" if was_running else f"broker '{name}' was not running",
    )


@app.command()
def status(name: Name = "default", as_json: Json = False) -> None:
    """Say whether a broker runs, and where; exit 1 where it does not."""
    broker = status_detached(name)
    report = _report(name, broker)
    free = "" if report.free_bytes is None else f", {report.free_bytes / 1e9:.1f} GB free"
    where = f"runs at {report.bootstrap} (process {report.pid}, data in {report.data_dir}{free})"
    _show(report, as_json, f"broker '{name}' {where if report.running else 'is not running'}")
    if not report.running:
        raise typer.Exit(1)


@app.command()
def logs(
    name: Name = "default",
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, max=100_000, help="How many of the last lines.")] = 50,
) -> None:
    """Print the last lines of a broker's log."""
    broker = status_detached(name)
    if broker is None or not broker.log_path.is_file():
        raise BrokerError(f"there is no log of a broker '{name}'", remedy=f"tidegate broker start --name {name}")
    with broker.log_path.open(encoding="utf-8", errors="replace") as file:
        sys.stdout.writelines(deque(file, maxlen=lines))
