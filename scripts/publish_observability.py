"""Write what follows from the typed lists of `pipelines/observe`: alert rules, the dashboard, pages in `docs/`."""

import json
import textwrap
from pathlib import Path

from pipelines.observe.alerts import ALERTS, Alert, rules
from pipelines.observe.dashboard import dashboard

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- written by scripts/publish_observability.py -->", "<!-- end -->"


def documents() -> dict[str, str]:
    """Path and text of each file. Of pages, what stands between the marks; the rest is written by hand."""
    return {
        "deploy/prometheus/rules.yml": f"# Written from pipelines/observe/alerts.py.\n{rules()}",
        "deploy/grafana/dashboards/tidegate.json": json.dumps(dashboard(), indent=2) + "\n",
        "docs/alerts.md": _between(ROOT / "docs" / "alerts.md", "\n\n".join(map(_alert, ALERTS))),
    }


def _alert(alert: Alert) -> str:
    held = f", held for {alert.for_s} s" if alert.for_s else ""
    return (
        f"### {alert.name}\n\n{alert.severity}{held}\n\n{_filled(alert.meaning)}\n\n"
        f"{_filled(f'**What to do.** {alert.remedy}')}\n\n```promql\n{alert.expr}\n```"
    )


def _filled(text: str) -> str:
    return textwrap.fill(text, 140, break_long_words=False, break_on_hyphens=False)


def _between(page: Path, text: str) -> str:
    head, begin, rest = page.read_text("utf-8").partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{page}: no place marked by '{BEGIN}' and '{END}'")
    return f"{head}{begin}\n\n{text}\n\n{end}{tail}"


if __name__ == "__main__":
    for name, text in documents().items():
        path = ROOT / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
