"""LitServe around our detector, one worker process a core: python -m benchmarks.peers.litserve_server [--detect] PORT"""

import os
import sys

import litserve
from fastapi import Response

from labsupport import images
from labsupport.detection import Detector, draw_boxes


def told(detections):
    return [{"label": d.label, "confidence": d.confidence, "box": d.box._asdict()} for d in detections]


class Predict(litserve.LitAPI):
    def setup(self, device):
        self.detector = Detector.load(slots=int(os.environ.get("PEER_SLOTS", "1")))

    def decode_request(self, request):
        return images.decode(request["file"].file.read())

    def predict(self, image):
        return images.encode(draw_boxes(image, self.detector.detect(image)))

    def encode_response(self, content):
        return Response(content, media_type="image/jpeg")


class Detect(Predict):
    def predict(self, image):
        return {"detections": told(self.detector.detect(image))}

    def encode_response(self, content):
        return content


if __name__ == "__main__":
    api = Detect(api_path="/detect") if "--detect" in sys.argv else Predict(api_path="/predict")
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=os.cpu_count())
    server.run(host="127.0.0.1", port=int(sys.argv[-1]), log_level="warning", generate_client_file=False)
