"""Every metric that a process of ours exports, as one typed list; `docs/metrics.md` is written from it.

Constraints
- Names, kinds and labels stand here and nowhere else: `Meters` has no metric that is not in the list.
- Labels are bounded. No stream is one: there may be ten thousand.
- The workers count a batch or a transaction at a time, never a record: a worker does 25,000 records a second on a core.

All metrics of a process carry `site` ("" in the cloud, whose workers serve many) and `kind`, the kind of worker.
"""

from collections.abc import Sequence
from enum import StrEnum

import msgspec

PREFIX = "tidegate_"

BUILD_INFO = "tidegate_build_info"
HEALTHY = "tidegate_healthy"
SINCE_PROGRESS = "tidegate_seconds_since_progress"
FAILURES = "tidegate_failures_in_a_row"
READ = "tidegate_records_read_total"
WRITTEN = "tidegate_records_written_total"
WRITTEN_BYTES = "tidegate_written_bytes_total"
TRANSACTIONS = "tidegate_transactions_total"
TRANSACTION_SECONDS = "tidegate_transaction_seconds"
BATCH_SECONDS = "tidegate_batch_seconds"
BATCH_RECORDS = "tidegate_batch_records"
BUSY_SECONDS = "tidegate_busy_seconds_total"
MODEL_SECONDS = "tidegate_model_seconds_total"
HELD = "tidegate_partitions_held"
ITEMS = "tidegate_items_total"
FOREIGN_RECORDS = "tidegate_foreign_records_total"
LATE_ANSWERS = "tidegate_late_answers_total"
ANSWERED = "tidegate_answered_total"
WINDOWS = "tidegate_windows_total"
CLOUD_REACHABLE = "tidegate_cloud_reachable"
CAPTURED = "tidegate_captured_items_total"
CAPTURING = "tidegate_capturing"
SOURCE_ENDED = "tidegate_source_ended"
FORWARDED = "tidegate_forwarded_records_total"
FORWARDED_BYTES = "tidegate_forwarded_bytes_total"
FORWARD_EXPIRED = "tidegate_forward_expired_total"
RESTARTS = "tidegate_worker_restarts_total"


class Kind(StrEnum):
    """As Prometheus has them."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


STAGES = ("edge", "settle", "cloud", "aggregate")
FORWARDERS = ("uplink", "downlink")
WRITERS = ("produce", *STAGES, *FORWARDERS)
ALL = (*WRITERS, "exporter")
"""Kinds of worker."""

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
RECORDS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0)


class Metric(msgspec.Struct, frozen=True):
    """One metric."""

    name: str
    kind: Kind
    meaning: str
    remedy: str
    """What to look at when it is not as it should be."""
    of: Sequence[str]
    """The kinds of worker that have it."""
    labels: Sequence[str] = ()
    """Beside `site` and `kind`."""
    unit: str = ""
    known: Sequence[str] = ()
    """Values of its one label that are there from the start, at 0."""
    buckets: Sequence[float] = ()


WORKER_METRICS: Sequence[Metric] = (
    Metric(BUILD_INFO, Kind.GAUGE, "1, with the version of Tidegate.", "Versions that differ: finish the update.", ALL,
           ("version",)),
    Metric(HEALTHY, Kind.GAUGE, "1 while the worker makes progress, as `/healthz` says; else 0.",
           "`/healthz` of that worker says why not; its log says more.", ALL),
    Metric(SINCE_PROGRESS, Kind.GAUGE,
           "Since records were last read or written. It grows in a worker that has nothing to do, too.",
           "With `tidegate_lag_records` above 0: see the worker's log.", ALL, unit="seconds"),
    Metric(FAILURES, Kind.GAUGE, "Failures without a success between; each is followed by a wait.",
           "The worker's log names the error: mostly a Kafka that is away or full.", ALL),
    Metric(READ, Kind.COUNTER, "Records read. What was read again after a failure counts again.",
           "No increase while `tidegate_lag_records` grows: the worker stands still.", (*STAGES, *FORWARDERS),
           ("topic",), "records"),
    Metric(WRITTEN, Kind.COUNTER, "Records written in transactions that were committed.",
           "No increase while records are read: see `tidegate_transactions_total`.", WRITERS, ("topic",), "records"),
    Metric(WRITTEN_BYTES, Kind.COUNTER, "Key, value and headers of these records.",
           "Compare with the disk and the link that it goes to.", WRITERS, unit="bytes"),
    Metric(TRANSACTIONS, Kind.COUNTER,
           "Transactions by their end: `committed`, `aborted` (done again), `fenced` (somebody else has the id).",
           "`aborted`: the Kafka it writes to is away or slow. `fenced`: two processes have one instance name.",
           WRITERS, ("result",), known=("committed", "aborted", "fenced")),
    Metric(TRANSACTION_SECONDS, Kind.HISTOGRAM, "From the begin of a transaction to its committed end.",
           "Above 0.1 s: a slow disk or link, or `edge.commit_interval` too short for it.", WRITERS, unit="seconds",
           buckets=SECONDS),
    Metric(BATCH_SECONDS, Kind.HISTOGRAM, "Work on one batch of records, the model included.",
           "Above a second: a slow model or a busy processor.", STAGES, unit="seconds", buckets=SECONDS),
    Metric(BATCH_RECORDS, Kind.HISTOGRAM, "Records of one batch.",
           "Always at the largest: the worker is behind; add one.", STAGES, unit="records", buckets=RECORDS),
    Metric(BUSY_SECONDS, Kind.COUNTER,
           "Time at work: everything but waiting for records. Its rate is the share of a worker that is used.",
           "A rate near 1: add a worker.", (*STAGES, *FORWARDERS), unit="seconds"),
    Metric(MODEL_SECONDS, Kind.COUNTER, "Time in the model, decoding left out, of what was committed.",
           "Its share of the busy seconds says whether a smaller model would help.", ("edge", "cloud"), unit="seconds"),
    Metric(HELD, Kind.GAUGE, "Partitions that the group gave this worker.",
           "0 for long: more workers than `partitions`, or a group that does not settle.", STAGES),
    Metric(ITEMS, Kind.COUNTER,
           "Items that ended here, by outcome; `reason` where they were shed or dead-lettered. After the commit.",
           "`dead_lettered`: `tidegate dlq list`. `expired`: the cloud is too slow, or the deadline too short.",
           ("produce", "edge", "settle"), ("outcome", "reason"), "items"),
    Metric(FOREIGN_RECORDS, Kind.COUNTER,
           "Records that are not ours, or of a version we do not know and without an account. They are kept aside.",
           "Find out who writes to this topic: the log names topic, partition and offset.",
           (*STAGES, *FORWARDERS), unit="records"),
    Metric(LATE_ANSWERS, Kind.COUNTER, "Answers of the cloud that came when their item had ended. They change nothing.",
           "Many: the deadline is shorter than the way to the cloud and back.", ("settle",)),
    Metric(ANSWERED, Kind.COUNTER,
           "Items that the cloud took, by what became of them: `answered`, `dead_lettered`, `expired` (passed over), "
           "or why they were kept aside without an answer.",
           "`expired`: add cloud workers. `unknown_site`: add it to `cloud.sites`.", ("cloud",), ("outcome",), "items"),
    Metric(WINDOWS, Kind.COUNTER, "Revisions of windows that were written.",
           "None while results flow: see the aggregator's lag.", ("aggregate",)),
    Metric(CLOUD_REACHABLE, Kind.GAUGE, "1 while the cloud's credit comes; 0: this worker carries on alone.",
           "Look at the downlink, the cloud workers and the link, in this order.", ("edge",)),
    Metric(CAPTURED, Kind.COUNTER, "Items that were given a seq and written.",
           "No increase while `tidegate_source_ended` is 0: see `tidegate_capturing`.", ("produce",), unit="items"),
    Metric(CAPTURING, Kind.GAUGE, "1 while the producer can write what it captures.",
           "0: the log names the cluster and the folder; its disk may be full.", ("produce",)),
    Metric(SOURCE_ENDED, Kind.GAUGE, "1 once the source has ended and all of it is written.",
           "Nothing: a source may end.", ("produce",)),
    Metric(FORWARDED, Kind.COUNTER, "Records carried to the other cluster, by the topic they come from.",
           "No increase while `tidegate_seconds_behind` grows: the other cluster is away, or the link full.",
           FORWARDERS, ("topic",), "records"),
    Metric(FORWARDED_BYTES, Kind.COUNTER, "Key, value and headers of these records.",
           "Compare with what the link can carry.", FORWARDERS, ("topic",), "bytes"),
    Metric(FORWARD_EXPIRED, Kind.COUNTER,
           "Records that were not sent: their deadline had passed, or they are for another site.",
           "Of `uplink` topics: the link is too slow for what is escalated.", FORWARDERS, ("topic",), "records"),
)  # fmt: skip

PARTITION = ("site", "kind", "group", "topic", "partition", "tier")
GROUP = ("site", "kind", "group", "tier")

LAG_METRICS: Sequence[Metric] = (
    Metric("tidegate_seconds_behind", Kind.GAUGE,
           "Age of the oldest item that the group has not done; 0 where nothing waits. A settler's counts from the "
           "deadline.", "Growing: add workers, or see the state of the partition.", ("exporter",), PARTITION,
           "seconds"),
    Metric("tidegate_lag_records", Kind.GAUGE, "Offsets not done; transaction markers count too.",
           "Seconds say more.", ("exporter",), PARTITION, "records"),
    Metric("tidegate_retention_used_ratio", Kind.GAUGE,
           "Time since the oldest record that waits was written to the topic, over the time that its cluster keeps it "
           "there (looked at every 10 s). Not there where age removes nothing, or where the exporter's login may not "
           "see settings: a site's, of topics in the cloud.",
           "At 1 it may be removed unread: see TidegateNearRetention.", ("exporter",), PARTITION),
    Metric("tidegate_partition_state", Kind.GAUGE,
           "1 for the present state: `slow`, `blocked`, `stalled` or `stopped`. A partition that is ok has no series.",
           "`tidegate lag` says which worker holds it.", ("exporter",), (*PARTITION, "state")),
    Metric("tidegate_group_seconds_behind", Kind.GAUGE, "Of the partition that is furthest behind.",
           "Add workers; see `tidegate_hot_partitions` first.", ("exporter",), GROUP, "seconds"),
    Metric("tidegate_group_lag_records", Kind.GAUGE, "Sum over its partitions.", "Seconds say more.", ("exporter",),
           GROUP, "records"),
    Metric("tidegate_group_records_per_second", Kind.GAUGE,
           "Records that come in and go out (`direction`), means over 10 s.", "In above out for long: add workers.",
           ("exporter",), (*GROUP, "direction")),
    Metric("tidegate_group_drain_seconds", Kind.GAUGE, "Until nothing waits at the present rates; +Inf: never.",
           "+Inf for long: add workers.", ("exporter",), GROUP, "seconds"),
    Metric("tidegate_group_state", Kind.GAUGE,
           "1 for the present state, 0 for the others: `ok`, `slow`, `blocked`, `stalled`, `stopped`.",
           "`tidegate status` says what it means.", ("exporter",), (*GROUP, "state")),
    Metric("tidegate_group_members", Kind.GAUGE, "Workers in the group; 1 for an active forwarder.",
           "Fewer than you run: see their logs.", ("exporter",), GROUP),
    Metric("tidegate_group_capacity_per_second", Kind.GAUGE,
           "Records that all its workers together could do; not there until one has worked.",
           "Below what comes in: add workers.", ("exporter",), GROUP),
    Metric("tidegate_hot_partitions", Kind.GAUGE, "Partitions that take in far more than the mean of their topic.",
           "More workers do not help a hot partition: spread its streams.", ("exporter",), GROUP),
    Metric("tidegate_cluster_reachable", Kind.GAUGE, "1 while the cluster of `tier` answers the exporter.",
           "Start the cluster, or look at the link.", ("exporter",), ("site", "tier")),
    Metric("tidegate_exporter_read_seconds", Kind.GAUGE, "What the last reading took.",
           "Near 2.5 s: a cluster does not answer.", ("exporter",), ("site",), "seconds"),
)  # fmt: skip
"""Of the exporter. `site`, `kind` and `group` are those of the group seen; of the cloud's groups `site` is ""."""

SUPERVISOR_METRICS: Sequence[Metric] = (
    Metric(RESTARTS, Kind.COUNTER,
           "Workers started anew by their supervisor: `ended` (by itself, or killed), `memory` (above `--memory`), "
           "`roll` (SIGHUP).", "`ended`: its log says why. `memory` again and again: the limit is below what it needs.",
           STAGES, ("site", "kind", "worker", "reason")),
)  # fmt: skip
"""Of the supervisor of `--workers`, beside the metrics of its workers."""
