"""`tidegate run`: a whole pipeline on this machine, both tiers, embedded Kafka where the file names none."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.live import Live

from pipelines.cli.audit import show
from pipelines.cli.check import check_parts
from pipelines.cli.live import live_table
from pipelines.cli.session import Session, session
from pipelines.config import load
from pipelines.config.home import pipeline_dir
from pipelines.core.ledger import Verdict
from pipelines.observe.audit import Auditor
from pipelines.observe.watch import Watch

app = typer.Typer()

TURN_S = 0.25
DRAIN_MOST_S = 30.0
"""Beyond the deadline of the last item: what is in flight then stays, and the audit counts it."""


@app.command()
def run(
    file: Annotated[Path, typer.Argument(help="The pipeline file.")] = Path("pipeline.yaml"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the account as one JSON object at the end.")] = False,
) -> None:
    """Run a pipeline until its source ends or you interrupt it; then show the account of every item.

    Embedded data is kept under the pipeline's name: the next run goes on where this one ended.
    """
    pipeline = load(file)
    console = Console(stderr=True)
    with console.status("checking the pipeline"):
        check_parts(pipeline, file)
    with (
        console.status("starting Kafka and the workers") as status,
        session(pipeline, file.resolve(), pipeline_dir(pipeline.name)) as one,
    ):
        status.stop()
        verdict = _follow(one, console)
    if as_json:
        typer.echo(msgspec.json.encode(verdict).decode())
    else:
        show(verdict, Console())
    raise typer.Exit(0 if verdict.balanced else 1)


def _follow(one: Session, console: Console) -> Verdict:
    """Show the pipeline until its source has ended and nothing is in flight; an interrupt ends the source early."""
    watch = Watch(one.clusters, one.pipeline.site)
    auditor = Auditor(one.clusters.edge, one.pipeline.site)
    title = f"pipeline {one.pipeline.name}  (logs in {one.folder / 'logs'})"
    try:
        with Live(console=console, refresh_per_second=4) as live:
            try:
                _until(one, watch, live, title, lambda: one.supervisor.done("produce"))
            except KeyboardInterrupt:
                title += "  stopping; interrupt again to stop at once"
                one.supervisor.end("produce")
            until_s = time.monotonic() + one.pipeline.deadline.s + DRAIN_MOST_S
            verdicts: list[Verdict] = []

            def drained() -> bool:
                if not one.supervisor.done("produce"):
                    return False
                verdicts[:] = [auditor.look()]
                return not verdicts[0].in_flight_items or time.monotonic() > until_s

            _until(one, watch, live, title, drained)
        return verdicts[0]
    finally:
        watch.close()


def _until(one: Session, watch: Watch, live: Live, title: str, ended: Callable[[], bool]) -> None:
    """Keep the workers running and the table fresh until `ended`."""
    while True:
        one.supervisor.turn(0)
        read_until_s = time.monotonic() + TURN_S
        while (left_s := read_until_s - time.monotonic()) > 0:
            watch.poll(left_s)
        live.update(live_table(title, watch.snapshot()))
        if ended():
            return
