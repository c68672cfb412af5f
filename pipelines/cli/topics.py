"""`tidegate topics apply`: create what a pipeline stands on."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from pipelines.config import clusters, load
from pipelines.config.pipeline import Pipeline
from pipelines.transport.topics import Layout
from pipelines.transport.topics import apply as apply_layout

app = typer.Typer(no_args_is_help=True, help="Create the topics of a pipeline, and the first positions of its readers.")


@app.callback()
def _group() -> None:
    pass


@app.command("apply")
def _apply(file: Annotated[Path, typer.Argument(help="The pipeline file.")] = Path("pipeline.yaml")) -> None:
    """Create what is missing on both clusters. Safe to run again, and while the pipeline runs."""
    pipeline = load(file)
    both = clusters(pipeline)
    for cluster in both:
        cluster.check()
    created = apply_layout(layout_of(pipeline), both.edge, both.cloud)
    Console().print(f"{len(created)} topics created, {pipeline.partitions} partitions a keyed topic")


def layout_of(pipeline: Pipeline) -> Layout:
    """What `transport.topics` needs to know of a pipeline."""
    return Layout(pipeline.site, pipeline.partitions, pipeline.retention.ms)
