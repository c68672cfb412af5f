"""From a pipeline to its clusters; the order in which an address is looked for stands in `test_config.py`."""

import os

import pytest

from pipelines.config import clusters
from pipelines.config.clusters import ENVIRONMENT, cluster
from pipelines.config.home import Running, home, read_running, write_running
from pipelines.config.pipeline import Kafka, KafkaCluster, Pipeline, Source
from pipelines.errors import ConfigError
from schemas.topics import Tier

SET_ALREADY = {"linger.ms": 7, "reconnect.backoff.ms": 999}


@pytest.fixture(autouse=True)
def nothing_set(tmp_path, monkeypatch):
    monkeypatch.setenv("TIDEGATE_HOME", str(tmp_path))
    for variable in ENVIRONMENT.values():
        monkeypatch.delenv(variable, raising=False)


def pipeline(**tiers: KafkaCluster) -> Pipeline:
    return Pipeline(name="shop", source=Source(path="/photos"), kafka=Kafka(**tiers))


def test_the_file_s_own_client_keys_come_last():
    one = cluster(pipeline(edge=KafkaCluster(bootstrap="edge:1", librdkafka=SET_ALREADY)), Tier.EDGE)
    assert one.name == "kafka.edge"
    assert one._options["bootstrap.servers"] == "edge:1"
    assert SET_ALREADY.items() <= one._options.items()
    assert one._options["socket.nagle.disable"] is True


def test_an_empty_variable_is_none(monkeypatch):
    monkeypatch.setenv(ENVIRONMENT[Tier.EDGE], "")
    assert cluster(pipeline(edge=KafkaCluster(bootstrap="edge:1")), Tier.EDGE).bootstrap == "edge:1"


def test_the_tier_without_an_address_is_named():
    with pytest.raises(ConfigError, match=r"`kafka\.cloud\.bootstrap` is not set") as raised:
        clusters(pipeline(edge=KafkaCluster(bootstrap="edge:1")))
    assert "\n" not in str(raised.value)


def test_state_is_kept_where_the_environment_says(tmp_path, monkeypatch):
    assert home() == tmp_path / "data"
    monkeypatch.delenv("TIDEGATE_HOME")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "xdg"))
    assert home() == tmp_path / "xdg" / "tidegate"
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert home() == tmp_path / ".local" / "share" / "tidegate"


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"pid": 1}', b"\xff"], ids=str)
def test_a_damaged_state_file_counts_as_none(tmp_path, text):
    (tmp_path / "running.json").write_bytes(text)
    assert read_running(tmp_path) is None


def test_a_run_of_another_user_counts(tmp_path, monkeypatch):
    running = Running(os.getpid(), "edge:1", "cloud:1")
    write_running(tmp_path, running)

    def refused(pid: int, number: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", refused)
    assert read_running(tmp_path) == running
