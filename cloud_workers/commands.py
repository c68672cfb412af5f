"""The cloud's commands: `tidegate cloud|aggregate FILE`, one worker process each. `train` stands in `train_command`.

`--workers` runs several under one supervisor.
"""

from pathlib import Path
from typing import Annotated

import typer

from pipelines.config import Pipeline, load
from pipelines.config.clusters import cluster
from pipelines.observe.serve import instrumented
from pipelines.runtime.fleet import Memory, Workers, run_fleet
from pipelines.runtime.process import begin_worker, instance_name
from pipelines.transport.kafka import KafkaCluster
from schemas.topics import Tier

File = Annotated[Path, typer.Argument(help="The pipeline file.")]
Instance = Annotated[
    str | None, typer.Option(help="A name for this process that its successor takes too. Made up if not given.")
]
Check = Annotated[bool, typer.Option("--check", hidden=True, help="Check this worker's part, and start nothing.")]
ItemShape = Annotated[str, typer.Option(hidden=True, help="With --check: the shape of an item, such as 28,28.")]
DEFAULT_FILE = Path("pipeline.yaml")
ALL_SITES = ""
"""The `site` of metrics of workers that serve several."""

cloud, aggregate = typer.Typer(), typer.Typer()


@cloud.command()
def _cloud(
    file: File = DEFAULT_FILE,
    instance: Instance = None,
    workers: Workers = None,
    memory: Memory = None,
    check: Check = False,
    item_shape: ItemShape = "",
) -> None:
    """Answer escalated items with the cloud's model."""
    from cloud_workers.credit import CreditBeat
    from cloud_workers.inference import BATCH_RECORDS, CloudStage
    from pipelines.core.engine import EngineLimits
    from pipelines.runtime.build import build_runner, shape_of
    from pipelines.runtime.stage import StageRunner
    from schemas.topics import CLOUD_GROUP

    pipeline = load(file)
    if workers or memory:
        run_fleet(pipeline, "cloud", ALL_SITES, file, workers or 1, memory, instance)
        return
    runner = build_runner(pipeline, Tier.CLOUD)
    if check:
        runner.check_items(shape_of(item_shape))
        return
    stop = begin_worker("cloud")
    name = instance_name(instance)
    with instrumented(pipeline, "cloud", ALL_SITES, instance) as instruments:
        StageRunner(
            CloudStage(
                pipeline.cloud_sites, runner, CreditBeat(pipeline.cloud_sites, name), partitions=pipeline.partitions
            ),
            _cloud_cluster(pipeline),
            group=CLOUD_GROUP,
            transactional_id=f"cloud.{name}",
            stop=stop,
            limits=EngineLimits(commit_interval_us=pipeline.cloud.commit_interval.us, batch_records=BATCH_RECORDS),
            name=name,
            notes=True,
            instruments=instruments,
        ).run()


@aggregate.command()
def _aggregate(
    file: File = DEFAULT_FILE, instance: Instance = None, workers: Workers = None, memory: Memory = None
) -> None:
    """Count settled results into event-time windows per stream and class."""
    from cloud_workers.aggregate import LIMITS, AggregateStage
    from pipelines.runtime.stage import StageRunner
    from schemas.topics import AGGREGATE_GROUP

    pipeline = load(file)
    if workers or memory:
        run_fleet(pipeline, "aggregate", ALL_SITES, file, workers or 1, memory, instance)
        return
    stop = begin_worker("aggregate")
    name = instance_name(instance)
    with instrumented(pipeline, "aggregate", ALL_SITES, instance) as instruments:
        cluster = _cloud_cluster(pipeline)
        stage = AggregateStage(pipeline.cloud_sites, cluster, pipeline.windows.size.us, pipeline.windows.lateness.us)
        StageRunner(
            stage,
            cluster,
            group=AGGREGATE_GROUP,
            transactional_id=f"aggregate.{name}",
            stop=stop,
            limits=LIMITS,
            name=name,
            instruments=instruments,
        ).run()


def _cloud_cluster(pipeline: Pipeline) -> KafkaCluster:
    # Not both: a worker that reads one cluster needs no credentials for the other.
    found = cluster(pipeline, Tier.CLOUD)
    found.check()
    return found
