"""The command line: finds commands through entry points, loads one only when it is called, prints one line an error.

A command is an entry point of group `tidegate.commands` whose value is a `typer.Typer` with one callback or with
sub-commands. Exit codes: 0 done; 1 it ran and the answer is no (an audit that does not balance); 2 the user can mend
it; 5 fenced by another process; 130 interrupted.
"""

import logging
import sys
from importlib.metadata import EntryPoint, entry_points, version
from typing import Any

import structlog
import typer
from typer.core import TyperGroup
from typer.main import get_command

from pipelines.errors import TidegateError, UserError

GROUP = "tidegate.commands"


def found_commands() -> dict[str, EntryPoint]:
    """Installed commands by name."""
    return {point.name: point for point in sorted(entry_points(group=GROUP), key=lambda point: point.name)}


class EntryPointGroup(TyperGroup):
    """A command group that reads names from entry points and imports a command when it is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names of all installed commands."""
        return list(found_commands())

    def get_command(self, ctx: Any, name: str) -> Any:
        """Import the command `name`, or None where there is none."""
        point = found_commands().get(name)
        if point is None:
            return None
        try:
            command = get_command(point.load())
        except ImportError as error:
            raise UserError(
                f"command '{name}' cannot be loaded ({error})", remedy="install its package again"
            ) from error
        command.name = name
        return command


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tidegate {version('tidegate')}")
        raise typer.Exit


app = typer.Typer(
    cls=EntryPointGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Edge-to-cloud inference on Apache Kafka, with an account of every item.",
)


@app.callback()
def _root(
    _version: bool = typer.Option(False, "--version", callback=_show_version, is_eager=True, help="Print the version."),
) -> None:
    pass


def run() -> None:
    """Run the command line; one line and an exit code for every error of ours."""
    # Logs are for workers, which set them up for themselves: what a command has to say, it prints.
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
    )
    try:
        app()
    except TidegateError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(error.exit_code) from None
