"""A node's folder: its ports and ids, its formatted storage, its log, and why it died.

node.lock            held by the JVM for as long as it lives
node.json            cluster id and broker port, kept from start to start: clients reconnect to the same address
server.properties    written anew at each start
fencing.properties   of a controller alone, run first where the broker has run before (process.py)
data/                the log; formatted once
security/            of a secured node: its authority and certificates (secured.py)
logs/ tmp/           broker.log (bounded), console.log; native libraries that the JVM unpacks
"""

import base64
import fcntl
import os
import random
import shutil
import socket
import uuid
from pathlib import Path

import msgspec

from pipelines.errors import BrokerError
from pipelines.transport.broker.jvm import Installation
from pipelines.transport.broker.paths import os_errors
from pipelines.transport.broker.process import Launch
from pipelines.transport.broker.secured import ensure_security
from pipelines.transport.broker.settings import (
    HOST,
    SECURITY_DIR,
    BrokerSettings,
    fencing_properties,
    server_properties,
)

# Below the ports that the kernel gives to outgoing connections: a client that tries to reach a broker which is down
# could otherwise be given the broker's own port and hold it.
PORTS = range(20_000, 32_000)
PORT_TRIES = 100
TAIL_LINES = 4
TAIL_BYTES = 64 * 1024
LOG4J = Path(__file__).with_name("log4j2.properties")


class Identity(msgspec.Struct, frozen=True):
    """What a node keeps for life, in `node.json`."""

    cluster_id: str
    broker_port: int
    scram_port: int | None = None
    """Of a secured node."""


class Node(msgspec.Struct, frozen=True):
    """A node that is ready to be started. `lock` is open: who prepared it closes it once a child has inherited it."""

    node_dir: Path
    bootstrap: str
    command: list[str]
    log_offset: int
    lock: int
    fencing: list[str] = []
    """The command to be run first; empty where the broker never ran."""
    scram_bootstrap: str | None = None
    """Of a secured node: where passwords are taken."""

    @property
    def log_path(self) -> Path:
        """The broker's log."""
        return self.node_dir / "logs" / "broker.log"

    def launch(self, *flags: str) -> Launch:
        """What is to be run, with more flags for the JVM."""
        command = [self.command[0], *flags, *self.command[1:]]
        return Launch(command=command, node_dir=str(self.node_dir), lock=self.lock, fencing=self.fencing)


def kafka_uuid() -> str:
    """A random id as Kafka writes them: 16 bytes in URL-safe base64 without padding; never with a leading dash."""
    raw = uuid.uuid4().bytes
    return base64.urlsafe_b64encode(bytes([raw[0] & 0x7F]) + raw[1:]).rstrip(b"=").decode()


def is_free(port: int) -> bool:
    """Whether a server can listen on this loopback port now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def free_port(*taken: int | None) -> int:
    """A free loopback port other than `taken`. Raises `BrokerError` where none is found in a hundred tries."""
    for port in random.sample(PORTS, PORT_TRIES):
        if port not in taken and is_free(port):
            return port
    raise BrokerError(f"no free port on {HOST} between {PORTS[0]} and {PORTS[-1]}", remedy="end what listens there")


def prepare(node_dir: Path, installation: Installation, *, keep_port: bool = False, secured: bool = False) -> Node:
    """Make the folder ready for a start, and take its lock.

    The broker's port is the one of the last start; where that is taken, another, or with `keep_port` a `BrokerError`.
    `secured`: TLS, logins and permissions, see `secured.py`.
    """
    with os_errors():
        for name in ("logs", "tmp"):
            (node_dir / name).mkdir(parents=True, exist_ok=True)
    lock = _lock(node_dir)
    try:
        return _prepare(node_dir, installation, lock, keep_port=keep_port, secured=secured)
    except BaseException:
        os.close(lock)
        raise


def _lock(node_dir: Path) -> int:
    """Kafka itself takes a lock only after its controller has written to the log of the broker that runs there."""
    with os_errors():
        lock = os.open(node_dir / "node.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise BrokerError(
            f"the data directory {node_dir} is in use by another broker",
            remedy="stop that one (it ends by itself seconds after its owner was killed), or give another directory",
        ) from None
    return lock


def _prepare(node_dir: Path, installation: Installation, lock: int, *, keep_port: bool, secured: bool) -> Node:
    with os_errors():
        if secured:
            ensure_security(node_dir / SECURITY_DIR)
        identity = _identity(node_dir, keep_port=keep_port, secured=secured)
        _format(node_dir / "data", identity.cluster_id, installation.checkpoint)
        settings = BrokerSettings(
            broker_port=identity.broker_port,
            controller_port=free_port(identity.broker_port, identity.scram_port),
            scram_port=identity.scram_port if secured else None,
            log_dirs=_as_property(node_dir / "data"),
        )
        (node_dir / "server.properties").write_text(server_properties(settings), "ascii")
        (node_dir / "fencing.properties").write_text(fencing_properties(settings), "ascii")
    log = node_dir / "logs" / "broker.log"
    return Node(
        node_dir=node_dir,
        bootstrap=settings.bootstrap,
        command=_command(installation, "server.properties", says="kafka.server.KafkaRaftServer", level="info"),
        log_offset=log.stat().st_size if log.is_file() else 0,
        lock=lock,
        fencing=_command(installation, "fencing.properties", says="org.apache.kafka.controller", level="debug")
        if (node_dir / "data" / "__cluster_metadata-0").is_dir()
        else [],
        scram_bootstrap=f"{HOST}:{settings.scram_port}" if settings.scram_port is not None else None,
    )


def _command(installation: Installation, properties: str, *, says: str, level: str) -> list[str]:
    """`says`: the logger whose lines go to standard output."""
    logs = {"log4j2.configurationFile": str(LOG4J), "tidegate.says": says, "tidegate.level": level}
    return installation.command("kafka.Kafka", properties, properties=logs)


def _identity(node_dir: Path, *, keep_port: bool, secured: bool) -> Identity:
    path = node_dir / "node.json"
    try:
        known = msgspec.json.decode(path.read_bytes(), type=Identity)
    except FileNotFoundError:
        known = Identity(cluster_id=kafka_uuid(), broker_port=free_port())
    except msgspec.DecodeError as error:
        raise BrokerError(
            f"{path} cannot be read ({error})", remedy="give another data directory, or remove this one"
        ) from error
    if secured and known.scram_port is None:
        known = msgspec.structs.replace(known, scram_port=free_port(known.broker_port))
    ports = {"broker_port": known.broker_port, **({"scram_port": known.scram_port} if secured else {})}
    for field, port in ports.items():
        if port is not None and not is_free(port):
            if keep_port:
                raise BrokerError(
                    f"port {port} of the broker in {node_dir} is taken by another process", remedy="end that process"
                )
            other = free_port(known.broker_port, known.scram_port)
            known = msgspec.structs.replace(known, **{field: other})
    path.write_bytes(msgspec.json.encode(known))
    return known


def _as_property(data: Path) -> str:
    """The data folder as Kafka tells it to who asks for `log.dirs`; relative where it could not be written so."""
    told = str(data.absolute())
    return told if told.isascii() and told.isprintable() and not {",", "\\"} & set(told) else data.name


def _format(data: Path, cluster_id: str, checkpoint: Path) -> None:
    """What `kafka-storage format` does, without its second of JVM: it writes two files, and only ids differ in them."""
    meta = data / "meta.properties"
    if meta.is_file():
        return
    data.mkdir(exist_ok=True)
    shutil.copyfile(checkpoint, data / checkpoint.name)
    text = f"version=1\ncluster.id={cluster_id}\nnode.id=1\ndirectory.id={kafka_uuid()}\n"
    part = meta.with_suffix(".part")
    part.write_text(text, "ascii")
    part.replace(meta)


def said_since(node: Node) -> list[str]:
    """Lines of the broker's log and console since it was prepared, without stack frames; at most 64 KiB of each."""
    lines: list[str] = []
    for path, offset in ((node.log_path, node.log_offset), (node.log_path.with_name("console.log"), 0)):
        if path.is_file():
            size = path.stat().st_size
            with path.open("rb") as file:
                file.seek(max(offset if offset <= size else 0, size - TAIL_BYTES))
                lines += file.read().decode("utf-8", "replace").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith(("\tat ", "\t..."))]


def why_it_died(node: Node) -> BrokerError:
    """The error for a broker that ended while it started, with the last telling lines of its log."""
    lines = said_since(node)
    telling = [line for line in lines if "ERROR" in line or "FATAL" in line or "Exception" in line] or lines
    return BrokerError(
        f"Kafka ended while it started: {' | '.join(telling[-TAIL_LINES:]) or 'it wrote no log'}",
        remedy=f"the whole log is {node.log_path}",
    )


def port_was_taken(node: Node) -> bool:
    """Whether it died because another process took one of its ports in between."""
    return any("Address already in use" in line for line in said_since(node))
