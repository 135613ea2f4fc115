"""Run a Ray cluster whose nodes are processes of this machine, to try things out, and to kill nodes.

Each node has the number of cores that it was given, but Ray only counts them. So nodes on one machine share its cores,
and nothing gets faster, unless they are pinned: then each node runs on cores of its own. Code that is correct on two such
nodes is correct on two machines.
"""

import atexit
import contextlib
import logging
import os
import secrets
import shutil
import socket
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

from labsupport.arguments import choice, number

if TYPE_CHECKING:
    import psutil

logger = logging.getLogger(__name__)

ADDRESS = "127.0.0.1"  # of every node: they differ by their ports
NODE: dict[str, Any] = {
    "node_ip_address": ADDRESS,
    "object_store_memory": 100 << 20,  # bytes of shared memory
    "include_dashboard": False,  # a node starts quicker without what we do not use
    "include_log_monitor": False,
    "no_monitor": True,
}

LEAN = {  # what Ray's processes leave out, as environment variables: each costs CPU time for every request
    "RAY_enable_metrics_collection": "0",  # Ray's own metrics: nobody reads them here, and the app has its own
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",  # a second event loop for each replica
}


class LocalCluster:
    """A head node, more nodes beside it, and this process connected to the head. Tried on Linux only.

    It ends with `stop()`, a `with` block, or the process. There are `nodes` nodes in all, with `cores` cores each. Ray
    listens on loopback, and every request to it must carry a token that is made here. Its files are in a folder that
    only this user can read, and that is removed at the end. Only the replicas of Ray Serve listen on every address;
    they require the token, too. Ray's reports about lost nodes go to the log, at level INFO. With `pinned=True` each node
    runs on `cores` of the machine's cores that no other node has. Raises ValueError for numbers below 1 and for more pinned
    cores than there are, and RuntimeError if this process is in a cluster already.

    >>> from labsupport.scale import LocalCluster
    >>> with LocalCluster(nodes=2, cores=1) as cluster:  # doctest: +SKIP
    ...     cluster.kill()
    ...     cluster.alive
    1
    """

    def __init__(self, nodes: int = 2, cores: int = 2, pinned: bool = False) -> None:
        number("nodes", nodes, 1, whole=True)
        number("cores", cores, 1, whole=True)
        self._free_cores = sorted(os.sched_getaffinity(0)) if choice("pinned", pinned, (False, True)) else None
        if self._free_cores is not None and nodes * cores > len(self._free_cores):
            raise ValueError(
                f"nodes={nodes}, cores={cores}: only {len(self._free_cores)} cores are here to be pinned to"
            )
        ray = imported()
        if ray.is_initialized():
            raise RuntimeError("this process is in a Ray cluster already: ray.shutdown() leaves it")
        from ray.cluster_utils import Cluster

        self.cores, self._undo = cores, contextlib.ExitStack()
        # the nodes beside the head, as Ray has them, and their own cores
        self._others: list[tuple[Any, list[int]]] = []
        # in /tmp, because a socket's path has 107 bytes at most; Ray makes its own folders inside, open to everybody
        self._folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
        self._undo.callback(shutil.rmtree, self._folder, ignore_errors=True)
        atexit.register(self.stop)
        try:
            self._undo.enter_context(_private(self._folder))
            self._undo.enter_context(_events_in_the_log())
            self._cluster: Any = Cluster()
            self._undo.callback(self._end)
            for _ in range(nodes):
                self.add()
            ray.init(address=self._cluster.address, logging_level=logging.ERROR, log_to_driver=False)
        except BaseException:
            self.stop()
            raise

    @property
    def alive(self) -> int:
        """Return the number of nodes that the head reports as alive."""
        return sum(node["Alive"] for node in imported().nodes())

    def add(self) -> Any:
        """Add a node, and return it as Ray has it, when the head knows it.

        Raises ValueError if the cluster is pinned and too few cores are left.
        """
        first = self._cluster.head_node is None
        with quiet(), self._own_cores() as own, _ports() as ports:
            node = self._cluster.add_node(num_cpus=self.cores, **(NODE | ports))
        if not first:
            self._others.append((node, own))
        return node

    @contextlib.contextmanager
    def _own_cores(self) -> Iterator[list[int]]:
        """Let the processes that this thread starts in the block run on `cores` cores that no other node has.

        Yields these cores, or an empty list if the cluster is not pinned. If the block raises, they are free again.
        """
        if self._free_cores is None:
            yield []
            return
        before, own = os.sched_getaffinity(0), self._free_cores[: self.cores]
        if len(own) < self.cores:
            raise ValueError(f"only {len(own)} cores are left, and each pinned node takes {self.cores}")
        del self._free_cores[: self.cores]
        os.sched_setaffinity(0, own)  # of this thread, and of every process that it starts
        try:
            yield own
        except BaseException:
            self._free_cores += own
            raise
        finally:
            os.sched_setaffinity(0, before)

    def kill(self) -> None:
        """Kill the newest node and all its processes with `kill -9`, as when a machine loses power.

        If the cluster is pinned, the next node that is added can have its cores. Raises IndexError if only the head is left,
        because there is no cluster without it.
        """
        import psutil

        node, own = self._others.pop()
        (raylet,) = (process.process for process in node.all_processes["raylet"])
        _kill(psutil.Process(raylet.pid))
        self._cluster.remove_node(node, allow_graceful=False)
        if self._free_cores is not None:
            self._free_cores += own

    def stop(self) -> None:
        """Leave the cluster and end every process of it. Stopping twice is fine."""
        imported().shutdown()
        self._undo.close()
        atexit.unregister(self.stop)

    def _end(self) -> None:
        """End the cluster's processes: those that Ray knows of, then all others that were started with our folder."""
        import psutil

        with contextlib.suppress(Exception):  # what Ray cannot end is killed
            self._cluster.shutdown()
        for process in psutil.process_iter(["cmdline"]):
            if any(self._folder in word for word in process.info["cmdline"] or ()):
                _kill(process)

    def __enter__(self) -> "LocalCluster":
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()


def _kill(process: "psutil.Process") -> None:
    """Kill a process and all processes below it with `kill -9`."""
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        family = [process, *process.children(recursive=True)]
        for one in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        psutil.wait_procs(family, timeout=10)


@contextlib.contextmanager
def _ports() -> Iterator[dict[str, int]]:
    """Yield a port for each agent of the node that is started in the block.

    If agents choose their own ports, Ray's node waits 15 s for them and then dies, which is too short on a slow
    machine. Ray does not pass one of the ports on to the node; this function corrects that.
    """
    from ray._private import ray_constants, services

    forgotten = "dashboard_agent_listen_port"
    names = ("metrics_agent_port", "metrics_export_port", "runtime_env_agent_port", forgotten)
    with contextlib.ExitStack() as probes:
        listening = [probes.enter_context(socket.create_server((ADDRESS, 0))) for _ in names]
        ports = {name: probe.getsockname()[1] for name, probe in zip(names, listening, strict=True)}
    start = services.start_ray_process

    def start_with_all_ports(command: list[str], process_type: str, *args: Any, **options: Any) -> Any:
        if process_type == ray_constants.PROCESS_TYPE_RAYLET:
            command = [*command, f"--{forgotten}={ports[forgotten]}"]
        return start(command, process_type, *args, **options)

    services.start_ray_process = start_with_all_ports
    try:
        yield ports
    finally:
        services.start_ray_process = start


@contextlib.contextmanager
def _private(folder: str) -> Iterator[None]:
    """Keep the Ray that is started in the block on loopback, with its own token, and its files in `folder`.

    Ray's processes read all this from their environment. This process may have read its own before, so it reads it
    again.
    """
    from ray._private import ray_constants
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]  # compiled: not in Ray's types

    own = {
        "RAY_TMPDIR": folder,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0",  # no other machines: else Ray makes 127.0.0.1 the outer address
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",  # 5 are short on a slow machine, for apps that use Ray's proxy
        **LEAN,
    }
    before, clusters = {name: os.environ.get(name) for name in own}, ray_constants.ENABLE_RAY_CLUSTER

    def use(environment: Mapping[str, str | None], enabled: bool) -> None:
        for name, value in environment.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        ray_constants.ENABLE_RAY_CLUSTER = enabled
        Config.initialize("")
        AuthenticationTokenLoader.instance().reset_cache()

    use(own, False)
    try:
        yield
    finally:
        use(before, clusters)


@contextlib.contextmanager
def _events_in_the_log() -> Iterator[None]:
    """Log what Ray reports about lost nodes and processes in the block, at level INFO, instead of printing it."""
    from ray._private import worker

    printing = worker.print_to_stdstream

    def log(data: Mapping[str, Any], ignore_prefix: bool) -> None:
        logger.info("%s: %s", data.get("pid"), "\n".join(data["lines"]).strip())

    worker.print_to_stdstream = log
    try:
        yield
    finally:
        worker.print_to_stdstream = printing


def imported() -> ModuleType:
    """Return the module `ray`, with its usage reports switched off. Raises an ImportError that says what to install."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    logging.getLogger("ray.widgets").setLevel(logging.WARNING)  # which misses, on import, what we do not use
    try:
        with quiet():
            import ray
    except ImportError as error:
        raise ImportError("scaling out needs Ray: pip install 'labsupport[scale]'") from error
    return ray


def imported_serve() -> ModuleType:
    """Return the module `ray.serve`. Raises as `imported` does."""
    imported()
    with quiet():
        from ray import serve
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    return serve


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress warnings about deprecated functions that Ray itself uses."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
