"""Real processes of ours, asked over HTTP: what they export, whether they are well, and how they end."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from pipelines.observe.probe import probe
from pipelines.transport.base import OutRecord
from pipelines.transport.kafka import KafkaCluster
from pipelines.transport.topics import Layout, apply
from schemas import headers
from schemas.headers import Header
from schemas.topics import SiteTopics, Tier

PARTITIONS = 2
"""As all tests on the session's brokers have: the cloud's own topics are there once for all sites."""
WAIT_S = 60
PIPELINE = """
name: {site}
site: {site}
source: {{path: .}}
partitions: 2
routing: {{policy: "{policy}"}}
kafka: {{edge: {{bootstrap: "{edge}"}}, cloud: {{bootstrap: "{cloud}"}}}}
"""


STUCK = """
import threading
from pipelines.routing.cloud_only import CloudOnly

class Stuck(CloudOnly):
    def admit(self, items, signals):
        threading.Event().wait()
"""


def write_pipeline(path: Path, site: str, edge: str, cloud: str, policy: str = "cloud_only") -> Path:
    path.write_text(PIPELINE.format(site=site, edge=edge, cloud=cloud, policy=policy), "utf-8")
    return path


@pytest.fixture
def file(tmp_path, brokers, site):
    edge, cloud = (KafkaCluster(f"kafka.{tier}", getattr(brokers, tier).bootstrap) for tier in Tier)
    with closing(edge), closing(cloud):
        apply(Layout(site, PARTITIONS, 3_600_000), edge, cloud)
    return write_pipeline(tmp_path / "pipeline.yaml", site, brokers.edge.bootstrap, brokers.cloud.bootstrap)


@contextmanager
def serving(*words: object, hung: bool = False, **environment: str) -> Iterator[str]:
    """A process of ours until the end of the block, which must then end by SIGTERM with exit 0; where it serves.

    `hung`: it cannot, and is killed.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "tidegate", *map(str, words)],
        env={**os.environ, "TIDEGATE_METRICS": "127.0.0.1:0", **environment},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    said: list[str] = []
    try:
        for line in process.stderr:
            said.append(line)
            found = re.search(r"event=serving_metrics at=(\S+)", line)
            if found:
                break
        else:
            raise AssertionError("".join(said))
        threading.Thread(target=said.extend, args=(process.stderr,), daemon=True).start()
        yield found[1]
        process.send_signal(signal.SIGKILL if hung else signal.SIGTERM)
        assert process.wait(WAIT_S) == (-signal.SIGKILL if hung else 0), "".join(said)
    finally:
        process.kill()
        process.wait()


def ask(where: str, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{where}{path}", timeout=WAIT_S) as answer:
            return answer.status, answer.read().decode().strip()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode().strip()


def no_longer_well(where: str) -> str:
    """Why, as soon as it is so."""
    for _ in range(int(WAIT_S / 0.1)):
        status, line = ask(where, "/healthz")
        if status == 503:
            return line
        threading.Event().wait(0.1)
    raise AssertionError(line)


def awaited(where: str, reached: Callable[[str], object]) -> str:
    """What is exported, as soon as it is so."""
    text = ""
    for _ in range(int(WAIT_S / 0.1)):
        with urllib.request.urlopen(f"http://{where}/metrics", timeout=WAIT_S) as answer:
            text = answer.read().decode()
        if reached(text):
            return text
        threading.Event().wait(0.1)
    raise AssertionError(text)


def test_a_worker_and_the_exporter_tell_prometheus_the_same_story(file, site):
    with serving("settle", file, "--instance", "settle-0") as worker, serving("exporter", file) as exporter:
        held = f'tidegate_partitions_held{{kind="settle",site="{site}"}} {4 * PARTITIONS}.0'
        text = awaited(worker, lambda text: held in text)
        assert f'tidegate_healthy{{kind="settle",site="{site}"}} 1.0' in text
        assert probe(worker) == (True, "reading from Kafka")
        members = f'tidegate_group_members{{group="{site}.settler",kind="settle",site="{site}",tier="edge"}} 1.0'
        text = awaited(exporter, lambda text: members in text)
        assert f'tidegate_cluster_reachable{{site="{site}",tier="cloud"}} 1.0' in text
        ok = f'tidegate_group_state{{group="{site}.settler",kind="settle",site="{site}",state="ok",tier="edge"}} 1.0'
        assert ok in text
        assert probe(exporter)[0]
        done = subprocess.run(
            [sys.executable, "-m", "tidegate", "exporter", str(file), "--listen", exporter],
            capture_output=True,
            text=True,
            timeout=WAIT_S,
            check=False,
        )
        assert done.returncode == 2
        assert done.stderr.splitlines()[-1].startswith(f"error: --listen: cannot listen on {exporter} (")


def test_a_worker_that_waits_for_a_cluster_is_alive_and_one_that_hangs_is_not(file, brokers, site, tmp_path):
    (tmp_path / "stuck.py").write_text(STUCK, "utf-8")
    edge, cloud = brokers.edge.bootstrap, brokers.cloud.bootstrap
    stuck = write_pipeline(tmp_path / "stuck.yaml", site, edge, cloud, "stuck:Stuck")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # And never listens: nobody else takes it, and nobody answers.
        nowhere = f"127.0.0.1:{closed.getsockname()[1]}"
        away = write_pipeline(tmp_path / "away.yaml", site, edge, nowhere)
        with (
            serving("uplink", away) as waits,
            serving("edge", stuck, hung=True, PYTHONPATH=str(tmp_path)) as hangs,
        ):
            write_item(edge, SiteTopics(site).items)
            line = no_longer_well(hangs)
            assert re.fullmatch(r"its loop has stood still for \d+ s, working on a batch", line)
            assert ask(hangs, "/livez")[0] == 503
            line = no_longer_well(waits)
            assert re.match(r"it has failed \d+ times in \d+ s: ", line)
            assert ask(waits, "/livez")[0] == 200


def write_item(bootstrap: str, topic: str) -> None:
    now_us = time.time_ns() // 1000
    header = Header(1, "camera", 0, 0, 1, now_us, now_us + 3_600_000_000, 1, "raw")
    with closing(KafkaCluster("edge", bootstrap)) as cluster:
        writer = cluster.transactions("test.fill", "none")
        writer.start()
        writer.write([OutRecord(topic, b"frame", b"camera", 0, headers.pair("application/octet-stream", header))])
        writer.close()
