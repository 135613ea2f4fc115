"""Put a model behind HTTP. `create_app` makes the application, `serve` runs it.

>>> from labsupport.detection import Detector
>>> from labsupport.serving import create_app
>>> app = create_app(Detector.load("yolov3-tiny"))
>>> "/predict" in app.openapi()["paths"]
True
"""

from typing import TYPE_CHECKING, Any

from labsupport.serving import browser_page, running
from labsupport.serving.running import PortTaken, guarded, serve

if TYPE_CHECKING:
    from labsupport.serving.app import Prefix, create_app

__all__ = [
    "PortTaken",
    "Prefix",
    "browser_page",
    "create_app",
    "guarded",
    "running",
    "serve",
]


def __getattr__(name: str) -> Any:
    """Load the app when it is asked for: `worker` loads it while the models are loaded."""
    if name not in ("Prefix", "create_app"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from labsupport.serving import app

    return getattr(app, name)
