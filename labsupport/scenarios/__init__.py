"""Simulate worlds whose truth is known: prices, phones on a line, speech, clicks, incidents."""

from labsupport.scenarios import clickstream, incidents, labelling, lesson_batch_edge, rollouts, speech, traffic
from labsupport.scenarios.incidents import simulate
from labsupport.scenarios.inspector import Inspector, Line, enlarged, sheet
from labsupport.scenarios.phones import inspection
from labsupport.scenarios.photographs import Photos, photos
from labsupport.scenarios.worlds import Stream, When, churn, fraud, house_prices, spam, vocabulary

__all__ = [
    "Inspector",
    "Line",
    "Photos",
    "Stream",
    "When",
    "churn",
    "clickstream",
    "enlarged",
    "fraud",
    "house_prices",
    "incidents",
    "inspection",
    "labelling",
    "lesson_batch_edge",
    "photos",
    "rollouts",
    "sheet",
    "simulate",
    "spam",
    "speech",
    "traffic",
    "vocabulary",
]
