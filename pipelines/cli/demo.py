"""`tidegate demo`: the real thing on this machine, from cameras to windows, and the account of every item."""

import math
import os
import shutil
import signal
import tempfile
import time
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.live import Live

from pipelines.cli import report as reporting
from pipelines.cli.audit import account_table
from pipelines.cli.digits import load_digits
from pipelines.cli.live import live_table
from pipelines.cli.report import Report, Seen
from pipelines.cli.session import Session, session
from pipelines.codecs.idx import write_idx
from pipelines.config import load
from pipelines.config.home import home
from pipelines.config.units import Duration
from pipelines.core.ledger import Verdict
from pipelines.errors import ConfigError
from pipelines.observe.audit import Auditor
from pipelines.observe.watch import Watch
from pipelines.observe.windows import Comparison, compare
from schemas.results import Result
from schemas.topics import Tier

app = typer.Typer()

TURN_S = 0.2
CUT_AT, CHAOS_AT = 0.3, 0.3
"""Share of the items captured when the cloud is taken away, and when the killing begins."""
CHAOS_APART_S = 1.5
DRAIN_MOST_S = 90.0


@app.command()
def demo(
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as one JSON object.")] = False,
    keep: Annotated[bool, typer.Option(help="Keep the brokers' data and the logs.")] = False,
    chaos: Annotated[bool, typer.Option(help="`kill -9` one worker of each kind in the middle.")] = False,
    cut: Annotated[str, typer.Option(metavar="10s", help="Take the cloud away for so long.")] = "",
) -> None:
    """Run twenty digit cameras through both tiers on two real Kafkas, and account for every item."""
    began_s = time.monotonic()
    cut_s = _duration_s(cut)
    console = Console(stderr=True)
    home().mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="demo-", dir=home()))
    try:
        report = _Demo(folder, console, began_s, cut_s=cut_s, chaos=chaos).run()
    except KeyboardInterrupt:
        console.print("interrupted")
        raise typer.Exit(130) from None
    finally:
        if keep:
            console.print(f"kept {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    if as_json:
        typer.echo(msgspec.json.encode(report).decode())
    else:
        out = Console()
        out.print(account_table(report.verdict))
        reporting.show(report, out)
        out.print("[green]every item is accounted for[/]" if report.audit_ok else "[red]the ledger does not balance[/]")
    raise typer.Exit(0 if report.audit_ok and report.windows_ok else 1)


class _Demo:
    """One run."""

    def __init__(self, folder: Path, console: Console, began_s: float, *, cut_s: float, chaos: bool) -> None:
        self._folder, self._console, self._began_s = folder, console, began_s
        self._cut_s = cut_s
        self._chaos = chaos
        self._seen = Seen()
        self._notes = ""
        self._cut_until_s: float | None = None
        self._images, self._labels = load_digits()
        self._file = self._write_pipeline()
        self._pipeline = load(self._file)
        self._streams = self._pipeline.source.streams
        self._items = len(self._images) * self._pipeline.source.loop

    def _write_pipeline(self) -> Path:
        archive = self._folder / "digits.idx"
        write_idx(archive, self._images)
        template = files("pipelines.library").joinpath("digits.yaml").read_text("utf-8")
        # One round of the digits takes 25 s: as many as the cut, and the time around it, need.
        loop = math.ceil((self._cut_s + 20) / 25)
        file = self._folder / "pipeline.yaml"
        file.write_text(template.format(archive=archive, loop=loop), "utf-8")
        return file

    def run(self) -> Report:
        """The whole demo."""
        with (
            self._console.status("starting two Kafkas and the workers") as status,
            session(self._pipeline, self._file, self._folder, status.update) as one,
        ):
            one.start()
            status.stop()
            watch = Watch(one.clusters, self._pipeline.site, self._on_result)
            try:
                with Live(console=self._console, refresh_per_second=5) as live:
                    verdict = self._play(one, watch, live)
                windows = self._windows(one, watch)
            finally:
                self._heal(one)
                watch.close()
            restarts = sum(one.supervisor.restarts.values())
        # The logs are measured when the brokers are down and have written all.
        with self._console.status("computing what each model alone would have got right"):
            return self._report(watch, verdict, windows, restarts)

    def _on_result(self, result: Result, _now_us: int) -> None:
        camera = int(result.stream.removeprefix("cam-"))
        index = (result.seq * self._streams + camera) % len(self._labels)
        self._seen.take(result.label == str(self._labels[index]), result.outcome)

    def _play(self, one: Session, watch: Watch, live: Live) -> Verdict:
        """Follow the run until all is settled; cut and kill on the way."""
        auditor = Auditor(one.clusters.edge, self._pipeline.site)
        victims = one.supervisor.names if self._chaos else []
        next_kill_s = 0.0
        ended_s = math.inf
        while True:
            one.supervisor.turn(0)
            until_s = time.monotonic() + TURN_S
            while (left_s := until_s - time.monotonic()) > 0:
                watch.poll(left_s)
            snapshot = watch.snapshot(cloud_away=self._cut_until_s is not None)
            captured = watch.captured
            if captured >= CUT_AT * self._items and self._cut_s and self._cut_until_s is None:
                self._cut(one)
            if self._cut_until_s is not None and time.monotonic() >= self._cut_until_s:
                self._heal(one)
            if victims and captured >= CHAOS_AT * self._items and time.monotonic() >= next_kill_s:
                if one.supervisor.kill(victims[0]):
                    self._notes = f"killed {victims.pop(0)}"
                next_kill_s = time.monotonic() + CHAOS_APART_S
            live.update(live_table(f"twenty cameras, {captured / self._items:.0%}", snapshot, self._notes))
            if one.supervisor.done("produce") and self._cut_until_s is None and not victims:
                ended_s = min(ended_s, time.monotonic())
                if watch.settled >= captured or time.monotonic() - ended_s > DRAIN_MOST_S:
                    verdict = auditor.look()
                    if not verdict.in_flight_items or time.monotonic() - ended_s > DRAIN_MOST_S:
                        return verdict

    def _cut(self, one: Session) -> None:
        """Stop the cloud's broker as it is: connections stay open and nothing answers, as behind a dead link."""
        os.kill(one.brokers[Tier.CLOUD].pid, signal.SIGSTOP)
        self._cut_until_s = time.monotonic() + self._cut_s
        self._notes = f"the cloud is away for {self._cut_s:g} s"

    def _heal(self, one: Session) -> None:
        if self._cut_until_s is not None:
            os.kill(one.brokers[Tier.CLOUD].pid, signal.SIGCONT)
            self._cut_until_s, self._cut_s = None, 0.0
            self._notes = "the cloud is back"

    def _windows(self, one: Session, watch: Watch) -> Comparison:
        """Wait until every result has reached its window, then compare with a batch computation."""
        edge, cloud = one.clusters
        until_s = time.monotonic() + DRAIN_MOST_S
        with self._console.status("waiting for the windows"):
            while True:
                found = compare(edge, cloud, self._pipeline.site, self._pipeline.windows.size.us)
                if found.equal or time.monotonic() > until_s:
                    return found
                one.supervisor.turn(TURN_S)
                watch.poll(0)

    def _report(self, watch: Watch, verdict: Verdict, windows: Comparison, restarts: int) -> Report:
        edge = self._accuracy(self._pipeline.edge.model)
        cloud = self._accuracy(self._pipeline.cloud.model)
        seen = self._seen
        routed, share = seen.right / max(seen.answered, 1), seen.escalated / max(seen.answered, 1)
        return Report(
            captured=verdict.captured,
            outcomes={name: count for name, count in verdict.outcomes.items() if count},
            audit_ok=int(verdict.balanced and not verdict.in_flight_items and verdict.captured == self._items),
            windows_ok=int(windows.equal),
            routed_accuracy=round(routed, 4),
            edge_accuracy=round(edge, 4),
            cloud_accuracy=round(cloud, 4),
            random_accuracy=round(edge + share * (cloud - edge), 4),
            escalated_share=round(share, 4),
            recovered_share=round((routed - edge) / (cloud - edge), 4) if cloud > edge else 0.0,
            latency=reporting.percentiles(watch.latencies_us),
            bytes=reporting.measure_bytes(self._folder, self._pipeline.site, self._images, verdict.captured),
            first_result_s=round((watch.first_result_s or math.inf) - self._began_s, 2),
            restarts=restarts,
            verdict=verdict,
            windows=windows,
        )

    def _accuracy(self, reference: str | None) -> float:
        images: NDArray[np.uint8] = self._images
        return reporting.model_accuracy(reference or "", images, self._labels)


def _duration_s(text: str) -> float:
    if not text:
        return 0.0
    try:
        return Duration.parse(text).s
    except ValueError as error:
        raise ConfigError(f"--cut: {error}") from error
