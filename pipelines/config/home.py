"""Where Tidegate keeps data and state on this machine: `$TIDEGATE_HOME`, else the user's data folder."""

import os
from pathlib import Path

import msgspec


def home() -> Path:
    """The folder for embedded brokers' data and the state of running pipelines."""
    given = os.environ.get("TIDEGATE_HOME")
    if given:
        return Path(given) / "data"
    base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(base) / "tidegate"


def pipeline_dir(name: str) -> Path:
    """The folder of one pipeline run with `tidegate run`."""
    return home() / "pipelines" / name


class Running(msgspec.Struct, frozen=True):
    """What a running `tidegate run` or `demo` tells other commands, in `running.json` of its folder."""

    pid: int
    edge: str
    """Bootstrap address."""
    cloud: str


def write_running(folder: Path, running: Running) -> Path:
    """Tell other commands where the embedded brokers are; the file to remove at the end."""
    path = folder / "running.json"
    path.write_bytes(msgspec.json.encode(running))
    return path


def read_running(folder: Path) -> Running | None:
    """What `write_running` told, or None where nothing runs (a dead writer's file does not count)."""
    try:
        running = msgspec.json.decode((folder / "running.json").read_bytes(), type=Running)
        os.kill(running.pid, 0)
    except (FileNotFoundError, ProcessLookupError, msgspec.DecodeError):
        return None
    except PermissionError:
        return running  # It is there, and belongs to another user.
    return running
