"""A node's folder, prepared without a JVM."""

import os
import socket
from pathlib import Path

import msgspec
import pytest

from pipelines.errors import BrokerError
from pipelines.transport.broker import node as nodes
from pipelines.transport.broker.java import Java
from pipelines.transport.broker.jvm import Installation
from pipelines.transport.broker.node import HOST, Node, free_port, is_free, kafka_uuid, port_was_taken, why_it_died


@pytest.fixture
def installation(tmp_path: Path) -> Installation:
    checkpoint = tmp_path / "bootstrap.checkpoint"
    checkpoint.write_bytes(b"features")
    java = Java(path=Path("java"), feature=17, version="17", origin="PATH")
    return Installation(java=java, jars=[Path("kafka.jar")], checkpoint=checkpoint)


def prepare(folder: Path, installation: Installation, *, keep_port: bool = False) -> Node:
    """Prepare, and let go of the lock as the end of a broker would."""
    node = nodes.prepare(folder, installation, keep_port=keep_port)
    os.close(node.lock)
    return node


def properties(folder: Path) -> dict[str, str]:
    lines = (folder / "data" / "meta.properties").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines)


def test_ids_have_the_form_of_kafkas() -> None:
    ids = {kafka_uuid() for _ in range(200)}
    assert len(ids) == 200
    assert all(len(text) == 22 and not text.startswith("-") for text in ids)


def test_each_folder_is_a_cluster_of_its_own_and_stays_it(tmp_path: Path, installation: Installation) -> None:
    first = prepare(tmp_path / "a", installation)
    formatted = properties(tmp_path / "a")
    again = prepare(tmp_path / "a", installation)
    prepare(tmp_path / "b", installation)
    assert again.bootstrap == first.bootstrap
    assert properties(tmp_path / "a") == formatted
    assert formatted["version"] == "1"
    assert properties(tmp_path / "b")["cluster.id"] != formatted["cluster.id"]
    assert (tmp_path / "a" / "data" / "bootstrap.checkpoint").read_bytes() == b"features"


def test_a_port_taken_meanwhile_is_left_or_refused(tmp_path: Path, installation: Installation) -> None:
    first = prepare(tmp_path / "a", installation)
    with socket.socket() as other:
        other.bind((HOST, int(first.bootstrap.rpartition(":")[2])))
        with pytest.raises(BrokerError, match="is taken by another process"):
            prepare(tmp_path / "a", installation, keep_port=True)
        moved = prepare(tmp_path / "a", installation)
    assert moved.bootstrap != first.bootstrap
    assert prepare(tmp_path / "a", installation).bootstrap == moved.bootstrap


def test_a_free_port_is_none_that_the_kernel_gives_away() -> None:
    port = free_port()
    assert is_free(port)
    assert port < 32768


def test_a_folder_in_use_is_refused_and_left_as_it_is(tmp_path: Path, installation: Installation) -> None:
    node = nodes.prepare(tmp_path, installation)
    before = (tmp_path / "server.properties").read_bytes()
    with pytest.raises(BrokerError, match="is in use by another broker"):
        prepare(tmp_path, installation)
    assert (tmp_path / "server.properties").read_bytes() == before
    os.close(node.lock)
    assert prepare(tmp_path, installation).bootstrap == node.bootstrap


def test_a_damaged_identity_names_its_file(tmp_path: Path, installation: Installation) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "node.json").write_text("{")
    with pytest.raises(BrokerError, match=r"node\.json cannot be read"):
        prepare(tmp_path / "a", installation)


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path, installation: Installation) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BrokerError, match="give a folder that can be written"):
        prepare(tmp_path / "file", installation)


def test_last_words_are_those_of_this_start(tmp_path: Path, installation: Installation) -> None:
    (tmp_path / "logs").mkdir()
    log = tmp_path / "logs" / "broker.log"
    log.write_text("ERROR from an earlier start\n")
    node = prepare(tmp_path, installation)
    with log.open("a") as file:
        file.write("INFO starting\nERROR it broke (kafka.Kafka)\n\tat kafka.Frame(Frame.scala:1)\n")
    error = why_it_died(node)
    assert error.problem == "Kafka ended while it started: ERROR it broke (kafka.Kafka)"
    assert not port_was_taken(node)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("java.net.BindException: Address already in use", "Address already in use"),
        ("Error occurred during initialization of VM", "Error occurred during initialization"),
    ],
)
def test_known_causes_are_named(tmp_path: Path, installation: Installation, line: str, problem: str) -> None:
    node = prepare(tmp_path, installation)
    node.log_path.write_text(line + "\n")
    assert problem in str(why_it_died(node))


def test_the_state_is_plain_json(tmp_path: Path, installation: Installation) -> None:
    node = prepare(tmp_path, installation)
    state = msgspec.json.decode((tmp_path / "node.json").read_bytes())
    assert node.bootstrap == f"127.0.0.1:{state['broker_port']}"


def test_a_broker_that_has_run_is_fenced_before_it_starts_again(tmp_path: Path, installation: Installation) -> None:
    assert prepare(tmp_path, installation).fencing == []
    (tmp_path / "data" / "__cluster_metadata-0").mkdir()
    assert prepare(tmp_path, installation).fencing[-1] == "fencing.properties"


@pytest.mark.parametrize(("name", "told"), [("plain", True), ("with space", True), ("a,b", False), ("für", False)])
def test_a_broker_tells_its_data_folder_to_who_asks(tmp_path: Path, installation: Installation, name, told) -> None:
    """A comma would be two folders, and the file is ASCII: there the name stays relative."""
    prepare(tmp_path / name, installation)
    lines = (tmp_path / name / "server.properties").read_text("ascii").splitlines()
    assert f"log.dirs={tmp_path / name / 'data' if told else 'data'}" in lines
