"""The command line of Kafka's JVM."""

from collections.abc import Mapping
from pathlib import Path

import msgspec

from pipelines.transport.broker.java import Java

# A small heap, one compiler tier and the serial collector: a broker that starts fast and stays near 200 MiB.
JVM_FLAGS = (
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-Xmx256m",
    "-XX:-UsePerfData",  # no files of the JVM in the system's temporary folder
    "-Djava.io.tmpdir=tmp",  # nor unpacked native libraries
    "-XX:+ExitOnOutOfMemoryError",
    "-XX:ErrorFile=logs/hs_err_%p.log",
    "-Djava.net.preferIPv4Stack=true",
)
# From Java 24 on the JVM warns of what Kafka's libraries do at every start.
QUIET_FLAGS = ("--sun-misc-unsafe-memory-access=allow", "--enable-native-access=ALL-UNNAMED")
QUIET_SINCE = 24
AOT_SINCE = 25  # JEP 514: one step makes the cache. Before: JEP 350, a dynamic archive on top of Java's own.


class Installation(msgspec.Struct, frozen=True):
    """What brokers of this machine are started from: a Java, the checked jars, and two files that save time.

    `checkpoint` is what a format leaves, `archive` the class archive; None where this Java could not make one.
    """

    java: Java
    jars: list[Path]
    checkpoint: Path
    archive: Path | None = None

    def command(
        self, main: str, *arguments: str, flags: tuple[str, ...] = (), properties: Mapping[str, str] | None = None
    ) -> list[str]:
        """The command line that runs a class of Kafka in a node's folder. The class path is an explicit list of
        jars, because an archive is taken only with the list it was made with."""
        own = [*JVM_FLAGS, *(QUIET_FLAGS if self.java.feature >= QUIET_SINCE else ()), *flags]
        if self.archive is not None:
            own.append(self._archive_flag("AOTCache", "SharedArchiveFile", self.archive))
        defined = [f"-D{key}={value}" for key, value in (properties or {}).items()]
        class_path = ":".join(str(jar) for jar in self.jars)
        return [str(self.java.path), *own, *defined, "-cp", class_path, main, *arguments]

    def flag_to_make(self, archive: Path) -> str:
        """The flag with which a JVM writes a class archive as it ends."""
        return self._archive_flag("AOTCacheOutput", "ArchiveClassesAtExit", archive)

    def _archive_flag(self, since_25: str, before: str, archive: Path) -> str:
        return f"-XX:{since_25 if self.java.feature >= AOT_SINCE else before}={archive}"
