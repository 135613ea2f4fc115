"""Run stages one after another, measure each, and find the stage that is to blame when the end looks different."""

from labsupport.pipeline.stages import UNKNOWN, Pipeline, Stage, describe

__all__ = [
    "UNKNOWN",
    "Pipeline",
    "Stage",
    "describe",
]
