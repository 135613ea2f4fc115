"""Same charts and limits as `monitoring.dashboard`, but with Prometheus queries.

There is no drift chart, because drift needs the log. Adds charts of the process.

`python -m labsupport.monitoring.grafana > deploy/grafana-dashboard.json` writes the file that Grafana imports.
"""

import json
from collections.abc import Iterable
from typing import Any

from labsupport.monitoring.default_rules import DEFAULT_RULES
from labsupport.monitoring.measures import JOB, MEASURES, Measure
from labsupport.monitoring.panels import NAMES, PANELS, Panel

UNITS = {"ratio": "percentunit", "s": "s", "1/s": "reqps", "bytes": "bytes"}  # ours -> Grafana's
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
WIDE, CHART, TALL, STAT = 24, 8, 7, 4  # Grafana's grid has 24 columns
ALARM = "#aa3377"
UP = f'max(up{{job="{JOB}"}})'
FIRING = 'ALERTS{alertstate="firing"}'
# a version that answers now and did not a minute ago
ROLLED_OUT = (
    f'count by (name, version) (model_info{{job="{JOB}"}}) unless '
    f'count by (name, version) (model_info{{job="{JOB}"}} offset 1m)'
)
PROCESS = (  # title, unit, {legend: expression}
    ("under way", "", {"requests": "sum(http_requests_in_progress{JOB})", "places": "sum(slots_limit{JOB})"}),
    ("memory", "bytes", {"of all workers": "sum(process_resident_memory_bytes{JOB})"}),
    ("not written down", "1/s", {"rows": "sum(rate(log_rows_dropped_total{JOB}[5m]))"}),
)


def to_grafana() -> str:
    """Return the dashboard as JSON, for Grafana 9 or later: Dashboards, New, Import. It asks for the data source there.

    >>> [panel["title"] for panel in json.loads(to_grafana())["panels"] if panel["type"] == "row"]
    ['Software', 'Input', 'Output', 'User', 'Process']
    """
    panels = [_placed(number, *panel) for number, panel in enumerate(_panels(), 1)]
    source = {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus"}
    marks = [
        {"name": "Rollouts", "expr": ROLLED_OUT, "textFormat": "{{version}} answers", "iconColor": "#4477aa"},
        {"name": "Alarms", "expr": FIRING, "textFormat": "{{alertname}} fires", "iconColor": ALARM},
    ]
    whole = {
        "uid": "labsupport",
        "title": "labsupport: object detection",
        "schemaVersion": 37,
        "refresh": "15s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [source]},
        "annotations": {"list": [{**mark, "datasource": SOURCE, "enable": True} for mark in marks]},
        "panels": panels,
    }
    return json.dumps(whole, indent=2) + "\n"


def window(measure: Measure) -> str:
    """Return the window of the rule on a measure. Without a rule it is a minute for requests, and five for anything else.

    >>> window(MEASURES["wrong_ratio"]), window(MEASURES["requests_per_second"])
    ('600s', '60s')
    """
    windows = [rule.window for rule in DEFAULT_RULES if rule.metric == measure.name]
    return f"{windows[0] if windows else 60 if measure.unit == '1/s' else 300:.0f}s"


def query(measure: Measure) -> str:
    return measure.promql.replace("WINDOW", window(measure))


def _panels() -> Iterable[tuple[int, int, int, int, dict[str, Any]]]:
    """Yield each panel with its place: left, top, width, height."""
    for place, stat in enumerate(_stats()):
        yield (place * STAT, 0, STAT, 4, stat)
    groups = [(group, [_chart(panel) for panel in panels]) for group, panels in PANELS.items() if group != "drift"]
    top = 4
    for group, charts in [*groups, ("process", [_process(*one) for one in PROCESS])]:
        yield (0, top, WIDE, 1, {"type": "row", "title": group.capitalize(), "collapsed": False, "panels": []})
        for place, chart in enumerate(charts):
            yield (place * CHART, top + 1, CHART, TALL, chart)
        top += 1 + TALL


def _placed(number: int, left: int, top: int, width: int, height: int, panel: dict[str, Any]) -> dict[str, Any]:
    return {"id": number, "gridPos": {"x": left, "y": top, "w": width, "h": height}, **panel}


def _stats() -> Iterable[dict[str, Any]]:
    answering = f'count by (version) (model_info{{job="{JOB}"}})'
    yield _stat("up", UP, mappings={"0": {"text": "down", "color": ALARM}, "1": {"text": "up"}})
    yield _stat("who answers", answering, legend="{{version}}", options={"textMode": "name"})
    for title, name in (("requests", "requests_per_second"), ("failed", "error_ratio"), ("p95 latency", "latency_p95")):
        yield _stat(title, query(MEASURES[name]), MEASURES[name].unit)
    yield _stat("alarms firing", f"count({FIRING}) or vector(0)")


def _stat(
    title: str,
    expr: str,
    unit: str = "",
    legend: str = "",
    options: dict[str, Any] | None = None,
    mappings: dict[str, Any] | None = None,
) -> dict[str, Any]:
    shown = {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "none", "graphMode": "none", **(options or {})}
    defaults: dict[str, Any] = {"unit": UNITS.get(unit, "short"), "decimals": None if unit else 0}
    if mappings:
        defaults["mappings"] = [{"type": "value", "options": mappings}]
    targets = [_target(expr, legend, instant=True)]
    return {**_panel("stat", title, targets), "options": shown, "fieldConfig": {"defaults": defaults, "overrides": []}}


def _chart(panel: Panel) -> dict[str, Any]:
    targets = [_target(query(one), NAMES.get(one.name, panel.title)) for one in panel.measures]
    limits = [rule for rule in DEFAULT_RULES if rule.metric in [one.name for one in panel.measures]]
    chart = _lines(panel.title, targets, panel.measures[0].unit, "; ".join(one.about for one in panel.measures))
    if limits:
        chart["fieldConfig"]["defaults"]["thresholds"] = _steps(limits[0].limit)
        chart["fieldConfig"]["defaults"]["custom"]["thresholdsStyle"] = {"mode": "dashed"}
    return chart


def _process(title: str, unit: str, queries: dict[str, str]) -> dict[str, Any]:
    mine = f'{{job="{JOB}"}}'
    return _lines(title, [_target(expr.replace("{JOB}", mine), name) for name, expr in queries.items()], unit)


def _lines(title: str, targets: list[dict[str, Any]], unit: str, about: str = "") -> dict[str, Any]:
    defaults = {"unit": UNITS.get(unit, "short"), "min": 0, "custom": {"lineWidth": 2, "spanNulls": False}}
    options = {"legend": {"showLegend": len(targets) > 1}, "tooltip": {"mode": "multi"}}
    config = {"defaults": defaults, "overrides": []}
    return {**_panel("timeseries", title, targets), "description": about, "options": options, "fieldConfig": config}


def _panel(kind: str, title: str, targets: list[dict[str, Any]]) -> dict[str, Any]:
    lettered = [{"refId": chr(ord("A") + number), **target} for number, target in enumerate(targets)]
    return {"type": kind, "title": title, "datasource": SOURCE, "targets": lettered}


def _target(expr: str, legend: str, instant: bool = False) -> dict[str, Any]:
    return {"expr": expr, "legendFormat": legend, "datasource": SOURCE, "instant": instant, "range": not instant}


def _steps(limit: float) -> dict[str, Any]:
    """Return the setting that draws a line at the limit."""
    return {"mode": "absolute", "steps": [{"color": "transparent", "value": None}, {"color": ALARM, "value": limit}]}


if __name__ == "__main__":
    print(to_grafana(), end="")
