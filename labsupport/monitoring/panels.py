"""Define the dashboard's charts and their order: software, input, output, users, drift.

The notebook, the page that the server shows, and Grafana use the same definition.
"""

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from labsupport.monitoring.measures import JOB, MEASURES, Columns, Measure


class Panel(NamedTuple):
    """One small chart with one or two lines."""

    title: str
    measures: tuple[Measure, ...]


def _spoke(rows: Columns) -> np.ndarray:
    """Return which answers got any feedback from a user."""
    spoke = np.isfinite(rows["correct"]) | (rows["retry"] == 1)
    return np.where(rows["status"] == 200, spoke, np.nan)


MEDIAN = replace(
    MEASURES["latency_p95"],
    name="latency_p50",
    promql=MEASURES["latency_p95"].promql.replace("0.95", "0.5"),
    summary=lambda values, window: float(np.median(values)),
)
SIZE = Measure(
    *("megapixels_mean", "width times height of a picture", "MP", "input", ("width", "height")),
    lambda rows: rows["width"] * rows["height"] / 1e6,
    promql=f'sum(rate(input_image_pixels_sum{{job="{JOB}"}}[WINDOW])) / 1e6 / '
    f'sum(rate(input_image_pixels_count{{job="{JOB}"}}[WINDOW]))',
    counted=f'sum(increase(input_image_pixels_count{{job="{JOB}"}}[WINDOW]))',
)
SPOKEN = Measure(
    *("feedback_ratio", "answers of which users said something", "ratio", "user"),
    *(("status", "correct", "retry"), _spoke),
    promql=f'sum(rate(feedback_answers_total{{job="{JOB}"}}[WINDOW])) / sum(rate(predictions_total{{job="{JOB}"}}[WINDOW]))',
    counted=f'sum(increase(predictions_total{{job="{JOB}"}}[WINDOW]))',
)
PANELS = {  # a dashboard's rows
    "software": (
        Panel("requests", (MEASURES["requests_per_second"],)),
        Panel("unanswered", (MEASURES["error_ratio"], MEASURES["refused_ratio"])),
        Panel("latency", (MEASURES["latency_p95"], MEDIAN)),
    ),
    "input": (
        Panel("brightness", (MEASURES["brightness_mean"],)),
        Panel("picture size", (SIZE,)),
        Panel("undecodable", (MEASURES["undecodable_ratio"],)),
    ),
    "output": (
        Panel("objects a picture", (MEASURES["detections_mean"],)),
        Panel("nothing found", (MEASURES["empty_ratio"],)),
        Panel("confidence", (MEASURES["confidence_mean"],)),
    ),
    "user": (
        Panel("wrong or corrected", (MEASURES["wrong_ratio"],)),
        Panel("asked again", (MEASURES["retry_ratio"],)),
        Panel("users who spoke", (SPOKEN,)),
    ),
    "drift": (Panel("drift from the reference", (MEASURES["drift"],)),),
}
NAMES = {  # what a line is called where two share a chart
    **{"error_ratio": "failed", "refused_ratio": "refused", "latency_p95": "p95", "latency_p50": "p50"},
}
LOOKED_AT = tuple(measure for panels in PANELS.values() for panel in panels for measure in panel.measures)
