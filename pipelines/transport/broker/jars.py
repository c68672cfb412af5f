"""The jars of Apache Kafka: an exact, pinned set, fetched once by `jgo` and never used unchecked.

`kafka-4.3.0.sha256` lists every jar with its SHA-256 sum. It is what `jgo` resolves for
`org.apache.kafka:kafka_2.13:4.3.0`, plus `log4j-slf4j-impl`, without which the broker logs nothing. The two are pinned
apart: resolved together, the parent of the latter downgrades `kafka-clients`. Once the set is here no network is used.
"""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec

from pipelines.errors import BrokerError
from pipelines.transport.broker.paths import cache_home

KAFKA_VERSION = "4.3.0"
PINS = Path(__file__).with_name(f"kafka-{KAFKA_VERSION}.sha256")
FETCHERS = 8
HTTP_TIMEOUT_S = 20

Progress = Callable[[str], None]
Seen = tuple[int, int, str]  # size in bytes, mtime in ns, SHA-256 that was found then


class Pin(NamedTuple):
    """One jar: its SHA-256 sum and its Maven coordinates."""

    sha256: str
    group: str
    artifact: str
    version: str

    @property
    def filename(self) -> str:
        """Name of the jar."""
        return f"{self.artifact}-{self.version}.jar"


def pins() -> list[Pin]:
    """The pinned set in the order of the list, which is also the order of the class path."""
    rows = (line.split() for line in PINS.read_text("ascii").splitlines())
    return [Pin(digest, *coordinates.split(":")) for digest, coordinates in rows]


def jar_folder() -> Path:
    """Folder of the checked jars, as a real path: the class archive is tied to it."""
    return (cache_home() / f"kafka-{KAFKA_VERSION}").resolve()


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def missing_jars(folder: Path) -> list[Pin]:
    """What is not there or not what the list says. No network.

    A sum is taken once and remembered in `checked.json` with size and mtime, so that later looks cost one `stat` a jar.
    """
    stamp = folder / "checked.json"
    try:
        seen = msgspec.json.decode(stamp.read_bytes(), type=dict[str, Seen])
    except (FileNotFoundError, msgspec.DecodeError):
        seen = {}  # nothing to remember: every jar is checked below
    now: dict[str, Seen] = {}
    missing = []
    for pin in pins():
        path = folder / pin.filename
        if not path.is_file():
            missing.append(pin)
            continue
        stat = path.stat()
        known = seen.get(pin.filename)
        fresh = known is not None and known[:2] == (stat.st_size, stat.st_mtime_ns)
        digest = known[2] if known is not None and fresh else sha256_of(path)
        now[pin.filename] = (stat.st_size, stat.st_mtime_ns, digest)
        if digest != pin.sha256:
            missing.append(pin)
    if now != seen and os.access(folder, os.W_OK):  # a folder baked into an image need not be writable
        _write_stamp(stamp, now)
    return missing


def _write_stamp(stamp: Path, seen: dict[str, Seen]) -> None:
    part = stamp.with_suffix(".part")
    part.write_bytes(msgspec.json.encode(seen))
    part.replace(stamp)


@contextmanager
def exclusive(folder: Path) -> Iterator[Path]:
    """Only one process at a time changes what is in `folder`; the lock goes with the process.

    Gives an empty scratch folder in it, which is removed afterwards, and what a killed process left there before.
    """
    folder.mkdir(parents=True, exist_ok=True)
    scratch = folder / "scratch"
    with (folder / "lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if scratch.exists():
            shutil.rmtree(scratch)
        scratch.mkdir()
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch)


def ensure_jars(progress: Progress | None = None) -> list[Path]:
    """All jars of the class path, fetched where they are missing.

    Raises `BrokerError` where one cannot be fetched or its sum is not the one on the list.
    """
    folder = jar_folder()
    if not folder.is_dir() or missing_jars(folder):
        with exclusive(folder) as scratch:
            missing = missing_jars(folder)  # another process may have been faster
            if missing:
                _fetch(missing, folder, scratch, progress or (lambda _: None))
    return [folder / pin.filename for pin in pins()]


def _fetch(missing: list[Pin], folder: Path, scratch: Path, progress: Progress) -> None:
    fetch_one = _fetcher(scratch)
    progress(f"Fetching Apache Kafka {KAFKA_VERSION}: {len(missing)} jars")
    pool = ThreadPoolExecutor(FETCHERS)
    try:
        for done, (pin, path) in enumerate(zip(missing, pool.map(fetch_one, missing), strict=True), 1):
            if sha256_of(path) != pin.sha256:
                raise BrokerError(
                    f"{pin.filename} as fetched does not match its SHA-256 in {PINS.name} and is not used",
                    remedy="fetch again; if it stays so, the repository or a proxy in between changes files",
                )
            path.replace(folder / pin.filename)
            progress(f"{done}/{len(missing)} {pin.filename}")
    except (OSError, RuntimeError) as error:  # errors of `requests` are OSError; `jgo` raises RuntimeError
        raise BrokerError(
            f"Kafka's jars are not in {folder} and could not be fetched ({type(error).__name__})",
            remedy="connect once to the network (HTTPS_PROXY and jgo's config file are honoured), "
            "or copy that folder from a machine that has it",
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
    if missing_jars(folder):  # takes the sums into the stamp
        raise BrokerError(f"the jars in {folder} changed while they were fetched", remedy="try again")


def _fetcher(scratch: Path) -> Callable[[Pin], Path]:
    try:
        from jgo.config import GlobalSettings
        from jgo.constants import MAVEN_CENTRAL_URL
        from jgo.maven import MavenContext
    except ImportError:
        raise BrokerError(
            "Kafka's jars are not here and the package 'jgo', which fetches them, is not installed",
            remedy="pip install 'tidegate[demo]'",
        ) from None
    # Repositories of the user's jgo config come first: behind a company mirror they are the only way out.
    repositories = {**GlobalSettings.load().repositories, "central": MAVEN_CENTRAL_URL}
    context = MavenContext(repo_cache=scratch, remote_repos=repositories, timeout=HTTP_TIMEOUT_S)

    def fetch(pin: Pin) -> Path:
        component = context.project(pin.group, pin.artifact).at_version(pin.version)
        return Path(component.artifact().resolve())

    return fetch
