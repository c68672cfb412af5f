"""What `tidegate scale` says to a person and to a script."""

import json

import msgspec
import pytest
from typer.testing import CliRunner

from pipelines.cli import scale
from pipelines.core.lag import GroupLag, Member, PartitionLag, State
from pipelines.errors import ConfigError
from pipelines.observe.lag import Reading
from schemas.topics import Tier

FILE = """\
name: scaled
source: {path: images}
partitions: 4
kafka: {edge: {bootstrap: "edge:9092"}, cloud: {bootstrap: "cloud:9092"}}
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setenv("TIDEGATE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "160")
    path = tmp_path / "pipeline.yaml"
    path.write_text(FILE)
    return path


def group(capacity_per_s: float | None = 500.0) -> GroupLag:
    partitions = [
        PartitionLag("site-1.items", number, "edge-0", 900, 900, 0, 0.0, 200.0, 200.0, 0.0, State.OK, capacity_per_s)
        for number in range(4)
    ]
    members = [Member("edge-0", "", [(one.topic, one.partition) for one in partitions])]
    return GroupLag("edge", "site-1.edge", Tier.EDGE, members, partitions, 0, 0.0, 800.0, 800.0, 0.0, State.OK)


def advise(monkeypatch, file, seen: Reading, *options: str):
    class Reader:
        def read(self) -> Reading:
            return seen

        def close(self) -> None:
            pass

    monkeypatch.setattr(scale, "lag_reader", lambda *_: Reader())
    return CliRunner().invoke(scale.app, ["advise", str(file), "--for", "1us", *options])


def reading(*groups: GroupLag) -> Reading:
    return Reading(1, list(groups), {}, {})


def test_a_table_and_one_sentence(monkeypatch, file):
    found = advise(monkeypatch, file, reading(group()), "--replicas", "2")
    assert found.exit_code == 0
    lines = found.stdout.splitlines()
    assert [line for line in lines if "160%" in line and "now" in line]
    assert [line for line in lines if "advised" in line and "│ 40%" in line.replace("  ", " ")]
    assert "a worker does 500/s, as the workers note of themselves" in lines
    assert "2 would be 80% busy at most, drained in -" in lines
    assert lines[-1] == "4 needed to stay within 5 s: the busiest of 4 would be 40% busy"


def test_json_holds_the_same(monkeypatch, file):
    found = advise(monkeypatch, file, reading(group()), "--json")
    advice = json.loads(found.stdout)
    assert advice["replicas"] == 4
    assert [row["utilisation"] for row in advice["table"]] == [1.6, 0.8, 0.8, 0.4]
    assert advice["capacity"] == {"per_s": 500.0, "measured": False}


def test_nothing_is_invented_where_nothing_is_known(monkeypatch, file):
    found = advise(monkeypatch, file, reading(group(None)))
    assert found.exit_code == 1
    assert found.stdout.startswith("no worker has said or shown yet what it can do")


def test_past_the_topics_own_partitions_is_refused(monkeypatch, file):
    fewer = msgspec.structs.replace(group(), partitions=group().partitions[:2])
    found = advise(monkeypatch, file, reading(fewer), "--replicas", "3")
    assert isinstance(found.exception, ConfigError)
    assert "3 edge workers cannot share 2 partitions" in str(found.exception)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "--max", "5"], "--max: 5 edge workers cannot share 4 partitions: 1 would hold none"),
        (["run", "--max", "5"], "begin a new `site` with more of them"),
        (["run", "--min", "4", "--max", "2"], "--min: 4 is more than --max, 2"),
        (["run", "--min", "9"], "--min: 9 is more than --max, 4"),
        (["run", "--driver", "nomad"], "--driver: 'nomad' is not known: local or compose"),
        (["run", "--driver", "compose", "--compose-file", "absent.yml"], "absent.yml is not there"),
        (["run", "--target", "soon"], "--target: 'soon' is not a duration"),
        (["run", "--for", "0s"], "--for: 0s is no time at all"),
        (["run", "--kind", "uplink"], "'uplink' workers are not scaled"),
        (["advise", "--replicas", "6"], "6 edge workers cannot share 4 partitions: 2 would hold none"),
    ],
)
def test_mistakes_are_named_with_what_to_do(file, arguments, said):
    found = CliRunner().invoke(scale.app, [arguments[0], str(file), *arguments[1:]])
    assert isinstance(found.exception, ConfigError)
    assert said in str(found.exception)


def test_two_at_once_on_one_machine_are_refused(file):
    pipeline = scale.load(file)
    with (
        scale._only_one(pipeline, "edge"),
        scale._only_one(pipeline, "cloud"),
        pytest.raises(ConfigError, match="another `tidegate scale run` scales the edge workers of 'scaled'"),
        scale._only_one(pipeline, "edge"),
    ):
        raise AssertionError("two hold it")
