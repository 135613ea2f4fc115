"""The same pictures through every runtime: how fast, how large, and how far the answers agree with f32's.

`python -m benchmarks.runtimes openvino bf16` measures one runtime in a process of its own and prints it as JSON.
"""

import json
import sys

from labsupport.compute import found, measure

__all__ = ["BARS", "found", "measure"]

BARS = (0.8, 0.9)  # an object counts as found when the boxes overlap more than this (IoU), under the same label


if __name__ == "__main__":
    print(json.dumps(measure(*sys.argv[1:])))
