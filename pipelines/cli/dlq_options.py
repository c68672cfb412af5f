"""What the options of `tidegate dlq` mean: which dead letters, of which pipeline."""

import difflib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from pipelines.config.units import Duration
from pipelines.core.dead_letters import LetterId, Wanted, parse_id
from pipelines.core.preview import printable
from pipelines.errors import ConfigError
from schemas.topics import Tier

DEFAULT_FILE = Path("pipeline.yaml")

Arguments = Annotated[
    list[str] | None, typer.Argument(metavar="[ID]... [FILE]", help="PARTITION@OFFSET as `list` shows it; the file.")
]
Reasons = Annotated[list[str] | None, typer.Option("--reason", help="Only with this reason. May be repeated.")]
Streams = Annotated[list[str] | None, typer.Option("--stream", help="Only of this stream. May be repeated.")]
Since = Annotated[str | None, typer.Option(metavar="1h", help="Not older; or a time, such as 2026-11-02T10:00.")]
Until = Annotated[str | None, typer.Option(metavar="1h", help="Not younger; or a time. UTC, if it names no zone.")]
AtTier = Annotated[Tier, typer.Option("--tier", help="Whose: the site's (edge), or the cloud's.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Everything = Annotated[bool, typer.Option("--all", help="All that wait.")]
Limit = Annotated[int | None, typer.Option(min=1, help="So many at most, the oldest first.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say which, and do nothing.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def ids_and_file(arguments: Sequence[str] | None) -> tuple[list[LetterId], Path]:
    """The ids among the arguments, each once, and the pipeline file."""
    ids: dict[LetterId, None] = {}
    files: list[Path] = []
    for text in arguments or ():
        key = parse_id(text)
        if key is not None:
            ids[key] = None
        elif Path(text).exists():
            files.append(Path(text))
        else:
            raise ConfigError(
                f"'{printable(text)}' is no id of a dead letter, and no file either",
                remedy="write PARTITION@OFFSET as `tidegate dlq list` shows it, such as 3@17",
            )
    if len(files) > 1:
        raise ConfigError(f"two pipeline files are given, {files[0]} and {files[1]}", remedy="give one")
    return list(ids), files[0] if files else DEFAULT_FILE


def meant(
    reasons: Sequence[str] | None,
    streams: Sequence[str] | None,
    since: str | None,
    until: str | None,
    now_us: int,
    *,
    ids: Sequence[LetterId] | None = None,
    everything: bool = False,
    decided: bool = False,
) -> Wanted:
    """What the options mean. `ids` is None where nothing need be said, and all are meant then."""
    since_us, until_us = _moment("--since", since, now_us), _moment("--until", until, now_us)
    if since_us is not None and until_us is not None and since_us > until_us:
        raise ConfigError(f"--since {since} lies after --until {until}", remedy="exchange them")
    filters = bool(reasons or streams or since or until)
    if ids and (filters or everything):
        raise ConfigError("ids and a filter are given", remedy="give one of the two")
    if ids is not None and not (ids or filters or everything):
        raise ConfigError("which ones is not said", remedy="give ids, a filter such as --reason, or --all")
    return Wanted(
        ids=frozenset(ids or ()),
        reasons=frozenset(reasons or ()),
        streams=frozenset(streams or ()),
        since_us=since_us,
        until_us=until_us,
        decided=decided or bool(ids),
    )


def _moment(option: str, text: str | None, now_us: int) -> int | None:
    if text is None:
        return None
    with suppress(ValueError):
        return now_us - Duration.parse(text).us
    try:
        at = datetime.fromisoformat(text)
        return int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1e6)
    except (ValueError, OverflowError) as error:
        raise ConfigError(
            f"{option}: '{printable(text)}' is neither a duration nor a time", remedy="write `1h` or `2026-11-02T10:00`"
        ) from error


def nothing(wanted: Wanted, seen: Iterable[str]) -> str:
    """Why nothing is shown: a reason that no letter has is most likely misspelt."""
    there = sorted(map(printable, seen))
    unknown = sorted(wanted.reasons - {*seen})
    if unknown and there:
        near = difflib.get_close_matches(unknown[0], there, n=1)
        known = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(there[:10])}"
        return f"no dead letter has the reason '{printable(unknown[0])}': {known}"
    return f"no dead letter {'is there' if wanted.decided else 'waits'}{' that matches' if wanted.filters else ''}"
