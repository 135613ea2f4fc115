"""Read a time window of the log as columns for `drift.compare`: inputs, outputs and users' remarks."""

from typing import TYPE_CHECKING

from labsupport.detection import Detection
from labsupport.log.prediction_log import PredictionLog
from labsupport.log.rows import Moment
from labsupport.log.tables import FEATURES

if TYPE_CHECKING:
    import pandas as pd

INPUTS = tuple(name for name in FEATURES if name not in ("width", "height"))  # `aspect` and `megapixels` replace them


def window(log: PredictionLog, since: Moment = None, until: Moment = None) -> "pd.DataFrame":
    """Return a frame with one row for each request, in the order of time. Times are as in `PredictionLog.frame`.

    | columns | values |
    |---|---|
    | brightness, contrast, sharpness, saturation, noise, aspect | from `images.features`; missing if there was no picture |
    | megapixels | width times height |
    | label | the object with the highest confidence; "nothing" if none was found |
    | objects | the number of objects |
    | confidence | the highest confidence; missing if none was found |
    | correct | whether the user called the answer correct; missing without a remark |

    >>> from labsupport.detection import Box, Detection
    >>> from tempfile import TemporaryDirectory
    >>> folder = TemporaryDirectory()
    >>> with PredictionLog(f"sqlite:///{folder.name}/predictions.db") as log:
    ...     seen = {"brightness": 0.4, "width": 640, "height": 480}
    ...     cat = Detection("cat", 0.9, Box(0, 0, 9, 9))
    ...     log.record(id="a", version="v1", latency=0.01, detections=[cat], features=seen)
    ...     log.flush()
    ...     window(log)[["brightness", "aspect", "label", "objects", "confidence"]].round(2)
       brightness  aspect label  objects  confidence
    0         0.4    1.33   cat        1         0.9
    >>> folder.cleanup()
    """
    rows = log.frame(since=since, until=until)
    columns = rows[list(INPUTS)].astype(float)
    columns["megapixels"] = rows["width"] * rows["height"] / 1e6
    columns["label"] = [_surest(detections) for detections in rows["detections"]]
    columns["objects"] = rows["n_detections"]
    columns["confidence"] = rows["max_confidence"].astype(float)
    columns["correct"] = rows["correct"]
    return columns


def _surest(detections: object) -> str | None:
    """Return the label of the object with the highest confidence. Return None for a row without detections."""
    if not isinstance(detections, list | tuple):
        return None
    surest: Detection | None = max(detections, key=lambda detection: detection.confidence, default=None)
    return surest.label if surest else "nothing"
