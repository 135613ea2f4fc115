"""Check the answers to the exercises of all lessons."""

from labsupport.exercises.automation_checks import error_free_decisions, phones_saved, price_of_a_look
from labsupport.exercises.batch_checks import fewest_machines, files_to_repeat, night_hours
from labsupport.exercises.compute_checks import cheapest, enough_machines, half_load
from labsupport.exercises.drift_checks import (
    any_alarm,
    blind_question,
    cheapest_limit,
    cusum_by_hand,
    delay_question,
    drifted_columns,
    fair_baseline,
    feedback_question,
    harmless_question,
    largest_gap,
    limit_question,
    most_missing,
    own_cusum,
    own_detector,
    retrain_plan,
    rows_to_learn,
    share_of_defects,
    sudden_question,
    watch_list,
)
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
    "any_alarm",
    "asked_again",
    "backlog",
    "blind_question",
    "bright_rule",
    "canary_risk",
    "careful_judge",
    "cheapest",
    "cheapest_limit",
    "confidence_challenge",
    "count_endpoint",
    "cusum_by_hand",
    "delay_question",
    "drifted_columns",
    "enough_machines",
    "error_free_decisions",
    "exercise",
    "fair_baseline",
    "feedback_question",
    "fewest_machines",
    "files_to_repeat",
    "firings",
    "half_load",
    "harmless_question",
    "highest_confidence",
    "largest_gap",
    "limit_question",
    "load_after_a_loss",
    "machines_with_spares",
    "most_missing",
    "night_hours",
    "null_gate",
    "order_of_clicks",
    "own_cusum",
    "own_detector",
    "phones_saved",
    "pipeline_level",
    "predict",
    "price_of_a_look",
    "ramp_by_request",
    "receiver",
    "retrain_plan",
    "rows_to_learn",
    "share_of_defects",
    "sudden_question",
    "two_changes",
    "two_windows",
    "watch_list",
    "whose_fault",
]
