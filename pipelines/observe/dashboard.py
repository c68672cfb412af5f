"""The Grafana dashboard, as a typed list of panels; `deploy/grafana/dashboards/tidegate.json` is written from it.

Constraints
- Every panel asks for metrics of `metrics.py` only, and has data in a healthy run unless it says that it may be empty.
- `$site` is a choice of the viewer's; the cloud's workers serve all sites and have `site=""`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

UID = "tidegate"
RATE = "[$__rate_interval]"
"""Grafana's: at least four scrapes."""
COLUMNS, HEIGHT = 24, 8
STAT_HEIGHT = 4
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_SITE = 'site=~"$site|"'


class Query(msgspec.Struct, frozen=True):
    """One line, or several, of a panel."""

    expr: str
    legend: str = ""
    may_be_empty: bool = False
    """There is nothing to show while all is well."""


class Panel(msgspec.Struct, frozen=True):
    """One panel."""

    title: str
    description: str
    queries: Sequence[Query]
    unit: str = "short"
    """As Grafana names them."""
    stat: bool = False
    """One number in place of lines."""
    red_from: float | None = None
    """A number is red from here on."""
    width: int = 8
    """Of `COLUMNS`."""
    stacked: bool = False


class Row(msgspec.Struct, frozen=True):
    """Panels that belong together, under a heading."""

    title: str
    panels: Sequence[Panel]


def _rate(metric: str, by: str, match: str = _SITE) -> str:
    return f"sum by ({by}) (rate({metric}{{{match}}}{RATE}))"


def _quantile(share: float, metric: str) -> str:
    return f"histogram_quantile({share:g}, {_rate(metric + '_bucket', 'kind, le')})"


def _highest(metric: str) -> str:
    return f"max by (kind) ({metric}{{{_SITE}}})"


ROWS: Sequence[Row] = (
    Row("Is all well?", (
        Panel("Alerts", "Firing now; docs/alerts.md has a remedy for each.",
              [Query('count(ALERTS{alertstate="firing", alertname=~"Tidegate.+"}) or vector(0)')],
              stat=True, red_from=1, width=4),
        Panel("Workers without progress", "`/healthz` of each says why.",
              [Query(f"count(tidegate_healthy{{{_SITE}}} == 0) or vector(0)")], stat=True, red_from=1, width=4),
        Panel("Seconds behind", "Of the group that is furthest behind.",
              [Query(f"max(tidegate_group_seconds_behind{{{_SITE}}})")], "s", stat=True, red_from=30, width=4),
        Panel("Captured", "Items a second.", [Query(f"sum(rate(tidegate_captured_items_total{{{_SITE}}}{RATE}))")],
              "ops", stat=True, width=4),
        Panel("Settled", "Items a second that have their outcome.",
              [Query(f"sum(rate(tidegate_items_total{{{_SITE}}}{RATE}))")], "ops", stat=True, width=4),
        Panel("Sites without the cloud", "They answer alone.",
              [Query(f"count(max by (site) (tidegate_cloud_reachable{{{_SITE}}}) == 0) or vector(0)")],
              stat=True, red_from=1, width=4),
    )),
    Row("Items", (
        Panel("Outcomes", "Items a second, by how they ended. They add up to what was captured.",
              [Query(_rate("tidegate_items_total", "outcome"), "{{outcome}}")], "ops", stacked=True),
        Panel("Shed and dead-lettered", "Items a second, by reason.",
              [Query(_rate("tidegate_items_total", "outcome, reason", f'reason!="", {_SITE}'),
                     "{{outcome}} {{reason}}", may_be_empty=True),
               Query(_rate("tidegate_foreign_records_total", "kind") + " > 0", "foreign, found by {{kind}}",
                     may_be_empty=True)], "ops"),
        Panel("Asked of the cloud", "What cloud workers took, by what became of it, and answers that came too late.",
              [Query(_rate("tidegate_answered_total", "outcome"), "{{outcome}}"),
               Query(f"sum(rate(tidegate_late_answers_total{{{_SITE}}}{RATE}))", "late")], "ops"),
    )),
    Row("Behind", (
        Panel("Seconds behind", "Age of the oldest item that waits, by group; a settler's counts from the deadline.",
              [Query(_highest("tidegate_group_seconds_behind"), "{{kind}}")], "s"),
        Panel("Worst partitions", "The ten that are furthest behind.",
              [Query(f"topk(10, tidegate_seconds_behind{{{_SITE}}})", "{{kind}} {{topic}}[{{partition}}]")], "s"),
        Panel("Not as they should be", "Partitions by state; `tidegate lag` names their owners.",
              [Query(f"count by (kind, state) (tidegate_partition_state{{{_SITE}}} == 1)", "{{kind}} {{state}}",
                     may_be_empty=True),
               Query(_highest("tidegate_hot_partitions") + " > 0", "{{kind}} hot", may_be_empty=True)]),
        Panel("In and out", "Records a second of each group.",
              [Query(f"sum by (kind, direction) (tidegate_group_records_per_second{{{_SITE}}})",
                     "{{kind}} {{direction}}")], "ops"),
        Panel("Used of what the workers could do",
              "What comes in over the capacity that the workers measure themselves. Above 1 a group falls behind.",
              [Query(f'sum by (kind) (tidegate_group_records_per_second{{direction="in", {_SITE}}})'
                     f" / sum by (kind) (tidegate_group_capacity_per_second{{{_SITE}}})", "{{kind}}")],
              "percentunit"),
        Panel("Used of the retention",
              "For how long the oldest record has waited, over how long its topic keeps it. At 100% it may be removed.",
              [Query(f"max by (kind, topic) (tidegate_retention_used_ratio{{{_SITE}}})", "{{kind}} {{topic}}")],
              "percentunit"),
    )),
    Row("Workers", (
        Panel("Workers", "In each group.", [Query(f"sum by (kind) (tidegate_group_members{{{_SITE}}})", "{{kind}}")]),
        Panel("Busy", "Share of its time that a worker works; near 1: add one.",
              [Query(_rate("tidegate_busy_seconds_total", "kind, instance, worker"),
                     "{{kind}} {{instance}} {{worker}}")], "percentunit"),
        Panel("In the model", "Share of the time of a worker.",
              [Query(_rate("tidegate_model_seconds_total", "kind, instance, worker"),
                     "{{kind}} {{instance}} {{worker}}")], "percentunit"),
        Panel("A batch takes", "The model included; 95 of 100 take less.",
              [Query(_quantile(0.95, "tidegate_batch_seconds"), "{{kind}}")], "s"),
        Panel("A transaction takes", "From begin to committed; 95 of 100 take less.",
              [Query(_quantile(0.95, "tidegate_transaction_seconds"), "{{kind}}")], "s"),
        Panel("Trouble", "Transactions that were not committed, a second, and failures in a row.",
              [Query(_rate("tidegate_transactions_total", "kind, result", f'result!="committed", {_SITE}'),
                     "{{kind}} {{result}}"),
               Query(_highest("tidegate_failures_in_a_row"), "{{kind}} in a row")]),
    )),
    Row("The link, and the clusters", (
        Panel("Bytes between the tiers", "Key, value and headers, by the topic they come from.",
              [Query(_rate("tidegate_forwarded_bytes_total", "topic"), "{{topic}}")], "Bps"),
        Panel("Not sent", "Records whose deadline had passed, or that were for another site.",
              [Query(_rate("tidegate_forward_expired_total", "topic"), "{{topic}}")], "ops"),
        Panel("Clusters", "1: it answers the exporter.",
              [Query(f"min by (tier, instance) (tidegate_cluster_reachable{{{_SITE}}})",
                     "{{tier}} from {{instance}}")]),
    )),
)  # fmt: skip


def dashboard(rows: Sequence[Row] = ROWS) -> Mapping[str, Any]:
    """What Grafana reads."""
    panels: list[dict[str, Any]] = []
    y = 0
    for row in rows:
        panels.append({"type": "row", "title": row.title, "collapsed": False, "gridPos": _place(0, y, COLUMNS, 1)})
        x, y = 0, y + 1
        for panel in row.panels:
            height = STAT_HEIGHT if panel.stat else HEIGHT
            if x + panel.width > COLUMNS:
                x, y = 0, y + height
            panels.append(_panel(panel) | {"gridPos": _place(x, y, panel.width, height)})
            x += panel.width
        y += height
    return {
        "uid": UID,
        "title": "Tidegate",
        "tags": ["tidegate"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "timezone": "browser",
        "templating": {"list": [_source_choice(), _site_choice()]},
        "annotations": {"list": [_alerts_shown()]},
        "panels": [panel | {"id": number} for number, panel in enumerate(panels, start=1)],
    }


def _panel(panel: Panel) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    if panel.red_from is not None:
        steps.append({"color": "red", "value": panel.red_from})
    custom = {"fillOpacity": 30 if panel.stacked else 0, "stacking": {"mode": "normal" if panel.stacked else "none"}}
    return {
        "type": "stat" if panel.stat else "timeseries",
        "title": panel.title,
        "description": panel.description,
        "datasource": _SOURCE,
        "fieldConfig": {
            "defaults": {
                "unit": panel.unit,
                "min": 0,
                "thresholds": {"mode": "absolute", "steps": steps},
                **({} if panel.stat else {"custom": custom}),
            },
            "overrides": [],
        },
        "options": {"colorMode": "background"} if panel.stat else {"tooltip": {"mode": "multi", "sort": "desc"}},
        "targets": [
            {"refId": chr(ord("A") + number), "datasource": _SOURCE, "expr": query.expr, "legendFormat": query.legend}
            for number, query in enumerate(panel.queries)
        ],
    }


def _place(x: int, y: int, width: int, height: int) -> dict[str, int]:
    return {"x": x, "y": y, "w": width, "h": height}


def _source_choice() -> dict[str, Any]:
    return {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}


def _site_choice() -> dict[str, Any]:
    query = 'label_values(tidegate_build_info{site!=""}, site)'
    return {
        "name": "site",
        "label": "Site",
        "type": "query",
        "datasource": _SOURCE,
        "definition": query,
        "query": {"query": query, "refId": "site"},
        "includeAll": True,
        "multi": True,
        "refresh": 2,
        "current": {"text": ["All"], "value": ["$__all"]},
    }


def _alerts_shown() -> dict[str, Any]:
    return {
        "name": "Alerts",
        "datasource": _SOURCE,
        "enable": True,
        "iconColor": "red",
        "expr": 'ALERTS{alertstate="firing", alertname=~"Tidegate.+"}',
        "titleFormat": "{{alertname}}",
        "step": "10s",
    }
