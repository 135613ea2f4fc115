"""Serve an object detector, log its predictions, and monitor and roll out its versions.

Each module covers one topic and can be read alone. Large libraries are imported only when they are used.
"""

import sys

__version__ = "0.1.0"

# at every import, openvino would fork this process and report its use over the network; without this
# module it does not
sys.modules.setdefault("openvino_telemetry", None)
