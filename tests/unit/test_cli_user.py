"""What a user reads and writes: the template of `init`, the documents, the display."""

import re
import tomllib
from pathlib import Path

import msgspec
import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from pipelines.cli import check, init
from pipelines.cli.live import byte_count, live_table, route_mix, seconds
from pipelines.config import load
from pipelines.config.pipeline import Pipeline
from pipelines.config.units import Duration, Rate
from pipelines.errors import ConfigError
from pipelines.models.release import ModelInput
from pipelines.observe.watch import Snapshot

ROOT = Path(__file__).resolve().parents[2]
GIVEN = "must be given"


def sections(kind: type[msgspec.Struct], prefix: str = "") -> dict[str, object]:
    """Every key of the file by its path, with its default."""
    found: dict[str, object] = {}
    for field in msgspec.structs.fields(kind):
        inner = field.type
        if isinstance(inner, type) and issubclass(inner, msgspec.Struct):
            found |= sections(inner, f"{prefix}{field.encode_name}.")
        elif field.default_factory is not msgspec.NODEFAULT:
            found[prefix + field.encode_name] = field.default_factory()
        else:
            found[prefix + field.encode_name] = GIVEN if field.default is msgspec.NODEFAULT else field.default
    return found


def documented(heading: str) -> dict[str, str]:
    """Key and default of each row of the table under a heading of the reference."""
    text = (ROOT / "docs" / "pipeline-file.md").read_text()
    part = text.split(heading, 1)[1].split("\n## ", 1)[0]
    return dict(re.findall(r"^\| `([\w.]+)` \| (.*?) \|", part, re.MULTILINE))


def test_the_reference_has_every_key_with_its_default():
    keys, table = sections(Pipeline), documented("# The pipeline file")
    assert list(table.keys() - keys.keys()) == []
    assert list(keys.keys() - table.keys()) == []
    for key, default in keys.items():
        told = table[key]
        if default == GIVEN:
            assert told == GIVEN
        elif isinstance(default, Duration):
            assert Duration.parse(told.strip("`")) == default, key
        elif isinstance(default, Rate):
            assert Rate.parse(told.strip("`")) == default, key
        else:
            assert yaml.safe_load(told.strip("`")) == default, key


def test_the_reference_has_every_key_of_a_models_input():
    assert documented("## What a model is fed").keys() == {*ModelInput.__struct_fields__}


def test_the_readme_names_every_command():
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["tidegate.commands"]
    table = (ROOT / "README.md").read_text().split("## Commands", 1)[1].split("\n## ", 1)[0]
    assert [name for name in points if not re.search(rf"`(tidegate )?{name}\b", table)] == []


def test_init_writes_a_file_that_loads_whatever_the_paths(tmp_path):
    file = tmp_path / "mine.yaml"
    images, model = 'of: "all" # kinds', "a b.onnx"
    done = CliRunner().invoke(init.app, [str(file), "--images", images, "--model", model, "--name", "cams"])
    assert done.exit_code == 0
    assert done.stdout == f"wrote {file}: set `source.path` and `edge.model`, then `tidegate check {file}`\n"
    pipeline = load(file)
    assert (pipeline.name, pipeline.source.path, pipeline.edge.model) == (
        "cams",
        str(tmp_path / images),
        str(tmp_path / model),
    )
    # Every line that is commented out is right too.
    wanted = ("  # labels", "  # input", "# encode", "# cloud", "# routing", "# deadline", "# kafka", "#   ")
    text = file.read_text()
    assert all(f"\n{start}" in text for start in wanted)
    active = [
        line.replace("# ", "", 1) if line.startswith(wanted) else line for line in text.splitlines() if line.strip()
    ]
    (tmp_path / "labels.txt").write_text("one\ntwo\n")
    file.write_text("\n".join(active))
    assert load(file).edge.labels == ["one", "two"]
    assert load(file).kafka.cloud.librdkafka == {"security.protocol": "ssl"}


def test_init_overwrites_nothing_and_refuses_what_check_would(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("precious")
    for arguments, problem in [
        ([str(file)], "is there already"),
        ([str(tmp_path / "no" / "where.yaml")], "cannot be written"),
        ([str(tmp_path / "b.yaml"), "--name", "My Cams"], "'My Cams' is no name"),
    ]:
        with pytest.raises(ConfigError, match=problem):
            CliRunner().invoke(init.app, arguments, catch_exceptions=False)
    assert file.read_text() == "precious"
    assert not (tmp_path / "b.yaml").exists()


def test_check_prints_the_schema_of_the_file():
    done = CliRunner().invoke(check.app, ["--schema"])
    assert done.exit_code == 0
    assert {"name", "source", "edge"} <= msgspec.json.decode(done.stdout)["$defs"]["Pipeline"]["properties"].keys()


def snapshot(outcomes: dict[str, int]) -> Snapshot:
    return Snapshot(
        at_s=1.0,
        captured=12_345,
        settled=sum(outcomes.values()),
        outcomes=outcomes,
        settled_per_s=1_000.4,
        edge_backlog_s=float("inf"),
        cloud_backlog_s=0.25,
        uplink_bytes_per_s=1_234_567,
        downlink_bytes_per_s=0,
        uplink_bytes=1,
        downlink_bytes=1,
    )


def test_the_display_shows_the_state_at_one_glance():
    console = Console(width=120, record=True, quiet=False)
    with console.capture() as captured:
        console.print(live_table("mine", snapshot({"answered_edge": 3, "answered_cloud": 1}), "a note"))
    shown = captured.get()
    for part in ("mine", "12,345", "1,000", "?", "0.2 s", "1.2 MB/s", "0 B/s", "a note"):
        assert part in shown
    assert "answered_edge 75.0%  answered_cloud 25.0%" in shown
    assert route_mix(snapshot({})) == ""


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (2.5e9, "2.5 GB"), (3e12, "3000.0 GB")]
)
def test_bytes_are_said_in_their_largest_unit(value, text):
    assert byte_count(value) == text


def test_an_unknown_backlog_is_said_to_be_unknown():
    assert (seconds(float("inf")), seconds(1.26)) == ("?", "1.3 s")
