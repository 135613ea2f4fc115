"""Run stages one after another, measure each, and find the stage that caused a change in the output."""

from labsupport.pipeline.stages import UNKNOWN, Pipeline, Stage, describe

__all__ = [
    "UNKNOWN",
    "Pipeline",
    "Stage",
    "describe",
]
