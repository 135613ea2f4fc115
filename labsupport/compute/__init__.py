"""Measure how fast and how large a model is, and work out how many machines a service needs."""

from labsupport.compute import figures, loadtest, targets
from labsupport.compute.demand import Cost, needs, usage
from labsupport.compute.measurement import (
    Machine,
    MeasurementFailed,
    calibrated,
    flops,
    found,
    measure,
    pictures,
    server_process,
    size_on_disk,
    throughput,
    times,
    weigh,
)
from labsupport.compute.queueing import NoMachinesHelp, Overload, Server, erlang_c, machines_for, mean_wait, responses
from labsupport.compute.targets import BUFFER, exchange, stays_open, upload

__all__ = [
    "BUFFER",
    "Cost",
    "Machine",
    "MeasurementFailed",
    "NoMachinesHelp",
    "Overload",
    "Server",
    "calibrated",
    "erlang_c",
    "exchange",
    "figures",
    "flops",
    "found",
    "loadtest",
    "machines_for",
    "mean_wait",
    "measure",
    "needs",
    "pictures",
    "responses",
    "server_process",
    "size_on_disk",
    "stays_open",
    "targets",
    "throughput",
    "times",
    "upload",
    "usage",
    "weigh",
]
