"""Rules and dashboard are written from the lists and right for Prometheus; each rule fires on what it is for."""

import json
import re
import shutil
import subprocess
from itertools import product
from pathlib import Path

import pytest
import yaml

from pipelines.observe.alerts import ALERTS, JOB, rules
from pipelines.observe.dashboard import COLUMNS, RATE, ROWS, dashboard
from pipelines.observe.metrics import LAG_METRICS, WORKER_METRICS, Kind
from scripts.publish_observability import ROOT, documents

NAMES = {metric.name for metric in (*WORKER_METRICS, *LAG_METRICS)} | {
    f"{metric.name}{ending}"
    for metric in WORKER_METRICS
    if metric.kind is Kind.HISTOGRAM
    for ending in ("_bucket", "_count", "_sum")
}
QUERIES = [query for row in ROWS for panel in row.panels for query in panel.queries]

EDGE = {"instance": "edge:9464", "job": JOB, "kind": "edge", "site": "s"}
OTHER_EDGE = EDGE | {"instance": "other:9464"}
PRODUCER = EDGE | {"instance": "producer:9464", "kind": "produce"}
DOWNLINK = EDGE | {"instance": "downlink:9464", "kind": "downlink"}
GROUP = {"site": "s", "kind": "edge", "group": "edge.s", "tier": "edge"}
PARTITION = GROUP | {"topic": "s.items", "partition": "0"}


def series(metric: str, labels: dict[str, str], **more: str) -> str:
    pairs = ", ".join(f'{name}="{value}"' for name, value in (labels | more).items())
    return f"{metric}{{{pairs}}}"


UP, STARTED = series("up", EDGE), series("process_start_time_seconds", EDGE)
LONG_AGO = "-9999"
BUILT = series("tidegate_build_info", EDGE, version="1")
DOWNLINK_BUILT = series("tidegate_build_info", DOWNLINK, version="1")
HEARS_CLOUD = series("tidegate_cloud_reachable", EDGE)
CLOUD_ANSWERS = series("tidegate_cluster_reachable", {"site": "s", "tier": "cloud"})
STOPPED = series("tidegate_group_state", GROUP, state="stopped")
STALLED, BLOCKED, SLOW = (
    series("tidegate_partition_state", PARTITION, state=state) for state in ("stalled", "blocked", "slow")
)
BEHIND, DRAIN = series("tidegate_group_seconds_behind", GROUP), series("tidegate_group_drain_seconds", GROUP)
CAPTURING = series("tidegate_capturing", PRODUCER)
DEAD = series("tidegate_items_total", EDGE, outcome="dead_lettered", reason="undecodable")
FOREIGN = series("tidegate_foreign_records_total", EDGE)
FENCED = series("tidegate_transactions_total", EDGE, result="fenced")
NEAR = series("tidegate_retention_used_ratio", PARTITION)
SETTLER = EDGE | {"instance": "settler:9464", "kind": "settle"}
LATE = series("tidegate_late_answers_total", SETTLER)
IN_TIME = series("tidegate_items_total", SETTLER, outcome="answered_cloud", reason="")
FALLEN_BACK = series("tidegate_items_total", SETTLER, outcome="answered_edge_fallback", reason="")
COMMITTED = series("tidegate_transactions_total", EDGE, result="committed")

# Of each alert: what must raise it, and what must not. A value every 15 s, as promtool writes them.
CASES = {
    "TidegateWorkerDown": (
        [{UP: "1 0x20"}],
        [{UP: "1 0 1 0 1x20"}, {series("up", {"job": "else"}): "0x20"}],
    ),
    "TidegateWorkersGone": (
        [{BUILT: "1x8 stale"}],
        [
            {series("tidegate_build_info", PRODUCER, version="1"): "1x8 stale"},  # Its source ended.
            {BUILT: "1x8 stale", series("tidegate_build_info", OTHER_EDGE, version="2"): "1x60"},
        ],
    ),
    "TidegateWorkerUnhealthy": (
        [{series("tidegate_healthy", EDGE): "1 0x20"}],
        [{series("tidegate_healthy", EDGE): "1 0 1x20"}],
    ),
    "TidegateClusterAway": ([{CLOUD_ANSWERS: "1 0x20"}], [{CLOUD_ANSWERS: "1 0 1x20"}]),
    "TidegateCloudAway": (
        [{HEARS_CLOUD: "1 0x20", DOWNLINK_BUILT: "1x20"}],
        [
            {HEARS_CLOUD: "0x20"},  # Without a downlink the site asks no cloud.
            {HEARS_CLOUD: "0x20", series("tidegate_cloud_reachable", OTHER_EDGE): "1x20", DOWNLINK_BUILT: "1x20"},
        ],
    ),
    "TidegateGroupStopped": ([{STOPPED: "0 1x20"}], [{STOPPED: "0 1 0x20"}]),
    "TidegatePartitionStalled": ([{STALLED: "1x20"}], [{SLOW: "1x20", BLOCKED: "1x20"}, {STALLED: "1 stale"}]),
    "TidegateTransactionOpen": ([{BLOCKED: "1x20"}], [{SLOW: "1x20", STALLED: "1x20"}, {BLOCKED: "1 stale"}]),
    "TidegateGroupBehind": (
        [{BEHIND: "40+15x20", DRAIN: " ".join(["+Inf"] * 21)}, {BEHIND: "40x20", DRAIN: "900x20"}],
        [{BEHIND: "300-15x20", DRAIN: "300-15x20"}, {BEHIND: "5x20", DRAIN: "900x20"}],
    ),
    "TidegateNearRetention": (
        [
            {NEAR: "0+0.1x20"},
            {NEAR: "0.6x20", series("tidegate_retention_used_ratio", PARTITION | {"partition": "1"}): "0x20"},
        ],
        [{NEAR: "0.5x20"}, {NEAR: "0.4 0.6 0.6 0x20"}],
    ),
    "TidegateNotCapturing": ([{CAPTURING: "1 0x20"}], [{CAPTURING: "1 0 1x20"}]),
    "TidegateDeadLetters": (
        [
            {UP: "1x60", STARTED: f"{LONG_AGO}x60", DEAD: "_x50 20x9"},  # The first ones of an old process, at once.
            {UP: "1x60", STARTED: f"{LONG_AGO}x60", DEAD: "500x50 520x9"},
            {UP: "_x50 1x9", STARTED: "_x50 750x9", DEAD: "_x50 20x9"},  # A new process.
        ],
        [
            {UP: "1x60", STARTED: f"{LONG_AGO}x60", DEAD: "500x60"},  # None came while Prometheus looked,
            {UP: "_x50 1x9", STARTED: f"_x50 {LONG_AGO}x9", DEAD: "_x50 500x9"},  # which began later than the process.
            {UP: "1x60", STARTED: f"{LONG_AGO}x60", DEAD: "_x50 5x9"},
        ],
    ),
    "TidegateLateAnswers": (
        [
            {LATE: "0+20x40", IN_TIME: "0+100x40"},
            {LATE: "0+20x40"},  # Not one came in time.
        ],
        [
            {LATE: "0+20x40", IN_TIME: "0+300x40"},
            {LATE: "0+1x40", FALLEN_BACK: "0+100x40"},  # Hardly any came at all.
            {LATE: "0x10 5000x30", IN_TIME: "0+100x40"},  # At once, after an outage.
        ],
    ),
    "TidegateForeignRecords": ([{FOREIGN: "0x10 1x10"}], [{FOREIGN: "7x20"}]),
    "TidegateFenced": ([{FENCED: "0+1x20"}], [{FENCED: "0x10 1x10"}, {COMMITTED: "0+100x20"}]),
}


@pytest.fixture
def promtool(require):
    require("promtool", shutil.which("promtool"), "install Debian's package prometheus")

    def run(*args: str | Path) -> str:
        done = subprocess.run(["promtool", *args], capture_output=True, text=True, check=False)
        assert not done.returncode, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


def test_what_is_published_is_up_to_date():
    for name, text in documents().items():
        assert (ROOT / name).read_text("utf-8") == text, f"{name}: run `python scripts/publish_observability.py`"


def test_every_alert_has_its_cases():
    assert CASES.keys() == {alert.name for alert in ALERTS}


@pytest.mark.parametrize("name", CASES)
def test_every_alert_fires_on_what_it_is_for_and_on_nothing_beside_it(promtool, tmp_path, name):
    (tmp_path / "rules.yml").write_text(rules())
    # At any time: what is counted over ten minutes may have gone again at the end.
    ever = f'group(max_over_time(ALERTS{{alertname="{name}", alertstate="firing"}}[20m]))'
    expected = ([{"labels": "{}", "value": 1}], [])
    tests = [
        {
            "interval": "15s",
            "input_series": [{"series": name, "values": values} for name, values in case.items()],
            "promql_expr_test": [{"expr": ever, "eval_time": "15m", "exp_samples": samples}],
        }
        for cases, samples in zip(CASES[name], expected, strict=True)
        for case in cases
    ]
    whole = {"rule_files": ["rules.yml"], "evaluation_interval": "15s", "tests": tests}
    (tmp_path / "test.yml").write_text(yaml.safe_dump(whole))
    promtool("test", "rules", tmp_path / "test.yml")


def test_prometheus_takes_rules_and_configuration(promtool):
    assert f"{len(ALERTS)} rules found" in promtool("check", "config", ROOT / "deploy/prometheus/prometheus.yml")


def test_prometheus_takes_every_query_of_the_dashboard(promtool, tmp_path):
    recorded = [
        {"record": f"panel:{number}", "expr": query.expr.replace(RATE, "[1m]")} for number, query in enumerate(QUERIES)
    ]
    (tmp_path / "panels.yml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": recorded}]}))
    promtool("check", "rules", tmp_path / "panels.yml")


@pytest.mark.parametrize("expr", [one.expr for one in (*ALERTS, *QUERIES)])
def test_only_metrics_of_the_list_are_asked_for(expr):
    assert set(re.findall(r"\btidegate_\w+", expr)) <= NAMES


def test_every_alert_says_what_it_is_and_what_to_do():
    for alert in ALERTS:
        assert alert.name.startswith("Tidegate")
        assert alert.summary
        assert alert.meaning.endswith(".")
        assert alert.remedy.endswith(".")
    assert len({alert.name for alert in ALERTS}) == len(ALERTS)


def test_prometheus_of_compose_asks_every_worker():
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    workers = {name for name, one in services.items() if "build" in one and not name.endswith("-topics")}
    [job] = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())["scrape_configs"]
    assert job["job_name"] == JOB
    assert set(job["dns_sd_configs"][0]["names"]) == workers


def test_no_panel_lies_over_another():
    seen: set[tuple[int, int]] = set()
    panels = json.loads(json.dumps(dashboard()))["panels"]
    for panel in panels:
        x, y, width, height = (panel["gridPos"][key] for key in "xywh")
        cells = set(product(range(x, x + width), range(y, y + height)))
        assert not cells & seen, panel["title"]
        assert x + width <= COLUMNS
        seen |= cells
    assert len({panel["id"] for panel in panels}) == len(panels)
