"""Runs worker processes, starts them again when they die, and leaves none behind.

Constraints
- The supervisor imports no worker: a child is `tidegate KIND FILE`.
- Children hold the reading end of a pipe that only the supervisor writes to: when it is gone, even by `kill -9`, the
  pipe closes and they stop by themselves.
- A child that ends is started again after a wait that doubles; one that says the user must mend something (exit 2) is
  not, and neither is a source that came to its end (exit 0 of a `finite` one). One that was fenced (exit 5) waits
  `FENCED_WAIT_S`, so that two supervisors cannot fence each other without end.
- A child is signalled only while its exit has not been collected: a pid is never reused under us.
"""

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from pipelines.errors import TidegateError
from pipelines.runtime.process import GRACE_S, PARENT_PIPE

FENCED_EXIT, USER_EXIT = 5, 2
FENCED_WAIT_S = 30.0
RESTART_FIRST_S, RESTART_MOST_S = 0.2, 10.0
HEALTHY_S = 20.0
"""A child that lived this long begins again with the first wait."""
RESTARTS_MOST = 20
"""In a row, none of them healthy: about two minutes of tries, then the supervisor gives up with the child's error."""


class WorkerFailed(TidegateError):
    """A worker that cannot run. Carries its last line and its exit code."""

    def __init__(self, problem: str, exit_code: int) -> None:
        super().__init__(problem)
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
        self.restarts = 0
        self.unhealthy = 0
        self.due_s: float | None = 0.0
        self.ending = False
        self.removed = False
        self.done = False


class Supervisor:
    """Starts the workers given, and keeps them running until `stop`."""

    def __init__(self, specs: Sequence[WorkerSpec], environment: Mapping[str, str], log_dir: Path) -> None:
        self._children = {spec.name: _Child(spec) for spec in specs}
        for spec in specs:
            if spec.held:
                self._children[spec.name].due_s = None
        self._environment = dict(environment)
        self._log_dir = log_dir
        self._exits: queue.SimpleQueue[tuple[str, int]] = queue.SimpleQueue()
        self._pipe_read, self._pipe_write = os.pipe()
        log_dir.mkdir(parents=True, exist_ok=True)

    def turn(self, wait_s: float) -> None:
        """Start what is due, then wait up to `wait_s` for a child's end. Raises `WorkerFailed`."""
        for child in self._children.values():
            if child.due_s is not None and child.due_s <= time.monotonic():
                self._start(child)
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

    @property
    def restarts(self) -> dict[str, int]:
        """How often each worker was started again."""
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

    def stop(self) -> None:
        """SIGTERM to all, `GRACE_S` to end, then SIGKILL."""
        running = [child.process for child in self._children.values() if child.process is not None]
        for child in self._children.values():
            child.due_s = None
        for process in running:
            process.send_signal(signal.SIGTERM)
        deadline_s = time.monotonic() + GRACE_S + 1
        for process in running:
            try:
                process.wait(max(deadline_s - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        os.close(self._pipe_write)
        os.close(self._pipe_read)

    def log_path(self, name: str) -> Path:
        """What a worker wrote to its standard error."""
        return self._log_dir / f"{name}.log"

    def _start(self, child: _Child) -> None:
        spec = child.spec
        command = [sys.executable, "-P", "-m", "tidegate", spec.kind, *spec.args, "--instance", spec.name]
        with self.log_path(spec.name).open("ab") as log:
            child.process = subprocess.Popen(
                command,
                env={**os.environ, **self._environment, PARENT_PIPE: str(self._pipe_read)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[self._pipe_read],
                start_new_session=True,  # An interrupt at the terminal reaches the supervisor alone.
            )
        child.started_s, child.due_s = time.monotonic(), None
        threading.Thread(target=self._await_exit, args=(spec.name, child.process), daemon=True).start()

    def _await_exit(self, name: str, process: subprocess.Popen[bytes]) -> None:
        self._exits.put((name, process.wait()))

    def _ended(self, child: _Child, code: int) -> None:
        child.process = None
        if child.ending or (child.spec.finite and code == 0):
            child.done = True
            return
        lived_s = time.monotonic() - child.started_s
        child.unhealthy = 0 if lived_s >= HEALTHY_S else child.unhealthy + 1
        if code == USER_EXIT or child.unhealthy > RESTARTS_MOST:
            raise WorkerFailed(f"{child.spec.name}: {self._last_line(child.spec.name)}", USER_EXIT if code == 2 else 1)
        wait_s = min(RESTART_FIRST_S * 2 ** max(child.unhealthy - 1, 0), RESTART_MOST_S)
        child.due_s = time.monotonic() + (FENCED_WAIT_S if code == FENCED_EXIT else wait_s)
        child.restarts += 1

    def _last_line(self, name: str) -> str:
        lines = self.log_path(name).read_text("utf-8", "replace").strip().splitlines()
        return lines[-1].removeprefix("error: ") if lines else "it ended without a word"
