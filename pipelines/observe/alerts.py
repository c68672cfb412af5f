"""Every alert, as one typed list; `deploy/prometheus/rules.yml` and `docs/alerts.md` are written from it.

Constraints
- An alert is something that a person must do; each says what. What mends itself within its `for_s` raises none.
- Thresholds stand in the expressions; they need no knowledge of a pipeline.
"""

from collections.abc import Sequence
from enum import StrEnum

import msgspec
import yaml

JOB = "tidegate"
"""What the name of the scrape job of workers and exporters contains: see `deploy/prometheus/prometheus.yml`."""

BEHIND_S = 30
"""So far may a group be behind, and longer if it drains."""
DRAIN_S = 600
"""What takes longer to drain counts as not draining."""
DEAD_LETTERS_MOST, DEAD_LETTERS_S = 10, 600
"""More than these in so long. A damaged picture now and then is no alert."""
RETENTION_SHARE = 0.5
"""Of its topic's retention that what waits may be old: half of it is left for whoever is called."""
LATE_SHARE, LATE_MOST, LATE_S = 0.1, 10, 120
"""More than this share of the answers in so long, and more than so many. A burst after an outage is over before."""
FENCED_MOST = 3
"""In five minutes. A worker that was stopped for long is fenced once, and goes on."""


class Severity(StrEnum):
    """How soon somebody must look."""

    CRITICAL = "critical"
    """Now: items are not captured, not answered, or wait without end."""
    WARNING = "warning"
    """Today: it goes on, with less than it should have."""


class Alert(msgspec.Struct, frozen=True):
    """One alert."""

    name: str
    severity: Severity
    expr: str
    """PromQL; its labels are those of the alert."""
    for_s: int
    """So long must it hold."""
    summary: str
    """One line, a Prometheus template: which one it is."""
    meaning: str
    remedy: str


_CRITICAL, _WARNING = Severity.CRITICAL, Severity.WARNING
_OF_SITE = "{{ with $labels.site }} of site {{ . }}{{ end }}"
_DEAD = 'tidegate_items_total{outcome="dead_lettered"}'
_LATE = f"rate(tidegate_late_answers_total[{LATE_S}s])"
_IN_TIME = f'rate(tidegate_items_total{{kind="settle",outcome="answered_cloud"}}[{LATE_S}s])'


def _grown(counter: str, seconds: int) -> str:
    """What a counter grew by that begins with its first value: `increase` starts behind that one.

    So a series that is new counts whole, but not where Prometheus itself is newer than the process.
    """
    return (
        f"({counter} unless {counter} offset {seconds}s)"
        f" and on (instance) (up offset {seconds}s or process_start_time_seconds > time() - {seconds})"
        f" or increase({counter}[{seconds}s])"
    )


ALERTS: Sequence[Alert] = (
    Alert(
        "TidegateWorkerDown", _CRITICAL, f'up{{job=~".*{JOB}.*"}} == 0', 60,
        "{{ $labels.instance }} does not answer Prometheus",
        "A process that Prometheus knows of does not answer: it is dead, stopped, or on a machine that is away. Others "
        "of its kind take over what it held; if it was the only one, its work waits.",
        "See whether it runs (`docker compose ps`, `kubectl get pods`) and read the end of its log. Start it again; "
        "nothing is lost or doubled by that. Was it taken away on purpose, take it out of Prometheus' targets.",
    ),
    Alert(
        "TidegateWorkersGone", _CRITICAL,
        'group by (site, kind) (last_over_time(tidegate_build_info{kind!="produce"}[1h]))'
        " unless on (site, kind) group by (site, kind) (tidegate_build_info)", 60,
        "no {{ $labels.kind }} worker" + _OF_SITE + " runs any more",
        "Within the last hour there was a worker of this kind, and now there is none. What it does is not done. "
        "A producer may come to its end, so it does not count.",
        "Start one: `docker compose up -d`, or its command on its machine. If it ends at once, the last line of its "
        "log says what to mend. Did you take it away for good, the alert ends within the hour.",
    ),
    Alert(
        "TidegateWorkerUnhealthy", _CRITICAL, "tidegate_healthy == 0", 30,
        "{{ $labels.kind }} worker {{ with $labels.worker }}{{ . }} at {{ end }}{{ $labels.instance }}" + _OF_SITE
        + " makes no progress",
        "The worker runs and answers, but its loop stands still, it has failed for longer than 30 s, or records wait "
        "that it does not read.",
        "`curl http://INSTANCE/healthz` says which. It failed: the line names the error, mostly a Kafka that is away "
        "or full; mend that, the worker goes on by itself. It stands still or does not read: keep its log, then start "
        "it again.",
    ),
    Alert(
        "TidegateClusterAway", _CRITICAL, "tidegate_cluster_reachable == 0", 30,
        "the {{ $labels.tier }} cluster does not answer {{ $labels.instance }}",
        "The exporter gets no answer from this Kafka. The edge's away: nothing is captured. The cloud's away, seen "
        "from a site: the site answers alone, and what is for the cloud waits.",
        "`tidegate status` names the address. See whether the broker runs and whether its disk has room, then the "
        "network between. After it is back nothing else is to be done.",
    ),
    Alert(
        "TidegateCloudAway", _WARNING,
        "max by (site) (tidegate_cloud_reachable) == 0"
        ' and on (site) group by (site) (last_over_time(tidegate_build_info{kind="downlink"}[1h]))', 60,
        "site {{ $labels.site }} carries on without the cloud",
        "No edge worker of the site hears the cloud's credit. Items are answered by the edge's model, also those that "
        "it is unsure of.",
        "Look, in this order, at TidegateClusterAway (the link, or the cloud's Kafka), at the site's downlink, and at "
        "the cloud workers: one must run to give credit.",
    ),
    Alert(
        "TidegateGroupStopped", _CRITICAL, 'tidegate_group_state{state="stopped"} == 1', 30,
        "nobody works on what waits for {{ $labels.kind }}" + _OF_SITE,
        "Records wait in at least one partition that no worker of the group holds.",
        "Start a worker of this kind. If some run: `tidegate lag --group KIND` shows the partitions without an owner; "
        "read the workers' logs for why they do not join the group.",
    ),
    Alert(
        "TidegatePartitionStalled", _CRITICAL, 'tidegate_partition_state{state="stalled"} == 1', 30,
        "{{ $labels.topic }}[{{ $labels.partition }}] of {{ $labels.kind }}" + _OF_SITE + " stands still",
        "A worker holds the partition, records wait, and none was done for more than 10 s.",
        "`tidegate lag --group KIND` names the owner. Read its log; with nothing there, start it again: another takes "
        "over and goes on at the same record. Of the uplink: the cloud's Kafka may refuse or be away.",
    ),
    Alert(
        "TidegateTransactionOpen", _CRITICAL, 'tidegate_partition_state{state="blocked"} == 1', 30,
        "an open transaction hides {{ $labels.topic }}[{{ $labels.partition }}] from {{ $labels.kind }}" + _OF_SITE,
        "A transaction was begun, written and never ended, so no reader may go past it. Our writers' end by themselves "
        "within seconds: it is somebody else's, or the broker left one behind.",
        "`kafka-transactions.sh --bootstrap-server ADDRESS find-hanging --broker-id ID` finds it; end its writer, or "
        "`kafka-transactions.sh ... abort` it as printed. docs/broker.md has the settings that avoid it.",
    ),
    Alert(
        "TidegateGroupBehind", _WARNING,
        f"tidegate_group_seconds_behind > {BEHIND_S} and tidegate_group_drain_seconds > {DRAIN_S}", 60,
        "{{ $labels.kind }}" + _OF_SITE + " is {{ $value | humanizeDuration }} behind and does not catch up",
        f"The oldest item that waits for this group is older than {BEHIND_S} s, and at the present rates that does not "
        f"end within {DRAIN_S // 60} minutes.",
        "`tidegate scale advise` says how many workers it takes, and where more do not help: a hot partition, or too "
        "few partitions. Of the uplink it is the link: let less through (`routing`), or wait. TidegateGroupStopped, "
        "TidegatePartitionStalled and TidegateTransactionOpen come first where they fire too.",
    ),
    Alert(
        "TidegateNearRetention", _CRITICAL,
        f"max by (site, kind, topic, tier) (tidegate_retention_used_ratio) > {RETENTION_SHARE}", 60,
        "what waits for {{ $labels.kind }}" + _OF_SITE
        + " in {{ $labels.topic }} is {{ $value | humanizePercentage }} of the retention old",
        f"The oldest record that this group has not done has lain in the topic for more than {RETENTION_SHARE:.0%} of "
        "the time that Kafka keeps it. At 100% Kafka may remove it unread: an item is then lost, and the audit names "
        "it; a result never reaches the cloud. Its reader ends, since its place is gone.",
        "`tidegate lag --group KIND` says who is behind; TidegateGroupStopped, TidegatePartitionStalled, "
        "TidegateClusterAway and TidegateGroupBehind have the remedy for it. If that takes longer than what is left: "
        "lengthen `retention` in the pipeline file and `tidegate topics apply`, which needs no restart, with a disk "
        "that holds it.",
    ),
    Alert(
        "TidegateNotCapturing", _CRITICAL, "tidegate_capturing == 0", 15,
        "the producer {{ $labels.instance }} of site {{ $labels.site }} captures nothing",
        "The edge's Kafka takes no records, so the producer takes no frames: what a camera shows meanwhile is never "
        "captured.",
        "The producer's log (`not_capturing`) names the cluster and, where its disk is full, the folder. Make room or "
        "start that Kafka again; capturing goes on by itself.",
    ),
    Alert(
        "TidegateDeadLetters", _WARNING,
        f"sum by (site, kind, reason) ({_grown(_DEAD, DEAD_LETTERS_S)}) > {DEAD_LETTERS_MOST}", 0,
        "{{ $value | humanize }} items of site {{ $labels.site }} dead-lettered in ten minutes: {{ $labels.reason }}",
        f"More than {DEAD_LETTERS_MOST} items in ten minutes could not be processed, for one reason. They are "
        "accounted for and kept in `<site>.dead_letters`.",
        "`tidegate dlq list` shows them, `tidegate dlq show ID` one with its payload. `undecodable`: a camera or its "
        "encoder; `wrong_shape`: a source that does not fit the model. Once it is mended, `tidegate dlq retry` gives "
        "them a second chance.",
    ),
    Alert(
        "TidegateLateAnswers", _WARNING,
        f"sum by (site) ({_LATE}) / sum by (site) ({_LATE} or {_IN_TIME}) > {LATE_SHARE}"
        f" and sum by (site) (increase(tidegate_late_answers_total[{LATE_S}s])) > {LATE_MOST}", 180,
        "{{ $value | humanizePercentage }} of the cloud's answers come too late for site {{ $labels.site }}",
        f"For minutes more than {LATE_SHARE:.0%} of the answers have come when their item had ended without them. Link "
        "and cloud worked for nothing: these items ended `answered_edge_fallback` or `expired`.",
        "`tidegate lag` shows where the time goes: uplink, cloud or downlink. Cloud workers that are behind: "
        "`tidegate scale advise`. Else the deadline is shorter than the way there and back: lengthen `deadline`, or "
        "send less to the cloud (`routing`).",
    ),
    Alert(
        "TidegateForeignRecords", _WARNING, "increase(tidegate_foreign_records_total[10m]) > 0", 0,
        "{{ $labels.kind }}" + _OF_SITE + " found records that are not Tidegate's",
        "Somebody else writes to a topic of ours, or a newer version does. The records are kept aside; they are no "
        "items.",
        "`tidegate dlq list --reason foreign` has them, `dlq show ID` the topic, partition and offset that one came "
        "from. Stop who writes there, or finish the update; ACLs (`tidegate site add`) keep others out.",
    ),
    Alert(
        "TidegateFenced", _CRITICAL,
        f'sum by (site, kind) (increase(tidegate_transactions_total{{result="fenced"}}[5m])) > {FENCED_MOST}', 0,
        "{{ $labels.kind }} workers" + _OF_SITE + " fence each other",
        "Two processes write under one transactional id and end each other's transactions, again and again. Nothing is "
        "lost or doubled, and little is done.",
        "Give every process an `--instance` of its own, or none. Two supervisors (or two compose projects) on one site "
        "have the same effect: stop one.",
    ),
)  # fmt: skip


def rules(alerts: Sequence[Alert] = ALERTS, faster: float = 1) -> str:
    """The rule file. `faster` divides how long alerts must hold, for tests."""
    return yaml.safe_dump(
        {"groups": [{"name": "tidegate", "rules": [_rule(alert, faster) for alert in alerts]}]},
        sort_keys=False,
        width=120,
    )


def _rule(alert: Alert, faster: float) -> dict[str, object]:
    return {
        "alert": alert.name,
        "expr": alert.expr,
        "for": f"{alert.for_s}s" if faster == 1 else f"{alert.for_s * 1000 / faster:.0f}ms",
        "labels": {"severity": str(alert.severity)},
        "annotations": {
            "summary": alert.summary,
            "description": alert.meaning,
            "remedy": alert.remedy,
            "runbook": f"docs/alerts.md#{alert.name.lower()}",
        },
    }
