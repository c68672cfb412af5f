"""What is made once on a machine so that brokers start quickly: the jars, the result of a format, the class archive."""

import subprocess

from pipelines.errors import BrokerError
from pipelines.transport.broker.archive import ensure_archive
from pipelines.transport.broker.jars import Progress, ensure_jars, exclusive, jar_folder
from pipelines.transport.broker.java import find_java
from pipelines.transport.broker.jvm import Installation
from pipelines.transport.broker.paths import os_errors
from pipelines.transport.broker.settings import BrokerSettings, server_properties

FORMAT_TIMEOUT_S = 60.0
# Any valid id: the file that is kept from the format holds none.
FORMAT_CLUSTER_ID = "AAAAAAAAAAAAAAAAAAAAEA"


def install(progress: Progress | None = None) -> Installation:
    """Everything a start needs, made where it is missing; a few milliseconds where nothing is. Raises `BrokerError`."""
    java = find_java()
    with os_errors():
        jars = ensure_jars(progress)
        installation = Installation(java=java, jars=jars, checkpoint=jar_folder() / "bootstrap.checkpoint")
        if not installation.checkpoint.is_file():
            _make_checkpoint(installation)
        return ensure_archive(installation, jar_folder(), progress)


def _make_checkpoint(installation: Installation) -> None:
    """The feature levels that `kafka-storage format` writes, by that tool; the same file for every node."""
    folder = installation.checkpoint.parent
    with exclusive(folder) as scratch:
        if installation.checkpoint.is_file():
            return  # another process was faster
        (scratch / "tmp").mkdir()
        settings = BrokerSettings(broker_port=1, controller_port=2)
        (scratch / "server.properties").write_text(server_properties(settings), "ascii")
        asked = ("format", "--cluster-id", FORMAT_CLUSTER_ID, "--config", "server.properties")
        command = installation.command("kafka.tools.StorageTool", *asked)
        try:
            done = subprocess.run(
                command, cwd=scratch, capture_output=True, text=True, timeout=FORMAT_TIMEOUT_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise BrokerError(
                f"{installation.java.path} does not run ({error})", remedy="set JAVA_HOME to a Java that works"
            ) from error
        if done.returncode:
            said = (done.stderr or done.stdout).strip().splitlines()
            raise BrokerError(
                f"kafka-storage format failed: {said[-1] if said else 'it said nothing'}",
                remedy=f"remove {folder} and try again",
            )
        (scratch / settings.log_dirs / installation.checkpoint.name).replace(installation.checkpoint)
