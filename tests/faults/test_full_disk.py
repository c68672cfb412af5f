"""The disk of the edge's Kafka runs full while items flow: capturing stops and says which folder; when there is room
again and Kafka was started again, everything goes on where it stood, and the account balances."""

import os
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from pipelines.cli.digits import load_digits
from pipelines.cli.session import Session, session
from pipelines.codecs.idx import write_idx
from pipelines.config import load
from pipelines.config.clusters import ENVIRONMENT
from pipelines.observe.audit import Auditor
from pipelines.observe.watch import Watch
from pipelines.transport.broker import start_owned
from pipelines.transport.storage import FULL_BYTES, free_bytes
from schemas import headers
from schemas.topics import Tier

ITEMS = 2_500
SIZE_MIB = 192
LONGEST_S = 240
"""A bound on the whole run, for a machine that is stuck; the run itself follows events."""

PIPELINE = """\
name: full
site: full
source: {{type: idx, path: {archive}, streams: 20, rate: 10/s}}
encode: {{codec: raw}}
deadline: 2s
partitions: 2
edge: {{model: "builtin:digits-small"}}
cloud: {{model: "builtin:digits-large"}}
routing: {{policy: threshold}}
kafka: {{edge: {{bootstrap: "{edge}"}}}}
"""

pytestmark = [pytest.mark.kafka, pytest.mark.containers, pytest.mark.timeout(LONGEST_S + 60)]


@pytest.fixture
def disk(tmp_path: Path, require) -> Iterator[Path]:
    """A small disk."""
    require("root, to mount a small tmpfs", os.geteuid() == 0, "run as root")
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE_MIB}m", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def until(one: Session, watch: Watch, what: str, reached: Callable[[], bool]) -> None:
    until_s = time.monotonic() + LONGEST_S
    while not reached():
        assert time.monotonic() < until_s, f"never came: {what}"
        one.supervisor.turn(0.05)
        watch.poll(0.05)


def test_producers_stop_capturing_and_say_which_folder_and_nothing_is_lost(tmp_path, disk, monkeypatch):
    for variable in ENVIRONMENT.values():
        monkeypatch.setenv(variable, "")  # What the session sets is undone after the test.
    images, _ = load_digits()
    archive, file, ballast = tmp_path / "digits.idx", tmp_path / "pipeline.yaml", disk / "ballast"
    write_idx(archive, images[:ITEMS])
    with ExitStack() as stack:
        broker = stack.enter_context(start_owned(disk / "kafka", name="edge"))
        file.write_text(PIPELINE.format(archive=archive, edge=broker.bootstrap))
        one = stack.enter_context(session(load(file), file, tmp_path / "data"))
        one.start()
        watch = Watch(one.clusters, "full")
        stack.callback(watch.close)
        until(one, watch, "items", lambda: watch.captured >= ITEMS // 8)

        fill(disk, ballast)
        until(one, watch, "the end of the broker", lambda: not broker.running)
        log = one.supervisor.log_path("produce-0")
        until(one, watch, "the producer's complaint", lambda: "not_capturing" in log.read_text())
        [said] = [line for line in log.read_text().splitlines() if "not_capturing" in line]
        assert f"kafka.edge at {broker.bootstrap}" in said
        assert f"the disk of its folder {disk / 'kafka' / 'data'} is full" in said
        assert "make room there and start that Kafka again" in said

        ballast.unlink()
        broker.start_again()
        until(one, watch, "all captured", lambda: one.supervisor.done("produce"))
        auditor = Auditor(one.clusters.edge, "full")
        until(one, watch, "nothing in flight", lambda: not auditor.look().in_flight_items)
        verdict = auditor.look()
        assert verdict.balanced, (verdict.lost[:5], verdict.doubled[:5], verdict.beyond[:5])
        assert verdict.captured == ITEMS
        assert log.read_text().count("not_capturing") == 1
        seen = Counter(
            headers.find(record.headers()).source_position for record in one.clusters.edge.read_all(["full.items"])
        )
        assert sorted(seen) == list(range(ITEMS))
        assert set(seen.values()) == {1}
        assert one.brokers.keys() == {Tier.CLOUD}


def fill(disk: Path, ballast: Path) -> None:
    """Leave next to nothing."""
    assert (free_bytes(str(disk)) or 0) > FULL_BYTES, "the disk must not count as full before"
    with ballast.open("wb", buffering=0) as file:
        try:
            while file.write(b"\0" * (1 << 20)):
                pass
        except OSError:
            return
