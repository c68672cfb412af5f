"""Brokers that outlive the command that started them: `tidegate broker start|stop|status|logs`.

A state file a name holds the process id with the process's start time, so that a process id that the system gave to
another process is never signalled.
"""

import os
import re
import selectors
import signal
from pathlib import Path

import msgspec

from pipelines.errors import BrokerError
from pipelines.transport.broker.install import install
from pipelines.transport.broker.jars import Progress
from pipelines.transport.broker.node import Node, port_was_taken, prepare, why_it_died
from pipelines.transport.broker.owned import START_TIMEOUT_S, START_TRIES
from pipelines.transport.broker.paths import os_errors, state_home
from pipelines.transport.broker.process import DEFAULT_GRACE_S, READY, end, fence, output_of, read_until, spawn

KILL_TIMEOUT_S = 10.0


class DetachedBroker(msgspec.Struct, frozen=True):
    """A named broker as its state file has it. `started` identifies the process beside its id."""

    name: str
    pid: int
    started: str
    bootstrap: str
    data_dir: Path

    @property
    def log_path(self) -> Path:
        """The broker's log."""
        return self.data_dir / "logs" / "broker.log"

    @property
    def running(self) -> bool:
        """Whether that very process is alive."""
        return start_of(self.pid) == self.started


def start_of(pid: int) -> str | None:
    """When a process started: boot id and clock ticks since boot. None where it is gone, or dead and uncollected.

    Source: proc(5), field 22 (`starttime`) of /proc/PID/stat.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(")")[2].split()  # the name before it may hold blanks
    return None if fields[0] in "ZX" else f"{boot}:{fields[19]}"


def _state_path(name: str) -> Path:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        raise BrokerError(f"'{name}' is no name for a broker", remedy="use letters, digits, dots, dashes")
    return state_home() / "brokers" / f"{name}.json"


def status_detached(name: str) -> DetachedBroker | None:
    """The broker of that name, running or not; None where none was ever started."""
    path = _state_path(name)
    try:
        return msgspec.json.decode(path.read_bytes(), type=DetachedBroker, dec_hook=lambda kind, text: kind(text))
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise BrokerError(f"{path} cannot be read ({error})", remedy="remove it") from error


def start_detached(data_dir: Path | None, name: str, *, progress: Progress | None = None) -> DetachedBroker:
    """Start a broker that stays, on `data_dir`; ready when this returns.

    By default that is where it ran last, else a folder beside its state file.

    One that runs already is returned as it is. Raises `BrokerError`.
    """
    if not hasattr(os, "pidfd_open"):
        raise BrokerError("detached brokers need Linux", remedy="give the address of a Kafka that runs elsewhere")
    path = _state_path(name)
    known = status_detached(name)
    wanted = data_dir.resolve() if data_dir else known.data_dir if known else path.with_suffix("")
    if known is not None and known.running:
        if known.data_dir != wanted:
            raise BrokerError(
                f"a broker '{name}' runs on {known.data_dir}", remedy="stop it, or give this one another --name"
            )
        return known
    installation = install(progress)
    for tries_left in reversed(range(START_TRIES)):
        node = prepare(wanted, installation)
        broker = _start(node, name, path)
        if broker is not None:
            return broker
        if not tries_left or not port_was_taken(node):
            break
    raise why_it_died(node)


def _start(node: Node, name: str, path: Path) -> DetachedBroker | None:
    """Start the JVM and wait for its line; None where it ended before."""
    try:
        fence(node.launch(), with_parent=True)
        process = spawn(node.launch(), with_parent=False)
    finally:
        os.close(node.lock)
    stays = False
    try:
        broker = DetachedBroker(
            name=name,
            pid=process.pid,
            started=start_of(process.pid) or "",
            bootstrap=node.bootstrap,
            data_dir=node.node_dir,
        )
        if READY not in read_until(output_of(process), READY, START_TIMEOUT_S):
            return None
        _write_state(path, broker)
        stays = True
    except TimeoutError:
        raise BrokerError(f"Kafka was not ready after {START_TIMEOUT_S:.0f} s", remedy=f"see {node.log_path}") from None
    finally:
        if not stays:
            end(process, grace_s=0.0)
        if process.stdout is not None:
            process.stdout.close()  # it says there only that it shuts down, and its log has that too
    return broker


def _write_state(path: Path, broker: DetachedBroker) -> None:
    with os_errors():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_bytes(msgspec.json.encode(broker, enc_hook=str))
        part.replace(path)


def stop_detached(name: str, grace_s: float = DEFAULT_GRACE_S) -> bool:
    """SIGTERM, then SIGKILL after `grace_s`; the data stays. False where none of that name was running."""
    broker = status_detached(name)
    if broker is None:
        return False
    return _end(broker, grace_s)


def _end(broker: DetachedBroker, grace_s: float) -> bool:
    try:
        handle = os.pidfd_open(broker.pid)
    except ProcessLookupError:
        return False
    try:
        if not broker.running:  # asked after the handle was taken: from here on it is this process or none
            return False
        with selectors.DefaultSelector() as selector:
            selector.register(handle, selectors.EVENT_READ)  # readable once the process ended
            for number, patience_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, KILL_TIMEOUT_S)):
                signal.pidfd_send_signal(handle, number)
                if selector.select(patience_s):
                    return True
    finally:
        os.close(handle)
    raise BrokerError(f"process {broker.pid} of the broker '{broker.name}' does not end", remedy="see its log")
