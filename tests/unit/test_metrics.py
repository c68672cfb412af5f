"""The list of metrics, what is served of it, and the probe."""

import math
import re
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from pipelines.config.units import parse_listen
from pipelines.core.lag import GroupLag, Member, PartitionLag, State
from pipelines.core.progress import Doing
from pipelines.errors import ConfigError
from pipelines.observe.exporter import LagCollector
from pipelines.observe.instruments import Instruments
from pipelines.observe.lag import Reading
from pipelines.observe.metrics import (
    ALL,
    BATCH_RECORDS,
    BUILD_INFO,
    CLOUD_REACHABLE,
    ITEMS,
    LAG_METRICS,
    SUPERVISOR_METRICS,
    TRANSACTIONS,
    WORKER_METRICS,
    Kind,
    Metric,
)
from pipelines.observe.probe import probe
from pipelines.observe.serve import Address, address_of, served
from pipelines.runtime.process import PARENT_PIPE
from schemas.topics import Tier
from scripts import publish_metrics

ROOT = Path(__file__).resolve().parents[2]
METRICS: Sequence[Metric] = (*WORKER_METRICS, *SUPERVISOR_METRICS, *LAG_METRICS)
ANY_PORT = Address("127.0.0.1", 0, True, "the test")


def get(where: str, path: str, accept: str = "") -> tuple[int, str]:
    request = urllib.request.Request(f"http://{where}{path}", headers={"Accept": accept} if accept else {})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_every_metric_is_named_as_prometheus_wants_and_explained():
    assert len({one.name for one in METRICS}) == len(METRICS)
    for one in METRICS:
        assert re.fullmatch(r"tidegate_[a-z_]+", one.name)
        assert one.name.endswith("_total") == (one.kind is Kind.COUNTER), one.name
        assert one.meaning.endswith(".") and one.remedy.endswith("."), one.name  # noqa: PT018
        assert set(one.of) <= set(ALL)
        assert "stream" not in one.labels, "there may be ten thousand"
        assert bool(one.buckets) == (one.kind is Kind.HISTOGRAM)
        if one in WORKER_METRICS:
            assert not {"site", "kind"} & set(one.labels), "all have them"


def test_the_page_of_metrics_is_up_to_date():
    assert publish_metrics.FILE.read_text("utf-8") == publish_metrics.text(), "run scripts/publish_metrics.py"


def test_whatever_we_ship_asks_for_metrics_that_are_there():
    known = {one.name for one in METRICS}
    known |= {
        f"{one.name}_{part}" for one in METRICS if one.kind is Kind.HISTOGRAM for part in ("bucket", "sum", "count")
    }
    files = [file for kind in ("yml", "yaml", "json") for file in (ROOT / "deploy").rglob(f"*.{kind}")]
    asked = {name for file in files for name in re.findall(r"\btidegate_[a-z_]+", file.read_text("utf-8"))}
    assert asked, "the rules and the dashboard are there"
    assert asked <= known, asked - known


def promtool(require: object, text: str) -> str:
    found = shutil.which("promtool")
    require("promtool", found, "install Debian's package prometheus")  # type: ignore[operator]
    done = subprocess.run([str(found), "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


@pytest.mark.parametrize("kind", ALL)
def test_what_each_kind_of_worker_exports_is_as_prometheus_wants(require, kind):
    instruments = Instruments(kind, "shop")
    for one in WORKER_METRICS:
        if kind in one.of and one.kind is Kind.COUNTER:
            instruments.meters.add(one.name, 1, *(f"a {label}" for label in one.labels))
    with served(instruments, ANY_PORT) as where:
        status, text = get(where, "/metrics")
    assert status == 200
    names = set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))
    assert {one.name for one in WORKER_METRICS if kind in one.of} <= names
    assert not {one.name for one in WORKER_METRICS if kind not in one.of} & names
    assert f'tidegate_healthy{{kind="{kind}",site="shop"}} 1.0' in text
    assert promtool(require, text) == ""


def test_counters_without_open_labels_are_there_from_the_start_and_gauges_are_asked_for():
    instruments = Instruments("edge", "shop")
    reachable = [0.0]
    instruments.meters.watch(CLOUD_REACHABLE, lambda: reachable[0])
    instruments.meters.add_all({(ITEMS, "shed", "late"): 3, (ITEMS, "answered_edge", ""): 2.0})
    instruments.meters.observe(BATCH_RECORDS, 500)
    with served(instruments, ANY_PORT) as where:
        text = get(where, "/metrics")[1]
        assert f'{TRANSACTIONS}{{kind="edge",result="fenced",site="shop"}} 0.0' in text
        assert f'{ITEMS}{{kind="edge",outcome="shed",reason="late",site="shop"}} 3.0' in text
        assert f'{CLOUD_REACHABLE}{{kind="edge",site="shop"}} 0.0' in text
        assert re.search(rf'{BUILD_INFO}{{kind="edge",site="shop",version="[^"]+"}} 1.0', text)
        reachable[0] = 1.0
        assert f'{CLOUD_REACHABLE}{{kind="edge",site="shop"}} 1.0' in get(where, "/metrics")[1]
        assert get(where, "/metrics", "application/openmetrics-text")[1].endswith("# EOF\n")
        assert get(where, "/")[0] == 404
    with pytest.raises(KeyError):
        instruments.meters.add("tidegate_windows_total")


def test_healthz_says_whether_and_why_not_and_so_does_the_probe():
    now_s = [0.0]
    instruments = Instruments("edge", "shop", lambda: now_s[0])
    with served(instruments, ANY_PORT) as where:
        instruments.at(Doing.WORKING)
        assert get(where, "/healthz") == get(where, "/livez") == (200, "working on a batch\n")
        assert probe(where) == (True, "working on a batch")
        now_s[0] = 21.0
        line = "its loop has stood still for 21 s, working on a batch"
        assert get(where, "/healthz") == get(where, "/livez") == (503, line + "\n")
        assert 'tidegate_healthy{kind="edge",site="shop"} 0.0' in get(where, "/metrics")[1]
        command = [sys.executable, "-m", "pipelines.observe.probe"]
        done = subprocess.run(
            command, env={"TIDEGATE_METRICS": where}, cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout, done.stderr) == (1, line + "\n", "")
        port = where.rpartition(":")[2]
        instruments.at(Doing.READING)
        assert probe(f"0.0.0.0:{port}") == probe(f":{port}") == (True, "reading from Kafka")
        for now_s[0] in range(22, 60, 2):
            instruments.failed("no Kafka answers")
        assert get(where, "/healthz") == (503, "it has failed 19 times in 36 s: no Kafka answers\n")
        assert get(where, "/livez") == (200, "waiting after a failure\n")
    assert probe(where)[0] is False
    assert probe("nonsense")[1].startswith("no answer from nonsense")


def test_the_probe_needs_nothing_that_is_slow_to_import():
    program = "import sys, pipelines.observe.probe; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    found = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(found.stdout.split()) & {"pipelines", "schemas", "msgspec", "structlog", "prometheus_client"} == {
        "pipelines"
    }


def test_a_request_that_never_comes_does_not_keep_the_others_out():
    with served(Instruments("edge"), ANY_PORT) as where:
        host, _, port = where.rpartition(":")
        with socket.create_connection((host, int(port)), 30):
            assert get(where, "/healthz")[0] == 200


def test_workers_of_one_file_take_one_port_after_the_other_and_tell_prometheus(tmp_path):
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        first = one.getsockname()[1]
    listen = Address("127.0.0.1", first, False, "`metrics.listen`")
    files = [tmp_path / "metrics" / f"edge-{number}.json" for number in range(2)]
    with served(Instruments("edge"), listen, files[0]) as here, served(Instruments("edge"), listen, files[1]) as there:
        assert here != there
        for where, file in zip((here, there), files, strict=True):
            assert get(where, "/healthz")[0] == 200
            assert msgspec.json.decode(file.read_bytes()) == [{"targets": [where], "labels": {"worker": file.stem}}]
        taken = int(here.rpartition(":")[2])
        with (
            pytest.raises(ConfigError, match=rf"^TIDEGATE_METRICS: cannot listen on 127.0.0.1:{taken} \(.*in use\)"),
            served(Instruments("edge"), Address("127.0.0.1", taken, True, "TIDEGATE_METRICS")),
        ):
            pass
    assert not any(file.exists() for file in files)


def test_a_folder_that_cannot_be_written_costs_a_line_only(tmp_path, capsys):
    (tmp_path / "metrics").write_text("a file")
    listen = Address("127.0.0.1", 0, False, "`metrics.listen`")
    with served(Instruments("edge"), listen, tmp_path / "metrics" / "edge-0.json") as where:
        assert get(where, "/healthz")[0] == 200
    assert "targets_not_written" in capsys.readouterr().out


def test_where_to_listen_comes_from_the_command_line_then_the_environment_then_the_file(monkeypatch):
    for variable in ("TIDEGATE_METRICS", PARENT_PIPE):
        monkeypatch.delenv(variable, raising=False)
    assert address_of(None) is None
    with served(Instruments("edge"), None) as where:
        assert where == ""
    assert address_of("127.0.0.1:9464") == Address("127.0.0.1", 9464, False, "`metrics.listen`")
    monkeypatch.setenv("TIDEGATE_METRICS", ":9465")
    assert address_of("127.0.0.1:9464") == Address("", 9465, True, "TIDEGATE_METRICS")
    assert address_of(None, "[::1]:9466") == Address("::1", 9466, True, "--listen")
    monkeypatch.setenv(PARENT_PIPE, "7")
    assert address_of(None) == Address("", 9465, False, "TIDEGATE_METRICS"), "its brothers have the same environment"
    monkeypatch.setenv("TIDEGATE_METRICS", "9464")
    with pytest.raises(ConfigError, match=r"^TIDEGATE_METRICS: '9464' is no address to listen on: write it as"):
        address_of(None)
    for wrong in ("a:b", "h:65536", "::1:9464", "h:1\n"):
        with pytest.raises(ValueError, match="is no address"):
            parse_listen(wrong)


def lag(state: State, **other: object) -> GroupLag:
    one = PartitionLag("shop.items", 3, "edge-0", 5, 9, 4, 1.5, 10.0, 8.0, None, state, 50.0, True, unread_s=2.0)
    idle = PartitionLag("shop.items", 4, "edge-0", 9, 9, 0, 0.0, 0.0, 0.0, 0.0, State.OK, 50.0)
    members = [Member("edge-0", "here", [("shop.items", 3)]), Member("edge-1", "here", [])]
    group = GroupLag("edge", "shop.edge", Tier.EDGE, members, [one, idle], 4, 1.5, 10.0, 8.0, None, state)
    return msgspec.structs.replace(group, **other)


def test_the_exporter_tells_the_newest_reading_and_nothing_that_is_gone(require):
    instruments, collector = Instruments("exporter", "shop"), LagCollector("shop")
    instruments.meters.registry.register(collector)
    cloud = lag(State.OK, kind="cloud", group="cloud", tier=Tier.CLOUD, drain_s=0.0)
    with served(instruments, ANY_PORT) as where:
        assert "tidegate_group_state{" not in get(where, "/metrics")[1]
        brokers = dict.fromkeys(Tier, 1)
        kept_s = {(Tier.EDGE, "shop.items"): 8.0, (Tier.CLOUD, "shop.items"): math.inf}
        collector.take(Reading(10**15, [lag(State.SLOW), cloud], {}, {}, brokers), 0.25, kept_s)
        text = get(where, "/metrics")[1]
        group = 'group="shop.edge",kind="edge",site="shop"'
        there = f'{group},tier="edge"'
        partition = 'group="shop.edge",kind="edge",partition="3",site="shop"'
        for line in (
            f'tidegate_seconds_behind{{{partition},tier="edge",topic="shop.items"}} 1.5',
            f'tidegate_lag_records{{{partition},tier="edge",topic="shop.items"}} 4.0',
            f'tidegate_retention_used_ratio{{{partition},tier="edge",topic="shop.items"}} 0.25',
            f'tidegate_partition_state{{{partition},state="slow",tier="edge",topic="shop.items"}} 1.0',
            f"tidegate_group_seconds_behind{{{there}}} 1.5",
            f"tidegate_group_drain_seconds{{{there}}} +Inf",
            'tidegate_group_drain_seconds{group="cloud",kind="cloud",site="",tier="cloud"} 0.0',
            f'tidegate_group_state{{{group},state="slow",tier="edge"}} 1.0',
            f'tidegate_group_state{{{group},state="ok",tier="edge"}} 0.0',
            f"tidegate_group_members{{{there}}} 2.0",
            f"tidegate_group_capacity_per_second{{{there}}} 100.0",
            f'tidegate_group_records_per_second{{direction="in",{there}}} 10.0',
            f"tidegate_hot_partitions{{{there}}} 1.0",
            'tidegate_cluster_reachable{site="shop",tier="cloud"} 1.0',
            'tidegate_exporter_read_seconds{site="shop"} 0.25',
        ):
            assert line in text.splitlines()
        assert text.count("tidegate_partition_state{") == 1, "a partition that is ok has none"
        assert not re.search('retention_used_ratio{.*tier="cloud"', text), "age removes nothing there"
        assert promtool(require, text) == ""
        collector.take(Reading(10**15 + 10**6, [lag(State.OK)], {}, {Tier.CLOUD: "away"}, {Tier.EDGE: 1}), 2.5)
        text = get(where, "/metrics")[1]
        assert 'kind="cloud"' not in text
        assert 'tidegate_cluster_reachable{site="shop",tier="cloud"} 0.0' in text
