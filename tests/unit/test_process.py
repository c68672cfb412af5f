"""Worker processes, for real: how they stop, and what a supervisor does about them."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.runtime import supervisor as supervision
from pipelines.runtime.process import EXIT_LATE, PARENT_PIPE
from pipelines.runtime.supervisor import Supervisor, WorkerFailed, WorkerSpec

WORKER = """
import sys, threading
from pipelines.runtime.process import begin_worker
busy = threading.Thread(target=threading.Event().wait, daemon=True)
busy.start()  # A library's thread, started before ours: a signal may hit it.
stop = begin_worker("test")
print("ready", flush=True)
stop.wait()
print("stopped", flush=True)
"""


def started(program: str = WORKER, **environment: str) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
        close_fds=not environment,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_a_worker_in_order(number):
    process = started()
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert (out, process.returncode) == ("stopped\n", 0)
    assert f"why={number.name}" in err


def test_a_signal_that_only_a_library_s_thread_takes_stops_a_worker():
    blocked = "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})\nstop = begin_worker"
    process = started(WORKER.replace("stop = begin_worker", blocked))
    process.terminate()
    assert (process.communicate(timeout=30)[0], process.returncode) == ("stopped\n", 0)


def test_a_worker_that_does_not_stop_in_its_grace_ends_itself():
    late = "from pipelines.runtime import process; process.GRACE_S = 0.01\n" + WORKER.replace(
        "stop.wait()", "busy.join()"
    )
    process = started(late)
    process.terminate()
    out, err = process.communicate(timeout=30)
    assert (out, process.returncode) == ("", EXIT_LATE)
    assert "not_stopped_in_time" in err


def test_a_worker_stops_when_its_parent_is_killed(tmp_path):
    parent = (
        "import os, subprocess, sys\n"
        "read, write = os.pipe()\n"
        f"child = subprocess.Popen([sys.executable, '-c', {WORKER!r}], pass_fds=[read], stdout=sys.stdout,\n"
        f"    env={{**os.environ, {PARENT_PIPE!r}: str(read)}})\n"
        "os.close(read)\n"
        "child.wait()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", parent], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.kill()
    # The child holds the other end of this pipe: the end of file says that it has ended too.
    assert process.stdout.read() == "stopped\n"
    process.wait()


@pytest.fixture
def command(monkeypatch):
    """Children run `python -c ARGS[0]` instead of `tidegate KIND ARGS`."""
    real = subprocess.Popen

    def popen(arguments, **options):
        if arguments[1:4] == ["-P", "-m", "tidegate"]:
            arguments = [sys.executable, "-c", arguments[5]]
        return real(arguments, **options)

    monkeypatch.setattr(supervision.subprocess, "Popen", popen)


def supervised(tmp_path: Path, *specs: WorkerSpec) -> Supervisor:
    return Supervisor(specs, {}, tmp_path / "logs")


def turn_until(supervisor: Supervisor, reached) -> None:
    for _ in range(600):
        if reached():
            return
        supervisor.turn(0.1)
    raise AssertionError("never came")


def test_a_worker_that_dies_is_started_again_and_stop_leaves_none(tmp_path, command):
    supervisor = supervised(tmp_path, WorkerSpec("edge", ["import time; time.sleep(600)"]))
    turn_until(supervisor, lambda: supervisor.pid("edge-0") is not None)
    first = supervisor.pid("edge-0")
    assert supervisor.kill("edge-0")
    turn_until(supervisor, lambda: supervisor.pid("edge-0") not in (first, None))
    assert supervisor.restarts == {"edge-0": 1}
    last = supervisor.pid("edge-0")
    supervisor.stop()
    for pid in (first, last):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_user_error_ends_the_supervisor_with_its_line(tmp_path, command):
    program = "import sys; sys.stderr.write('noise\\nerror: `edge.model` is not set: name one\\n'); sys.exit(2)"
    supervisor = supervised(tmp_path, WorkerSpec("edge", [program]))
    with pytest.raises(WorkerFailed, match=r"edge-0: `edge\.model` is not set: name one") as raised:
        turn_until(supervisor, lambda: False)
    assert raised.value.exit_code == 2
    supervisor.stop()


def test_a_finite_worker_is_done_and_a_held_one_waits(tmp_path, command):
    supervisor = supervised(tmp_path, WorkerSpec("produce", ["pass"], finite=True, held=True))
    supervisor.turn(0)
    assert supervisor.pid("produce-0") is None
    supervisor.release("produce")
    turn_until(supervisor, lambda: supervisor.done("produce"))
    assert supervisor.restarts == {"produce-0": 0}
    supervisor.stop()


def test_a_fenced_worker_waits_before_it_fences_back(tmp_path, command, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(supervision.time, "monotonic", lambda: now[0])
    supervisor = supervised(tmp_path, WorkerSpec("uplink", ["import sys; sys.exit(5)"]))
    turn_until(supervisor, lambda: supervisor.restarts["uplink-0"] == 1)
    now[0] = supervision.FENCED_WAIT_S - 1
    supervisor.turn(0)
    assert supervisor.pid("uplink-0") is None
    now[0] = supervision.FENCED_WAIT_S
    supervisor.turn(0)
    assert supervisor.pid("uplink-0") is not None
    supervisor.stop()


def test_ending_a_kind_counts_as_done_and_starts_none_again(tmp_path, command):
    supervisor = supervised(tmp_path, WorkerSpec("produce", ["import time; time.sleep(600)"], finite=True))
    turn_until(supervisor, lambda: supervisor.pid("produce-0") is not None)
    supervisor.end("produce")
    turn_until(supervisor, lambda: supervisor.done("produce"))
    supervisor.turn(0)
    assert supervisor.pid("produce-0") is None
    supervisor.stop()
