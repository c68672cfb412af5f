"""Real processes of ours, asked over HTTP: what they export, whether they are well, and how they end."""

import os
import re
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import pytest

from pipelines.observe.probe import probe
from pipelines.transport.kafka import KafkaCluster
from pipelines.transport.topics import Layout, apply
from schemas.topics import Tier

PARTITIONS = 2
"""As all tests on the session's brokers have: the cloud's own topics are there once for all sites."""
WAIT_S = 60
PIPELINE = """
name: {site}
site: {site}
source: {{path: .}}
partitions: 2
kafka: {{edge: {{bootstrap: "{edge}"}}, cloud: {{bootstrap: "{cloud}"}}}}
"""


@pytest.fixture
def file(tmp_path, brokers, site):
    edge, cloud = (KafkaCluster(f"kafka.{tier}", getattr(brokers, tier).bootstrap) for tier in Tier)
    with closing(edge), closing(cloud):
        apply(Layout(site, PARTITIONS, 3_600_000), edge, cloud)
    path = tmp_path / "pipeline.yaml"
    text = PIPELINE.format(site=site, edge=brokers.edge.bootstrap, cloud=brokers.cloud.bootstrap)
    path.write_text(text, "utf-8")
    return path


@contextmanager
def serving(*words: object, **environment: str) -> Iterator[str]:
    """A process of ours until the end of the block, which must then end by SIGTERM with exit 0; where it serves."""
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
        process.terminate()
        assert process.wait(WAIT_S) == 0, "".join(said)
    finally:
        process.kill()
        process.wait()


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
