"""Serve an object detector, log its predictions, and monitor and roll out its versions.

It is a set of packages: each `__init__.py` says what its package is for, and lists what others may use. Large libraries are
imported only when they are used.
"""

import sys

__version__ = "0.1.0"

# at every import, openvino would fork this process and report its use over the network; without this
# module it does not
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # typeshed does not know of None here
