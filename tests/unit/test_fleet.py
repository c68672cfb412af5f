"""What `--workers` decides beside its workers: warnings, signals, memory."""

import os
import signal
import sys

import psutil
import pytest

from pipelines.runtime import fleet
from pipelines.runtime.fleet import Signals, idle_warning, resident_bytes


def test_more_workers_than_partitions_are_warned_of():
    assert idle_warning(6, "edge", 6) == ""
    assert idle_warning(8, "edge", 6) == "8 edge workers share 6 partitions: 2 will be idle"
    assert idle_warning(2, "cloud", 1) == "2 cloud workers share 1 partition: 1 will be idle"


def test_resident_memory_is_what_the_kernel_says_and_none_of_who_has_ended():
    before = psutil.Process().memory_info().rss
    found = resident_bytes(os.getpid())
    assert found is not None
    assert abs(found - before) < 64 << 20
    held = bytearray(b"x" * (128 << 20))
    grown = resident_bytes(os.getpid())
    assert grown is not None
    assert grown > found + (64 << 20), len(held)
    pid = os.fork()
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)
    assert resident_bytes(pid) is None


@pytest.fixture
def signals(monkeypatch):
    """`signals(isatty)`: told by the test; the terminal is there as long as `isatty[0]` says so."""

    def make(isatty: list[bool]) -> Signals:
        monkeypatch.setattr(fleet, "watch_signals", lambda numbers, tell: None)
        monkeypatch.setattr(sys.stderr, "isatty", lambda: isatty[0], raising=False)
        return Signals()

    return make


def test_hang_up_rolls_terminate_stops_and_a_second_one_hurries(signals):
    one = signals([False])
    one._tell(signal.SIGHUP)
    one._tell(signal.SIGHUP)
    assert one.rolled()
    assert not one.rolled(), "two before anybody looked are one"
    one._tell(signal.SIGTERM)
    assert (one.stop.is_set(), one.at_once.is_set()) == (True, False)
    one._tell(signal.SIGHUP)
    assert not one.at_once.is_set()
    one._tell(signal.SIGINT)
    assert one.at_once.is_set()


def test_a_terminal_that_is_closed_stops(signals):
    isatty = [True]
    one = signals(isatty)
    one._tell(signal.SIGHUP)
    assert one.rolled(), "somebody sent it"
    isatty[0] = False
    one._tell(signal.SIGHUP)
    assert one.stop.is_set()
