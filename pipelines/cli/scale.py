"""`tidegate scale`: what other numbers of workers would bring, and workers added and removed as records flow."""

import fcntl
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Annotated, NoReturn

import msgspec
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipelines.cli.standing import drain, rate, seconds
from pipelines.config import Pipeline, load
from pipelines.config.clusters import ENVIRONMENT, clusters
from pipelines.config.home import pipeline_dir
from pipelines.config.units import Duration
from pipelines.core.capacity import Capacities
from pipelines.core.lag import GroupLag
from pipelines.core.scaler import Action, Policy, Scaler
from pipelines.core.scaling import HORIZON_S, SAFE_WAY, SCALABLE, Advice, Plan, advise, refusal
from pipelines.errors import ConfigError, TidegateError
from pipelines.observe.lag import Reading, lag_reader
from pipelines.runtime.drivers import Compose, ComposeDriver, ComposeReader, LocalDriver
from pipelines.runtime.scaling import Driver, Told, group_of, run_scaler
from schemas.topics import Tier

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Say how many workers are needed, or keep so many running."
)

File = Annotated[Path, typer.Argument(help="The pipeline file.")]
Kind = Annotated[str, typer.Option(help="Of worker: edge or cloud.")]
Target = Annotated[str, typer.Option(metavar="5s", help="Seconds behind that are tolerated.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON: one object, or one a line where it goes on.")]

INTERVAL_S = 1.0


@app.command("advise")
def advise_command(
    file: File = Path("pipeline.yaml"),
    kind: Kind = "edge",
    target: Target = "5s",
    replicas: Annotated[int | None, typer.Option(min=1, help="Say what so many would bring.")] = None,
    look: Annotated[
        str, typer.Option("--for", metavar="12s", help="Look for so long; rates are means over 10 s.")
    ] = "12s",
    as_json: Json = False,
) -> None:
    """Predict what each number of workers would bring, from the rates measured now. Exit 1 if that is not known yet."""
    pipeline = load(file)
    plan = Plan(target_s=_duration("--target", target).s)
    _check_kind(kind)
    _check_replicas("--replicas", replicas or 1, kind, pipeline.partitions)
    look_s = _duration("--for", look).s
    capacities = Capacities()
    with closing(lag_reader(pipeline, _tier(kind))) as reader, Console(stderr=True).status("measuring") as status:
        until_s = time.monotonic() + look_s
        while True:
            group = _group(reader.read(), kind)
            now_s = time.monotonic()
            capacities.see(now_s, group)
            if now_s >= until_s:
                break
            status.update(f"measuring for another {until_s - now_s:.0f} s")
            time.sleep(min(INTERVAL_S, until_s - now_s))
    advice = advise(group, capacities.capacity(now_s, group), plan)
    _check_replicas("--replicas", replicas or 1, kind, advice.partitions)  # The topics' own number may be another.
    if as_json:
        typer.echo(msgspec.json.encode(advice).decode())
    else:
        _show_advice(advice, plan, replicas, Console())
    raise typer.Exit(0 if advice.replicas is not None else 1)


@app.command("run")
def run_command(
    file: File = Path("pipeline.yaml"),
    kind: Kind = "edge",
    driver: Annotated[str, typer.Option(help="local (processes on this machine) or compose (containers).")] = "local",
    least: Annotated[int, typer.Option("--min", min=1, help="Workers, at least.")] = 1,
    most: Annotated[
        int | None, typer.Option("--max", min=1, help="Workers, at most; the partitions if not given.")
    ] = None,
    target: Target = "5s",
    lasting: Annotated[str | None, typer.Option("--for", metavar="2m", help="End after so long.")] = None,
    as_json: Json = False,
    compose_file: Annotated[
        list[Path] | None, typer.Option("--compose-file", "-f", help="Of the compose project; may be repeated.")
    ] = None,
    project: Annotated[str | None, typer.Option("--project", "-p", help="Name of the compose project.")] = None,
    service: Annotated[str | None, typer.Option(help="Compose service to scale; KIND-worker if not given.")] = None,
    through: Annotated[
        str | None,
        typer.Option(help='Compose service to look from; the exporter of the tier if not given, "" for this machine.'),
    ] = None,
    inside: Annotated[str, typer.Option(help="The pipeline file in that service.")] = "/etc/tidegate/pipeline.yaml",
) -> None:
    """Keep as many workers running as the target takes, until interrupted. Every step is told with its reason."""
    pipeline = load(file)
    _check_kind(kind)
    most = pipeline.partitions if most is None else most
    _check_replicas("--max", most, kind, pipeline.partitions)
    if least > most:
        raise ConfigError(f"--min: {least} is more than --max, {most}")
    policy = Policy(least=least, most=most, plan=Plan(target_s=_duration("--target", target).s))
    until_s = float("inf") if lasting is None else time.monotonic() + _duration("--for", lasting).s
    scaler = Scaler(policy)
    with ExitStack() as stack:
        read: Callable[[], Reading]
        runs: Driver
        if driver == "local":
            stack.enter_context(_only_one(pipeline, kind))
            read = stack.enter_context(closing(lag_reader(pipeline, _tier(kind)))).read
            runs = LocalDriver(kind, file.resolve(), _addresses(pipeline), pipeline_dir(pipeline.name) / "logs")
        elif driver == "compose":
            compose = Compose(compose_file or [Path("docker-compose.yml")], project)
            if through == "":
                read = stack.enter_context(closing(lag_reader(pipeline, _tier(kind)))).read
            else:
                seen_from = through or f"{_tier(kind)}-exporter"
                read = stack.enter_context(closing(ComposeReader(compose, seen_from, inside, _tier(kind)))).read
            runs = ComposeDriver(compose, service or f"{kind}-worker")
        else:
            raise ConfigError(f"--driver: '{driver}' is not known", remedy="local or compose")
        stack.callback(runs.close)
        _run(scaler, runs, read, kind, until_s, as_json)


def _run(scaler: Scaler, driver: Driver, read: Callable[[], Reading], kind: str, until_s: float, as_json: bool) -> None:
    console = Console(stderr=True)
    steps: dict[str, int] = {}
    with _ended_by_signal(), console.status("measuring") as status:

        def tell(told: Told) -> None:
            if as_json:
                typer.echo(msgspec.json.encode(told).decode())
            status.update(escape(_line(told)))
            action = told.decision.action if told.decision else None
            if action is not None and action is not Action.HOLD:
                steps[action] = steps.get(action, 0) + 1
                if not as_json:
                    typer.echo(f"{_clock(told)} {_line(told)}")

        try:
            run_scaler(scaler, driver, read, kind, tell, lambda: time.monotonic() >= until_s)
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
    if not as_json:
        typer.echo(f"{sum(steps.values())} steps" + "".join(f", {count} {name}" for name, count in steps.items()))


def _line(told: Told) -> str:
    one = told.decision
    if one is None:
        return f"nothing seen: {told.problem}"
    change = f"{one.before}" if one.action is Action.HOLD else f"{one.before} to {one.replicas}"
    return f"{one.action} {change}: {one.reason}"


def _clock(told: Told) -> str:
    return time.strftime("%H:%M:%S", time.localtime(told.at_us / 1e6))


def _show_advice(advice: Advice, plan: Plan, wanted: int | None, console: Console) -> None:
    known = advice.capacity
    if known is not None:
        table = Table(
            "workers",
            "partitions of the busiest",
            "busy",
            f"behind in {HORIZON_S:.0f} s",
            "drained in",
            "",
            title=f"group {advice.group}: {rate(advice.in_per_s)}/s in, {rate(advice.out_per_s)}/s out, "
            f"{seconds(advice.seconds_behind)} behind",
            title_justify="left",
        )
        for column in table.columns[:5]:
            column.justify = "right"
        for row in advice.table:
            notes = []
            if row.replicas == advice.workers:
                notes.append("now")
            if row.replicas == advice.replicas:
                notes.append("advised")
            table.add_row(
                str(row.replicas),
                str(row.partitions),
                f"{row.utilisation:.0%}",
                seconds(row.seconds_behind),
                drain(row.drain_s),
                ", ".join(notes),
                style=None if row.holds else "dim",
                end_section=row.replicas == wanted,
            )
        console.print(table)
        how = "measured while work waited" if known.measured else "as the workers note of themselves"
        console.print(f"a worker does {rate(known.per_s)}/s, {how}", highlight=False)
    if wanted is not None and advice.table:
        row = advice.table[wanted - 1]
        console.print(f"{wanted} would be {row.utilisation:.0%} busy at most, drained in {drain(row.drain_s)}")
    if advice.replicas is None:
        console.print(advice.reason, highlight=False, soft_wrap=True)
    else:
        console.print(
            f"[bold]{advice.replicas}[/] needed to stay within {plan.target_s:g} s: {advice.reason}",
            highlight=False,
            soft_wrap=True,
        )


def _group(reading: Reading, kind: str) -> GroupLag:
    group = group_of(reading.groups, kind)
    if group is None or not group.partitions:
        why = "; ".join(reading.unreachable.values()) or f"no group of {kind} workers is there"
        raise TidegateError(why, remedy="start the pipeline first")
    return group


def _tier(kind: str) -> Tier:
    return Tier(kind)


def _check_kind(kind: str) -> None:
    if kind not in SCALABLE:
        raise ConfigError(
            f"--kind: '{kind}' workers are not scaled",
            remedy="give edge or cloud",
        )


def _check_replicas(option: str, replicas: int, kind: str, partitions: int) -> None:
    why = refusal(replicas, kind, partitions)
    if why is not None:
        raise ConfigError(f"{option}: {why}", remedy=SAFE_WAY)


def _duration(option: str, text: str) -> Duration:
    try:
        found = Duration.parse(text)
    except ValueError as error:
        raise ConfigError(f"{option}: {error}") from error
    if found <= 0:
        raise ConfigError(f"{option}: {text} is no time at all", remedy="write it as `5s`")
    return found


def _addresses(pipeline: Pipeline) -> dict[str, str]:
    """What the workers are told, so that they outlive the `tidegate run` whose address this is."""
    both = clusters(pipeline)
    with closing(both.edge), closing(both.cloud):
        return {ENVIRONMENT[tier]: getattr(both, tier).bootstrap for tier in Tier}


@contextmanager
def _only_one(pipeline: Pipeline, kind: str) -> Iterator[None]:
    """Two on one machine would fence each other's workers."""
    folder = pipeline_dir(pipeline.name)
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / f"scale-{kind}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"another `tidegate scale run` scales the {kind} workers of '{pipeline.name}'", remedy="stop that one"
            ) from error
        yield
    finally:
        os.close(handle)


@contextmanager
def _ended_by_signal() -> Iterator[None]:
    """SIGTERM ends it as an interrupt does: workers of ours leave their groups."""
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(_signal: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt
