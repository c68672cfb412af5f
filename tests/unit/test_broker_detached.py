"""A process that is not the broker any more is never signalled."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.errors import BrokerError
from pipelines.transport.broker import detached
from pipelines.transport.broker.detached import DetachedBroker, start_of, status_detached, stop_detached


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("TIDEGATE_HOME", str(tmp_path))
    return tmp_path


def remember(pid: int, started: str, data_dir: Path) -> None:
    broker = DetachedBroker(name="x", pid=pid, started=started, bootstrap="127.0.0.1:1", data_dir=data_dir)
    detached._write_state(detached._state_path("x"), broker)


def test_a_name_that_never_ran() -> None:
    assert status_detached("x") is None
    assert not stop_detached("x")


@pytest.mark.parametrize("name", ["", "../x", "a/b", "-x", "x" * 65])
def test_a_name_stays_inside_the_folder(name: str) -> None:
    with pytest.raises(BrokerError, match="is no name for a broker"):
        status_detached(name)


def test_a_reused_process_id_is_not_signalled(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as stranger:
        remember(stranger.pid, "another-boot:1", tmp_path)
        broker = status_detached("x")
        assert broker is not None
        assert not broker.running
        assert not stop_detached("x")
        assert stranger.poll() is None
        stranger.communicate(b"\n")
    assert stranger.returncode == 0


def test_the_very_process_is_stopped(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        remember(child.pid, start_of(child.pid) or "", tmp_path)
        assert stop_detached("x")
    assert child.returncode == -15


def test_one_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    deaf = "import signal, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", deaf], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"deaf\n"
        remember(child.pid, start_of(child.pid) or "", tmp_path)
        assert stop_detached("x", grace_s=0.1)
    assert child.returncode == -9


def test_a_dead_but_uncollected_process_does_not_run() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert start_of(child.pid) is None


def test_a_damaged_state_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "brokers").mkdir()
    (tmp_path / "brokers" / "x.json").write_text("{")
    with pytest.raises(BrokerError, match=r"x\.json cannot be read"):
        status_detached("x")
