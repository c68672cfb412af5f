"""`tidegate audit`: the account of every item of a pipeline. Exit 0 only if it balances."""

from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from pipelines.config import clusters, load
from pipelines.config.units import Duration
from pipelines.core.ledger import Finding, Verdict
from pipelines.errors import ConfigError
from pipelines.observe.audit import audit as audit_site
from pipelines.observe.audit import drain as drain_site

FINDINGS_SHOWN = 50
"""Of each kind, in the table; `--json` names all."""

app = typer.Typer()


@app.command()
def audit(
    file: Annotated[Path, typer.Argument(help="The pipeline file.")] = Path("pipeline.yaml"),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    drain: Annotated[str | None, typer.Option(metavar="30s", help="Wait so long for nothing in flight.")] = None,
) -> None:
    """Account for every item of a pipeline, running or not. Exit 0 if it balances, 1 if it does not."""
    timeout = _duration(drain)
    pipeline = load(file)
    cluster = clusters(pipeline).edge
    cluster.check()
    try:
        if timeout is None:
            verdict = audit_site(cluster, pipeline.site)
        else:
            with Console(stderr=True).status("reading the account") as status:
                verdict = drain_site(
                    cluster,
                    pipeline.site,
                    timeout.s,
                    progress=lambda seen: status.update(f"{seen.in_flight_items} in flight"),
                )
    finally:
        cluster.close()
    if as_json:
        typer.echo(msgspec.json.encode(verdict).decode())
    else:
        show(verdict, Console())
    raise typer.Exit(0 if verdict.balanced else 1)


def _duration(text: str | None) -> Duration | None:
    if text is None:
        return None
    try:
        return Duration.parse(text)
    except ValueError as error:
        raise ConfigError(f"--drain: {error}") from error


def show(verdict: Verdict, console: Console) -> None:
    """Print the account as a table, then what does not add up and what to do about it."""
    console.print(account_table(verdict))
    for kind, findings in _findings(verdict).items():
        if findings:
            console.print(_findings_table(kind, findings))
    if verdict.balanced:
        console.print("[green]balanced[/]: every captured item is in one mark or in flight")
        return
    console.print("[red]not balanced[/]: keep the topics as they are; docs/ledger.md says what each finding means")
    if verdict.lost and verdict.ledger_offsets_removed:
        console.print("retention has removed marks, which look lost now: audit more often, or lengthen `retention`")


def account_table(verdict: Verdict) -> Table:
    """Items captured, by outcome and reason, in flight by topic, and what does not add up."""
    table = Table("", "items", title=f"account of {verdict.site}", title_justify="left")
    table.columns[1].justify = "right"
    table.add_row("[bold]captured[/]", f"{verdict.captured:,}", end_section=True)
    for outcome, count in verdict.outcomes.items():
        table.add_row(outcome, f"{count:,}")
        for reason, share in sorted(verdict.reasons.get(outcome, {}).items()):
            table.add_row(f"  {reason}", f"{share:,}", style="dim")
    table.add_section()
    for topic, count in verdict.in_flight.items():
        table.add_row(f"in flight: {topic}", f"{count:,}")
    table.add_section()
    for kind, findings in _findings(verdict).items():
        items = sum(finding.last_seq - finding.first_seq + 1 for finding in findings)
        table.add_row(kind, f"{items:,}", style="red" if items else None)
    table.add_section()
    for topic, count in verdict.foreign.items():
        if count:
            table.add_row(f"foreign records: {topic}", f"{count:,}")
    if verdict.ledger_offsets_removed:
        table.add_row("ledger offsets removed by retention", f"{verdict.ledger_offsets_removed:,}")
    return table


def _findings(verdict: Verdict) -> dict[str, list[Finding]]:
    return {"lost": verdict.lost, "doubled": verdict.doubled, "beyond": verdict.beyond}


def _findings_table(kind: str, findings: list[Finding]) -> Table:
    table = Table("stream", "epoch", "seqs", "seen as", title=kind, title_justify="left")
    for finding in findings[:FINDINGS_SHOWN]:
        seqs = f"{finding.first_seq}-{finding.last_seq}" if finding.last_seq > finding.first_seq else finding.first_seq
        table.add_row(finding.stream, str(finding.epoch), str(seqs), ", ".join(finding.seen_as) or "nothing")
    if len(findings) > FINDINGS_SHOWN:
        table.add_row(f"and {len(findings) - FINDINGS_SHOWN} more", "", "", "`--json` names all")
    return table
