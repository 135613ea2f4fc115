"""Put a model behind HTTP. `create_app` makes the application, `serve` runs it.

>>> from labsupport.detection import Detector
>>> from labsupport.serving import create_app
>>> app = create_app(Detector.load("yolov3-tiny"))
>>> "/predict" in app.openapi()["paths"]
True
"""

from labsupport.serving import browser_page, running
from labsupport.serving.app import Prefix, create_app, load_installed
from labsupport.serving.running import PortTaken, guarded, serve

__all__ = [
    "PortTaken",
    "Prefix",
    "browser_page",
    "create_app",
    "guarded",
    "load_installed",
    "running",
    "serve",
]
