"""The broker's JVM as a child process: start it, await what it says, end it."""

import ctypes
import os
import selectors
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import msgspec

READY = b"Kafka Server started"
FENCING, WRITTEN = b"Fencing broker", b"Processed maybeFenceStaleBroker"
"""What a controller says as it takes the session of a broker away, and once that is in its log. Of what it only replays
it says the first never; the second also comes, at intervals, where nothing was to be done."""
FENCING_TIMEOUT_S = 10.0
"""The JVM's start and a tenth of a second; all of it only where the last life ended before it was unfenced."""
DEFAULT_GRACE_S = 10.0
CHUNK_BYTES = 65536
PR_SET_PDEATHSIG = 1  # prctl(2)


class Launch(msgspec.Struct, frozen=True):
    """What a keeper is told to run: a command, the node's folder to run it in, and the file descriptor of its lock."""

    command: list[str]
    node_dir: str
    lock: int
    fencing: list[str] = []
    """To be run first (see `fence`); empty where the broker never ran."""


def read_until(fd: int, wanted: bytes | None, timeout_s: float) -> bytes:
    """Read a pipe until `wanted` was seen or the other side closed it; `wanted=None` reads to the end.

    Returns all that was read. Raises `TimeoutError` after `timeout_s`.
    """
    deadline = time.monotonic() + timeout_s
    seen = b""
    with selectors.DefaultSelector() as selector:
        selector.register(fd, selectors.EVENT_READ)
        while wanted is None or wanted not in seen:
            if not selector.select(max(0.0, deadline - time.monotonic())):
                raise TimeoutError
            chunk = os.read(fd, CHUNK_BYTES)
            if not chunk:
                break
            seen += chunk
    return seen


def spawn(launch: Launch, *, with_parent: bool) -> subprocess.Popen[bytes]:
    """Start the JVM in the node's folder, away from the terminal's signals.

    Its standard output is a pipe that carries the life cycle, its standard error goes to `logs/console.log`. It
    inherits the lock on its folder. `with_parent`: the kernel kills it when the thread that called this ends (Linux).
    """
    # Loaded before the fork: nothing but the call itself may happen between fork and exec.
    libc = ctypes.CDLL(None) if with_parent and sys.platform == "linux" else None

    def die_with_parent() -> None:
        if libc is not None:
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    with (Path(launch.node_dir) / "logs" / "console.log").open("ab") as console:
        return subprocess.Popen(
            launch.command,
            cwd=launch.node_dir,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=console,
            start_new_session=True,
            pass_fds=(launch.lock,),
            preexec_fn=die_with_parent if libc is not None else None,
        )


def fence(launch: Launch, *, with_parent: bool) -> None:
    """End the session of the broker's last life, where there was one.

    Kafka 4.3 would otherwise load its transactions while it still believes the old session alive. When that runs out,
    every partition is without a leader for a moment, and a transaction which was decided, but whose markers were not
    written yet, then counts as ended without them ("these partitions are likely deleted already and hence can be
    skipped", TransactionMarkerChannelManager): its records stay open for good, or come out doubled. A controlled
    shutdown takes the leaders away while transactions go on, so a single node has none (settings.py).
    """
    if not launch.fencing:
        return
    process = spawn(msgspec.structs.replace(launch, command=launch.fencing), with_parent=with_parent)
    try:
        with suppress(TimeoutError):  # Nothing was left to be fenced.
            said = read_until(output_of(process), FENCING, FENCING_TIMEOUT_S)
            if WRITTEN not in said.partition(FENCING)[2]:
                read_until(output_of(process), WRITTEN, FENCING_TIMEOUT_S)
    finally:
        end(process, DEFAULT_GRACE_S)
        if process.stdout is not None:
            process.stdout.close()


def output_of(process: subprocess.Popen[bytes]) -> int:
    """The file descriptor of its standard output. It was started with a pipe."""
    if process.stdout is None:
        raise ValueError("the process was started without a pipe for its output")
    return process.stdout.fileno()


def end(process: subprocess.Popen[bytes], grace_s: float) -> int:
    """SIGTERM, then SIGKILL after `grace_s`; its exit code. A process that ended already is only collected."""
    if process.poll() is None:
        process.terminate()
        try:
            read_until(output_of(process), None, grace_s)
        except TimeoutError:
            process.kill()
    return process.wait()
