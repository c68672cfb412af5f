"""docker-compose.yml: valid for every compose, and put together so that one tier can run alone."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "docker-compose.yml"
SERVICES = yaml.safe_load(FILE.read_text())["services"]
OWN = {name: service for name, service in SERVICES.items() if "build" in service}


def test_it_is_valid_by_the_schema_of_compose():
    done = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(FILE)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_both_tiers_run_unless_another_profile_is_asked_for():
    assert "COMPOSE_PROFILES=edge,cloud" in (ROOT / ".env").read_text().splitlines()
    assert {profile for service in SERVICES.values() for profile in service["profiles"]} == {"edge", "cloud", "observe"}


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_waits_for_its_own_tier_only(name):
    for other in SERVICES[name].get("depends_on", {}):
        assert SERVICES[other]["profiles"] == SERVICES[name]["profiles"]


@pytest.mark.parametrize("name", OWN)
def test_a_worker_has_few_rights_and_limits(name):
    service = OWN[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert service["cpus"]
    assert service["mem_limit"]
    assert service["stop_grace_period"] == "15s"


@pytest.mark.parametrize("name", ["edge-worker", "cloud-worker"])
def test_what_is_scaled_has_no_name_or_port_of_its_own(name):
    assert not {"container_name", "ports"} & SERVICES[name].keys()


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_open_to_this_machine_only(name):
    for port in SERVICES[name].get("ports", []):
        assert port.startswith("127.0.0.1:") or "_LISTEN:-127.0.0.1}:" in port
