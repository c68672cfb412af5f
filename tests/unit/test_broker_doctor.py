"""What `tidegate doctor` makes of what it finds."""

from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from pipelines.cli import doctor
from pipelines.cli.doctor import Check, app, describe_limits
from pipelines.errors import BrokerError
from pipelines.transport.broker.limits import GroupLimits

FAST = GroupLimits(session_timeout_ms=3000, heartbeat_interval_ms=300, abort_sweep_ms=250)
DEFAULTS = GroupLimits(session_timeout_ms=45000, heartbeat_interval_ms=5000, abort_sweep_ms=10000)


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TIDEGATE_HOME", str(tmp_path))


def test_limits_are_told_with_the_take_over_to_expect() -> None:
    fast = describe_limits("k:1", FAST)
    assert (fast.state, "within 3.3 s" in fast.found) == ("ok", True)
    slow = describe_limits("k:1", DEFAULTS)
    assert (slow.state, "within 50.0 s" in slow.found, "group.consumer" in slow.remedy) == ("warn", True, True)
    assert describe_limits("k:1", GroupLimits()).state == "warn"


def test_jars_that_can_be_fetched_do_not_stop_the_demo() -> None:
    check = doctor.check_jars()
    assert check.state == "warn"
    assert "fetched at the first start" in check.remedy


def test_no_java_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_here() -> None:
        raise BrokerError("no Java", remedy="install one")

    monkeypatch.setattr(doctor, "find_java", none_here)
    assert doctor.check_java() == Check("Java", "missing", "no Java", "install one")


def test_without_docker_the_demo_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor.check_docker().state == "warn"


def test_a_kafka_that_was_given_and_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(bootstrap: str) -> GroupLimits:
        raise BrokerError(f"no Kafka at {bootstrap} answers", remedy="start one")

    monkeypatch.setattr(doctor, "group_limits", silent)
    assert doctor.check_kafka("k:1") == Check("Kafka", "missing", "no Kafka at k:1 answers", "start one")
    assert doctor.check_kafka(None).state == "ok"


@pytest.mark.parametrize(("state", "code"), [("ok", 0), ("warn", 0), ("missing", 1)])
def test_the_exit_code_says_whether_the_demo_can_run(monkeypatch: pytest.MonkeyPatch, state: str, code: int) -> None:
    check = msgspec.convert({"name": "Java", "state": state, "found": "x", "remedy": "y"}, Check)
    monkeypatch.setattr(doctor, "all_checks", lambda _: [check])
    shown = CliRunner().invoke(app, [])
    assert (shown.exit_code, state in shown.output) == (code, True)
    told = CliRunner().invoke(app, ["--json"])
    assert msgspec.json.decode(told.output) == {"demo_can_run": code == 0, "checks": [msgspec.to_builtins(check)]}
