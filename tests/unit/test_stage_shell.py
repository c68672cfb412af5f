"""What the shell of a worker does when partitions are lost: nothing is written unheard, no credit is taken twice."""

import threading

import pytest

from pipelines.core.engine import Lost, Refused, Write, Written
from pipelines.runtime.fetcher import Fetcher
from pipelines.runtime.stage import StageRunner
from pipelines.transport.base import Commit, OutRecord

PARTITION = ("in", 0)


class Reader:
    """A member that reads nothing."""

    def close(self):
        pass


class Writer:
    """Takes note of what is written."""

    def __init__(self):
        self.written = []

    def start(self):
        pass

    def write(self, records, offsets, group):
        self.written.append(list(records))


class Cluster:
    def __init__(self):
        self.writer = Writer()

    def transactions(self, transactional_id):
        return self.writer

    def group_reader(self, group, topics, listener, name=""):
        self.listener = listener
        return Reader()


class Stage:
    topics = ("in",)

    def assigned(self, partitions):
        pass

    def revoked(self, partitions):
        pass


@pytest.fixture
def cluster():
    return Cluster()


@pytest.fixture
def runner(cluster):
    return StageRunner(Stage(), cluster, group="g", transactional_id="t", stop=threading.Event())


def test_nothing_is_written_while_a_loss_lies_in_the_inbox(runner, cluster):
    write = Write([OutRecord("out", b"x")], {PARTITION: Commit(1)}, 1)
    assert isinstance(runner._write(write), Written)
    cluster.listener.lost([PARTITION])
    assert isinstance(runner._write(write), Refused)
    runner._hear(runner._fetcher.inbox.get_nowait())
    assert isinstance(runner._write(write), Written)
    assert len(cluster.writer.written) == 2


def test_partitions_that_wait_to_go_do_not_hold_up_an_end(runner, cluster):
    error = RuntimeError("for good")
    runner._hear(Refused(error, final=True))
    runner._hear(Lost([PARTITION]))
    assert runner._turn().error is error


def test_letting_go_of_what_was_lost_takes_nothing_from_what_was_given_since():
    fetcher = Fetcher(lambda listener: Reader(), poll_records=1)
    fetcher.assigned({PARTITION: Commit(0)})
    fetcher.lost([PARTITION])
    fetcher.assigned({PARTITION: Commit(0)})
    fetcher.release([PARTITION])
    assert fetcher._credit._partitions == {PARTITION}
    fetcher.lost([PARTITION])
    fetcher.release([PARTITION])
    assert fetcher._credit._partitions == set()
