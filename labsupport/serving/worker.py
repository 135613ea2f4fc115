"""Make the app of one server process of `labsupport serve`."""

import ctypes
import functools
import gc
import json
import multiprocessing
import os
import signal
import sys
from pathlib import Path

import cv2
from starlette.types import ASGIApp

from labsupport import arguments, background, paths
from labsupport.access import Access
from labsupport.detection import Detector, load_installed
from labsupport.protection import Budget, memory_limit
from labsupport.serving import access_log
from labsupport.serving.running import MADE, guarded

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -2, -3, -8  # glibc's malloc.h


def app_from_environment() -> ASGIApp:
    """Return the app of one worker process, made from the options that `labsupport serve` leaves in `LAB_APP_OPTIONS`."""
    gc.disable()  # a start makes some 130 objects of garbage, and looking for them took a tenth of its time
    try:
        app = _make_app()
        gc.freeze()  # what is here stays: looking through it for garbage stopped every thread for 60 ms
    finally:
        gc.enable()
    return app


def _make_app() -> ASGIApp:
    options = arguments.variable("LAB_APP_OPTIONS", json.loads, "what labsupport serve gives")
    if options is None:
        raise ValueError("LAB_APP_OPTIONS is not set: start the server with labsupport serve")
    host, log, precision = (options.pop(name) for name in ("host", "log", "precision"))
    workers = options.pop("workers", 1)
    access_log.show()
    _end_with_parent()
    _keep_memory()
    cv2.setNumThreads(1)  # the slots keep every core busy: more threads of OpenCV would only get in their way
    _leave_out()
    import openvino  # noqa: F401  # here, because two threads that import the same package can deadlock

    load = functools.partial(load_installed, options["slots"], precision)
    with background.beside(load, "load the models") as loading:  # OpenVINO's code leaves Python to these imports
        from labsupport.log import PredictionLog
        from labsupport.rollout import Router
        from labsupport.serving.app import create_app
    routers = {
        name: Router(detector, load=Detector.named, journal=paths.root() / f"rollout-{name}.db")
        for name, detector in loading.result().items()
    }
    options["memory"] = Budget.left(memory_limit() // workers)
    access = Access(paths.root())
    if access.users.exist:
        access.keys.make_folder()  # one that cannot be used stops the server here, with its reason
    return guarded(create_app(routers, log=PredictionLog(log) if log else None, access=access, **options), host)


def worker_app() -> ASGIApp:
    """Return the app of one of several worker processes. If it cannot be made, print the reason and end the process."""
    try:
        app = app_from_environment()
        Path(os.environ["PROMETHEUS_MULTIPROC_DIR"], MADE).touch()
        return app
    except (OSError, ValueError, RuntimeError) as error:
        print(f"labsupport: {error}", file=sys.stderr, flush=True)
        sys.exit(1)


def _end_with_parent() -> None:
    """Stop this worker when the process that started it is gone.

    Otherwise the worker would keep answering and keep its port, and no process would be left to stop it.
    """
    if parent := multiprocessing.parent_process():

        def follow() -> None:
            parent.join()
            os.kill(os.getpid(), signal.SIGTERM)

        background.start(follow, "follow")


def _leave_out() -> None:
    """Keep Python from importing what the server does not use: together a tenth of its start.

    These are OpenVINO's converter, Pydantic's version 1, which FastAPI imports only to ask whether a class is of that
    version, and the search of all installed packages for plugins of Pydantic.
    """
    # None makes an import raise ImportError, which both libraries catch
    for unused in ("openvino.tools.ovc", "pydantic.v1"):
        sys.modules.setdefault(unused, None)  # type: ignore[arg-type]
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")


def _keep_memory() -> None:
    """Make glibc keep freed memory of pictures instead of returning it to the system.

    A picture's pixels are allocated and freed a hundred times a second, and glibc would return them each time and get
    them again page by page. It may keep 64 MB. Blocks above 32 MB are still returned immediately. All threads share two
    pools, because one pool a thread took 120 MB for its gaps.
    """
    if hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, 32 << 20)
        libc.mallopt(M_TRIM_THRESHOLD, 64 << 20)
        libc.mallopt(M_TOP_PAD, 16 << 20)
        libc.mallopt(M_ARENA_MAX, 2)
