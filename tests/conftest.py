"""What all tests share: the test data, Docker, and embedded brokers that a session starts once.

Tests that share a broker keep apart by a site name of their own (the fixture `site`). What a test needs and is not
there skips it on a user's machine and fails it in CI; only `require` decides that.
"""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from pipelines.transport.broker import Broker

Require = Callable[[str, object, str], None]

# A test that uses one of these fixtures carries the marker, whether or not it says so.
MARKER_OF_FIXTURE = {"broker": "kafka", "brokers": "kafka", "docker": "containers"}


def everything_required() -> bool:
    """Whether a missing need fails a test: TIDEGATE_REQUIRE_ALL=1, or CI=true where that is not set."""
    return os.environ.get("TIDEGATE_REQUIRE_ALL", os.environ.get("CI", "")).lower() in ("1", "true")


def _require(what: str, present: object, remedy: str) -> None:
    if present:
        return
    reason = f"{what} is not here: {remedy}"
    if everything_required():
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by the fixtures that they use."""
    for item in items:
        for fixture in getattr(item, "fixturenames", ()):
            if fixture in MARKER_OF_FIXTURE:
                item.add_marker(MARKER_OF_FIXTURE[fixture])


# Nothing asserts a duration, so hypothesis does not either; in CI every run draws the same cases.
settings.register_profile(
    "tidegate", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=everything_required()
)
settings.load_profile("tidegate")


@pytest.fixture(scope="session")
def require() -> Require:
    """`require(what, present, remedy)`: goes on if present; else skips, or fails where everything is required."""
    return _require


@pytest.fixture(scope="session")
def test_data(require: Require) -> Path:
    """The folder of data sets that TIDEGATE_TEST_DATA names."""
    named = os.environ.get("TIDEGATE_TEST_DATA", "")
    require("a folder of test data", named and Path(named).is_dir(), "set TIDEGATE_TEST_DATA to one")
    return Path(named)


@pytest.fixture(scope="session")
def docker(require: Require) -> Iterator[Any]:
    """A client of the Docker engine."""
    import docker as sdk

    try:
        client = sdk.from_env()
        client.ping()
    except sdk.errors.DockerException as error:
        require("a Docker engine", False, f"start one ({error})")
        raise
    yield client
    client.close()


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Broker"]:
    """One embedded broker for the session, for tests that need a single cluster. No test stops or kills it."""
    from pipelines.transport.broker import start_owned

    with start_owned(tmp_path_factory.mktemp("broker"), name="broker") as running:
        yield running


class Brokers(NamedTuple):
    """The clusters of both tiers."""

    edge: "Broker"
    cloud: "Broker"


@pytest.fixture(scope="session")
def brokers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Brokers]:
    """The embedded brokers of an edge site and of the cloud, for the session. No test stops or kills them."""
    from pipelines.transport.broker import start_many_owned

    edge, cloud = start_many_owned([(tmp_path_factory.mktemp(name), name) for name in Brokers._fields])
    with edge, cloud:
        yield Brokers(edge, cloud)


@pytest.fixture
def site(request: pytest.FixtureRequest) -> str:
    """A site name that no other test of the session has."""
    return f"{re.sub(r'[^a-z0-9]+', '-', request.node.name.lower())[:30].strip('-')}-{uuid4().hex[:8]}"
