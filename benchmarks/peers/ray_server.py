"""Ray Serve around our detector: one replica a core. Run: python -m benchmarks.peers.ray_server PORT"""

import logging
import os
import signal
import sys

import ray
from fastapi import FastAPI, Response, UploadFile
from ray import serve

app = FastAPI()


@serve.deployment(num_replicas=os.cpu_count(), ray_actor_options={"num_cpus": 0.5}, max_ongoing_requests=2)
@serve.ingress(app)
class Deployment:
    def __init__(self):
        from labsupport.detection import Detector

        self.detector = Detector.load(slots=1)

    @app.post("/predict")
    def predict(self, file: UploadFile):
        from labsupport import images
        from labsupport.detection import draw_boxes

        image = images.decode(file.file.read())
        return Response(images.encode(draw_boxes(image, self.detector.detect(image))), media_type="image/jpeg")


if __name__ == "__main__":
    ray.init(include_dashboard=False, num_cpus=os.cpu_count(), logging_level=logging.ERROR)
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    serve.run(Deployment.bind())
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    serve.shutdown()
    ray.shutdown()
