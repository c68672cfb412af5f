import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from pipelines.cli.topics import layout_of
from pipelines.config import clusters, load
from pipelines.config.clusters import ENVIRONMENT
from pipelines.config.home import Running, pipeline_dir, write_running
from pipelines.config.load import json_schema
from pipelines.config.units import Duration, Rate, Size
from pipelines.errors import ConfigError
from schemas.topics import Tier

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ["pipelines/library/digits.yaml", "deploy/pipeline.yaml"]
SMALLEST = "name: shop\nsource: {path: ./photos}\n"


def written(folder: Path, text: str) -> Path:
    file = folder / "pipeline.yaml"
    file.write_text(text, "utf-8")
    return file


def test_the_smallest_file_has_every_default_and_absolute_paths(tmp_path):
    pipeline = load(written(tmp_path, SMALLEST))
    assert pipeline.source.path == str(tmp_path / "photos")
    assert (pipeline.site, pipeline.routing.policy, pipeline.partitions) == ("site-1", "edge_only", 6)
    assert (pipeline.deadline.s, pipeline.edge.commit_interval.ms) == (10.0, 50)
    assert pipeline.cloud_sites == ["site-1"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (SMALLEST + "deadlne: 2s", "`deadlne` is not a known key: did you mean `deadline`?"),
        (SMALLEST + "edge: {modle: x}", "`edge.modle` is not a known key: did you mean `edge.model`?"),
        (SMALLEST + "edge: {input: {layot: NHW}}", "`edge.input.layot` is not a known key"),
        (SMALLEST + "zzz: 1", "known are"),
        (SMALLEST + "deadline: 2", "deadline: 2 is not a duration: write it as `5s`"),
        (SMALLEST + "deadline: 2 weeks", "'2 weeks' is not a duration"),
        (SMALLEST + "partitions: 0", "partitions: Expected `int` >= 1"),
        (SMALLEST + "priority: 3", "priority: Expected `int` <= 2"),
        (SMALLEST + "site: Shop 1", "`site: Shop 1` may have small letters"),
        (SMALLEST + "retention: 1m", "`retention` is shorter than `outage_budget`"),
        (SMALLEST + "encode: {resize: [0, 5]}", "`encode.resize` takes width and height"),
        (
            SMALLEST + "topics: {replicas: 3}",
            "`topics.replicas` is not a known key: did you mean `topics.replication`?",
        ),
        (
            SMALLEST + "topics: {configs: {item: {a: 1}}}",
            "`topics.configs.item` is no kind of topic: did you mean `items`",
        ),
        (
            SMALLEST + "topics: {configs: {ledger: {retention.ms: 9}}}",
            "`topics.configs.ledger.retention.ms`: nothing is",
        ),
        (SMALLEST + "topics: {replication: 2, min_insync: 3}", "`topics.min_insync` is larger than"),
        ("name: shop\nsource: {path: x, rate: 10}", "source.rate: 10 is not a rate: write `10/s`"),
        ("name: shop", "required field `source`"),
        ("- a", "holds no keys"),
        ("a: [", "is not YAML: line 1, column 5, while parsing a flow node from line 1 on: expected the node content"),
        ("a: @x", "is not YAML: line 1, column 4: found character '@' that cannot start any token"),
        (SMALLEST + "edge: {labels: ./none.txt}", "edge.labels: "),
        (SMALLEST + 'cloud: {labels: "a\\0b"}', "cloud.labels: "),
        (SMALLEST + "edge: {model: ~nobody-here/m.onnx}", "edge.model: ~nobody-here/m.onnx names no user's folder"),
        (SMALLEST + "deadline: 0s", "`deadline` must be longer than nothing: write it as `5s`"),
        (SMALLEST + "windows: {size: 0s}", "`windows.size` must be longer than nothing"),
        (SMALLEST + "deadline: " + "9" * 400 + "s", "is not a duration"),
        ("name: shop\nsource: {path: x, rate: " + "9" * 400 + "/s}", "is not a rate"),
        ("name: shop\nsource: {path: 2026-02-30}", "is not YAML: day is out of range"),
        ('name: "a\\nb"\nsource: {path: x}', "`name: a b` may have"),
        (SMALLEST + '"a\\nb": 1', "`a b` is not a known key"),
        ("a: " + "[" * 5_000, "is not YAML: maximum recursion depth"),
    ],
    ids=lambda part: part.removeprefix(SMALLEST)[:30],
)
def test_a_mistake_is_one_line_that_names_file_and_key(tmp_path, text, said):
    file = written(tmp_path, text)
    with pytest.raises(ConfigError) as raised:
        load(file)
    line = str(raised.value)
    assert said in line
    assert "\n" not in line
    assert line.startswith(str(file))


@pytest.mark.parametrize("password", ["s3cret: it", '"s3cret', "'s3cret' it", "*s3cret", "!s3cret it", "!s3'cret it"])
def test_a_line_that_is_no_yaml_is_named_and_not_repeated(tmp_path, password):
    file = written(tmp_path, f"{SMALLEST}kafka:\n  cloud:\n    sasl: {{username: u, password: {password}}}\n")
    with pytest.raises(ConfigError) as raised:
        load(file)
    said = str(raised.value).removeprefix(str(file))
    assert re.match(r" is not YAML: line \d+, column \d+", said)
    assert not re.search("s3|cret", said)


def test_settings_of_topics_reach_the_layout_as_kafka_writes_them(tmp_path):
    text = "topics: {replication: 3, configs: {items: {segment.ms: 5, preallocate: true, compression.type: zstd}}}"
    layout = layout_of(load(written(tmp_path, f"{SMALLEST}cloud: {{sites: [a, b]}}\n{text}\n")))
    assert layout.configs == {"items": {"segment.ms": "5", "preallocate": "true", "compression.type": "zstd"}}
    assert (layout.replication, layout.min_insync, layout.outage_budget_ms) == (3, None, 3_600_000)
    assert [layout.sites_of(tier) for tier in Tier] == [["site-1"], ["a", "b"]]


def test_a_missing_file_says_what_writes_one(tmp_path):
    with pytest.raises(ConfigError, match="`tidegate init` writes one"):
        load(tmp_path / "none.yaml")


def test_labels_are_read_from_a_file_and_models_found_beside_the_pipeline(tmp_path):
    (tmp_path / "names.txt").write_text("cat\n\n dog \n", "utf-8")
    pipeline = load(written(tmp_path, SMALLEST + "edge: {model: m.onnx, labels: names.txt}\ncloud: {model: builtin:x}"))
    assert (pipeline.edge.model, pipeline.edge.labels) == (str(tmp_path / "m.onnx"), ["cat", "dog"])
    assert pipeline.cloud.model == "builtin:x"


@pytest.mark.parametrize(
    ("text", "value"),
    [("50ms", 50_000), ("1.5s", 1_500_000), ("2m", 120_000_000), ("1h", 3_600_000_000), ("10us", 10)],
)
def test_durations(text, value):
    assert Duration.parse(text).us == value


def test_sizes_and_rates():
    assert Size.parse("16MiB") == 16 << 20
    assert Size.parse("2GB") == 2_000_000_000
    assert Rate.parse("2.5/s") == Rate(2.5)
    assert Rate.parse("as recorded") == Rate(as_recorded=True)
    assert Rate.parse("as fast as possible") == Rate()
    for wrong in ("0/s", "-1/s", "10", None, "10/m"):
        with pytest.raises(ValueError, match="is not a rate"):
            Rate.parse(wrong)


def test_an_address_comes_from_environment_then_file_then_what_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("TIDEGATE_HOME", str(tmp_path / "home"))
    for variable in ENVIRONMENT.values():
        monkeypatch.delenv(variable, raising=False)
    plain = load(written(tmp_path, SMALLEST))
    with pytest.raises(ConfigError, match=r"`kafka.edge.bootstrap` is not set.*start the pipeline with `tidegate run`"):
        clusters(plain)
    folder = pipeline_dir("shop")
    folder.mkdir(parents=True)
    write_running(folder, Running(os.getpid(), "running:1", "running:2"))
    assert [one.bootstrap for one in clusters(plain)] == ["running:1", "running:2"]
    named = load(written(tmp_path, SMALLEST + "kafka: {edge: {bootstrap: 'file:1'}}"))
    assert [one.bootstrap for one in clusters(named)] == ["file:1", "running:2"]
    monkeypatch.setenv(ENVIRONMENT[Tier.EDGE], "environment:1")
    assert clusters(named).edge.bootstrap == "environment:1"


def test_a_dead_run_is_not_found(tmp_path, monkeypatch):
    monkeypatch.setenv("TIDEGATE_HOME", str(tmp_path / "home"))
    folder = pipeline_dir("shop")
    folder.mkdir(parents=True)
    ended = subprocess.Popen(["true"])
    ended.wait()
    write_running(folder, Running(ended.pid, "running:1", "running:2"))
    with pytest.raises(ConfigError, match="is not running here"):
        clusters(load(written(tmp_path, SMALLEST)))


def fits(value: object, schema: dict, root: dict) -> bool:
    """Whether JSON Schema `schema` accepts `value`; of its keywords those that ours uses, any other is a KeyError."""
    kinds = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "array": list, "object": dict}
    one = {
        "type": lambda kind: value is None if kind == "null" else isinstance(value, kinds[kind]),
        "enum": lambda allowed: value in allowed,
        "minimum": lambda least: value >= least,
        "maximum": lambda most: value <= most,
        "minItems": lambda least: len(value) >= least,
        "maxItems": lambda most: len(value) <= most,
        "anyOf": lambda choices: any(fits(value, choice, root) for choice in choices),
        "$ref": lambda name: fits(value, root["$defs"][name.rpartition("/")[2]], root),
        "required": lambda keys: set(keys) <= value.keys(),
        "properties": lambda known: all(fits(value[key], known[key], root) for key in known.keys() & value.keys()),
        "additionalProperties": lambda rest: all(
            rest is not False and fits(value[key], rest, root) for key in value.keys() - schema.get("properties", {})
        ),
        "prefixItems": lambda kinds: all(fits(*pair, root) for pair in zip(value, kinds, strict=False)),
        "items": lambda kind: (
            kind is False or all(fits(each, kind, root) for each in value[len(schema.get("prefixItems", [])) :])
        ),
    }
    notes = {"title", "description", "default", "examples", "$defs"}
    # A wrong type must not reach the keywords after it.
    return all(one[word](schema[word]) for word in sorted(schema.keys() - notes, key=lambda word: word != "type"))


def shipped(name: str) -> str:
    text = (ROOT / name).read_text("utf-8")
    return text.format(archive="digits.idx", loop=1) if "{loop}" in text else text


@pytest.mark.parametrize("name", SHIPPED)
def test_the_schema_for_editors_accepts_what_we_ship_and_so_does_load(tmp_path, name):
    schema = json_schema()
    assert fits(yaml.safe_load(shipped(name)), schema, schema)
    assert load(written(tmp_path, shipped(name))).routing.policy == "threshold"


@pytest.mark.parametrize(
    "change",
    [
        {"deadlne": "2s"},
        {"source": {}},
        {"deadline": 2},
        {"partitions": 0},
        {"priority": 3},
        {"encode": {"resize": [28]}},
        {"edge": {"labels": [1]}},
        {"edge": {"input": {"layout": "NHW?"}}},
        {"kafka": {"edge": {"librdkafka": {"linger.ms": []}}}},
    ],
    ids=str,
)
def test_the_schema_for_editors_refuses_what_load_refuses(tmp_path, change):
    schema, raw = json_schema(), yaml.safe_load(SMALLEST) | change
    assert not fits(raw, schema, schema)
    with pytest.raises(ConfigError):
        load(written(tmp_path, yaml.safe_dump(raw)))
