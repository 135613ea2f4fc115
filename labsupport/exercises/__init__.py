"""Check the answers to the exercises of all lessons."""

from labsupport.exercises.automation_checks import error_free_decisions, phones_saved, price_of_a_look
from labsupport.exercises.batch_checks import fewest_machines, files_to_repeat, night_hours
from labsupport.exercises.client_checks import (
    built_address,
    confidence_challenge,
    move_question,
    patient,
    refusal_question,
    send_again,
    tally,
    timeout_question,
    when_it_is_down,
)
from labsupport.exercises.compute_checks import cheapest, enough_machines, half_load
from labsupport.exercises.drift_checks import cheapest_limit, drifted_columns, own_detector
from labsupport.exercises.edge_checks import backlog, careful_judge, receiver
from labsupport.exercises.exercise import Exercise, Guess, exercise, predict
from labsupport.exercises.index_checks import (
    from_a_dict,
    missing_page,
    question_zero,
    read_a_histogram,
    share_of_errors,
    slow_answers,
    sure_labels,
)
from labsupport.exercises.monitoring_checks import bright_rule, firings, two_windows, whose_fault
from labsupport.exercises.pipeline_checks import order_of_clicks, pipeline_level, two_changes
from labsupport.exercises.questions import OpenExercise, Question
from labsupport.exercises.rollout_checks import canary_risk, null_gate, ramp_by_request
from labsupport.exercises.scale_checks import asked_again, load_after_a_loss, machines_with_spares
from labsupport.exercises.serving_checks import (
    alarm_endpoint,
    answers_with,
    confidence_question,
    content_question,
    count_endpoint,
    four_statuses,
    highest_confidence,
    log_question,
    what_to_keep,
)

__all__ = [
    "Exercise",
    "Guess",
    "OpenExercise",
    "Question",
    "alarm_endpoint",
    "answers_with",
    "asked_again",
    "backlog",
    "bright_rule",
    "built_address",
    "canary_risk",
    "careful_judge",
    "cheapest",
    "cheapest_limit",
    "confidence_challenge",
    "confidence_question",
    "content_question",
    "count_endpoint",
    "drifted_columns",
    "enough_machines",
    "error_free_decisions",
    "exercise",
    "fewest_machines",
    "files_to_repeat",
    "firings",
    "four_statuses",
    "from_a_dict",
    "half_load",
    "highest_confidence",
    "load_after_a_loss",
    "log_question",
    "machines_with_spares",
    "missing_page",
    "move_question",
    "night_hours",
    "null_gate",
    "order_of_clicks",
    "own_detector",
    "patient",
    "phones_saved",
    "pipeline_level",
    "predict",
    "price_of_a_look",
    "question_zero",
    "ramp_by_request",
    "read_a_histogram",
    "receiver",
    "refusal_question",
    "send_again",
    "share_of_errors",
    "slow_answers",
    "sure_labels",
    "tally",
    "timeout_question",
    "two_changes",
    "two_windows",
    "what_to_keep",
    "when_it_is_down",
    "whose_fault",
]
