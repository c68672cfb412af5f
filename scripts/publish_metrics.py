"""Write `docs/metrics.md` from the typed list of metrics. `make schemas` runs it."""

from collections.abc import Sequence
from pathlib import Path

from pipelines.core.progress import CALM_S, FAILING_S, MOST_S, SITTING_S, START_S, Doing
from pipelines.observe.gather import ASK_S
from pipelines.observe.metrics import ALL, LAG_METRICS, SUPERVISOR_METRICS, WORKER_METRICS, Metric
from pipelines.observe.probe import DEFAULT

FILE = Path(__file__).resolve().parent.parent / "docs" / "metrics.md"

TEXT = """# Metrics and health

<!-- Written by scripts/publish_metrics.py from pipelines/observe/metrics.py: change it there. -->

Every worker and the exporter serve `/metrics` (for Prometheus), `/healthz` and `/livez` on one port. The first of
these says where:

1. `TIDEGATE_METRICS=HOST:PORT` in the environment. Exactly there, or the worker ends with one line
   (workers that `tidegate run` starts share the environment, and take ports as in 2). The images set it
   to `0.0.0.0:9464`.
2. `metrics.listen` in the pipeline file. Workers of one machine share the file, so a worker that finds the port taken
   takes the next one, up to 64 of them, and leaves a target in `metrics/` of the pipeline's folder
   (`~/.local/share/tidegate/pipelines/NAME`, or `data/pipelines/NAME` of `TIDEGATE_HOME`):

   ```yaml
   scrape_configs:
     - job_name: tidegate
       file_sd_configs:
         - files: [/var/lib/tidegate/data/pipelines/shop/metrics/*.json]
   ```

   A worker that was killed leaves its file behind, so that Prometheus misses it; its successor of the same name takes
   it over.

Without either nothing is served; the exporter then takes `{default}`. There is neither login nor encryption: do not
open the port to a network that you do not trust.

## Health

`/healthz` answers 200 while the worker makes progress and 503 with one line that says why not. A worker is not well

- that has not begun after {start} s;
- whose loop has stood still for {working} s with a batch (a model that hangs), or for {reading} s with a request to
  Kafka;
- that has failed again and again for more than {failing} s. The line names the last error. {calm} s without a
  failure, or one committed transaction, end this;
- that holds partitions, knows of unread records, and has read none for {sitting} s.

A worker that has nothing to do is well. `python -m pipelines.observe.probe` asks and exits 0 or 1; it is the images'
health check.

`/livez` answers 200 as long as the worker's loop turns, and 503 with the line above only where it has not begun or
stands still: by the first two points. A cluster that is away makes its workers not well after {failing} s, but they try
again, at most 2 s after each failure, and starting them anew would not help.

| what asks | asks |
| --- | --- |
| whoever shows or decides whether work is done (readiness, `docker ps`, a person) | `/healthz` |
| whoever starts anew what hangs (liveness) | `/livez`, with minutes: restoring much may take longer than {reading} s |

## The exporter

`tidegate exporter FILE [--tier edge|cloud]` reads once a second what `tidegate lag` reads and exports it. One a tier
is enough; it joins no group and writes nothing.

## Workers

All metrics carry `site` and `kind`, which is one of
{kinds}.
Workers of the cloud serve many sites: their `site` is "". Beside them stand `process_*` and `python_info` of the
Prometheus client. Counting costs 10 us a batch and 13 us a commit, whether or not anybody asks.

{workers}

## Several workers under one command

The supervisor of `--workers` ([processes](processes.md)) serves one `/metrics`, `/healthz` and `/livez` for all its
workers, where a single one would. Every series of a worker has the label `worker` (`edge-0`, `edge-1`, ...) beside
its own, and this is there too:

{supervisor}

A worker that does not answer within {ask} s has `tidegate_healthy` 0 and no other series. `/healthz` is 503 as long as
one worker is not well, and names each with its reason; `/livez` as long as one hangs, or has run for {start} s and
does not answer.

## Lag, from the exporter

`site`, `kind` and `group` are those of the group seen, `tier` is the cluster that it reads from. Groups of the cloud
belong to no single site: theirs is "". What is gone leaves no series.

{lag}
"""


def text() -> str:
    """What the file is to hold."""
    return TEXT.format(
        default=DEFAULT,
        start=f"{START_S:.0f}",
        working=f"{MOST_S[Doing.WORKING]:.0f}",
        reading=f"{MOST_S[Doing.READING]:.0f}",
        failing=f"{FAILING_S:.0f}",
        calm=f"{CALM_S:.0f}",
        sitting=f"{SITTING_S:.0f}",
        kinds=", ".join(f"`{kind}`" for kind in ALL),
        workers=_table(WORKER_METRICS),
        supervisor=_table(SUPERVISOR_METRICS),
        ask=f"{ASK_S:.0f}",
        lag=_table(LAG_METRICS),
    )


def _table(metrics: Sequence[Metric]) -> str:
    rows = [
        (
            f"`{one.name}`",
            one.kind,
            ", ".join(f"`{label}`" for label in one.labels),
            "all" if set(one.of) == set(ALL) else ", ".join(one.of),
            one.meaning,
            one.remedy,
        )
        for one in metrics
    ]
    names = ("metric", "kind", "labels", "of", "meaning", "when it is not as it should be")
    if metrics is LAG_METRICS:
        rows, names = [row[:3] + row[4:] for row in rows], names[:3] + names[4:]
    head = [f"| {' | '.join(names)} |", "|" + " --- |" * len(names)]
    return "\n".join([*head, *(f"| {' | '.join(row)} |" for row in rows)])


if __name__ == "__main__":
    FILE.write_text(text(), "utf-8")
