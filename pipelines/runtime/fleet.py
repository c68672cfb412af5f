"""Several workers of one kind under one command: `tidegate edge --workers 4`.

Constraints
- The first worker starts alone; the others follow when it is well, or after `ALONE_MOST_S`: a mistake is said once.
- Whatever is started anew ends by SIGTERM first, one worker at a time; `core.rolling` says which and when.
- SIGHUP starts all anew, SIGTERM and SIGINT end all within `GRACE_S`, a second one kills what is left.
- Workers write to the supervisor's own standard error, each line with the worker's name.

Operation
    signals ─┐
    exits ───┼─▶ one loop, a few turns a second ─▶ Supervisor (start, SIGTERM), Board (what is served)
    health, memory ─▶ Rolling.next ─▶ restart
"""

import os
import queue
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Annotated

import structlog
import typer

from pipelines.config import Pipeline, load
from pipelines.config.home import pipeline_dir
from pipelines.config.units import Size
from pipelines.core.progress import START_S, Doing
from pipelines.core.rolling import MEMORY_EVERY_S, Reason, Rolling, View
from pipelines.errors import ConfigError
from pipelines.observe.gather import Board
from pipelines.observe.probe import VARIABLE
from pipelines.observe.serve import UNIX, address_of, served
from pipelines.runtime.process import EXIT_LATE, GRACE_S, WORKER_NAME, instance_name, log_to_stderr, watch_signals
from pipelines.runtime.supervisor import Supervisor, WorkerFailed, WorkerSpec

WORKERS_MOST = 256
TURN_S = 0.2
LOOK_EVERY_S = 1.0
"""At health, while somebody waits for it."""
ALONE_MOST_S = START_S
TRY_AGAIN_S = 10.0
"""For a worker that a roll started anew and that says that the user must mend something."""
EXIT_AT_ONCE = 130

Workers = Annotated[
    int | None, typer.Option(min=1, max=WORKERS_MOST, help="Run so many of them, under one supervisor.")
]
Memory = Annotated[
    str | None,
    typer.Option(metavar="512MiB", help="Start a worker anew that stays above it. One worker without --workers."),
]

log = structlog.get_logger("tidegate.fleet")


def run_fleet(
    pipeline: Pipeline, kind: str, site: str, file: Path, workers: int, memory: str | None, instance: str | None
) -> None:
    """Run workers until a signal. Raises `ConfigError`, `WorkerFailed`, and `SystemExit` where it ended in haste."""
    most_bytes = _memory(memory)
    names = [f"{kind}-{number}" for number in range(workers)]
    # Members of a group need names that no other supervisor gives; the label of metrics needs few values.
    label = instance_name(instance)
    if warning := idle_warning(workers, kind, pipeline.partitions):
        sys.stderr.write(f"warning: {warning}\n")
    log_to_stderr("supervisor")
    signals = Signals()
    with tempfile.TemporaryDirectory(prefix="tidegate-", ignore_cleanup_errors=True) as folder:
        sockets = {name: Path(folder, f"{number}.sock") for number, name in enumerate(names)}
        specs = [
            WorkerSpec(
                kind,
                [str(file.resolve())],
                number,
                held=number > 0,
                label=label,
                environment={VARIABLE: f"{UNIX}{sockets[name]}", WORKER_NAME: name},
            )
            for number, name in enumerate(names)
        ]
        board = Board(kind, site, sockets)
        targets = pipeline_dir(pipeline.name) / "metrics" / f"{instance or kind}.json"
        try:
            with served(board, address_of(pipeline.metrics.listen), targets, labels={}):
                _Fleet(dict(zip(names, specs, strict=True)), file, board, signals, most_bytes).run()
        finally:
            board.close()


def idle_warning(workers: int, kind: str, partitions: int) -> str:
    """That some would have nothing to do; "" where all have."""
    if workers <= partitions:
        return ""
    shared = "1 partition" if partitions == 1 else f"{partitions} partitions"
    return f"{workers} {kind} workers share {shared}: {workers - partitions} will be idle"


def resident_bytes(pid: int) -> int | None:
    """What a process has in memory; None where it has just ended."""
    try:
        pages = Path(f"/proc/{pid}/statm").read_bytes().split()[1]
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def _memory(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        size = Size.parse(text)
    except ValueError as error:
        raise ConfigError(f"--memory: {error}") from error
    if not size:
        raise ConfigError(f"--memory: {text} is nothing at all", remedy="write it as `512MiB`")
    return size


class Signals:
    """SIGHUP, SIGTERM and SIGINT as this process gets them."""

    def __init__(self) -> None:
        self.rolls: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.stop, self.at_once = threading.Event(), threading.Event()
        self._had_terminal = sys.stderr.isatty()
        watch_signals((signal.SIGHUP, signal.SIGTERM, signal.SIGINT), self._tell)

    def _tell(self, number: signal.Signals) -> None:
        # A terminal that is closed sends SIGHUP too, and is none any more.
        if number is signal.SIGHUP and self._had_terminal == sys.stderr.isatty():
            self.rolls.put(None)
        elif self.stop.is_set():
            self.at_once.set()
        else:
            self.stop.set()

    def rolled(self) -> bool:
        """Whether SIGHUP came since this was asked last."""
        came = False
        while not self.rolls.empty():
            self.rolls.get()
            came = True
        return came


class _Fleet:
    def __init__(
        self, specs: dict[str, WorkerSpec], file: Path, board: Board, signals: Signals, most_bytes: int | None
    ) -> None:
        self._ids = {name: spec.name for name, spec in specs.items()}
        """What the supervisor and the group call each."""
        self._kind = next(iter(specs.values())).kind
        self._supervisor = Supervisor(list(specs.values()), {}, None)
        self._file, self._board, self._signals, self._most_bytes = file, board, signals, most_bytes
        self._rolling = Rolling(list(specs), most_bytes)
        self._lives, self._restarts = dict.fromkeys(specs, 0), dict.fromkeys(specs, 0)
        self._began_s = time.monotonic()
        self._alone = len(specs) > 1
        self._look_s = self._weigh_s = 0.0
        self._roll_is_told = True

    def run(self) -> None:
        """Until a signal."""
        try:
            while not self._signals.stop.is_set():
                self._turn()
        except BaseException:
            self._board.stopping = True
            self._supervisor.stop(self._signals.at_once)
            raise
        self._end()

    def _end(self) -> None:
        self._board.stopping = True
        log.info("stopping", grace_s=GRACE_S)
        codes = self._supervisor.stop(self._signals.at_once)
        late = [name for name, worker in self._ids.items() if codes.get(worker) in (EXIT_LATE, -signal.SIGKILL)]
        if self._signals.at_once.is_set():
            log.error("stopped_at_once", killed=late)
            raise SystemExit(EXIT_AT_ONCE)
        if late:
            log.error("not_stopped_in_time", grace_s=GRACE_S, of=late)
            raise SystemExit(EXIT_LATE)

    def _turn(self) -> None:
        try:
            self._supervisor.turn(TURN_S)
        except WorkerFailed as error:
            current = self._rolling.current
            if current is None or self._ids[current] != error.name:
                raise
            # The others work: they need not end for what the new one does not like.
            log.error("not_started", of=current, error=str(error), wait_s=TRY_AGAIN_S)
            self._supervisor.try_again(error.name, TRY_AGAIN_S)
        self._board.turned({name: self._supervisor.lived_s(worker) for name, worker in self._ids.items()})
        self._tell_lives()
        if self._signals.rolled():
            self._roll()
        now_s = time.monotonic()
        if self._most_bytes is not None and now_s >= self._weigh_s:
            self._weigh(now_s, self._most_bytes)
            self._weigh_s = now_s + MEMORY_EVERY_S
        waited_for = self._alone or self._rolling.waiting or self._rolling.current
        if waited_for and now_s >= self._look_s:
            self._look(now_s)
            self._look_s = time.monotonic() + LOOK_EVERY_S

    def _tell_lives(self) -> None:
        for name, worker in self._ids.items():
            restarts = self._supervisor.restarts[worker]
            if restarts > self._restarts[name]:
                self._restarts[name] = restarts
                self._board.restarted(name, Reason.ENDED)
                log.warning("worker_ended", of=name, exit=self._supervisor.last_exit(worker))
            lives = self._supervisor.lives(worker)
            if lives > self._lives[name]:
                self._lives[name] = lives
                log.info("started", of=name, pid=self._supervisor.pid(worker), instance=worker)

    def _roll(self) -> None:
        try:
            load(self._file)
        except ConfigError as error:
            log.error("not_rolling", error=str(error))
            return
        self._rolling.roll(self._lives)
        self._roll_is_told = False
        log.info("rolling", workers=len(self._ids))

    def _weigh(self, now_s: float, most_bytes: int) -> None:
        for name, worker in self._ids.items():
            pid = self._supervisor.pid(worker)
            resident = None if pid is None else resident_bytes(pid)
            if resident is not None:
                self._rolling.weigh(now_s, name, self._lives[name], resident)

    def _look(self, now_s: float) -> None:
        views = self._views()
        if self._alone and (views[0].well or now_s - self._began_s > ALONE_MOST_S):
            self._alone = False
            self._supervisor.release(self._kind)
            return
        chosen = self._rolling.next(now_s, views)
        if chosen is not None:
            self._restart(*chosen)
        elif not self._roll_is_told and self._rolling.current is None and not self._rolling.waiting:
            self._roll_is_told = True
            log.info("rolled", workers=len(self._ids))

    def _restart(self, name: str, reason: Reason) -> None:
        worker = self._ids[name]
        if reason is Reason.MEMORY and self._most_bytes is not None:
            pid = self._supervisor.pid(worker)
            resident = (resident_bytes(pid) if pid is not None else None) or 0
            mib = {"resident_mib": resident >> 20, "limit_mib": self._most_bytes >> 20}
            log.warning("restarting", of=name, reason=str(reason), **mib)
        else:
            log.info("restarting", of=name, reason=str(reason), waiting=self._rolling.waiting)
        self._board.restarted(name, reason)
        self._supervisor.restart(worker)

    def _views(self) -> list[View]:
        health, held = self._board.ask_all("/healthz"), self._board.held()
        views = []
        for name, worker in self._ids.items():
            reply = health[name]
            well = reply is not None and reply.status == 200 and reply.body != Doing.STARTING
            running = self._supervisor.pid(worker) is not None
            views.append(View(name, self._supervisor.lives(worker), running, running and well, held[name]))
        return views
