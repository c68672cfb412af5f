"""Dead letters as a person sees them: a table, one in full, ages and times. All that is shown may be anybody's text."""

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table

from pipelines.cli.fitted import Column, Fitted
from pipelines.core.dead_letters import WAITING, Letter
from pipelines.core.preview import preview, printable, printable_bytes
from pipelines.errors import ForeignRecord, UnknownVersion
from pipelines.transport.base import Record
from schemas import headers
from schemas.dead_letters import DROPPED, RETRIED
from schemas.headers import Header

LETTER_COLUMNS = (
    Column("tier"),
    Column("id"),
    Column("stream"),
    Column("epoch", rank=5, right=True),
    Column("seq", rank=2, right=True),
    Column("reason"),
    Column("content type", rank=4),
    Column("bytes", rank=3, right=True),
    Column("age", rank=1, right=True),
)

_UNITS = (("d", 86_400), ("h", 3_600), ("min", 60))


def age(age_us: int) -> str:
    """A length of time in its largest unit."""
    age_s = max(age_us, 0) / 1e6
    for unit, size_s in _UNITS:
        if age_s >= size_s:
            return f"{age_s / size_s:.1f} {unit}"
    return f"{age_s:.0f} s"


def moment(at_us: int) -> str:
    """A time in UTC."""
    try:
        return datetime.fromtimestamp(at_us / 1e6, UTC).isoformat(" ", "milliseconds").replace("+00:00", " UTC")
    except (OverflowError, ValueError, OSError):
        return f"{at_us} us"  # No time that a calendar has: a header may say anything.


def described(letter: Letter, now_us: int) -> dict[str, Any]:
    """All of a letter, for JSON."""
    item = letter.item and {"stream": letter.item.stream, "epoch": letter.item.epoch, "seq": letter.item.seq}
    named = {"id": letter.id, "state": letter.state, "age_s": round((now_us - letter.at_us) / 1e6, 3)}
    fields = {name: value for name, value in msgspec.structs.asdict(letter).items() if name != "fate"}
    return {**named, **fields, "item": item}


def counts(letters: Sequence[Letter]) -> dict[str, dict[str, int]]:
    """Letters by reason and state."""
    found = Counter((letter.reason, letter.state) for letter in letters)
    return {
        reason: {state: count for (of, state), count in sorted(found.items()) if of == reason}
        for reason in sorted({letter.reason for letter in letters})
    }


def summary(letters: Sequence[Letter]) -> str:
    """How many, and of which reasons."""
    found = Counter(letter.reason for letter in letters)
    named = ", ".join(f"{count:,} {printable(_name(reason))}" for reason, count in sorted(found.items()))
    return f"{count_of(len(letters))} ({named})"


def count_of(number: int) -> str:
    """So many dead letters."""
    return f"{number:,} dead letter{'' if number == 1 else 's'}"


def table(letters: Sequence[Letter], now_us: int, *, states: bool) -> Fitted:
    """One row a letter."""
    shown = Fitted("", [*LETTER_COLUMNS, *([Column("state")] if states else [])])
    for letter in letters:
        epoch = str(letter.epoch) if letter.count else ""
        named = (letter.tier, letter.id, letter.stream, epoch, letter.seqs, _name(letter.reason), letter.content_type)
        measured = (f"{letter.size_bytes:,}", age(now_us - letter.at_us))
        shown.add(*map(_cell, (*named, *measured, *([letter.state] if states else []))))
    return shown


def counts_table(letters: Sequence[Letter], *, states: bool) -> Table:
    """One row a reason."""
    shown = Table("reason")
    names = (WAITING, RETRIED, DROPPED) if states else (WAITING,)
    for name in names:
        shown.add_column(name, justify="right")
    for reason, of_reason in counts(letters).items():
        shown.add_row(_cell(_name(reason)), *(f"{of_reason.get(name, 0):,}" for name in names))
    return shown


def fields_of(letter: Letter, record: Record, topic: str, now_us: int) -> dict[str, str]:
    """What is known of a letter, in words."""
    item = letter.item
    known = {
        "where": f"{letter.id} in {topic} ({letter.tier})",
        "reason": _name(letter.reason),
        "state": f"{letter.state} as {item.stream} {item.epoch} {item.seq}" if item else letter.state,
        "can be retried": f"no: {letter.hindrance}" if letter.hindrance else "yes" if not letter.fate else "",
        "kept since": f"{moment(letter.at_us)}, {age(now_us - letter.at_us)} ago",
        "came from": letter.came_from,
        "content type": letter.content_type,
        "bytes": f"{letter.size_bytes:,}",
        "stream": letter.stream,
        "epoch": str(letter.epoch) if letter.count else "",
        "seq": letter.seqs,
    }
    try:
        known |= _in_words(headers.find(record.headers()))
    except UnknownVersion as error:
        known["header"] = f"of version {error.account[0]}, which this version of Tidegate cannot read in full"
    except ForeignRecord as error:
        known["header"] = f"none of ours: {error}"
    return {name: value for name, value in known.items() if value}


def _in_words(header: Header) -> dict[str, str]:
    """What the `tg` header says besides the item's name."""
    params, extra = header.params, header.extra
    shape = " x ".join(map(str, params.shape))
    origin = extra.origin
    return {
        "captured": moment(header.capture_us),
        "deadline": moment(header.deadline_us),
        "priority": str(header.priority),
        "codec": header.codec or "none: it was never encoded",
        "shape": f"{shape} {params.dtype}" if shape else "",
        "source position": str(header.source_position),
        "gate score": "" if header.gate_score is None else str(header.gate_score),
        "clusters passed": str(header.hops) if header.hops else "",
        "the edge's answer": "" if extra.edge_label is None else f"{extra.edge_label} ({extra.edge_confidence})",
        "the edge's model": header.model,
        "sent on because": extra.reason,
        "site": extra.site,
        "in its uplink": f"p{origin.priority}[{origin.partition}]@{origin.offset}" if origin else "",
    }


def kafka_headers(record: Record) -> list[tuple[str, str]]:
    """Name and value of each, as far as they can be shown."""
    return [
        (printable(name), printable_bytes(value if isinstance(value, bytes) else (value or "").encode()))
        for name, value in record.headers() or ()
    ]


def in_full(known: dict[str, str], given: Sequence[tuple[str, str]], payload: bytes | None) -> RenderableType:
    """One letter; without its payload where that is None."""
    parts: list[RenderableType] = [_pairs(list(known.items())), "", "[bold]Kafka headers[/]", _pairs(given)]
    if payload is not None:
        lines = preview(payload) if payload else ["none was kept"]
        parts += ["", "[bold]payload[/]", *map(escape, lines)]
    return Group(*parts)


def _pairs(rows: Sequence[tuple[str, str]]) -> Table:
    shown = Table(box=None, show_header=False, pad_edge=False)
    shown.add_column(no_wrap=True)
    shown.add_column(overflow="fold")
    for name, value in rows:
        shown.add_row(_cell(name), _cell(value))
    return shown


def show(*parts: RenderableType) -> None:
    """Print it."""
    console = Console(highlight=False)
    for part in parts:
        console.print(part)


def _cell(text: str) -> str:
    return escape(printable(text))


def _name(reason: str) -> str:
    return reason or "(no reason)"
