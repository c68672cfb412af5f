"""A user's quotas on a cluster: bytes a second that a broker takes from it and gives to it.

No Python client sets them, so Kafka's own tool does, from the jars of the embedded Kafka. Where these are not
installed, the caller is told the command to run.
"""

import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from cryptography.hazmat.primitives import serialization

from pipelines.errors import BrokerError
from pipelines.transport.broker.install import install
from pipelines.transport.broker.jars import jar_folder, missing_jars
from pipelines.transport.certificates import write_private

TOOL = "kafka.admin.ConfigCommand"
SCRIPT = "kafka-configs.sh"
TOOL_TIMEOUT_S = 60.0
IN_KEY, OUT_KEY = "producer_byte_rate", "consumer_byte_rate"


class Quota(msgspec.Struct, frozen=True):
    """Of one user, bytes a second and broker; None leaves a direction as it is."""

    in_bytes_per_s: int | None = None
    """What it may send to the cluster."""
    out_bytes_per_s: int | None = None
    """What it may read from it."""

    @property
    def configs(self) -> str:
        """As Kafka's tool takes it."""
        given = {IN_KEY: self.in_bytes_per_s, OUT_KEY: self.out_bytes_per_s}
        return ",".join(f"{key}={value}" for key, value in given.items() if value is not None)


def set_arguments(user: str, quota: Quota) -> list[str]:
    """Arguments of Kafka's tool that set a user's quota."""
    return ["--alter", "--entity-type", "users", "--entity-name", user, "--add-config", quota.configs]


def remove_arguments(user: str, keys: Sequence[str] = (IN_KEY, OUT_KEY)) -> list[str]:
    """Arguments of Kafka's tool that remove a user's quotas; it refuses to remove one that is not there."""
    return ["--alter", "--entity-type", "users", "--entity-name", user, "--delete-config", ",".join(keys)]


def show_arguments(user: str) -> list[str]:
    """Arguments of Kafka's tool that print a user's quotas."""
    return ["--describe", "--entity-type", "users", "--entity-name", user]


def by_hand(bootstrap: str, arguments: list[str]) -> str:
    """The command for whoever has Kafka's tools; `admin.properties` holds the operator's login."""
    return " ".join([SCRIPT, "--bootstrap-server", bootstrap, "--command-config", "admin.properties", *arguments])


def installed() -> bool:
    """Whether the jars are here; they are not fetched for this alone."""
    return jar_folder().is_dir() and not missing_jars(jar_folder())


def run_tool(bootstrap: str, options: Mapping[str, Any], arguments: list[str]) -> str:
    """Run Kafka's tool with the login of librdkafka `options`; what it printed. Raises `BrokerError`."""
    installation = install()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "tmp").mkdir()
        (folder / "logs").mkdir()
        write_private(folder / "admin.properties", properties(options).encode())
        common = ["--bootstrap-server", bootstrap, "--command-config", "admin.properties"]
        command = installation.command(TOOL, *common, *arguments)
        try:
            done = subprocess.run(
                command, cwd=folder, capture_output=True, text=True, timeout=TOOL_TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise BrokerError(f"Kafka's tool gave no answer in {TOOL_TIMEOUT_S:.0f} s", remedy="try again") from error
    if done.returncode or "Error while" in done.stdout:
        said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip() and not line.startswith("\t")]
        raise BrokerError(
            f"quotas at {bootstrap} cannot be changed ({said[0].strip() if said else 'no word why'})",
            remedy=f"run it yourself: {by_hand(bootstrap, arguments)}",
        )
    return done.stdout


def remove(bootstrap: str, options: Mapping[str, Any], user: str) -> None:
    """Remove what quotas a user has. Raises `BrokerError`."""
    shown = run_tool(bootstrap, options, show_arguments(user))
    keys = [key for key in (IN_KEY, OUT_KEY) if f"{key}=" in shown]
    if keys:
        run_tool(bootstrap, options, remove_arguments(user, keys))


def properties(options: Mapping[str, Any]) -> str:
    """The login of librdkafka `options` as Java's clients take it. It holds the secrets."""
    protocol = str(options.get("security.protocol", "plaintext")).upper()
    given = {"security.protocol": protocol}
    if protocol.endswith("SSL"):
        if options.get("ssl.ca.location"):
            authority = Path(options["ssl.ca.location"]).read_text("utf-8")
            given |= {"ssl.truststore.type": "PEM", "ssl.truststore.certificates": authority}
        if options.get("ssl.certificate.location"):
            password = str(options.get("ssl.key.password", ""))
            given |= {
                "ssl.keystore.type": "PEM",
                "ssl.keystore.certificate.chain": Path(options["ssl.certificate.location"]).read_text("utf-8"),
                "ssl.keystore.key": _plain_key(Path(options["ssl.key.location"]), password),
            }
    if protocol.startswith("SASL"):
        mechanism = str(options["sasl.mechanism"])
        module = "plain.PlainLoginModule" if mechanism == "PLAIN" else "scram.ScramLoginModule"
        user, password = (_quoted(str(options[f"sasl.{key}"])) for key in ("username", "password"))
        login = f"org.apache.kafka.common.security.{module} required username={user} password={password};"
        given |= {"sasl.mechanism": mechanism, "sasl.jaas.config": login}
    return "".join(f"{key}={_escaped(value)}\n" for key, value in given.items())


def _plain_key(path: Path, password: str) -> str:
    """Java takes keys as PKCS#8 alone."""
    key = serialization.load_pem_private_key(path.read_bytes(), password.encode() or None)
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return key.private_bytes(*form).decode()


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _escaped(text: str) -> str:
    """As `java.util.Properties` reads it: backslashes and ends of line, and all beyond ASCII."""
    plain = text.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "")
    return "".join(c if " " <= c <= "~" else f"\\u{ord(c):04x}" for c in plain)
