"""Inspect products on a line: a camera, a deadline, a fallback on the device, and an outbox for bad networks."""

from labsupport.edge.camera import Camera, CameraUnavailable
from labsupport.edge.deadline import NoAnswer, exchange
from labsupport.edge.outbox import Outbox, OutboxUnavailable
from labsupport.edge.station import Decision, InspectionStation, wants

__all__ = [
    "Camera",
    "CameraUnavailable",
    "Decision",
    "InspectionStation",
    "NoAnswer",
    "Outbox",
    "OutboxUnavailable",
    "exchange",
    "wants",
]
