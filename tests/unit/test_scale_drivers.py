"""What the drivers run: children that are real, and a compose program that writes down what it was told."""

import stat
import sys
from types import SimpleNamespace

import msgspec
import pytest

from pipelines.core.lag import GroupLag, Member, State
from pipelines.core.scaler import Action, Policy, Scaler
from pipelines.errors import ConfigError, TidegateError
from pipelines.observe.lag import Reading
from pipelines.runtime import scaling
from pipelines.runtime.drivers import Compose, ComposeDriver, ComposeReader, LocalDriver
from pipelines.runtime.scaling import run_scaler
from schemas.topics import Tier

TIDEGATE = "import sys, threading\nprint(sys.argv[4], flush=True)\nthreading.Event().wait()\n"
COMPOSE = """\
#!{python}
import os, sys, pathlib
folder = pathlib.Path(__file__).parent
words = sys.argv[1:]
with (folder / "told").open("a") as told:
    told.write(" ".join(words) + chr(10))
command = next(word for word in words if word in ("config", "ps", "up", "exec"))
said = folder / command
if said.exists():
    exec(said.read_text())
"""


@pytest.fixture
def local(tmp_path):
    """A driver whose workers run for ever."""
    (tmp_path / "tidegate.py").write_text(TIDEGATE)
    driver = LocalDriver("edge", tmp_path / "pipeline.yaml", {"PYTHONPATH": str(tmp_path)}, tmp_path / "logs")
    yield driver
    driver.close()


def told_names(tmp_path) -> list[str]:
    return sorted(path.read_text().strip() for path in (tmp_path / "logs").glob("*.log"))


def turn_until(driver, reached) -> None:
    for _ in range(600):
        if reached():
            return
        driver.turn(0.05)
    raise AssertionError("never came")


def test_workers_are_added_and_the_youngest_removed_and_names_used_again(local, tmp_path):
    assert local.replicas == 0
    local.scale(3)
    turn_until(local, lambda: len([name for name in told_names(tmp_path) if name]) == 3)
    first = told_names(tmp_path)
    assert all(local.is_own(name) for name in first)
    assert not local.is_own("edge-0")
    local.scale(1)
    turn_until(local, lambda: len(local._supervisor.names) == 1)
    assert local._supervisor.names == first[:1]
    local.scale(2)
    assert local._supervisor.names == first[:2]
    assert local.replicas == 2


def test_a_name_is_not_used_while_its_last_holder_is_still_leaving(local, tmp_path):
    local.scale(2)
    turn_until(local, lambda: len([name for name in told_names(tmp_path) if name]) == 2)
    leaving = local._supervisor.names[1]
    local.scale(1)
    local.scale(2)
    assert len(local._supervisor.names) == 3
    turn_until(local, lambda: leaving not in local._supervisor.names)


@pytest.fixture
def compose(tmp_path, monkeypatch):
    """`compose.say(command, program)` makes a fake compose answer; `compose.told()` is what it was called with."""
    program = tmp_path / "docker-compose"
    program.write_text(COMPOSE.format(python=sys.executable))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    (tmp_path / "docker-compose.yml").write_text("services: {}\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "config").write_text("print('producer'); print('edge-worker')")
    (tmp_path / "ps").write_text("print('aa'); print('bb')")
    return SimpleNamespace(
        made=Compose([tmp_path / "docker-compose.yml"], "mine"),
        say=lambda command, text: (tmp_path / command).write_text(text),
        told=lambda: (tmp_path / "told").read_text().splitlines(),
        file=tmp_path / "docker-compose.yml",
    )


def test_compose_is_told_to_run_so_many_and_to_leave_the_rest_alone(compose):
    driver = ComposeDriver(compose.made, "edge-worker")
    assert driver.replicas == 2
    driver.scale(4)
    turn_until(driver, lambda: driver._running is None)
    assert driver.replicas == 4
    driver.close()
    assert compose.told()[-1] == (
        f"-f {compose.file} -p mine up -d --no-recreate --no-deps --scale edge-worker=4 edge-worker"
    )


def test_what_compose_complains_of_is_told_in_one_line(compose):
    compose.say("up", "sys.exit('first line\\nno space left')")
    driver = ComposeDriver(compose.made, "edge-worker")
    driver.scale(3)
    with pytest.raises(TidegateError, match="compose up: no space left"):
        turn_until(driver, lambda: False)
    driver.close()


def test_a_service_that_is_not_there_is_named_with_those_that_are(compose):
    with pytest.raises(ConfigError, match="'edge' is none of edge-worker, producer"):
        ComposeDriver(compose.made, "edge")


def test_no_compose_file_and_no_compose_are_said_so(compose, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="is not there"):
        Compose([tmp_path / "other.yml"], None)
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="neither `docker compose` nor `docker-compose`"):
        Compose([compose.file], None)


def test_readings_come_from_inside_the_project_and_only_the_newest_counts(compose):
    lines = [msgspec.json.encode(Reading(number, [], {}, {})).decode() for number in (1, 2)]
    compose.say("exec", f"print({lines[0]!r}); print({lines[1]!r}, flush=True); sys.stdin.read()")
    reader = ComposeReader(compose.made, "edge-exporter", "/etc/tidegate/pipeline.yaml", Tier.EDGE)
    assert reader.read().at_us in (1, 2)
    reader.close()
    assert compose.told()[-1].endswith(
        "exec -T edge-exporter tidegate top /etc/tidegate/pipeline.yaml --json --tier edge"
    )


def test_a_reader_that_ends_says_why_and_gives_up_in_the_end(compose):
    compose.say("exec", "sys.exit('no such service')")
    reader = ComposeReader(compose.made, "edge-exporter", "file", Tier.EDGE)
    raised = []
    for _ in range(20):
        with pytest.raises(TidegateError, match="edge-exporter: ") as error:
            reader.read()
        raised.append(type(error.value))
        if raised[-1] is ConfigError:
            break
    assert raised[-1] is ConfigError, "it went on for ever"


class Recorder:
    """A driver that only writes down."""

    def __init__(self) -> None:
        self.replicas = 0
        self.scaled: list[int] = []

    def is_own(self, worker: str) -> bool:
        return worker.startswith("own")

    def scale(self, replicas: int) -> None:
        self.scaled.append(replicas)
        self.replicas = replicas

    def turn(self, wait_s: float) -> None:
        pass

    def close(self) -> None:
        pass


def reading(*members: str) -> Reading:
    found = [Member(name, "", []) for name in members]
    group = GroupLag("edge", "g", Tier.EDGE, found, [], 0, 0.0, 0.0, 0.0, 0.0, State.OK)
    return Reading(0, [group], {}, {})


def run(readings, policy: Policy) -> tuple[Recorder, list]:
    driver, told = Recorder(), []
    left = iter(readings)

    def read() -> Reading:
        found = next(left)
        if isinstance(found, Exception):
            raise found
        return found

    count = len(readings)
    run_scaler(Scaler(policy), driver, read, "edge", told.append, lambda: len(told) >= count)
    return driver, told


def test_workers_of_somebody_else_count_and_are_never_removed():
    driver, told = run([reading("edge-0"), reading("edge-0", "own-0")], Policy(least=2, most=4))
    assert driver.scaled == [1], "one is there already"
    assert [one.decision.action for one in told] == [Action.OUT, Action.HOLD]
    driver, told = run([reading("edge-0", "edge-1", "edge-2")], Policy(least=1, most=2))
    assert driver.scaled == []
    assert told[0].decision.fixed == 3


def test_a_worker_that_is_missing_for_a_moment_is_not_replaced(monkeypatch):
    clock = SimpleNamespace(s=100.0)
    monkeypatch.setattr(scaling, "time", SimpleNamespace(monotonic=lambda: clock.s, time_ns=lambda: 0))
    driver, _ = run([reading("edge-0"), reading(), reading("edge-0")], Policy(most=4))
    assert driver.scaled == []


def test_what_cannot_be_seen_is_told_and_changes_nothing():
    away = Reading(0, [], {}, {Tier.EDGE: "kafka.edge: no answer in 2.5 s"})
    driver, told = run([away, TidegateError("gone"), Reading(0, [], {}, {})], Policy(most=4))
    assert [one.problem for one in told] == [
        "kafka.edge: no answer in 2.5 s",
        "gone",
        "no group of edge workers is there",
    ]
    assert driver.scaled == []
