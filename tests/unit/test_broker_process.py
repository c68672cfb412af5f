"""Pipes and child processes, with Python in the place of Java."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.transport.broker.process import FENCING, WRITTEN, Launch, end, fence, output_of, read_until, spawn

Start = Callable[[str], "subprocess.Popen[bytes]"]
SAYS = "import sys; print('starting', flush=True); print('ready', flush=True); sys.stdin.close(); "


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Starts a Python program as if it were the broker."""
    (tmp_path / "logs").mkdir()

    def spawned(program: str) -> "subprocess.Popen[bytes]":
        with (tmp_path / "node.lock").open("a") as lock:
            launch = Launch(command=[sys.executable, "-c", program], node_dir=str(tmp_path), lock=lock.fileno())
            return spawn(launch, with_parent=True)

    return spawned


def test_read_until_stops_at_what_is_wanted_and_at_the_end() -> None:
    reader, writer = os.pipe()
    os.write(writer, b"one two")
    assert read_until(reader, b"two", 5) == b"one two"
    os.close(writer)
    assert read_until(reader, b"three", 5) == b""
    os.close(reader)


def test_read_until_gives_up() -> None:
    reader, writer = os.pipe()
    with pytest.raises(TimeoutError):
        read_until(reader, b"never", 0.01)
    os.close(reader)
    os.close(writer)


def test_a_child_ends_with_sigterm(start: Start) -> None:
    with start(SAYS + "import signal; signal.pause()") as child:
        assert b"ready" in read_until(output_of(child), b"ready", 30)
        assert end(child, grace_s=30) == -15


def test_a_child_that_ignores_sigterm_is_killed(start: Start) -> None:
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + SAYS + "\nwhile True: signal.pause()"
    with start(deaf) as child:
        read_until(output_of(child), b"ready", 30)
        assert end(child, grace_s=0.1) == -9
        assert end(child, grace_s=0.1) == -9


def test_fencing_waits_until_it_is_written_and_leaves_no_process(tmp_path: Path) -> None:
    """What was written before it began is said as well: it is not what is waited for."""
    (tmp_path / "logs").mkdir()
    program = f"""
import signal, sys
from pathlib import Path
signal.signal(signal.SIGTERM, lambda *_: (Path("ended").touch(), sys.exit()))
print("{WRITTEN.decode()}", "{FENCING.decode()}", flush=True)
print("{WRITTEN.decode()}", flush=True)
signal.pause()
"""
    with (tmp_path / "node.lock").open("a") as lock:
        python = [sys.executable, "-c"]
        fence(Launch([*python, "raise SystemExit('not run')"], str(tmp_path), lock.fileno()), with_parent=True)
        assert not (tmp_path / "ended").exists()
        fence(Launch([], str(tmp_path), lock.fileno(), fencing=[*python, program]), with_parent=True)
    assert (tmp_path / "ended").exists()


def test_fencing_that_has_nothing_to_do_ends(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    with (tmp_path / "node.lock").open("a") as lock:
        fence(Launch([], str(tmp_path), lock.fileno(), fencing=[sys.executable, "-c", ""]), with_parent=True)
    assert (tmp_path / "logs" / "console.log").read_text() == ""


def test_what_a_child_complains_of_is_kept(start: Start, tmp_path: Path) -> None:
    with start("raise SystemExit('no memory')") as child:
        assert read_until(output_of(child), b"ready", 30) == b""
        assert end(child, grace_s=30) == 1
    assert "no memory" in (tmp_path / "logs" / "console.log").read_text()
