"""What a supervisor does about children that fail, refuse to end, or lose it. Children are real and run `args[0]`."""

import os
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest

from pipelines.runtime import supervisor as supervision
from pipelines.runtime.supervisor import RESTART_FIRST_S, RESTART_MOST_S, RESTARTS_MOST, Supervisor, WorkerSpec

# Stands before the real one on the path of the children.
TIDEGATE = "import os, sys\nexec(sys.argv[2])\n"
FOREVER = "import threading; threading.Event().wait()"
NEVER = "a held worker ran"


@pytest.fixture
def now(monkeypatch):
    """The supervisor's clock: `now.s` is set by the test."""
    clock = SimpleNamespace(s=100.0)
    monkeypatch.setattr(supervision, "time", SimpleNamespace(monotonic=lambda: clock.s))
    return clock


@pytest.fixture
def supervise(tmp_path, monkeypatch):  # What a test patches holds until the end of `stop`.
    """`supervise(spec, ...)`: a supervisor that is stopped at the end, and leaves no child."""
    (tmp_path / "tidegate.py").write_text(TIDEGATE)
    made: list[Supervisor] = []

    def make(*specs: WorkerSpec) -> Supervisor:
        made.append(Supervisor(specs, {"PYTHONPATH": str(tmp_path), "GIVEN": "to the child"}, tmp_path / "logs"))
        return made[-1]

    yield make
    for one in made:
        running = [pid for name in one.names if (pid := one.pid(name)) is not None]
        one.stop()
        assert [pid for pid in running if alive(pid)] == []


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def turn_until(supervisor: Supervisor, reached) -> None:
    for _ in range(600):
        if reached():
            return
        supervisor.turn(0.1)
    raise AssertionError("never came")


def test_a_worker_knows_its_name_and_its_environment_and_logs_to_its_file(supervise):
    told = "print(sys.argv[1], sys.argv[3:], os.environ['GIVEN'])"
    one = supervise(WorkerSpec("edge", [told, "pipeline.yaml"], number=3, finite=True))
    turn_until(one, lambda: one.done("edge"))
    assert one.log_path("edge-3").read_text() == "edge ['pipeline.yaml', '--instance', 'edge-3'] to the child\n"


def test_waits_double_up_to_a_bound_and_then_it_gives_up(supervise, now):
    one = supervise(WorkerSpec("edge", ["sys.exit('no luck')"]))
    waits_s = [min(RESTART_FIRST_S * 2**number, RESTART_MOST_S) for number in range(RESTARTS_MOST)]
    for number, wait_s in enumerate(waits_s, start=1):
        turn_until(one, lambda number=number: one.restarts["edge-0"] == number)
        ended_s = now.s
        now.s = ended_s + wait_s - 0.001
        one.turn(0)
        assert one.pid("edge-0") is None, f"wait {number} was too short"
        now.s = ended_s + wait_s
        one.turn(0)
    with pytest.raises(supervision.WorkerFailed, match="edge-0: no luck") as raised:
        turn_until(one, lambda: False)
    assert raised.value.exit_code == 1


def test_a_healthy_life_begins_with_the_first_wait_again(supervise, now):
    one = supervise(WorkerSpec("edge", [FOREVER]))
    for number in range(1, 5):
        turn_until(one, lambda: one.pid("edge-0") is not None)
        now.s += supervision.HEALTHY_S
        assert one.kill("edge-0")
        turn_until(one, lambda number=number: one.restarts["edge-0"] == number)
        now.s += RESTART_FIRST_S


def test_a_worker_without_a_word_is_named_all_the_same(supervise):
    one = supervise(WorkerSpec("edge", ["sys.exit(2)"]))
    with pytest.raises(supervision.WorkerFailed, match="edge-0: it ended without a word"):
        turn_until(one, lambda: False)


def test_a_finite_worker_that_fails_is_started_again(supervise):
    one = supervise(WorkerSpec("produce", ["sys.exit(1)"], finite=True))
    turn_until(one, lambda: one.restarts["produce-0"] == 1)
    assert not one.done("produce")


def test_a_worker_that_ends_without_being_asked_is_started_again(supervise):
    one = supervise(WorkerSpec("edge", ["pass"]))
    turn_until(one, lambda: one.restarts["edge-0"] == 2)


def test_kinds_are_ended_held_and_released_each_by_itself(supervise):
    one = supervise(
        WorkerSpec("edge", [FOREVER]), WorkerSpec("edge", [FOREVER], 1), WorkerSpec("produce", [NEVER], held=True)
    )
    turn_until(one, lambda: None not in (one.pid("edge-0"), one.pid("edge-1")))
    assert not one.kill("produce-0"), "it does not run"
    one.end("produce")
    assert one.done("produce")
    one.release("edge")
    both = [one.pid("edge-0"), one.pid("edge-1")]
    one.turn(0)
    assert [one.pid("edge-0"), one.pid("edge-1")] == both, "what runs is not started twice"
    one.end("edge")
    turn_until(one, lambda: one.done("edge"))
    assert one.restarts == {"edge-0": 0, "edge-1": 0, "produce-0": 0}


def test_stop_ends_even_a_child_that_does_not_listen(supervise, monkeypatch):
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); " + FOREVER
    one = supervise(WorkerSpec("edge", [deaf]))
    turn_until(one, lambda: one.pid("edge-0") is not None)
    turn_until(one, lambda: one.log_path("edge-0").read_text() == "deaf\n")
    monkeypatch.setattr(supervision, "GRACE_S", -1.0)


STOPS = (
    "import signal, threading; stop = threading.Event(); signal.signal(15, lambda *_: stop.set()); "
    "print('ready', flush=True); stop.wait()"
)
DEAF = "import signal; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); " + FOREVER


def test_one_that_is_started_anew_waits_for_nothing_and_counts_as_no_failure(supervise, now):
    one = supervise(WorkerSpec("edge", [FOREVER]))
    turn_until(one, lambda: one.pid("edge-0") is not None)
    assert (one.lives("edge-0"), one.last_exit("edge-0")) == (1, None)
    for life in range(2, supervision.RESTARTS_MOST + 4):
        one.restart("edge-0")
        one.restart("edge-0")
        turn_until(one, lambda life=life: one.lives("edge-0") == life)
    assert one.last_exit("edge-0") == -signal.SIGTERM
    assert one.restarts == {"edge-0": 0}
    now.s += 5.0
    assert one.lived_s("edge-0") == 5.0


def test_one_that_does_not_end_is_killed_only_after_its_grace(supervise, now):
    one = supervise(WorkerSpec("edge", [DEAF]))
    turn_until(one, lambda: one.pid("edge-0") is not None)
    turn_until(one, lambda: one.log_path("edge-0").read_text() == "deaf\n")
    one.restart("edge-0")
    now.s += supervision.GRACE_S + supervision.LATE_S - 0.001
    one.turn(0.5)
    assert one.lives("edge-0") == 1
    now.s += 0.001
    turn_until(one, lambda: one.lives("edge-0") == 2)
    assert one.last_exit("edge-0") == -signal.SIGKILL
    one.kill("edge-0")


def test_one_that_failed_for_good_can_be_tried_again(supervise, now):
    one = supervise(WorkerSpec("edge", ["sys.exit(2)"]))
    for life in range(1, 3):
        with pytest.raises(supervision.WorkerFailed) as raised:
            turn_until(one, lambda: False)
        assert (raised.value.name, raised.value.exit_code, one.lives("edge-0")) == ("edge-0", 2, life)
        one.try_again("edge-0", 10.0)
        now.s += 9.9
        one.turn(0)
        assert one.pid("edge-0") is None
        now.s += 0.1


def test_without_a_folder_workers_write_where_the_supervisor_does_and_have_their_own_environment(tmp_path, capfd):
    (tmp_path / "tidegate.py").write_text(TIDEGATE)
    told = "sys.exit('error: ' + os.environ['OWN'])"
    own = {"OWN": "of this one"}
    one = Supervisor([WorkerSpec("edge", [told], environment=own)], {"PYTHONPATH": str(tmp_path)}, None)
    one._children["edge-0"].unhealthy = RESTARTS_MOST
    with pytest.raises(supervision.WorkerFailed, match=r"^edge-0: it ended with exit code 1, and says why above$"):
        turn_until(one, lambda: False)
    one.stop()
    assert capfd.readouterr().err == "error: of this one\n"


def test_stop_says_how_each_ended_and_does_not_wait_for_the_rest_if_told_so(tmp_path):
    (tmp_path / "tidegate.py").write_text(TIDEGATE)
    specs = [WorkerSpec("edge", [STOPS]), WorkerSpec("edge", [DEAF], 1)]
    one = Supervisor(specs, {"PYTHONPATH": str(tmp_path)}, tmp_path / "logs")
    for name, word in (("edge-0", "ready\n"), ("edge-1", "deaf\n")):
        turn_until(one, lambda name=name: one.pid(name) is not None)
        turn_until(one, lambda name=name, word=word: one.log_path(name).read_text() == word)
    at_once = threading.Event()
    first_ended = threading.Thread(target=lambda: one._children["edge-0"].process.wait() or at_once.set())
    first_ended.start()
    assert one.stop(at_once) == {"edge-0": 0, "edge-1": -signal.SIGKILL}
    first_ended.join()


def test_children_end_when_their_supervisor_is_killed(tmp_path):
    (tmp_path / "tidegate.py").write_text(TIDEGATE)
    fifo = tmp_path / "told"
    os.mkfifo(fifo)
    child = (
        f"from pipelines.runtime.process import begin_worker; told = open({str(fifo)!r}, 'w', 1); "
        "stop = begin_worker('edge'); told.write('ready\\n'); stop.wait(); told.write('stopped\\n')"
    )
    parent = (
        "from pathlib import Path\n"
        "from pipelines.runtime.supervisor import Supervisor, WorkerSpec\n"
        f"folder = {str(tmp_path)!r}\n"
        f"one = Supervisor([WorkerSpec('edge', [{child!r}])], {{'PYTHONPATH': folder}}, Path(folder, 'logs'))\n"
        "while True:\n"
        "    one.turn(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", parent])
    try:
        with fifo.open() as told:
            assert told.readline() == "ready\n"
            process.send_signal(signal.SIGKILL)
            # The end of file says that the child itself has ended.
            assert told.read() == "stopped\n"
    finally:
        process.kill()
        process.wait()
