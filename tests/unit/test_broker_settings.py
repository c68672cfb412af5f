"""The broker's settings, and what they promise."""

import re
import subprocess
from importlib import resources

import pytest

from pipelines.transport.broker import process
from pipelines.transport.broker.limits import GroupLimits, take_over_s
from pipelines.transport.broker.settings import FENCING, BrokerSettings, fencing_properties, server_properties


def parsed(text: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in text.splitlines())


def test_settings_are_those_of_the_design() -> None:
    found = parsed(server_properties(BrokerSettings(broker_port=1111, controller_port=2222)))
    expected = {
        "listeners": "PLAINTEXT://127.0.0.1:1111,CONTROLLER://127.0.0.1:2222",
        "advertised.listeners": "PLAINTEXT://127.0.0.1:1111",
        "controller.quorum.voters": "1@127.0.0.1:2222",
        "group.consumer.heartbeat.interval.ms": "300",
        "group.consumer.session.timeout.ms": "3000",
        "transaction.abort.timed.out.transaction.cleanup.interval.ms": "500",
        "share.coordinator.state.topic.replication.factor": "1",
        "auto.create.topics.enable": "false",
    }
    assert expected.items() <= found.items()


def test_a_broker_listens_on_the_loopback_only() -> None:
    found = parsed(server_properties(BrokerSettings(broker_port=1111, controller_port=2222)))
    addresses = [part.partition("://")[2] for part in found["listeners"].split(",")]
    assert all(address.startswith("127.0.0.1:") for address in addresses)


def test_what_fences_is_the_same_node_as_a_controller_alone() -> None:
    settings = BrokerSettings(broker_port=1111, controller_port=2222, scram_port=3333)
    combined, alone = parsed(server_properties(settings)), parsed(fencing_properties(settings))
    assert alone["listeners"] == "CONTROLLER://127.0.0.1:2222"
    assert combined.keys() - alone.keys() == {"advertised.listeners", "inter.broker.listener.name"}
    differ = {key for key in alone if alone[key] != combined[key]}
    assert differ == {*FENCING, "listeners"}


def test_a_container_s_start_fences_as_the_embedded_broker_does() -> None:
    script = resources.files("pipelines.transport.broker").joinpath("container.sh").read_text("utf-8")
    exported = dict(re.findall(r"(KAFKA_\w+)=(\S+)", script))
    assert {f"KAFKA_{key.upper().replace('.', '_')}": str(value) for key, value in FENCING.items()}.items() <= (
        exported.items()
    )
    for said in (process.FENCING, process.WRITTEN):
        assert f"'{said.decode()}'" in script
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0


@pytest.mark.parametrize(
    ("limits", "transaction_timeout_ms", "expected_s"),
    [
        (GroupLimits(session_timeout_ms=3000, heartbeat_interval_ms=300, abort_sweep_ms=250), 1500, 3.3),
        (GroupLimits(session_timeout_ms=45000, heartbeat_interval_ms=5000, abort_sweep_ms=10000), 1500, 50.0),
        (GroupLimits(session_timeout_ms=3000, heartbeat_interval_ms=300, abort_sweep_ms=10000), 60000, 70.0),
        (GroupLimits(classic_min_session_timeout_ms=6000), 1500, None),
    ],
)
def test_the_take_over_to_expect(limits: GroupLimits, transaction_timeout_ms: int, expected_s: float | None) -> None:
    assert take_over_s(limits, transaction_timeout_ms) == expected_s
