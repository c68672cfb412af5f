"""Taking readings for a person: as few as will do for one answer, or one after the other until interrupted."""

import time
from collections.abc import Callable
from typing import Annotated

import msgspec
import typer
from rich.console import Console, RenderableType
from rich.live import Live

from pipelines.core.lag import WINDOW_US
from pipelines.observe.lag import LagReader, Reading
from schemas.topics import Tier

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object; where readings go on, one a line.")]
TierOption = Annotated[
    Tier | None, typer.Option(help="Only what runs at the site (edge), or in the cloud. Both if not given.")
]

INTERVAL_S = 1.0
"""Between two readings."""

LOOK_MOST_S = WINDOW_US / 1e6 + 3 * INTERVAL_S
"""Until then everything is decided, unless what is there changes all the time."""

INTERRUPTED = 130


def look(reader: LagReader, say: Callable[[str], None]) -> Reading:
    """Two readings, and more where something may be wrong: only a whole window tells stalled from busy."""
    began_s = time.monotonic()
    reader.read()
    while True:
        time.sleep(INTERVAL_S)
        reading = reader.read()
        taken_s = time.monotonic() - began_s
        if not reader.undecided or taken_s > LOOK_MOST_S:
            return reading
        say(f"something waits: looking for {WINDOW_US / 1e6:.0f} s whether it moves ({taken_s:.0f} s)")


def follow(
    read: Callable[[], Reading],
    show: Callable[[Reading], RenderableType],
    *,
    as_json: bool,
    interval_s: float = INTERVAL_S,
    count: int = 0,
) -> None:
    """A reading an interval, `count` in all (0: until interrupted), as lines of JSON or as a display in place."""
    console = Console()
    # Without a terminal a display in place would show its last state only.
    live = Live(console=console, auto_refresh=False) if console.is_terminal and not as_json else None

    def one() -> None:
        reading = read()
        if as_json:
            typer.echo(msgspec.json.encode(reading).decode())
        elif live is None:
            console.print(show(reading))
        else:
            live.update(show(reading), refresh=True)

    try:
        if live is not None:
            live.start()
        _repeat(one, interval_s, count)
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    finally:
        if live is not None:
            live.stop()


def _repeat(task: Callable[[], None], interval_s: float, count: int) -> None:
    due_s = time.monotonic()
    done = 0
    while True:
        task()
        done += 1
        if done == count:
            return
        now_s = time.monotonic()
        due_s = max(due_s + interval_s, now_s)  # What took too long is not caught up on.
        time.sleep(due_s - now_s)
