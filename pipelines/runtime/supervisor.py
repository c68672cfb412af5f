"""Runs worker processes, starts them again when they die, and leaves none behind.

Constraints
- The supervisor imports no worker: a child is `tidegate KIND FILE`.
- Children hold the reading end of a pipe that only the supervisor writes to: when it is gone, even by `kill -9`, the
  pipe closes and they stop by themselves.
- A child that ends is started again after a wait that doubles; one that says the user must mend something (exit 2) is
  not, and neither is a source that came to its end (exit 0 of a `finite` one). One that was fenced (exit 5) waits
  `FENCED_WAIT_S`, so that two supervisors cannot fence each other without end.
- A child that is started anew because we asked (`restart`) ends by SIGTERM, and is killed only `GRACE_S` and `LATE_S`
  later. Its next life waits for nothing else.
- A child is signalled only while its exit has not been collected: a pid is never reused under us.
- Without a folder for logs, children write where the supervisor does.
"""

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import IO

import msgspec

from pipelines.errors import TidegateError
from pipelines.runtime.process import GRACE_S, PARENT_PIPE

FENCED_EXIT, USER_EXIT = 5, 2
FENCED_WAIT_S = 30.0
RESTART_FIRST_S, RESTART_MOST_S = 0.2, 10.0
HEALTHY_S = 20.0
"""A child that lived this long begins again with the first wait."""
LATE_S = 5.0
"""A worker ends itself after `GRACE_S`; one that has not by then cannot."""
RESTARTS_MOST = 20
"""In a row, none of them healthy: about two minutes of tries, then the supervisor gives up with the child's error."""


class WorkerFailed(TidegateError):
    """A worker that cannot run. Carries its name, its last line and its exit code."""

    def __init__(self, name: str, problem: str, exit_code: int) -> None:
        super().__init__(f"{name}: {problem}")
        self.name = name
        self.exit_code = exit_code


class WorkerSpec(msgspec.Struct, frozen=True):
    """One worker process: `tidegate KIND ARGS`, named for logs."""

    kind: str
    args: Sequence[str]
    number: int = 0
    finite: bool = False
    """Exit 0 means done."""
    held: bool = False
    """Not started before `release`."""
    label: str = ""
    """Tells it from the workers of another supervisor in the same groups."""
    environment: Mapping[str, str] = {}
    """Of this one alone."""

    @property
    def name(self) -> str:
        """Such as `edge-0`, or `edge-label-0`."""
        return "-".join(filter(None, (self.kind, self.label, str(self.number))))


class _Child:
    """A worker process and what is known of its lives."""

    def __init__(self, spec: WorkerSpec) -> None:
        self.spec = spec
        self.process: subprocess.Popen[bytes] | None = None
        self.started_s = 0.0
        self.lives = 0
        self.restarts = 0
        self.unhealthy = 0
        self.last_exit: int | None = None
        self.again = False
        """Asked to end, so that it is started anew."""
        self.kill_s: float | None = None
        self.due_s: float | None = 0.0
        self.ending = False
        self.removed = False
        self.done = False


class Supervisor:
    """Starts the workers given, and keeps them running until `stop`."""

    def __init__(self, specs: Sequence[WorkerSpec], environment: Mapping[str, str], log_dir: Path | None) -> None:
        self._children = {spec.name: _Child(spec) for spec in specs}
        for spec in specs:
            if spec.held:
                self._children[spec.name].due_s = None
        self._environment = dict(environment)
        self._log_dir = log_dir
        self._exits: queue.SimpleQueue[tuple[str, int]] = queue.SimpleQueue()
        self._pipe_read, self._pipe_write = os.pipe()
        if log_dir is not None:
            log_dir.mkdir(parents=True, exist_ok=True)

    def turn(self, wait_s: float) -> None:
        """Start what is due, then wait up to `wait_s` for a child's end. Raises `WorkerFailed`."""
        for child in self._children.values():
            if child.due_s is not None and child.due_s <= time.monotonic():
                self._start(child)
            if child.kill_s is not None and child.process is not None and child.kill_s <= time.monotonic():
                child.process.kill()
        try:
            name, code = self._exits.get(timeout=wait_s)
        except queue.Empty:
            return
        self._ended(self._children[name], code)
        self._forget_removed()

    def add(self, spec: WorkerSpec) -> None:
        """One more worker, started at the next turn. Its name must be new."""
        self._children[spec.name] = _Child(spec)

    def remove(self, name: str) -> None:
        """SIGTERM to one worker; when it has ended, within `GRACE_S`, it is forgotten."""
        child = self._children[name]
        child.removed = True
        self._end(child)
        self._forget_removed()

    def restart(self, name: str) -> None:
        """SIGTERM to a worker that runs; its next life begins as soon as it has ended. That counts as no failure."""
        child = self._children[name]
        if child.process is not None and not child.again:
            child.again, child.kill_s = True, time.monotonic() + GRACE_S + LATE_S
            child.process.send_signal(signal.SIGTERM)

    def try_again(self, name: str, wait_s: float) -> None:
        """Start a worker that failed for good once more, after so long."""
        self._children[name].due_s = time.monotonic() + wait_s

    def _forget_removed(self) -> None:
        for name in [name for name, child in self._children.items() if child.removed and child.done]:
            del self._children[name]

    def release(self, kind: str) -> None:
        """Start the held workers of `kind` at the next turn."""
        for child in self._children.values():
            if child.spec.kind == kind and child.spec.held and child.started_s == 0.0:
                child.due_s = time.monotonic()

    def done(self, kind: str) -> bool:
        """All workers of `kind` came to their end."""
        return all(child.done for child in self._children.values() if child.spec.kind == kind)

    def pid(self, name: str) -> int | None:
        """Of a worker that runs now."""
        child = self._children[name]
        return child.process.pid if child.process is not None else None

    def lives(self, name: str) -> int:
        """How often a worker was started, for whatever reason."""
        return self._children[name].lives

    def lived_s(self, name: str) -> float:
        """How long ago it was started last; 0 where it does not run."""
        child = self._children[name]
        return 0.0 if child.process is None else time.monotonic() - child.started_s

    def last_exit(self, name: str) -> int | None:
        """How its last life ended, below 0 by a signal; None before one has."""
        return self._children[name].last_exit

    @property
    def restarts(self) -> dict[str, int]:
        """How often each worker was started again after it had ended by itself."""
        return {name: child.restarts for name, child in self._children.items()}

    @property
    def names(self) -> list[str]:
        """Of all workers, in the order given."""
        return list(self._children)

    def kill(self, name: str) -> bool:
        """`kill -9` one worker (for tests and `demo --chaos`); it is started again. False where it does not run."""
        child = self._children[name]
        if child.process is None:
            return False
        child.process.kill()
        return True

    def end(self, kind: str) -> None:
        """SIGTERM to the workers of `kind`; they count as done when they have ended, and are not started again."""
        for child in self._children.values():
            if child.spec.kind == kind and not child.done:
                self._end(child)

    def _end(self, child: _Child) -> None:
        child.ending = True
        if child.process is not None:
            child.process.send_signal(signal.SIGTERM)
        else:
            child.done, child.due_s = True, None

    def stop(self, at_once: threading.Event | None = None) -> dict[str, int]:
        """SIGTERM to all, `GRACE_S` to end, then SIGKILL; without the rest of the wait as soon as `at_once` is set.

        How each ended that ran.
        """
        running = {name: child.process for name, child in self._children.items() if child.process is not None}
        for child in self._children.values():
            child.due_s = None
        for process in running.values():
            process.send_signal(signal.SIGTERM)
        deadline_s = time.monotonic() + GRACE_S + 1
        codes = {name: _await_end(process, deadline_s, at_once) for name, process in running.items()}
        os.close(self._pipe_write)
        os.close(self._pipe_read)
        return codes

    def log_path(self, name: str) -> Path:
        """What a worker wrote to its standard error. Only where logs have a folder."""
        assert self._log_dir is not None
        return self._log_dir / f"{name}.log"

    def _start(self, child: _Child) -> None:
        spec = child.spec
        command = [sys.executable, "-P", "-m", "tidegate", spec.kind, *spec.args, "--instance", spec.name]
        with self._log(spec.name) as log:
            child.process = subprocess.Popen(
                command,
                env={**os.environ, **self._environment, **spec.environment, PARENT_PIPE: str(self._pipe_read)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[self._pipe_read],
                start_new_session=True,  # An interrupt at the terminal reaches the supervisor alone.
            )
        child.started_s, child.due_s = time.monotonic(), None
        child.lives += 1
        threading.Thread(target=self._await_exit, args=(spec.name, child.process), daemon=True).start()

    def _log(self, name: str) -> AbstractContextManager[IO[bytes] | None]:
        return nullcontext() if self._log_dir is None else self.log_path(name).open("ab")

    def _await_exit(self, name: str, process: subprocess.Popen[bytes]) -> None:
        self._exits.put((name, process.wait()))

    def _ended(self, child: _Child, code: int) -> None:
        child.process, child.last_exit, child.kill_s = None, code, None
        if child.again and not child.ending:
            child.again, child.due_s = False, time.monotonic()
            return
        if child.ending or (child.spec.finite and code == 0):
            child.done = True
            return
        lived_s = time.monotonic() - child.started_s
        child.unhealthy = 0 if lived_s >= HEALTHY_S else child.unhealthy + 1
        if code == USER_EXIT or child.unhealthy > RESTARTS_MOST:
            exit_code = USER_EXIT if code == USER_EXIT else 1
            raise WorkerFailed(child.spec.name, self._last_line(child.spec.name, code), exit_code)
        wait_s = min(RESTART_FIRST_S * 2 ** max(child.unhealthy - 1, 0), RESTART_MOST_S)
        child.due_s = time.monotonic() + (FENCED_WAIT_S if code == FENCED_EXIT else wait_s)
        child.restarts += 1

    def _last_line(self, name: str, code: int) -> str:
        if self._log_dir is None:
            return f"it ended with exit code {code}, and says why above"
        lines = self.log_path(name).read_text("utf-8", "replace").strip().splitlines()
        return lines[-1].removeprefix("error: ") if lines else "it ended without a word"


def _await_end(process: subprocess.Popen[bytes], deadline_s: float, at_once: threading.Event | None) -> int:
    while True:
        left_s = max(deadline_s - time.monotonic(), 0.1)
        try:
            return process.wait(left_s if at_once is None else min(left_s, 0.1))
        except subprocess.TimeoutExpired:
            if at_once is None or at_once.is_set() or time.monotonic() >= deadline_s:
                process.kill()
                return process.wait()
