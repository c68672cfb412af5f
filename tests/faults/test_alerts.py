"""A real Prometheus asks real workers: a healthy run raises no alert, and each alert is raised by a real fault.

Alerts need not hold as long as deployed (`FASTER`); their expressions are those deployed.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from itertools import cycle, islice
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import numpy as np
import onnx
import onnxruntime
import pytest
import yaml
from confluent_kafka import Producer
from onnx import TensorProto, helper, numpy_helper

from pipelines.cli.digits import load_digits
from pipelines.cli.session import Session, session
from pipelines.codecs.idx import write_idx
from pipelines.config import load
from pipelines.config.clusters import ENVIRONMENT
from pipelines.config.home import pipeline_dir
from pipelines.models.release import load_release
from pipelines.observe.alerts import ALERTS, JOB, rules
from pipelines.observe.dashboard import RATE, ROWS
from pipelines.observe.metrics import ALL
from pipelines.runtime.inference import ModelRunner
from pipelines.runtime.supervisor import WorkerSpec
from pipelines.transport.kafka import KafkaCluster
from schemas import headers
from schemas.headers import Header, Params
from schemas.topics import Tier

FASTER = 15
"""An alert of 15 s to a minute must hold for 1 to 4 s here."""
SCRAPES = 20
"""Of every worker, in the healthy run: at one a second, twice the window in which states are decided."""
LONGEST_S = 400
"""A bound on the whole run, for a machine that is stuck; the run itself follows events."""
STREAMS, RATE_PER_S = 20, 20
SLOW_PER_S = STREAMS * RATE_PER_S / 4
"""Items that the slow model does: a quarter of what comes in."""

HURRIED, HURRY_US = 600, 5_000_000
"""Items with a deadline of 5 s: more than a tenth of what the cloud answers in two minutes."""
SHORT_S = 16
"""Half of it is less than it takes to call a partition stalled."""

SITE = "site-with-alerts"
PIPELINE = """\
name: alerts
site: {site}
source: {{type: idx, path: {archive}, streams: {streams}, rate: {rate}/s, loop: 0}}
encode: {{codec: raw}}
deadline: 5m
partitions: 2
edge: {{model: "{model}", labels: ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]}}
cloud: {{model: "builtin:digits-large"}}
routing: {{policy: threshold, options: {{threshold: {threshold}}}}}
windows: {{size: 5s, lateness: 2s}}
metrics: {{listen: "127.0.0.1:{port}"}}
"""
FAST_MODEL = "builtin:digits-small"
THRESHOLD = 0.9

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(LONGEST_S + 60)]


class Run:
    """A pipeline with an exporter, and a Prometheus that asks them."""

    def __init__(self, one: Session, file: Path, archive: Path, port: int, stack: ExitStack) -> None:
        self.one, self.file = one, file
        self._archive, self._port = archive, port
        self._stack = stack
        self._prometheus = ""
        self._until_s = time.monotonic() + LONGEST_S

    def start_prometheus(self, folder: Path) -> None:
        """Once all else runs: what is not there yet would count as away."""
        exporter, self._prometheus = (f"127.0.0.1:{free_port()}" for _ in range(2))
        self.start(sys.executable, "-P", "-m", "tidegate", "exporter", str(self.file), "--listen", exporter)
        files = pipeline_dir(self.one.pipeline.name) / "metrics" / "*.json"
        targets = {"static_configs": [{"targets": [exporter]}], "file_sd_configs": [{"files": [str(files)]}]}
        every_second = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
        folder.mkdir()
        (folder / "rules.yml").write_text(rules(faster=FASTER))
        configuration = {
            "global": every_second,
            "rule_files": ["rules.yml"],
            "scrape_configs": [{"job_name": JOB, **targets}],
        }
        (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))
        self.start(
            "prometheus",
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address={self._prometheus}",
            "--log.level=warn",
        )
        self.until("Prometheus is ready", self._ready)

    def _ready(self) -> bool:
        try:
            return urlopen(f"http://{self._prometheus}/-/ready", timeout=5).status == 200
        except (HTTPError, URLError, ConnectionError):
            return False

    def start(self, *command: str, **changes: str) -> subprocess.Popen[bytes]:
        """A process that ends with the run, with changes to the environment."""
        environment = {ENVIRONMENT[tier]: self.one.brokers[tier].bootstrap for tier in Tier} | changes
        process = subprocess.Popen(command, env={**os.environ, **environment})
        self._stack.callback(end, process)
        return process

    def until(self, what: str, reached: Callable[[], bool]) -> None:
        while not reached():
            assert time.monotonic() < self._until_s, f"never came: {what}"
            self.one.supervisor.turn(0.2)

    def ask(self, query: str) -> list[dict]:
        """The answer of Prometheus to an instant query."""
        url = f"http://{self._prometheus}/api/v1/query?{urlencode({'query': query})}"
        return json.load(urlopen(url, timeout=10))["data"]["result"]

    def firing(self, ever: bool = False) -> list[dict[str, str]]:
        """The labels of alerts that fire now, or ever did."""
        now = 'ALERTS{alertstate="firing"}'
        return [one["metric"] for one in self.ask(f"max_over_time({now}[1h])" if ever else now)]

    def missing(self, expected: Mapping[str, str]) -> Sequence[str]:
        """Those of the alerts (name, and the value of one label) that do not fire now."""
        firing = self.firing()
        return [
            name
            for name, value in expected.items()
            if not any(one["alertname"] == name and value in one.values() for one in firing)
        ]

    def summaries(self) -> Sequence[str]:
        """What a person is told of the alerts that fire now."""
        url = f"http://{self._prometheus}/api/v1/alerts"
        return [one["annotations"]["summary"] for one in json.load(urlopen(url, timeout=10))["data"]["alerts"]]

    def pid(self, name: str) -> int:
        pid = self.one.supervisor.pid(name)
        assert pid is not None
        return pid

    def change_edge_model(self, model: str) -> None:
        """A release: the file names another model, and the worker is started again."""
        text = PIPELINE.format(
            site=SITE,
            archive=self._archive,
            streams=STREAMS,
            rate=RATE_PER_S,
            model=model,
            threshold=THRESHOLD,
            port=self._port,
        )
        self.file.write_text(text)
        self.one.supervisor.kill("edge-0")


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, require) -> Iterator[Run]:
    for tool in ("prometheus", "promtool"):
        require(tool, shutil.which(tool), "install Debian's package prometheus")
    for variable in (*ENVIRONMENT.values(), "TIDEGATE_METRICS"):
        monkeypatch.setenv(variable, "")  # What the session sets is undone after the test.
    monkeypatch.delenv("TIDEGATE_HOME", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    archive, file, port = tmp_path / "digits.idx", tmp_path / "pipeline.yaml", free_port()
    write_idx(archive, load_digits()[0])
    file.write_text(
        PIPELINE.format(
            site=SITE,
            archive=archive,
            streams=STREAMS,
            rate=RATE_PER_S,
            model=FAST_MODEL,
            threshold=THRESHOLD,
            port=port,
        )
    )
    with session(load(file), file, tmp_path / "data") as one, ExitStack() as stack:
        one.start()
        running = Run(one, file, archive, port, stack)
        running.start_prometheus(tmp_path / "prometheus")
        yield running


def test_a_healthy_run_raises_no_alert_and_every_fault_its_own(run: Run, tmp_path: Path) -> None:
    def scraped() -> bool:
        times = run.ask("min by (kind) (count_over_time(tidegate_build_info[10m]))")
        return {one["metric"]["kind"] for one in times if int(one["value"][1]) >= SCRAPES} == set(ALL)

    run.until(f"{SCRAPES} scrapes of every worker", scraped)
    assert empty_panels(run) == []
    assert doubtful_metrics(run) == ""
    assert run.firing(ever=True) == []

    raised: set[str] = set()
    for faults, expected in STEPS:
        step = " and ".join(fault.__name__ for fault in faults)
        assert len(run.missing(expected)) == len(expected), f"before {step}"
        with ExitStack() as stack:
            for fault in faults:
                stack.enter_context(fault(run, tmp_path))
            run.until(f"{expected} by {step}", lambda e=expected: not run.missing(e))
            summaries = run.summaries()
            assert not [one for one in summaries if "error expanding" in one or "{{" in one], step
        raised |= expected.keys()
        strange = [one for one in run.firing(ever=True) if one["alertname"] not in raised]
        assert strange == [], f"by {step}"
        ends = {name: value for name, value in expected.items() if name not in LASTING}
        run.until(f"the end of {ends}", lambda e=ends: len(run.missing(e)) == len(e))
    assert raised == {alert.name for alert in ALERTS}


def empty_panels(run: Run) -> Sequence[str]:
    """What the dashboard would show nothing for, and should."""
    queries = [query for row in ROWS for panel in row.panels for query in panel.queries if not query.may_be_empty]
    asked = [query.expr.replace(RATE, "[10s]").replace("$site", SITE) for query in queries]
    return [query for query in asked if not run.ask(query)]


def doubtful_metrics(run: Run) -> str:
    """What promtool has to say of what the processes export."""
    found = []
    for up in run.ask(f'up{{job="{JOB}"}}'):
        exported = urlopen(f"http://{up['metric']['instance']}/metrics", timeout=10).read()
        done = subprocess.run(["promtool", "check", "metrics"], input=exported, capture_output=True, check=False)
        found.append((done.stdout + done.stderr).decode())
    assert len(found) == len(ALL)
    return "".join(found)


@contextmanager
def a_transaction_left_open(run: Run, _: Path) -> Iterator[None]:
    writer = transaction(run.one.brokers[Tier.EDGE].bootstrap, "somebody", run.one.pipeline.topics.items, 0)
    yield
    writer.abort_transaction(30)


def transaction(bootstrap: str, name: str, topic: str, partition: int) -> Producer:
    """Begun, and not ended."""
    own = {"transactional.id": name, "transaction.timeout.ms": 600_000}
    writer = Producer({"bootstrap.servers": bootstrap, **own})
    writer.init_transactions(30)
    writer.begin_transaction()
    writer.produce(topic, b"", partition=partition)
    assert writer.flush(30) == 0
    return writer


@contextmanager
def what_is_not_ours_and_what_is_damaged(run: Run, _: Path) -> Iterator[None]:
    writer = Producer({"bootstrap.servers": run.one.brokers[Tier.EDGE].bootstrap})
    items, now_us = run.one.pipeline.topics.items, time.time_ns() // 1000
    writer.produce(items, b"hello", partition=1)
    for seq in range(20):
        header = Header(1, "damaged", 1, seq, 1, now_us, now_us + 300_000_000, 0, "raw", Params(shape=(28, 28)))
        writer.produce(items, b"short", b"damaged", headers=[(headers.TG, headers.encode(header))], partition=1)
    assert writer.flush(30) == 0
    yield


@contextmanager
def answers_that_are_held_up(run: Run, _: Path) -> Iterator[None]:
    """Somebody's transaction hides the cloud's answers until items in a hurry have ended without them."""
    topics = run.one.pipeline.topics
    fallbacks = 'sum(tidegate_items_total{kind="settle",outcome="answered_edge_fallback"})'
    holder = transaction(run.one.brokers[Tier.CLOUD].bootstrap, "holder", topics.down_answers, 1)
    writer, now_us = Producer({"bootstrap.servers": run.one.brokers[Tier.EDGE].bootstrap}), time.time_ns() // 1000
    for seq, frame in enumerate(unsure(HURRIED)):
        due_us = now_us + HURRY_US
        header = Header(1, "hurried", 1, seq, 1, now_us, due_us, 1, "raw", Params(shape=frame.shape))
        tg = [(headers.TG, headers.encode(header))]
        writer.produce(topics.items, frame.tobytes(), b"hurried", headers=tg, partition=1)
    assert writer.flush(30) == 0
    run.until("the end of those items", lambda: [one for one in run.ask(fallbacks) if int(one["value"][1]) >= HURRIED])
    holder.abort_transaction(30)
    yield


@contextmanager
def a_retention_that_is_too_short(run: Run, _: Path) -> Iterator[None]:
    """By hand, while records wait. Nothing is removed here: as long as records come, their segment is not old."""
    results, pipeline = run.one.pipeline.topics.results, run.one.pipeline
    with closing(KafkaCluster("edge", run.one.brokers[Tier.EDGE].bootstrap)) as edge:
        edge.alter_topics({results: {"retention.ms": str(SHORT_S * 1000)}})
        yield
        edge.alter_topics({results: {"retention.ms": str(pipeline.retention.ms)}})


@contextmanager
def two_workers_of_one_name(run: Run, _: Path) -> Iterator[None]:
    command = [sys.executable, "-P", "-m", "tidegate", "edge", str(run.file), "--instance", "edge-0"]
    # With an address of its own it leaves the first one's file for Prometheus alone.
    second = run.start(*command, TIDEGATE_METRICS=f"127.0.0.1:{free_port()}")
    yield
    end(second)


@contextmanager
def a_stopped_uplink(run: Run, _: Path) -> Iterator[None]:
    pid = run.pid("uplink-0")
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextmanager
def the_only_aggregator_taken_away(run: Run, _: Path) -> Iterator[None]:
    run.one.supervisor.end("aggregate")
    yield
    run.one.supervisor.add(WorkerSpec("aggregate", [str(run.file)], 1))


@contextmanager
def a_slow_model(run: Run, folder: Path) -> Iterator[None]:
    write_slow_model(folder / "slow.onnx", 1 / SLOW_PER_S)
    run.change_edge_model(str(folder / "slow.onnx"))
    yield
    run.change_edge_model(FAST_MODEL)


@contextmanager
def no_kafka_in_the_cloud(run: Run, _: Path) -> Iterator[None]:
    os.kill(run.one.brokers[Tier.CLOUD].pid, signal.SIGKILL)
    yield
    run.one.brokers[Tier.CLOUD].start_again()


@contextmanager
def no_kafka_at_the_edge(run: Run, _: Path) -> Iterator[None]:
    os.kill(run.one.brokers[Tier.EDGE].pid, signal.SIGKILL)
    yield
    run.one.brokers[Tier.EDGE].start_again()


LASTING = ("TidegateDeadLetters", "TidegateForeignRecords", "TidegateFenced", "TidegateLateAnswers")
"""They count over minutes."""

STEPS = [
    (
        [a_transaction_left_open, what_is_not_ours_and_what_is_damaged, answers_that_are_held_up],
        {
            "TidegateTransactionOpen": "edge",
            "TidegateForeignRecords": "edge",
            "TidegateDeadLetters": "undecodable",
            "TidegateLateAnswers": SITE,
        },
    ),
    (
        [a_stopped_uplink, a_retention_that_is_too_short],
        {
            "TidegateWorkerDown": "uplink-0",
            "TidegateWorkersGone": "uplink",
            "TidegatePartitionStalled": "uplink",
            "TidegateNearRetention": "uplink",
        },
    ),
    (
        [two_workers_of_one_name, the_only_aggregator_taken_away],
        {"TidegateFenced": "edge", "TidegateGroupStopped": "aggregate"},
    ),
    (
        [a_slow_model, no_kafka_in_the_cloud],
        {
            "TidegateGroupBehind": "edge",
            "TidegateClusterAway": "cloud",
            "TidegateCloudAway": SITE,
            "TidegateWorkerUnhealthy": "uplink",
        },
    ),
    ([no_kafka_at_the_edge], {"TidegateNotCapturing": "produce"}),
]
"""What is done at once, and the alerts that it must raise (by the value of one label). None of them fired before."""


def unsure(count: int) -> Iterator[np.ndarray]:
    """Digits that the edge's model would ask the cloud about."""
    digits = load_digits()[0]
    header = Header(1, "", 0, 0, 1, 0, 0, 1, "raw", Params(shape=digits.shape[1:]))
    confidence = ModelRunner(load_release(FAST_MODEL)).infer([(header, digit.tobytes()) for digit in digits]).confidence
    return islice(cycle(digits[confidence < THRESHOLD]), count)


def write_slow_model(path: Path, item_s: float) -> None:
    """A classifier of digits that computes for so long an item, as measured here."""
    path.write_bytes(_layers(1))
    one_s = _item_s(path)
    path.write_bytes(_layers(1 + round(item_s / one_s)))


def _item_s(path: Path, items: int = 64, times: int = 20) -> float:
    """The least of several: what else the machine does is not the model's."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    model = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    batch = {"x": np.zeros((items, 28, 28, 1), np.float32)}
    took_s = []
    for _ in range(times):
        began_s = time.perf_counter()
        model.run(None, batch)
        took_s.append(time.perf_counter() - began_s)
    return min(took_s) / items


def _layers(count: int, pixels: int = 784, classes: int = 10) -> bytes:
    """`count` times the same dense layer, then one to the classes."""
    random = np.random.default_rng(1)
    weights = [
        numpy_helper.from_array((random.standard_normal((pixels, size)) / pixels).astype(np.float32), name)
        for name, size in (("layer", pixels), ("last", classes))
    ]
    nodes = [helper.make_node("Flatten", ["x"], ["h0"])]
    nodes += [helper.make_node("MatMul", [f"h{number}", "layer"], [f"h{number + 1}"]) for number in range(count)]
    nodes.append(helper.make_node("MatMul", [f"h{count}", "last"], ["y"]))
    graph = helper.make_graph(
        nodes,
        "slow",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 28, 28, 1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", classes])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()
