"""`tidegate dlq`: what could not be processed, looked at, given a second chance or let go."""

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console

from pipelines.cli import letters as shown
from pipelines.cli.dlq_options import (
    DEFAULT_FILE,
    Arguments,
    AtTier,
    DryRun,
    Everything,
    Json,
    Limit,
    Reasons,
    Since,
    Streams,
    Until,
    Yes,
    ids_and_file,
    meant,
    nothing,
)
from pipelines.config import Pipeline, load
from pipelines.config.clusters import cluster
from pipelines.core.dead_letters import DeadLetters, Letter, LetterId, Wanted, to_be_decided
from pipelines.core.preview import preview
from pipelines.errors import ConfigError, Fenced, TakenOver, TidegateError, TransportError
from pipelines.runtime.dead_letter_desk import RETRY_RECORDS, Desk
from schemas.dead_letters import DROPPED, RETRIED
from schemas.topics import Tier

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="What could not be processed: look at it, retry it, let it go."
)

LIST_MOST = 50


@app.command("list")
def _list(
    file: Annotated[Path, typer.Argument(help="The pipeline file.")] = DEFAULT_FILE,
    reason: Reasons = None,
    stream: Streams = None,
    since: Since = None,
    until: Until = None,
    tier: Annotated[Tier | None, typer.Option(help="Only this tier's; both if not given.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="So many at most, the newest.")] = LIST_MOST,
    decided: Annotated[bool, typer.Option("--all", help="Also those retried or dropped.")] = False,
    as_json: Json = False,
) -> None:
    """Show dead letters, and how many there are of each reason. Exit 1 if a tier could not be read."""
    now_us = _now_us()
    wanted = meant(reason, stream, since, until, now_us, decided=decided)
    pipeline = load(file)
    found: list[Letter] = []
    seen: set[str] = set()
    unread: dict[str, str] = {}
    for one in [tier] if tier else Tier:
        try:
            with _desk(pipeline, one) as desk, _status(f"reading {desk.topic}"):
                read = desk.read(wanted)
        except TidegateError as error:
            if tier:
                raise
            unread[one] = str(error)
            continue
        found += read.letters()
        seen |= read.reasons
    found.sort(key=lambda letter: letter.at_us)
    rows = found[-limit:]
    left = len(found) - len(rows)
    if as_json:
        counted = {"letters": [shown.described(letter, now_us) for letter in rows], "left_out": left}
        typer.echo(msgspec.json.encode({**counted, "reasons": shown.counts(found), "unread": unread}).decode())
    elif found:
        shown.show(shown.table(rows, now_us, states=decided), shown.counts_table(found, states=decided))
        if left:
            typer.echo(f"and {left:,} older ones: these are the newest {len(rows):,}, --limit {len(found)} shows all")
    elif len(unread) < len(Tier):
        typer.echo(nothing(wanted, seen))
    for name, problem in unread.items():
        typer.echo(f"{name}: not read: {problem}", err=True)
    raise typer.Exit(int(bool(unread)))


@app.command("show")
def _show(
    arguments: Annotated[list[str], typer.Argument(metavar="ID [FILE]", help="PARTITION@OFFSET; the pipeline file.")],
    tier: AtTier = Tier.EDGE,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the payload there, byte by byte.")] = None,
    as_json: Json = False,
) -> None:
    """Show all that is known of one dead letter, and the beginning of its payload."""
    ids, file = ids_and_file(arguments)
    if len(ids) != 1:
        raise ConfigError(f"{len(ids)} ids are given", remedy="give one, as `tidegate dlq list` shows it")
    with _desk(load(file), tier) as desk, _status(f"reading {desk.topic}"):
        (letter,) = _known(desk.read(Wanted(ids=frozenset(ids), decided=True)), ids, tier)
        ((_, record),) = desk.records([letter])
    now_us, payload = _now_us(), record.value() or b""
    known, given = shown.fields_of(letter, record, desk.topic, now_us), shown.kafka_headers(record)
    if out is not None:
        _write(out, payload)
    if as_json:
        whole = {"known": known, "headers": given, "preview": preview(payload)}
        typer.echo(msgspec.json.encode(shown.described(letter, now_us) | whole).decode())
        return
    shown.show(shown.in_full(known, given, None if out else payload))
    if out is not None:
        typer.echo(f"wrote {len(payload):,} bytes to {out}")


@app.command("retry")
def _retry(
    arguments: Arguments = None,
    reason: Reasons = None,
    stream: Streams = None,
    since: Since = None,
    until: Until = None,
    everything: Everything = False,
    limit: Limit = None,
    tier: AtTier = Tier.EDGE,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: Json = False,
    batch: Annotated[int, typer.Option(hidden=True, min=1, help="Letters a transaction.")] = RETRY_RECORDS,
) -> None:
    """Capture dead letters again, each as a new item of stream `retry/STREAM`, once what was wrong is mended.

    Safe to interrupt and to run again: none is retried twice.
    """
    ids, file = ids_and_file(arguments)
    wanted = meant(reason, stream, since, until, _now_us(), ids=ids, everything=everything)
    pipeline = load(file)
    with _desk(pipeline, tier, batch) as desk:
        chosen, passed_over = _choose(desk, wanted, ids, tier, RETRIED, limit, dry_run=dry_run)
        if chosen and not dry_run:
            _ask(f"retry {shown.summary(chosen)}?", yes)
            _carry_out(desk.retry(chosen, pipeline.deadline.us, _now_us), len(chosen), RETRIED)
    _tell(RETRIED, chosen, passed_over, dry_run=dry_run, as_json=as_json)


@app.command("drop")
def _drop(
    arguments: Arguments = None,
    reason: Reasons = None,
    stream: Streams = None,
    since: Since = None,
    until: Until = None,
    everything: Everything = False,
    limit: Limit = None,
    tier: AtTier = Tier.EDGE,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Let dead letters go: they are no longer listed and cannot be retried. Their outcome stays `dead_lettered`."""
    ids, file = ids_and_file(arguments)
    wanted = meant(reason, stream, since, until, _now_us(), ids=ids, everything=everything)
    with _desk(load(file), tier) as desk:
        chosen, passed_over = _choose(desk, wanted, ids, tier, DROPPED, limit, dry_run=dry_run)
        if chosen and not dry_run:
            _ask(f"drop {shown.summary(chosen)} for good?", yes)
            _carry_out(desk.drop(chosen), len(chosen), DROPPED)
    _tell(DROPPED, chosen, passed_over, dry_run=dry_run, as_json=as_json)


def _write(out: Path, payload: bytes) -> None:
    """Raises `ConfigError` where it cannot be written, or is a terminal: it may do what the bytes say."""
    try:
        with out.open("wb") as file:
            if file.isatty():
                raise ConfigError(f"--out: {out} is a terminal", remedy="name a file")
            file.write(payload)
    except OSError as error:
        raise ConfigError(f"--out: {out} cannot be written ({error.strerror})", remedy="name another") from error


def _now_us() -> int:
    return time.time_ns() // 1000


@contextmanager
def _desk(pipeline: Pipeline, tier: Tier, batch: int = RETRY_RECORDS) -> Iterator[Desk]:
    with closing(cluster(pipeline, tier)) as one:
        one.check()
        with closing(Desk(one, tier, pipeline.site, batch)) as desk:
            yield desk


@contextmanager
def _status(text: str) -> Iterator[None]:
    with Console(stderr=True).status(text):
        yield


def _known(found: DeadLetters, ids: Iterable[LetterId], tier: Tier) -> list[Letter]:
    """The letters of these ids. Raises `ConfigError` where one is not there."""
    letters = found.letters()
    missing = sorted(set(ids) - {letter.key for letter in letters})
    if missing:
        raise ConfigError(
            f"there is no dead letter {missing[0][0]}@{missing[0][1]} of the {tier}",
            remedy="`tidegate dlq list --all` shows those that are there; the cloud's need --tier cloud",
        )
    return letters


def _choose(
    desk: Desk, wanted: Wanted, ids: Sequence[LetterId], tier: Tier, fate: str, limit: int | None, *, dry_run: bool
) -> tuple[list[Letter], Mapping[str, int]]:
    """Those to be decided now, and why others are passed over. Unless `dry_run`, nobody else decides from here on."""
    with _status(f"reading {desk.topic}"):
        if not dry_run:
            desk.take_over()
        found = desk.read(wanted)
    letters = _known(found, ids, tier) if ids else found.letters()
    if not letters:
        typer.echo(nothing(wanted, found.reasons), err=True)
    chosen, hindered, before = to_be_decided(letters, fate)
    if hindered and (ids or not chosen):
        named = hindered[0].id if ids else f"none of {shown.count_of(len(hindered))}"
        raise ConfigError(f"{named} can{'not' if ids else ''} be retried", remedy=hindered[0].hindrance)
    return chosen[:limit], Counter(letter.hindrance for letter in hindered) + before


def _ask(question: str, yes: bool) -> None:
    """Raises `ConfigError` where nobody answers; ends where the answer is no."""
    if yes:
        return
    try:
        agreed = typer.confirm(question, err=True)
    except typer.Abort as error:
        typer.echo(err=True)
        raise ConfigError("nobody has agreed, so nothing was done", remedy="answer y, or give --yes") from error
    if not agreed:
        typer.echo("nothing was done", err=True)
        raise typer.Exit(1)


def _carry_out(batches: Iterator[int], wanted: int, fate: str) -> None:
    """Do it batch by batch. What was done before a failure stays done, and is said."""
    done = 0
    try:
        with Console(stderr=True).status("") as status:
            for count in batches:
                done += count
                status.update(f"{done:,} of {wanted:,} {fate}")
    except Fenced as error:
        raise TakenOver(
            f"another `tidegate dlq` has taken over; {done:,} of {wanted:,} were {fate} here",
            remedy="run it again when that has ended",
        ) from error
    except TransportError as error:
        raise TransportError(
            f"{error.problem} ({done:,} of {wanted:,} were {fate})", remedy="run it again: none is done twice"
        ) from error


def _tell(fate: str, chosen: Sequence[Letter], passed_over: Mapping[str, int], *, dry_run: bool, as_json: bool) -> None:
    if as_json:
        done = {"fate": fate, "letters": len(chosen), "dry_run": dry_run, "passed_over": dict(passed_over)}
        typer.echo(msgspec.json.encode(done).decode())
        return
    if chosen:
        typer.echo(f"{'would be ' if dry_run else ''}{fate}: {shown.summary(chosen)}")
    for why, count in passed_over.items():
        typer.echo(f"passed over: {shown.count_of(count)}: {why}")
