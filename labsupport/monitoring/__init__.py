"""Monitor the running service: measures, alarms, learned limits, the dashboard, Prometheus and Grafana.

`PredictionLog` is defined in `labsupport.log` and can also be imported from here.
"""

from labsupport.log import PredictionLog
from labsupport.monitoring.alarms import Alarms, AlertRule
from labsupport.monitoring.counters import CONTENT_TYPE, Metrics, Watch
from labsupport.monitoring.dashboard_data import MINUTES, Live
from labsupport.monitoring.default_rules import DEFAULT_RULES
from labsupport.monitoring.learned_limits import WEEK, learned
from labsupport.monitoring.measures import MEASURES
from labsupport.monitoring.notebook_dashboard import dashboard

__all__ = [
    "CONTENT_TYPE",
    "DEFAULT_RULES",
    "MEASURES",
    "MINUTES",
    "WEEK",
    "Alarms",
    "AlertRule",
    "Live",
    "Metrics",
    "PredictionLog",
    "Watch",
    "dashboard",
    "learned",
]
