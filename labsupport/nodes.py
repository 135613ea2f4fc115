"""Several machines on one: a Ray cluster whose nodes are processes of this machine, to try things out, and to kill.

Each node has an address of its own, 127.0.0.2 and on, and what it is said to have: cores are counted, not bound, so nodes
on one machine share its cores and nothing gets faster. What is right on two of them is right on two machines.
"""

import contextlib
import ipaddress
import logging
import os
import shutil
import tempfile
import warnings

OBJECT_STORE = 100 << 20  # bytes of shared memory for each node
FIRST = ipaddress.ip_address("127.0.0.2")  # Ray takes 127.0.0.1 for the machine's outer address


class LocalCluster:
    """A head node, more nodes beside it, and this process connected to the head. Ends with `stop()`, a `with` block, or
    the process. Linux only: elsewhere loopback has one address.

    `nodes` in all, each of which says that it has `cores`. Raises RuntimeError if this process is in a cluster already.

    >>> from labsupport.nodes import LocalCluster
    >>> with LocalCluster(nodes=2, cores=1) as cluster:  # doctest: +SKIP
    ...     cluster.kill()
    ...     cluster.alive
    1
    """

    def __init__(self, nodes: int = 2, cores: int = 2) -> None:
        ray = imported()
        if ray.is_initialized():
            raise RuntimeError("this process is in a Ray cluster already: ray.shutdown() leaves it")
        from ray.cluster_utils import Cluster

        self.cores, self._added = cores, 0
        self._folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # short: a socket's path has 107 bytes at most
        try:
            self._cluster = Cluster()
            self._others = [self.add() for _ in range(nodes)][1:]
            ray.init(address=self._cluster.address, logging_level=logging.ERROR, log_to_driver=False)
        except BaseException:
            self.stop()
            raise

    @property
    def alive(self) -> int:
        """How many nodes there are, as the head sees it."""
        return sum(node["Alive"] for node in imported().nodes())

    def add(self):
        """One more node; returns when the head knows it."""
        address = str(FIRST + self._added)
        self._added += 1
        head = {} if self._cluster.head_node else {"temp_dir": self._folder, "include_dashboard": False}
        with quiet():
            node = self._cluster.add_node(
                node_ip_address=address, num_cpus=self.cores, object_store_memory=OBJECT_STORE, **head
            )
        if not head and hasattr(self, "_others"):
            self._others.append(node)
        return node

    def kill(self) -> None:
        """`kill -9` for the newest node, with all that runs on it: no goodbye, as when a machine loses power.

        Raises IndexError if the head is the only one left: without it there is no cluster.
        """
        import psutil

        node = self._others.pop()
        (raylet,) = (process.process for process in node.all_processes["raylet"])
        family = psutil.Process(raylet.pid)
        for process in [family, *family.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._cluster.remove_node(node, allow_graceful=False)

    def stop(self) -> None:
        """Leave the cluster and end every process of it. Stopping twice is fine."""
        imported().shutdown()
        if hasattr(self, "_cluster"):
            self._cluster.shutdown()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> "LocalCluster":
        return self

    def __exit__(self, *error) -> None:
        self.stop()


def imported():
    """The module `ray`, which tells nobody that it is used. Raises ImportError, and says what to install."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    logging.getLogger("ray.widgets").setLevel(logging.WARNING)  # which misses, on import, what we do not use
    try:
        with quiet():
            import ray
    except ImportError as error:
        raise ImportError("scaling out needs Ray: pip install 'labsupport[scale]'") from error
    return ray


def imported_serve():
    """The module `ray.serve`. Raises as `imported` does."""
    imported()
    with quiet():
        from ray import serve
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    return serve


@contextlib.contextmanager
def quiet():
    """Without warnings: Ray's own use of what is deprecated is not ours to cure."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
