"""What is said of a cluster that takes no records."""

import pytest

from pipelines.transport import storage
from pipelines.transport.storage import FULL_BYTES, Storage, free_bytes

HERE = ("127.0.0.1:9092", "localhost:9092", "127.0.0.1:1,127.0.0.1:2", "[::1]:9092")
ELSEWHERE = ("edge-kafka:9092", "10.0.0.7:9092", "127.0.0.1:1,10.0.0.7:2")


@pytest.fixture
def free(monkeypatch):
    """`free(bytes)`: every folder has so much."""
    return lambda left: monkeypatch.setattr(storage, "free_bytes", lambda _folder: left)


@pytest.mark.parametrize("bootstrap", HERE)
def test_a_full_disk_on_this_machine_is_named(free, bootstrap):
    free(FULL_BYTES - 1)
    here = Storage("kafka.edge", bootstrap, ["/data/a", "/data/b"])
    problem, remedy = here.complaint()
    assert here.full()
    assert problem.startswith(
        f"kafka.edge at {bootstrap} takes no records: the disk of its folder /data/a is full (33.6 MB"
    )
    assert remedy.startswith("make room there")


def test_with_room_on_the_disk_it_is_not_the_disk(free):
    free(FULL_BYTES)
    here = Storage("kafka.edge", HERE[0], ["/data/a"])
    assert not here.full()
    assert here.complaint()[0].endswith("its folder is /data/a (34 MB free)")


@pytest.mark.parametrize("bootstrap", ELSEWHERE)
def test_a_folder_of_that_name_on_this_machine_says_nothing_of_a_broker_elsewhere(free, bootstrap):
    free(0)
    away = Storage("kafka.edge", bootstrap, ["/data/a"])
    assert not away.full()
    assert away.complaint() == (
        f"kafka.edge at {bootstrap} takes no records; its folder is /data/a",
        "look there whether that disk is full and whether Kafka runs",
    )


def test_what_is_not_known_is_not_guessed(tmp_path):
    assert "`log.dirs` are not known" in Storage("kafka.edge", HERE[0]).complaint()[0]
    assert free_bytes(str(tmp_path)) > 0
    assert free_bytes(str(tmp_path / "none")) is None
    assert free_bytes("data") is None
