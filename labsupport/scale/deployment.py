"""Serve the app on many machines with Ray Serve. `bulk` predicts a folder on many machines with Ray Data.

The front is `serving.create_app`, unchanged. Its router's versions are handles (`remote.Remote`) to replicas that run
anywhere in the cluster. Each version is a deployment with its own number of replicas. So one version scales and fails
without the others, and shadow, canary, ramp and rollback work as on one machine.

 client ──▶ front: create_app(Router) ──▶       replicas of the stable version, on every node
              │        ▲                   └──▶ replicas of the candidate, on every node
              ▼        └── keeper: the rollout's state (one actor)
          PostgreSQL

A request takes one hop: from the front that reads it to the replica that detects. Ray Serve's proxy is switched off,
because it would be another hop: each front listens itself, on the same port, and the kernel divides the connections among
the fronts. Picture and answer travel over gRPC, not through Ray's object store. `python -m benchmarks.scale` measures the
CPU time of each hop.

Fronts and keeper run on the head node, which is a single point of failure. If another node is lost, no request is
lost. If the head is lost, the service stops. Several heads need Ray's state in a redundant Redis (GCS fault tolerance),
fronts on every node behind a load balancer that retries, and the state of the rollout in the database.

Anyone who reaches Ray's ports can run code here, and can read the log's address with its password. `scale.LocalCluster`
keeps the ports on loopback and requires a token. On other clusters start every node with `RAY_AUTH_MODE=token`, and also
keep Ray on a private network, because the token is sent unencrypted. Every node needs this package and the model's files.
If `LAB_TOKEN` is used, it must be in the environment in which Ray is started. So should the variables in
`local_cluster.LEAN`, which make each answer cheaper.
"""

import contextlib
import errno
import functools
import math
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import cv2
from starlette.types import ASGIApp

from labsupport import arguments, loopback
from labsupport.detection import UnknownVersion, parse_version
from labsupport.log import LogUnavailable, PredictionLog, UnknownSchema
from labsupport.models import best_precision
from labsupport.protection import EXTRA_SLOTS, required_token
from labsupport.rollout import Journal, JournalUnavailable, Router, State
from labsupport.scale import local_cluster
from labsupport.scale.bulk import predict_folder
from labsupport.scale.front import Front
from labsupport.scale.remote import KEEPER_START_SECONDS, Keeper, Remote, Replica, SharedJournal, answered
from labsupport.serving import PortTaken, create_app, guarded

__all__ = ["Deployed", "deploy", "predict_folder", "version"]

FRONT = "front"  # the name of the application that answers HTTP
NAMESPACE = "labsupport"  # of the keepers
HEAD = {"node:__internal_head__": 0.001}  # what only the head node has
ONGOING = 1 + EXTRA_SLOTS  # pictures at a replica: one is computed, the next ones are on their way
HEALTH_SECONDS = 2
GONE = ("DEPLOY_FAILED", "DELETING")
QUIET: dict[str, Any] = {
    "log_level": "WARNING",
    "enable_access_log": False,
}  # a line for each request would cost as much as the request


class Deployed:
    """The app on a cluster. Made by `deploy`. It ends with `stop()`, a `with` block, or the cluster."""

    def __init__(self, url: str, keeper: Any) -> None:
        self.url, self._keeper = url, keeper
        loopback.ask_directly()

    def replicas(self) -> dict[str, int]:
        """Return the number of ready replicas of each version."""
        applications = local_cluster.imported_serve().status().applications
        return {name: _running(status) for name, status in applications.items() if _is_version(name)}

    def stop(self) -> None:
        """Take down every version and the front. Stopping twice is fine."""
        local_cluster.imported_serve().shutdown()
        local_cluster.imported().kill(self._keeper)

    def __enter__(self) -> "Deployed":
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<Deployed {self.url}>"


def deploy(
    stable: str | None = None,
    replicas: tuple[int, int] = (1, 2),
    fronts: int = 1,
    log: str | None = None,
    journal: Path | str | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
) -> Deployed:
    """Deploy the app on the cluster that this process is in (`ray.init`). Returns when the app answers.

    - `stable`: a version's name, by default yolov3-tiny as it serves requests.
    - `replicas`: each version has from `replicas[0]` to `replicas[1]` replicas of one core each. Ray Serve adds some
      while more than one picture waits at each, and removes them later.
    - `fronts`: the number of processes that decode, draw and log, about one for each three replicas.
    - `log`: the PostgreSQL URL of the log for predictions. The head node must be able to open it.
    - `journal`: the file on the head's disk that stores the rollout's state; None keeps the state in memory: if
      that process dies, the last state stays in force and cannot be changed, and no front can start again: deploy anew.

    The state of the rollout is kept by an actor of the cluster, the keeper. If there is one already, for example because the
    process that deployed the app has ended, its state stays in force. Then `journal` and `stable` must be those that it
    began with; `stable` may also be the version in force.

    If an error is raised, the keeper and the applications that this call has started are taken down again.

    A candidate that `PUT /rollout` names is deployed when it is first named, and stays for a rollback:
    `ray.serve.delete(version)` removes it. Beyond loopback every request must carry the token in `LAB_TOKEN`.

    Raises `UnknownVersion`, `PortTaken`, `security.TokenMissing`, ValueError for invalid arguments and for another keeper,
    `LogUnavailable`, `UnknownSchema`, `JournalUnavailable`, and RuntimeError outside of a cluster.

    >>> from labsupport import scale
    >>> with scale.LocalCluster() as cluster, scale.deploy(port=0) as app:  # doctest: +SKIP
    ...     requests.get(app.url + "/ready").json()
    {'status': 'ready', 'versions': ['yolov3-tiny/openvino-bf16']}
    """
    stable = f"yolov3-tiny/openvino-{best_precision()}" if stable is None else stable
    model = parse_version(stable)[0]
    replicas, fronts = _checked_replicas(replicas), arguments.number("fronts", fronts, 1, whole=True)
    journal = None if journal is None else arguments.path("journal", journal).absolute()
    required_token(host)
    if not local_cluster.imported().is_initialized():
        raise RuntimeError("this process is in no cluster: ray.init(address=...), or scale.LocalCluster()")
    with _reserved(host, port) as port, contextlib.ExitStack() as undo:  # the port until the fronts listen
        keeper = _started_keeper(model, journal, stable, log, undo)
        # the fronts listen themselves
        serve = local_cluster.imported_serve()
        serve.start(proxy_location="Disabled", logging_config=QUIET)
        undo.callback(_delete_all_but, set(serve.status().applications))
        version(stable, replicas)
        _start_fronts(_app(model, replicas, fronts, log, host), fronts, host, port)
        undo.pop_all()
    return Deployed(f"http://{f'[{host}]' if ':' in host else host}:{port}", keeper)


def _checked_replicas(replicas: object) -> tuple[int, int]:
    if not isinstance(replicas, tuple | list) or len(replicas) != 2:
        raise ValueError(f"replicas={arguments.shown(replicas)}: give the fewest and the most, such as (1, 2)")
    fewest = arguments.number("replicas[0]", replicas[0], 1, whole=True)
    return fewest, arguments.number("replicas[1]", replicas[1], fewest, whole=True)


def _delete_all_but(before: set[str]) -> None:
    """Delete the fronts and versions that are not among the applications `before`."""
    serve = local_cluster.imported_serve()
    for name in {*serve.status().applications} - before:
        if name == FRONT or _is_version(name):
            serve.delete(name)


def _start_fronts(make: Callable[[], ASGIApp], fronts: int, host: str, port: int) -> None:
    serve = local_cluster.imported_serve()
    front = serve.deployment(
        Front,
        name=FRONT,
        num_replicas=fronts,
        health_check_period_s=HEALTH_SECONDS,
        ray_actor_options={"num_cpus": 0, "resources": HEAD},
        logging_config=QUIET,
    )
    serve.run(front.bind(make, host, port), name=FRONT, route_prefix=None)


def version(name: str, replicas: tuple[int, int]) -> Remote:
    """Return a version that runs on the cluster. Deploys it if needed, and returns when it answers. Raises
    `UnknownVersion`.
    """
    serve = local_cluster.imported_serve()
    parse_version(name)
    there = serve.status().applications.get(name)
    if there is None or there.status in GONE:  # to deploy again what is there would start its replicas anew
        deployment = serve.deployment(
            Replica,
            max_ongoing_requests=ONGOING,
            autoscaling_config={
                "min_replicas": replicas[0],
                "max_replicas": replicas[1],
                "target_ongoing_requests": 1,
            },
            health_check_period_s=HEALTH_SECONDS,
            ray_actor_options={"num_cpus": 1},
            logging_config=QUIET,
        )
        serve.run(deployment.bind(name), name=name, route_prefix=None)
    return Remote(name, serve.get_app_handle(name), slots=replicas[1])


def _app(model: str, replicas: tuple[int, int], fronts: int, log: str | None, host: str) -> Callable[[], ASGIApp]:
    """Return the function that makes the app in a front's process."""

    def make() -> ASGIApp:
        cv2.setNumThreads(1)
        journal = SharedJournal(local_cluster.imported().get_actor(_name(model), namespace=NAMESPACE))
        load = functools.partial(version, replicas=replicas)
        router = Router(load(journal.state.stable), load=load, journal=cast(Journal, journal))  # it has its methods
        # create_app adds EXTRA_SLOTS. More than the replicas accept (with many fronts), Ray asks for again and again
        slots = max(1, math.ceil(ONGOING * replicas[1] / fronts) - EXTRA_SLOTS)
        return guarded(create_app({model: router}, log=None if log is None else PredictionLog(log), slots=slots), host)

    return make


def _name(model: str) -> str:
    return f"rollout-{model}"


def _started_keeper(model: str, journal: Path | None, stable: str, log: str | None, undo: contextlib.ExitStack) -> Any:
    """Return the actor that keeps the journal of a model, on the head node. Start it if there is none.

    Then `undo` ends it. Before it starts, the head node opens log and journal. Raises the errors of that, and ValueError if
    there is a keeper with another journal or another stable version.
    """
    ray, options = local_cluster.imported(), {"num_cpus": 0, "resources": HEAD}
    path, name = journal and str(journal), {"name": _name(model), "namespace": NAMESPACE}
    try:
        keeper = ray.get_actor(**name)
    except ValueError:  # there is none
        keeper = None
    if keeper is not None:
        began, read = (answered(method, seconds=KEEPER_START_SECONDS) for method in (keeper.began, keeper.read))
        (first_path, first), (_, state) = began, read
        if path != first_path or stable not in (first, state.stable):
            raise ValueError(
                f"journal={path!r}, stable={stable!r}: the cluster keeps the state of a deployment with "
                f"journal={first_path!r}, stable={state.stable!r}: give these, and stop() the result to begin anew"
            )
        path = None  # it has its journal open
    answered(ray.remote(_opened).options(**options), log, path, State(stable=stable), seconds=KEEPER_START_SECONDS)
    if keeper is None:
        # without a file, a keeper that starts again would know the first state only
        lasting = {"lifetime": "detached", "max_restarts": -1 if path else 0, "max_task_retries": 3}
        keeper = ray.remote(Keeper).options(**options, **name, **lasting).remote(path, State(stable=stable))
        undo.callback(ray.kill, keeper)
    return keeper


def _opened(log: str | None, journal: str | None, first: State) -> None:
    """Open the log and the journal, and close them. Raises their errors, with the name of the argument."""
    if log is not None:
        try:
            PredictionLog(log).close()
        except (ValueError, LogUnavailable, UnknownSchema) as error:
            raise type(error)(f"log: {error}") from error
    if journal is not None:
        try:
            Journal(journal, first).close()
        except JournalUnavailable as error:
            raise JournalUnavailable(f"journal: {error}") from error


def _is_version(name: str) -> bool:
    try:
        parse_version(name)
    except UnknownVersion:
        return False
    return True


def _running(status: Any) -> int:
    """Return the number of ready replicas of an application. It has no deployment yet while it starts."""
    return sum(int(one.replica_states.get("RUNNING", 0)) for one in status.deployments.values())


@contextlib.contextmanager
def _reserved(host: str, port: int) -> Iterator[int]:
    """Hold a free port during the block, with a socket that does not listen. Only fronts of this user can use it, too.

    Fronts share a port with `SO_REUSEPORT`. So those of two deployments could share one, and answer each other's clients.
    Raises `PortTaken`.
    """
    family, wanted = loopback.resolved(host, port)
    try:
        with socket.create_server(
            wanted, family=family
        ) as probe:  # fails where anybody holds the port or listens on it
            address = probe.getsockname()
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        raise PortTaken(
            f"port {port} on {host} is taken: stop what listens there, or use any free port with port=0"
        ) from None
    with socket.socket(family) as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        with contextlib.suppress(OSError):  # not held for a minute after a server there has closed connections
            held.bind(address)
        yield address[1]
