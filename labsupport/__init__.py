"""A deployment lab: a picture comes in, an answer goes out, and what happened is written down.

Each module is one idea and can be read alone; nothing heavy is imported before it is used.
"""

import sys

__version__ = "0.1.0"

# openvino would report its use over the network at every import, and fork this process to do so; without
# this module it does not
sys.modules.setdefault("openvino_telemetry", None)
