"""What the demo found: outcomes, accuracy, bytes and latency, as one object and as tables."""

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from pipelines.cli.live import byte_count
from pipelines.core.ledger import Verdict
from pipelines.models.release import load_release
from pipelines.observe.windows import Comparison
from pipelines.runtime.inference import ModelRunner
from schemas.headers import VERSION, Header, Params
from schemas.ledger import Outcome
from schemas.topics import PRIORITIES, SiteTopics, offload

ESCALATED = (Outcome.ANSWERED_CLOUD, Outcome.ANSWERED_EDGE_FALLBACK)


class Latency(msgspec.Struct, frozen=True):
    """From capture until a read_committed reader had the settled result."""

    p50_ms: float
    p95_ms: float
    p99_ms: float


class Bytes(msgspec.Struct, frozen=True):
    """As they lie in the brokers' logs, which is as they went over the wire: batches, headers, compression."""

    items: int
    """Cameras to the edge."""
    uplink: int
    """Edge to the cloud: escalated items and all results."""
    json_base64: int
    """All items as JSON with the image in base64, uncompressed."""


class Report(msgspec.Struct, frozen=True):
    """The demo's figures. Accuracies and shares are 0 to 1."""

    captured: int
    outcomes: dict[str, int]
    audit_ok: int
    windows_ok: int
    routed_accuracy: float
    edge_accuracy: float
    cloud_accuracy: float
    random_accuracy: float
    """Of random escalation at the same share: edge + share x (cloud - edge)."""
    escalated_share: float
    recovered_share: float
    """Of the gap between edge and cloud."""
    latency: dict[str, Latency]
    bytes: Bytes
    first_result_s: float
    """From the command's start."""
    restarts: int
    """Of workers."""
    verdict: Verdict
    windows: Comparison


class Seen(msgspec.Struct):
    """What the demo's reader saw of the results, item by item."""

    right: int = 0
    answered: int = 0
    escalated: int = 0

    def take(self, right: bool, outcome: str) -> None:
        """Count one settled result."""
        self.answered += 1
        self.right += right
        self.escalated += outcome in ESCALATED


def model_accuracy(reference: str, images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> float:
    """Share of images, uint8 [n, 28, 28], that the model alone gets right."""
    runner = ModelRunner(load_release(reference))
    header = Header(VERSION, "demo", 0, 0, 1, 0, 0, 0, "raw", Params(shape=images.shape[1:]))
    found = runner.infer([(header, image.tobytes()) for image in images]).label
    names = np.array(runner.labels)
    return float(np.mean(names[found] == labels.astype(str)))


def percentiles(latencies_us: Mapping[str, Sequence[int]]) -> dict[str, Latency]:
    """p50, p95 and p99 a route."""
    found = {}
    for route, values in latencies_us.items():
        p50, p95, p99 = (np.percentile(np.array(values), [50, 95, 99]) / 1000).tolist()
        found[route] = Latency(round(p50, 1), round(p95, 1), round(p99, 1))
    return found


def log_bytes(folder: Path, topics: Sequence[str]) -> int:
    """Bytes of the topics' logs in an embedded broker's data folder."""
    return sum(
        file.stat().st_size
        for topic in topics
        for log in folder.rglob(f"{topic}-*")
        if log.is_dir() and log.name.removeprefix(f"{topic}-").isdigit()
        for file in log.glob("*.log")
    )


def measure_bytes(folder: Path, site: str, images: NDArray[np.uint8], captured: int) -> Bytes:
    """Bytes of a finished demo. `captured` items are the images in turn."""
    topics = SiteTopics(site)
    item = {"stream": "cam-00", "epoch": 1_700_000_000_000, "seq": 100, "capture_us": 1_700_000_000_000_000}
    image = {"shape": [28, 28], "dtype": "uint8", "image": base64.b64encode(images[0].tobytes()).decode()}
    one = len(json.dumps({**item, **image}))  # Of every image: all have the same size.
    offloads = [offload(priority) for priority in range(PRIORITIES)]
    return Bytes(
        items=log_bytes(folder / "kafka-edge", [topics.items]),
        uplink=log_bytes(folder / "kafka-cloud", [*offloads, topics.up_results]),
        json_base64=one * captured,
    )


def show(report: Report, console: Console) -> None:
    """Print the report as a person reads it."""
    accuracy = Table("accuracy", "", title="answers", title_justify="left")
    accuracy.add_row("routed", f"{report.routed_accuracy:.4f}", style="bold")
    accuracy.add_row("edge only", f"{report.edge_accuracy:.4f}")
    accuracy.add_row("cloud only", f"{report.cloud_accuracy:.4f}")
    accuracy.add_row("random escalation, same share", f"{report.random_accuracy:.4f}")
    accuracy.add_row("escalated", f"{report.escalated_share:.1%}")
    accuracy.add_row("gap recovered", f"{report.recovered_share:.0%}")
    latency = Table("route", "p50", "p95", "p99", title="capture to settled result, ms", title_justify="left")
    for route, row in report.latency.items():
        latency.add_row(route, *(f"{value:,.0f}" for value in (row.p50_ms, row.p95_ms, row.p99_ms)))
    wire = Table("bytes", "", "", title="on the wire", title_justify="left")
    wire.add_row("all items as JSON with base64", byte_count(report.bytes.json_base64), "")
    for name, value in (("cameras to the edge", report.bytes.items), ("edge to the cloud", report.bytes.uplink)):
        times = report.bytes.json_base64 / value if value else 0
        wire.add_row(name, byte_count(value), f"{times:.1f} times fewer")
    for table in (accuracy, latency, wire):
        console.print(table)
    console.print(
        f"{report.windows.windows:,} windows over {report.windows.results:,} results "
        + ("equal a batch computation" if report.windows_ok else "[red]differ from a batch computation[/]")
    )
    for line in report.windows.differing:
        console.print(f"  {line}")
    if report.restarts:
        console.print(f"{report.restarts} workers were killed and started again")
