"""Where `tidegate scale run` runs workers: on this machine, or as containers of a compose project."""

import contextlib
import queue
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from pipelines.errors import ConfigError, TidegateError
from pipelines.observe.lag import Reading
from pipelines.runtime.supervisor import Supervisor, WorkerSpec
from schemas.topics import Tier

ASKED_MOST_S = 60.0
"""For a question to compose. Version 1.29 takes seconds to say anything."""

SCALED_MOST_S = 120.0
"""For compose to start and stop containers; a worker that leaves has 10 s, its container 30 s."""

FIRST_READING_MOST_S = 20.0
READING_MOST_S = 6.0
RENEWALS_MOST = 10
"""In a row: a container that reads the lag may be starting again."""


class LocalDriver:
    """Worker processes on this machine, children of this one."""

    def __init__(self, kind: str, file: Path, environment: Mapping[str, str], log_dir: Path) -> None:
        self._kind, self._file = kind, file
        # The same name in the next life: who comes takes over from who went.
        self._label = f"{re.sub(r'[^A-Za-z0-9]+', '-', socket.gethostname())[:20].strip('-') or 'local'}-scale"
        self._supervisor = Supervisor([], environment, log_dir)
        self._wanted: list[str] = []

    @property
    def replicas(self) -> int:
        """Workers of its own that are to run."""
        return len(self._wanted)

    def is_own(self, worker: str) -> bool:
        """Whether a member has the label of this driver's workers."""
        return worker.startswith(f"{self._kind}-{self._label}-")

    def scale(self, replicas: int) -> None:
        """Add workers, or end the youngest."""
        while len(self._wanted) > replicas:
            self._supervisor.remove(self._wanted.pop())
        while len(self._wanted) < replicas:
            taken = set(self._supervisor.names)
            specs = (WorkerSpec(self._kind, [str(self._file)], number, label=self._label) for number in range(1_000))
            spec = next(spec for spec in specs if spec.name not in taken)  # One that is still leaving keeps its name.
            self._supervisor.add(spec)
            self._wanted.append(spec.name)

    def turn(self, wait_s: float) -> None:
        """Start what is due, and again what died. Raises `WorkerFailed`."""
        until_s = time.monotonic() + wait_s
        while True:
            self._supervisor.turn(max(until_s - time.monotonic(), 0.0))
            if time.monotonic() >= until_s:
                return

    def close(self) -> None:
        """SIGTERM to all workers of its own, and wait for them."""
        self._supervisor.stop()


class Compose:
    """One compose project, by `docker compose` or `docker-compose`, whichever is here."""

    def __init__(self, files: Sequence[Path], project: str | None) -> None:
        for file in files:
            if not file.is_file():
                raise ConfigError(f"--compose-file: {file} is not there", remedy="name the compose file")
        self._base = [*_program(), *(word for file in files for word in ("-f", str(file)))]
        if project:
            self._base += ["-p", project]

    def command(self, *words: str) -> list[str]:
        """A command line of compose."""
        return [*self._base, *words]

    def ask(self, *words: str) -> str:
        """What a command prints. Raises `TidegateError` with its last line."""
        try:
            done = subprocess.run(
                self.command(*words), capture_output=True, text=True, timeout=ASKED_MOST_S, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise TidegateError(f"compose gave no answer in {ASKED_MOST_S:.0f} s") from error
        if done.returncode:
            raise ConfigError(f"compose {words[0]}: {_last_line(done.stderr)}", remedy="see --compose-file, --project")
        return done.stdout


def _program() -> list[str]:
    docker = shutil.which("docker")
    if docker is not None:
        has_plugin = subprocess.run(
            [docker, "compose", "version"], capture_output=True, timeout=ASKED_MOST_S, check=False
        )
        if has_plugin.returncode == 0:
            return [docker, "compose"]
    old = shutil.which("docker-compose")
    if old is None:
        raise ConfigError(
            "neither `docker compose` nor `docker-compose` is here", remedy="install one, or use --driver local"
        )
    return [old]


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "it ended without a word")


class ComposeDriver:
    """The containers of one service."""

    def __init__(self, compose: Compose, service: str) -> None:
        services = compose.ask("config", "--services").split()
        if service not in services:
            raise ConfigError(f"--service: '{service}' is none of {', '.join(sorted(services))}")
        self._compose, self._service = compose, service
        self._replicas = len(compose.ask("ps", "-q", service).split())
        self._running: subprocess.Popen[bytes] | None = None
        self._until_s = 0.0
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`

    @property
    def replicas(self) -> int:
        """Containers asked for last; at first, those that are there."""
        return self._replicas

    def is_own(self, worker: str) -> bool:
        """All members are containers of the service."""
        return True

    def scale(self, replicas: int) -> None:
        """Tell compose to run so many; what runs is not made anew."""
        self._await(SCALED_MOST_S)
        words = ("up", "-d", "--no-recreate", "--no-deps", "--scale", f"{self._service}={replicas}", self._service)
        self._said.seek(0)
        self._said.truncate()
        self._running = subprocess.Popen(
            self._compose.command(*words), stdin=subprocess.DEVNULL, stdout=self._said, stderr=self._said
        )
        self._until_s = time.monotonic() + SCALED_MOST_S
        self._replicas = replicas

    def turn(self, wait_s: float) -> None:
        """Wait, and see whether compose has done it. Raises `TidegateError` where it has not."""
        until_s = time.monotonic() + wait_s
        self._await(wait_s, bounded=False)
        time.sleep(max(until_s - time.monotonic(), 0.0))

    def _await(self, wait_s: float, *, bounded: bool = True) -> None:
        process = self._running
        if process is None:
            return
        try:
            code = process.wait(max(wait_s, 0.001))
        except subprocess.TimeoutExpired as error:
            if not bounded and time.monotonic() < self._until_s:
                return
            process.kill()
            process.wait()
            raise TidegateError(f"compose did not scale {self._service} in {SCALED_MOST_S:.0f} s") from error
        self._running = None
        if code:
            self._said.seek(0)
            raise TidegateError(f"compose up: {_last_line(self._said.read().decode('utf-8', 'replace'))}")

    def close(self) -> None:
        """The containers stay."""
        try:
            self._await(SCALED_MOST_S)
        finally:
            self._said.close()


class ComposeReader:
    """Readings made inside a compose project, whose Kafka cannot be reached from outside.

    It runs `tidegate top --json` in a container of `service` and keeps the newest line.
    """

    def __init__(self, compose: Compose, service: str, file: str, tier: Tier) -> None:
        self._command = compose.command("exec", "-T", service, "tidegate", "top", file, "--json", "--tier", str(tier))
        self._service = service
        self._process: subprocess.Popen[bytes] | None = None
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._errors: deque[str] = deque(maxlen=5)
        self._renewals = 0

    def read(self) -> Reading:
        """The newest reading. Raises `TidegateError` where none comes."""
        first = self._process is None
        if first:
            self._start()
        line = self._next(FIRST_READING_MOST_S if first else READING_MOST_S)
        with contextlib.suppress(queue.Empty):
            while True:  # Only the newest counts.
                newer = self._lines.get_nowait()
                line = newer or line
        if not line:
            raise self._ended()
        try:
            reading = msgspec.json.decode(line, type=Reading)
        except msgspec.DecodeError as error:
            raise TidegateError(f"{self._service}: it printed no reading ({error})") from error
        self._renewals = 0
        return reading

    def _next(self, wait_s: float) -> bytes:
        try:
            return self._lines.get(timeout=wait_s)
        except queue.Empty as error:
            raise TidegateError(f"{self._service}: no reading in {wait_s:.0f} s") from error

    def _start(self) -> None:
        self._lines = queue.SimpleQueue()
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        threading.Thread(target=self._listen, args=(self._process, self._lines), daemon=True).start()
        threading.Thread(target=self._listen_to_errors, args=(self._process,), daemon=True).start()

    def _listen(self, process: subprocess.Popen[bytes], lines: "queue.SimpleQueue[bytes]") -> None:
        for line in process.stdout or ():
            lines.put(line)
        lines.put(b"")

    def _listen_to_errors(self, process: subprocess.Popen[bytes]) -> None:
        for line in process.stderr or ():
            self._errors.append(line.decode("utf-8", "replace"))

    def _ended(self) -> TidegateError:
        self.close()
        self._renewals += 1
        why = _last_line("\n".join(self._errors))
        if self._renewals > RENEWALS_MOST:
            return ConfigError(f"{self._service}: {why}", remedy="see --through and --inside")
        return TidegateError(f"{self._service}: {why}")

    def close(self) -> None:
        """End the command; what it runs in the container ends at its next line."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(5)
            self._process.kill()
            self._process.wait()
            self._process = None
