"""Write the alarm rules as a Prometheus rule file.

`python -m labsupport.monitoring.prometheus > deploy/rules.yml` writes the file that Prometheus reads.

Each alarm has a recorded series, its metric, and an alert on it. Prometheus has no hysteresis and drops an alert when
data stop. The rules read its `ALERTS` series to get both.
"""

import json
from collections.abc import Iterable
from typing import Any

from labsupport.monitoring.alarms import AlertRule, spoken
from labsupport.monitoring.default_rules import DEFAULT_RULES
from labsupport.monitoring.measures import JOB

FORMATS = {"ratio": "{{ $value | humanizePercentage }}", "s": "{{ $value | humanizeDuration }}"}
GONE = {  # what no log can tell: whether there is anybody to write it
    "alert": "ServerGone",
    "expr": f'absent(up{{job="{JOB}"}} == 1)',
    "for": "1m",
    "labels": {"severity": "page"},
    "annotations": {
        "summary": "no server answers Prometheus: neither are predictions made, nor is anything else measured",
        "cure": "Start the server again; if it runs, see why /metrics cannot be reached.",
    },
}
UNJUDGED = {  # what the log cannot tell either, for it may be the log that cannot be read
    "alert": "RampUnjudged",
    "expr": f'max by (name) (rollout_unjudged_seconds{{job="{JOB}"}}) > 60',
    "for": "1m",
    "labels": {"severity": "page"},
    "annotations": {
        "summary": "a candidate answers users and its gate has not looked for {{ $value | humanizeDuration }} too long",
        "cure": "GET /rollout and the server's log say why: the log or the journal cannot be read. Pause or roll back.",
    },
}


def to_prometheus(rules: Iterable[AlertRule] = DEFAULT_RULES) -> str:
    """Return a rule file as YAML. Rules on measures that only the log has (drift) are left out, and named in a comment.

    `promtool check rules` accepts it. It also contains `ServerGone`, which fires if Prometheus reaches no server, and
    `RampUnjudged`, which fires if a ramp goes on although nothing can judge it.

    >>> dark = AlertRule("Dark", "brightness_mean", below=0.2, clear=0.25, cure="Look at the lamp.")
    >>> [line for line in to_prometheus([dark]).splitlines() if line.endswith("< 0.2")]
    ['          labsupport:brightness_mean:Dark < 0.2']
    """
    exported: list[AlertRule] = []
    left: list[AlertRule] = []
    for rule in rules:
        (exported if rule.measure.promql else left).append(rule)
    lines = [
        "# Written by python -m labsupport.monitoring.prometheus from the rules in labsupport/monitoring/default_rules.py."
    ]
    lines += [f"# {rule.name} is not here: only the server's log can tell {rule.metric}." for rule in left]
    lines += ["groups:", "  - name: labsupport", "    rules:"]
    for rule in exported:
        lines += _item({"record": _series(rule), "expr": _value(rule)})
        lines += _item(_alert(rule))
    return "\n".join([*lines, *_item(GONE), *_item(UNJUDGED)]) + "\n"


def _series(rule: AlertRule) -> str:
    """Return the name of the recorded series, by Prometheus' convention: level:metric:operation."""
    return f"{JOB}:{rule.metric}:{rule.name}"


def _value(rule: AlertRule) -> str:
    """Return the PromQL of the metric, which is empty if it was measured on too few rows."""
    measure, window = rule.measure, _duration(rule.window)
    value, counted = (text.replace("WINDOW", window) for text in (measure.promql, measure.counted))
    return value if measure.nothing is not None else f"{value}\nand on ()\n{counted} >= {rule.min_rows}"


def _alert(rule: AlertRule) -> dict[str, Any]:
    """Return the alert. It is due beyond the limit. Once it fires, it goes on up to `clear`, and while there is no data."""
    series, sign = _series(rule), "<" if rule.above is None else ">"
    firing = f'ALERTS{{alertname="{rule.name}", alertstate="firing"}}'
    lines = [
        f"{series} {sign} {float(rule.limit)}",
        f"or ({series} {sign} {float(rule.end)} and on () {firing})",
        f"or (NaN * max({firing}) unless on () {series})",
    ]
    value = FORMATS.get(rule.measure.unit, f"{{{{ $value | humanize }}}} {rule.measure.unit}".strip())
    over = f"over the last {spoken(rule.window)}, limit {rule.measure.text(rule.limit)}: {rule.measure.about}"
    return {
        "alert": rule.name,
        "expr": "\n".join(lines),
        "for": _duration(rule.hold),
        "labels": {"severity": rule.severity},
        "annotations": {"summary": f"{rule.metric} is {value} {over}", "cure": rule.cure},
    }


def _item(rule: dict[str, Any]) -> list[str]:
    """Return one rule as an item of the list. Texts are in JSON's quotes, which YAML accepts, too."""
    lines = []
    for name, value in rule.items():
        if isinstance(value, dict):
            lines += [f"{name}:", *(f"  {key}: {json.dumps(text)}" for key, text in value.items())]
        elif name == "expr":
            lines += ["expr: |", *(f"  {line}" for line in value.splitlines())]
        else:
            lines.append(f"{name}: {value}")
    return [f"      {'-' if not number else ' '} {line}" for number, line in enumerate(lines)]


def _duration(seconds: float) -> str:
    """Return a duration in Prometheus' format, which has no fractions.

    >>> _duration(300), _duration(90), _duration(7.5), _duration(0)
    ('5m', '90s', '7500ms', '0s')
    """
    if seconds % 60 == 0 and seconds:
        return f"{seconds / 60:.0f}m"
    return f"{seconds:.0f}s" if seconds % 1 == 0 else f"{1000 * seconds:.0f}ms"


if __name__ == "__main__":
    print(to_prometheus(), end="")
