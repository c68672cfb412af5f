"""A class archive, made once for a Java and a set of jars: brokers then start in half the time (docs/broker.md)."""

import hashlib
import os
from pathlib import Path

import msgspec

from pipelines.transport.broker.jars import Progress, exclusive
from pipelines.transport.broker.jvm import JVM_FLAGS, Installation
from pipelines.transport.broker.node import prepare
from pipelines.transport.broker.process import READY, end, output_of, read_until, spawn

TRAINING_TIMEOUT_S = 60.0
KEPT = 2


def _key(installation: Installation) -> str:
    """Changes whenever the JVM would refuse an older archive: it looks at Java, flags, paths and times of the jars."""
    java = installation.java
    stats = [(str(jar), jar.stat().st_mtime_ns) for jar in installation.jars]
    return hashlib.sha256(repr((str(java.path), java.version, JVM_FLAGS, stats)).encode()).hexdigest()[:16]


def ensure_archive(installation: Installation, folder: Path, progress: Progress | None = None) -> Installation:
    """The installation with its archive, which is made here where it is missing; at best effort.

    Where making it fails an empty file remembers that, and brokers start without.
    """
    archive = folder / f"classes-{_key(installation)}"
    if not archive.is_file():
        if not os.access(folder, os.W_OK):
            return installation
        with exclusive(folder) as scratch:
            if not archive.is_file():  # another process may have been faster
                (progress or (lambda _: None))("Preparing Kafka for a fast start (once)")
                _make(installation, archive, scratch)
                _keep_newest(folder)
    return msgspec.structs.replace(installation, archive=archive if archive.stat().st_size else None)


def _make(installation: Installation, archive: Path, scratch: Path) -> None:
    """Start a broker on an empty folder and let it end; the JVM then writes what classes it had loaded."""
    made = scratch / archive.name
    node = prepare(scratch, installation)
    try:
        process = spawn(node.launch(installation.flag_to_make(made)), with_parent=True)
    finally:
        os.close(node.lock)
    try:
        started = READY in read_until(output_of(process), READY, TRAINING_TIMEOUT_S)
        # 143 is Java's code after SIGTERM; below 0 it was killed while it wrote.
        whole = end(process, TRAINING_TIMEOUT_S) >= 0 and started and made.is_file()
    except TimeoutError:
        whole = False
    finally:
        end(process, grace_s=0.0)
    if whole:
        made.replace(archive)
    else:
        archive.touch()


def _keep_newest(folder: Path) -> None:
    archives = sorted(folder.glob("classes-*"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for old in archives[KEPT:]:
        old.unlink()
