"""Check the answers to the exercises of all lessons."""

from labsupport.exercises.automation_checks import error_free_decisions, phones_saved, price_of_a_look
from labsupport.exercises.batch_checks import fewest_machines, files_to_repeat, night_hours
from labsupport.exercises.compute_checks import cheapest, enough_machines, half_load
from labsupport.exercises.drift_checks import cheapest_limit, drifted_columns, own_detector
from labsupport.exercises.edge_checks import backlog, careful_judge, receiver
from labsupport.exercises.exercise import Exercise, Guess, exercise, predict
from labsupport.exercises.monitoring_checks import bright_rule, firings, two_windows, whose_fault
from labsupport.exercises.pipeline_checks import order_of_clicks, pipeline_level, two_changes
from labsupport.exercises.questions import OpenExercise, Question
from labsupport.exercises.rollout_checks import canary_risk, null_gate, ramp_by_request
from labsupport.exercises.scale_checks import asked_again, load_after_a_loss, machines_with_spares
from labsupport.exercises.serving_checks import alarm_endpoint, confidence_challenge, count_endpoint, highest_confidence

__all__ = [
    "Exercise",
    "Guess",
    "OpenExercise",
    "Question",
    "alarm_endpoint",
    "asked_again",
    "backlog",
    "bright_rule",
    "canary_risk",
    "careful_judge",
    "cheapest",
    "cheapest_limit",
    "confidence_challenge",
    "count_endpoint",
    "drifted_columns",
    "enough_machines",
    "error_free_decisions",
    "exercise",
    "fewest_machines",
    "files_to_repeat",
    "firings",
    "half_load",
    "highest_confidence",
    "load_after_a_loss",
    "machines_with_spares",
    "night_hours",
    "null_gate",
    "order_of_clicks",
    "own_detector",
    "phones_saved",
    "pipeline_level",
    "predict",
    "price_of_a_look",
    "ramp_by_request",
    "receiver",
    "two_changes",
    "two_windows",
    "whose_fault",
]
