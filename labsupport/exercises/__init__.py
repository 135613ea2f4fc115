"""Check the answers to the exercises of all lessons."""

from labsupport.exercises.automation_checks import (
    audit_plan,
    cheapest_thresholds,
    error_free_decisions,
    move_right_question,
    name_the_degree,
    phones_saved,
    price_of_a_look,
    price_of_a_miss,
    promise_question,
    shadow_labels_question,
)
from labsupport.exercises.batch_checks import fewest_machines, files_to_repeat, night_hours
from labsupport.exercises.compute_checks import cheapest, enough_machines, half_load
from labsupport.exercises.drift_checks import cheapest_limit, drifted_columns, own_detector
from labsupport.exercises.edge_checks import backlog, careful_judge, receiver
from labsupport.exercises.exercise import Exercise, Guess, exercise, predict
from labsupport.exercises.monitoring_checks import bright_rule, firings, two_windows, whose_fault
from labsupport.exercises.pipeline_checks import order_of_clicks, pipeline_level, two_changes
from labsupport.exercises.questions import OpenExercise, Question
from labsupport.exercises.rollout_checks import (
    blue_green_question,
    canary_risk,
    e_value_limit,
    first_pattern,
    looks_question,
    null_gate,
    own_router,
    ramp_by_request,
    rollout_plan,
    shadow_question,
)
from labsupport.exercises.scale_checks import asked_again, load_after_a_loss, machines_with_spares
from labsupport.exercises.serving_checks import alarm_endpoint, confidence_challenge, count_endpoint, highest_confidence

__all__ = [
    "Exercise",
    "Guess",
    "OpenExercise",
    "Question",
    "alarm_endpoint",
    "asked_again",
    "audit_plan",
    "backlog",
    "blue_green_question",
    "bright_rule",
    "canary_risk",
    "careful_judge",
    "cheapest",
    "cheapest_limit",
    "cheapest_thresholds",
    "confidence_challenge",
    "count_endpoint",
    "drifted_columns",
    "e_value_limit",
    "enough_machines",
    "error_free_decisions",
    "exercise",
    "fewest_machines",
    "files_to_repeat",
    "firings",
    "first_pattern",
    "half_load",
    "highest_confidence",
    "load_after_a_loss",
    "looks_question",
    "machines_with_spares",
    "move_right_question",
    "name_the_degree",
    "night_hours",
    "null_gate",
    "order_of_clicks",
    "own_detector",
    "own_router",
    "phones_saved",
    "pipeline_level",
    "predict",
    "price_of_a_look",
    "price_of_a_miss",
    "promise_question",
    "ramp_by_request",
    "receiver",
    "rollout_plan",
    "shadow_labels_question",
    "shadow_question",
    "two_changes",
    "two_windows",
    "whose_fault",
]
