"""`tidegate simulate`: search for orders of events in which workers break their promises. Exit 1 if one is found."""

import random
import time
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipelines.errors import UserError
from pipelines.sim.bugs import BUGS
from pipelines.sim.run import Failure, try_seed
from pipelines.sim.worker import Worker

PROGRESS_AFTER_S = 2.0
FAILURES_MOST = 5
"""Then the search ends."""

app = typer.Typer()


class Report(msgspec.Struct, frozen=True):
    """What `--json` prints."""

    runs: int
    violations: int
    """Seeds that fail, of those that were run."""
    failures: list[Failure]


@app.command()
def simulate(
    seed: Annotated[int, typer.Option(metavar="N", help="The first seed.")] = 0,
    runs: Annotated[int, typer.Option(metavar="M", help="How many seeds, from the first on.")] = 100,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    bug: Annotated[str | None, typer.Option(metavar="NAME", help="Plant a bug, to see the search find it.")] = None,
) -> None:
    """Run workers on a simulated Kafka with faults, in virtual time. Exit 1 if a run loses or doubles anything."""
    if seed < 0:
        raise UserError(f"--seed: {seed} is below 0", remedy="seeds count from 0")
    if runs < 1:
        raise UserError(f"--runs: {runs} is below 1", remedy="run 1 seed or more")
    if bug is not None and bug not in BUGS:
        raise UserError(f"--bug: '{bug}' is no planted bug", remedy=f"one of {', '.join(BUGS)}")
    report = _search(range(seed, seed + runs), BUGS[bug] if bug else Worker)
    if as_json:
        typer.echo(msgspec.json.encode(report).decode())
    else:
        _show(report, bug, Console())
    raise typer.Exit(1 if report.failures else 0)


def _search(seeds: range, worker_type: type[Worker]) -> Report:
    failures: list[Failure] = []
    runs = 0
    began_s = time.monotonic()
    with Console(stderr=True).status("") as status:
        status.stop()
        for seed in seeds:
            failure = try_seed(seed, random.Random, worker_type=worker_type)
            runs += 1
            if failure is not None:
                failures.append(failure)
                if len(failures) >= FAILURES_MOST:
                    break
            if time.monotonic() - began_s > PROGRESS_AFTER_S:
                status.update(f"{runs:,} of {len(seeds):,} runs, {len(failures)} failed")
                status.start()
    return Report(runs, len(failures), failures)


def _show(report: Report, bug: str | None, console: Console) -> None:
    for failure in report.failures:
        table = Table("at s", "fault", "slot", "for s", "factor", title=f"seed {failure.seed}", title_justify="left")
        for fault in failure.schedule.faults:
            table.add_row(
                f"{fault.at_us / 1e6:.3f}", fault.kind, str(fault.slot), f"{fault.for_us / 1e6:.3f}", str(fault.factor)
            )
        console.print(table)
        console.print(escape(repr(failure.schedule.topology)), highlight=False, soft_wrap=True)
        for violation in failure.violations:
            console.print(
                f"[red]{violation.kind}[/] at {violation.at_us / 1e6:.3f} s: {escape(violation.what)}", highlight=False
            )
        again = f"tidegate simulate --seed {failure.seed} --runs 1" + (f" --bug {bug}" if bug else "")
        console.print(f"run it again: {again}", highlight=False, soft_wrap=True)
    if report.failures:
        console.print(f"[red]{report.violations} of {report.runs:,} runs failed[/]")
    else:
        console.print(f"[green]all {report.runs:,} runs hold[/]: nothing lost, doubled, out of order or stuck")
