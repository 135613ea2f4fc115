"""Check the answers to the exercises of all lessons."""

from labsupport.exercises.automation_checks import error_free_decisions, phones_saved, price_of_a_look
from labsupport.exercises.batch_checks import fewest_machines, files_to_repeat, night_hours
from labsupport.exercises.compute_checks import cheapest, enough_machines, half_load
from labsupport.exercises.drift_checks import cheapest_limit, drifted_columns, own_detector
from labsupport.exercises.edge_checks import backlog, careful_judge, receiver
from labsupport.exercises.exercise import Exercise, Guess, OpenExercise, exercise, predict
from labsupport.exercises.monitoring_checks import (
    alarm_delay,
    brainstorm,
    bright_rule,
    cause_question,
    days_of_corrections,
    firings,
    hysteresis_question,
    retraining_question,
    share_of_complaints,
    whose_fault,
)
from labsupport.exercises.pipeline_checks import (
    conditional_question,
    describe_question,
    first_change,
    order_of_clicks,
    own_pipeline,
    pipeline_level,
    rollback_question,
    two_changes,
    unknown_share,
)
from labsupport.exercises.questions import Question
from labsupport.exercises.rollout_checks import canary_risk, null_gate, ramp_by_request
from labsupport.exercises.scale_checks import asked_again, load_after_a_loss, machines_with_spares
from labsupport.exercises.serving_checks import alarm_endpoint, confidence_challenge, count_endpoint, highest_confidence

__all__ = [
    "Exercise",
    "Guess",
    "OpenExercise",
    "Question",
    "alarm_delay",
    "alarm_endpoint",
    "asked_again",
    "backlog",
    "brainstorm",
    "bright_rule",
    "canary_risk",
    "careful_judge",
    "cause_question",
    "cheapest",
    "cheapest_limit",
    "conditional_question",
    "confidence_challenge",
    "count_endpoint",
    "days_of_corrections",
    "describe_question",
    "drifted_columns",
    "enough_machines",
    "error_free_decisions",
    "exercise",
    "fewest_machines",
    "files_to_repeat",
    "firings",
    "first_change",
    "half_load",
    "highest_confidence",
    "hysteresis_question",
    "load_after_a_loss",
    "machines_with_spares",
    "night_hours",
    "null_gate",
    "order_of_clicks",
    "own_detector",
    "own_pipeline",
    "phones_saved",
    "pipeline_level",
    "predict",
    "price_of_a_look",
    "ramp_by_request",
    "receiver",
    "retraining_question",
    "rollback_question",
    "share_of_complaints",
    "two_changes",
    "unknown_share",
    "whose_fault",
]
