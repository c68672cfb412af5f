"""A worker process: how it stops, what it logs, and what its exit code means.

A signal only writes a byte to a pipe (`set_wakeup_fd`), whichever thread it hits and whatever that thread waits for; a
thread of ours reads it, so that nothing of ours runs inside a handler. A worker that was
started by another process of ours watches the pipe that it inherited: when the parent is gone, even by `kill -9`, the
pipe closes and the worker stops too. Either way it has `GRACE_S` to write what is pending and leave its groups.
"""

import os
import signal
import sys
import threading
import uuid
from collections.abc import Callable, Sequence

import structlog

GRACE_S = 10.0
"""From the wish to stop until the process ends itself. A commit takes 3 to 90 ms; leaving a group, one round trip."""

PARENT_PIPE = "TIDEGATE_PARENT_PIPE"
"""Environment variable: the number of the inherited descriptor whose end of file means that the parent is gone."""

WORKER_NAME = "TIDEGATE_WORKER"
"""Environment variable: what tells a worker from the others that write to the same log."""

EXIT_LATE = 6
"""The process did not stop within its grace. What was pending is rolled back by the coordinator."""

log = structlog.get_logger("tidegate.process")


def begin_worker(kind: str) -> threading.Event:
    """Set up logging, signals and the watch on the parent; the event that says to stop. Call it first in a worker."""
    log_to_stderr(os.environ.get(WORKER_NAME) or kind)
    stop = threading.Event()

    def tell(number: signal.Signals) -> None:
        if not stop.is_set():
            _stop(stop, number.name)

    watch_signals((signal.SIGTERM, signal.SIGINT), tell)
    pipe = os.environ.get(PARENT_PIPE)
    if pipe:
        threading.Thread(target=_await_parent, args=(int(pipe), stop), daemon=True, name="parent").start()
    return stop


def watch_signals(numbers: Sequence[signal.Signals], tell: Callable[[signal.Signals], None]) -> None:
    """From now on these signals are told, in the order they come, by a thread of ours. Call it in the main thread."""
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    for number in numbers:
        signal.signal(number, _left_to_the_pipe)
    threading.Thread(target=_await_signals, args=(wake_read, tell), daemon=True, name="signals").start()


def instance_name(given: str | None) -> str:
    """What tells this process from its like: given by a supervisor, else made up."""
    return given or uuid.uuid4().hex[:12]


def life_name(given: str | None) -> str:
    """What tells this life of a process from every other, its own earlier ones included."""
    return f"{given or 'worker'}.{uuid.uuid4().hex[:12]}"


def _left_to_the_pipe(_signal: int, _frame: object) -> None:
    """A handler must be there, or the signal would end the process."""


def _await_signals(pipe: int, tell: Callable[[signal.Signals], None]) -> None:
    while read := os.read(pipe, 1):
        tell(signal.Signals(read[0]))


def _await_parent(pipe: int, stop: threading.Event) -> None:
    while os.read(pipe, 1):
        pass
    _stop(stop, "parent gone")


def _stop(stop: threading.Event, why: str) -> None:
    log.info("stopping", why=why)
    stop.set()
    deadline = threading.Timer(GRACE_S, _end_late)
    deadline.daemon = True
    deadline.start()


def _end_late() -> None:
    log.error("not_stopped_in_time", grace_s=GRACE_S)
    sys.stderr.flush()
    os._exit(EXIT_LATE)


def log_to_stderr(worker: str) -> None:
    """One line an event, `key=value`; `TIDEGATE_LOG=debug|info|warning` sets the level (info)."""
    levels = {"debug": 10, "info": 20, "warning": 30, "error": 40}
    level = levels.get(os.environ.get("TIDEGATE_LOG", "info").lower(), 20)
    structlog.configure(
        processors=[
            lambda _logger, _method, event: {"worker": worker, **event},
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "worker", "event"]),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
