"""BentoML around our detector, one worker process a core. Run: bentoml serve benchmarks.peers.bentoml_service:Service"""

import os
from pathlib import Path
from typing import Annotated

import bentoml
from bentoml.validators import ContentType

from labsupport import images
from labsupport.detection import Detector, draw_boxes


def told(detections):
    return [{"label": d.label, "confidence": d.confidence, "box": d.box._asdict()} for d in detections]


@bentoml.service(workers=os.cpu_count(), traffic={"timeout": 60})
class Service:
    def __init__(self):
        self.detector = Detector.load(slots=int(os.environ.get("PEER_SLOTS", "1")))

    @bentoml.api(route="/predict")
    def predict(self, file: Path, context: bentoml.Context) -> Annotated[bytes, ContentType("image/jpeg")]:
        image = images.decode(file.read_bytes())
        return images.encode(draw_boxes(image, self.detector.detect(image)))

    @bentoml.api(route="/detect")
    def detect(self, file: Path, context: bentoml.Context) -> dict:
        return {"detections": told(self.detector.detect(images.decode(file.read_bytes())))}
