"""`tidegate run`: a whole pipeline on this machine, both tiers, embedded Kafka where the file names none."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.live import Live

from pipelines.cli.audit import show
from pipelines.cli.check import check_parts
from pipelines.cli.live import live_table, showing
from pipelines.cli.session import Session, session
from pipelines.config import load
from pipelines.config.home import pipeline_dir
from pipelines.core.ledger import Verdict
from pipelines.errors import ConfigError, ForeignRecord
from pipelines.observe.audit import Auditor
from pipelines.observe.watch import Watch
from pipelines.transport.base import Partition
from schemas import wire

app = typer.Typer(add_completion=False)

TURN_S = 0.25
DRAIN_MOST_S = 30.0
"""Beyond the deadline of the last item: what is in flight then stays, and the audit counts it."""


@app.command()
def run(
    file: Annotated[Path, typer.Argument(help="The pipeline file.")] = Path("pipeline.yaml"),
    results: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write this run's results there at the end, one JSON a line.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the account as one JSON object at the end.")] = False,
) -> None:
    """Run a pipeline until its source ends or you interrupt it; then show the account of every item.

    Embedded data is kept under the pipeline's name: the next run goes on where this one ended.
    """
    pipeline = load(file)
    if results is not None:
        _check_writable(results)
    console = Console(stderr=True)
    with console.status("checking the pipeline"):
        check_parts(pipeline, file)
    with (
        console.status("starting Kafka and the workers") as status,
        session(pipeline, file.resolve(), pipeline_dir(pipeline.name), status.update) as one,
    ):
        begins = one.clusters.edge.end_offsets([pipeline.topics.results])
        watch = Watch(one.clusters, pipeline.site)
        try:
            one.start()
            status.stop()
            console.print(f"logs are in {one.folder / 'logs'}", soft_wrap=True, highlight=False)
            verdict = _follow(one, watch, console)
        finally:
            watch.close()
        if results is not None:
            foreign = _write_results(results, one, begins)
            if foreign:
                console.print(f"{foreign} foreign records in {pipeline.topics.results} passed over")
    if not watch.captured:
        console.print(
            f"nothing new: earlier runs of '{pipeline.name}' have captured the whole source; "
            "another `name` begins anew",
            soft_wrap=True,
        )
    if as_json:
        typer.echo(msgspec.json.encode(verdict).decode())
    else:
        show(verdict, Console())
    raise typer.Exit(0 if verdict.balanced else 1)


def _follow(one: Session, watch: Watch, console: Console) -> Verdict:
    """Show the pipeline until its source has ended and nothing is in flight; an interrupt ends the source early."""
    auditor = Auditor(one.clusters.edge, one.pipeline.site)
    title = f"pipeline {one.pipeline.name}"
    with showing(console) as live:
        try:
            _until(one, watch, live, title, lambda: one.supervisor.done("produce"))
        except KeyboardInterrupt:
            title += ": stopping; interrupt again to stop at once"
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


def _check_writable(path: Path) -> None:
    try:
        path.write_bytes(b"")
    except OSError as error:
        raise ConfigError(f"--results: {path} cannot be written ({error.strerror})", remedy="name another") from error


def _write_results(path: Path, one: Session, begins: Mapping[Partition, int]) -> int:
    """All results settled since the offsets `begins`, in the order of each partition; how many records were foreign."""
    foreign = 0
    with path.open("wb") as out:
        for record in one.clusters.edge.read_all([one.pipeline.topics.results], begins):
            try:
                out.writelines(wire.encode(result) + b"\n" for result in wire.decode_results(record.value()).results)
            except ForeignRecord:
                foreign += 1
    return foreign


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
