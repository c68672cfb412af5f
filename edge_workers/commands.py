"""The edge's commands: `tidegate produce|edge|settle|uplink|downlink FILE`, one worker process each.

`--workers` runs several of `edge` or `settle` under one supervisor.
Imports stand inside the commands: a producer needs no model, a settler neither model nor image library.
"""

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from pipelines.config import Pipeline, clusters, load
from pipelines.config.clusters import cluster
from pipelines.observe import metrics
from pipelines.observe.serve import instrumented
from pipelines.runtime.fleet import Memory, Workers, run_fleet
from pipelines.runtime.process import begin_worker, instance_name, life_name
from pipelines.transport.kafka import KafkaCluster
from schemas.topics import Tier

File = Annotated[Path, typer.Argument(help="The pipeline file.")]
Instance = Annotated[
    str | None, typer.Option(help="A name for this process that its successor takes too. Made up if not given.")
]
Check = Annotated[bool, typer.Option("--check", hidden=True, help="Check this worker's part, and start nothing.")]
ItemShape = Annotated[str, typer.Option(hidden=True, help="With --check: the shape of an item, such as 28,28.")]
DEFAULT_FILE = Path("pipeline.yaml")

produce, edge, settle, uplink, downlink = (typer.Typer(add_completion=False) for _ in range(5))


@produce.command()
def _produce(file: File = DEFAULT_FILE, instance: Instance = None, check: Check = False) -> None:
    """Take items from the source, prepare and encode them, and write them to the edge's Kafka."""
    from edge_workers.build import build_producer, describe_items

    pipeline = load(file)
    if check:
        typer.echo(json.dumps(describe_items(pipeline)))
        return
    stop = begin_worker("produce")
    with instrumented(pipeline, "produce", pipeline.site, instance) as instruments:
        build_producer(pipeline, _edge_cluster(pipeline), life_name(instance), stop, instruments).run()


@edge.command()
def _edge(
    file: File = DEFAULT_FILE,
    instance: Instance = None,
    workers: Workers = None,
    memory: Memory = None,
    check: Check = False,
    item_shape: ItemShape = "",
) -> None:
    """Answer items with the edge's model, and send on what the router sends to the cloud."""
    from edge_workers.inference import EdgeStage
    from pipelines.core.engine import EngineLimits
    from pipelines.runtime.build import build_policy, build_runner, shape_of
    from pipelines.runtime.stage import StageRunner

    pipeline = load(file)
    if workers or memory:
        run_fleet(pipeline, "edge", pipeline.site, file, workers or 1, memory, instance)
        return
    policy = build_policy(pipeline)
    # A policy that never asks the edge's model still needs it while the cloud is away.
    runner = build_runner(pipeline, Tier.EDGE) if policy.uses_model or pipeline.edge.model else None
    if check:
        if runner is not None:
            runner.check_items(shape_of(item_shape))
        return
    stop = begin_worker("edge")
    name = instance_name(instance)
    with instrumented(pipeline, "edge", pipeline.site, instance) as instruments:
        cluster = _edge_cluster(pipeline)
        stage = EdgeStage(pipeline.site, runner, policy, cluster)
        instruments.meters.watch(metrics.CLOUD_REACHABLE, lambda: stage.cloud.reachable(time.time_ns() // 1000))
        StageRunner(
            stage,
            cluster,
            group=pipeline.topics.edge_group,
            transactional_id=f"edge.{pipeline.site}.{name}",
            stop=stop,
            limits=EngineLimits(commit_interval_us=pipeline.edge.commit_interval.us),
            name=name,
            notes=True,
            instruments=instruments,
        ).run()


@settle.command()
def _settle(
    file: File = DEFAULT_FILE, instance: Instance = None, workers: Workers = None, memory: Memory = None
) -> None:
    """Bring escalated items and the cloud's answers together: one outcome an item."""
    from edge_workers.settler import SettlerStage
    from pipelines.core.engine import EngineLimits
    from pipelines.runtime.stage import StageRunner

    pipeline = load(file)
    if workers or memory:
        run_fleet(pipeline, "settle", pipeline.site, file, workers or 1, memory, instance)
        return
    stop = begin_worker("settle")
    name = instance_name(instance)
    with instrumented(pipeline, "settle", pipeline.site, instance) as instruments:
        StageRunner(
            SettlerStage(pipeline.site),
            _edge_cluster(pipeline),
            group=pipeline.topics.settler_group,
            transactional_id=f"settle.{pipeline.site}.{name}",
            stop=stop,
            limits=EngineLimits(commit_interval_us=pipeline.edge.commit_interval.us),
            name=name,
            instruments=instruments,
        ).run()


@uplink.command()
def _uplink(file: File = DEFAULT_FILE, instance: Instance = None) -> None:
    """Carry escalated items and results to the cloud's Kafka, by priority, exactly once. One is active a site."""
    from edge_workers.uplink import uplink as forwarder

    pipeline = load(file)
    stop = begin_worker("uplink")
    with instrumented(pipeline, "uplink", pipeline.site, instance) as instruments:
        both = clusters(pipeline)
        both.edge.check()
        forwarder(
            site=pipeline.site,
            edge=both.edge,
            cloud=both.cloud,
            instance=life_name(instance),
            stop=stop,
            instruments=instruments,
        ).run()


@downlink.command()
def _downlink(file: File = DEFAULT_FILE, instance: Instance = None) -> None:
    """Carry the cloud's answers and credit to the edge's Kafka, exactly once. One is active a site."""
    from edge_workers.downlink import downlink as forwarder

    pipeline = load(file)
    stop = begin_worker("downlink")
    with instrumented(pipeline, "downlink", pipeline.site, instance) as instruments:
        both = clusters(pipeline)
        both.edge.check()
        forwarder(
            site=pipeline.site,
            edge=both.edge,
            cloud=both.cloud,
            instance=life_name(instance),
            stop=stop,
            instruments=instruments,
        ).run()


def _edge_cluster(pipeline: Pipeline) -> KafkaCluster:
    # Not both: a worker that reads one cluster needs no credentials for the other.
    found = cluster(pipeline, Tier.EDGE)
    found.check()
    return found
