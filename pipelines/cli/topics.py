"""`tidegate topics plan|apply|check`: what a pipeline stands on, against what its clusters have."""

from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipelines.config import load
from pipelines.config.clusters import cluster
from pipelines.config.pipeline import Pipeline
from pipelines.core.topic_plan import Action, Change, Layout
from pipelines.transport.topics import apply_tier, plan_tier, refuse
from schemas.topics import Tier

app = typer.Typer(no_args_is_help=True, help="What a pipeline stands on: its topics, and where their readers begin.")

File = Annotated[Path, typer.Argument(help="The pipeline file.")]
One = Annotated[Tier | None, typer.Option("--tier", help="This cluster alone; the other is not asked.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
DEFAULT_FILE = Path("pipeline.yaml")

TO_DO = {Action.CREATE, Action.ALTER, Action.POSITIONS}
STYLES = {Action.REFUSED: "red", Action.BY_HAND: "yellow", Action.NOTE: "dim"}


class TierChanges(msgspec.Struct, frozen=True):
    """What is to be done on one cluster, or was."""

    tier: Tier
    bootstrap: str
    changes: list[Change]


@app.command("plan")
def _plan(file: File = DEFAULT_FILE, tier: One = None, as_json: Json = False) -> None:
    """Print what `apply` would do. Exit 0: nothing; 1: something, by itself or by hand; 2: something is refused."""
    found = _look(file, tier)
    _show(found, as_json, "nothing to do: every topic is as the file has it")
    raise typer.Exit(2 if _has(found, {Action.REFUSED}) else int(_has(found, {*TO_DO, Action.BY_HAND})))


@app.command("check")
def _check(file: File = DEFAULT_FILE, tier: One = None, as_json: Json = False) -> None:
    """Say what differs from the file, and what to do. Exit 0: nothing; 1: something."""
    found = _look(file, tier)
    _show(found, as_json, "every topic is as the file has it")
    if not as_json and _has(found, TO_DO):
        Console(stderr=True).print("`tidegate topics apply` does what can be done while the pipeline runs")
    raise typer.Exit(int(_has(found, {*TO_DO, Action.BY_HAND, Action.REFUSED})))


@app.command("apply")
def _apply(file: File = DEFAULT_FILE, tier: One = None, as_json: Json = False) -> None:
    """Do what `plan` prints, on both clusters or on one. Safe to run again, and while the pipeline runs."""
    pipeline = load(file)
    done = _each(pipeline, tier, apply=True)
    if as_json:
        _show(done, as_json, "")
        return
    _show([_without_creations(one) for one in done], as_json, "")
    created = sum(change.action is Action.CREATE for one in done for change in one.changes)
    Console().print(f"{created} topics created, {pipeline.partitions} partitions a keyed topic")


def layout_of(pipeline: Pipeline) -> Layout:
    """What `transport.topics` needs to know of a pipeline."""
    settings = pipeline.topic_settings
    return Layout(
        pipeline.site,
        pipeline.partitions,
        pipeline.retention.ms,
        pipeline.cloud_sites,
        pipeline.outage_budget.ms,
        settings.replication,
        settings.min_insync,
        settings.raw,
    )


def _look(file: Path, tier: Tier | None) -> list[TierChanges]:
    return _each(load(file), tier, apply=False)


def _each(pipeline: Pipeline, only: Tier | None, *, apply: bool) -> list[TierChanges]:
    """Plan or apply on the clusters asked for; all must answer before anything is done on one."""
    clusters = {tier: cluster(pipeline, tier) for tier in ([only] if only else Tier)}
    do, layout = apply_tier if apply else plan_tier, layout_of(pipeline)
    try:
        with Console(stderr=True).status("asking the clusters"):
            for one in clusters.values():
                one.check()
            if apply:  # A refusal of either tier comes before anything is done on the other.
                for tier, one in clusters.items():
                    refuse(tier, plan_tier(layout, tier, one, clusters.get(_other(tier))))
            return [
                TierChanges(tier, one.bootstrap, do(layout, tier, one, clusters.get(_other(tier))))
                for tier, one in clusters.items()
            ]
    finally:
        for one in clusters.values():
            one.close()


def _other(tier: Tier) -> Tier:
    return Tier.CLOUD if tier is Tier.EDGE else Tier.EDGE


def _has(found: list[TierChanges], actions: set[Action]) -> bool:
    return any(change.action in actions for one in found for change in one.changes)


def _without_creations(one: TierChanges) -> TierChanges:
    plain = {Action.CREATE, Action.POSITIONS}
    return msgspec.structs.replace(one, changes=[change for change in one.changes if change.action not in plain])


def _show(found: list[TierChanges], as_json: bool, nothing: str) -> None:
    if as_json:
        typer.echo(msgspec.json.encode({"tiers": found}).decode())
        return
    console = Console()
    for one in found:
        if one.changes:
            console.print(_table(one))
    if nothing and not any(change.action is not Action.NOTE for one in found for change in one.changes):
        console.print(nothing)


def _table(one: TierChanges) -> Table:
    table = Table("", "of", "what", "to be done", title=f"{one.tier}: {one.bootstrap}", title_justify="left")
    for column in table.columns[1:]:
        column.overflow = "fold"
    for change in one.changes:
        cells = (change.action, f"{change.thing} {change.name}", change.what, change.remedy)
        table.add_row(*map(escape, cells), style=STYLES.get(change.action))
    return table
