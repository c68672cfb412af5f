"""Where Tidegate keeps what it fetched and the data of brokers that have a name.

`TIDEGATE_HOME` moves both; without it the XDG folders are used (`~/.cache/tidegate`, `~/.local/state/tidegate`).
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines.errors import BrokerError

APPLICATION = "tidegate"


def _home(variable: str, fallback: str) -> Path:
    own = os.environ.get("TIDEGATE_HOME")
    if own:
        return Path(own).expanduser().resolve()
    base = os.environ.get(variable)
    return (Path(base) if base else Path.home() / fallback) / APPLICATION


def cache_home() -> Path:
    """Folder of what can be fetched or made again: the jars, the class archive. Not created here."""
    return _home("XDG_CACHE_HOME", ".cache")


def state_home() -> Path:
    """Folder of what must stay: the data of named brokers and their state files. Not created here."""
    return _home("XDG_STATE_HOME", ".local/state")


@contextmanager
def os_errors() -> Iterator[None]:
    """A folder that cannot be written, or a full disk, as one `BrokerError`."""
    try:
        yield
    except OSError as error:
        raise BrokerError(
            f"{error.filename or 'a file of the embedded Kafka'}: {error.strerror or error}",
            remedy="give a folder that can be written, by --data or TIDEGATE_HOME",
        ) from error
