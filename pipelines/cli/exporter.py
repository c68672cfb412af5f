"""`tidegate exporter`: the lag of every group and partition as metrics, read once a second."""

import time
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.looking import INTERVAL_S, TierOption
from pipelines.config import load
from pipelines.core.progress import Doing
from pipelines.observe.exporter import LagCollector
from pipelines.observe.instruments import Instruments
from pipelines.observe.lag import lag_reader
from pipelines.observe.probe import DEFAULT
from pipelines.observe.serve import address_of, served
from pipelines.runtime.process import begin_worker

app = typer.Typer()


@app.command()
def exporter(
    file: Annotated[Path, typer.Argument(help="The pipeline file.")] = Path("pipeline.yaml"),
    tier: TierOption = None,
    listen: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help=f"Else TIDEGATE_METRICS, `metrics.listen` of the file, or {DEFAULT}."),
    ] = None,
) -> None:
    """Export how far behind every group and partition is, for Prometheus, until it is stopped. One a tier is enough."""
    pipeline = load(file)
    address = address_of(pipeline.metrics.listen or DEFAULT, listen)
    stop = begin_worker("exporter")
    instruments = Instruments("exporter", pipeline.site)
    collector = LagCollector(pipeline.site)
    instruments.meters.registry.register(collector)
    with closing(lag_reader(pipeline, tier, retentions=True)) as reader, served(instruments, address):
        while not stop.is_set():
            began_s = time.monotonic()
            instruments.at(Doing.READING)
            reading = reader.read()  # What is away stands in it: that is the clusters' trouble, and is exported.
            took_s = time.monotonic() - began_s
            collector.take(reading, took_s, reader.retentions_s)
            instruments.done()
            instruments.at(Doing.IDLE)
            stop.wait(max(INTERVAL_S - took_s, 0.0))
