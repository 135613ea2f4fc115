"""What the server's log says of a stretch of time, as columns that `drift.compare` can compare: what came in, what went out,
and what users said of it."""

from typing import TYPE_CHECKING

from labsupport.log.prediction_log import PredictionLog
from labsupport.log.rows import Moment
from labsupport.log.tables import FEATURES

if TYPE_CHECKING:
    import pandas as pd

INPUTS = tuple(name for name in FEATURES if name not in ("width", "height"))  # an aspect and a size say more


def window(log: PredictionLog, since: Moment = None, until: Moment = None) -> "pd.DataFrame":
    """One row a request, in the order of time; times as in `PredictionLog.frame`.

    Inputs: brightness, contrast, sharpness, saturation and so on, as `images.features` gives them, missing where the upload
    was no picture; aspect (width by height) and megapixels. Outputs: label (of the surest object, "nothing" if there is
    none), objects (how many), confidence (of the surest, missing if there is none). Outcome: correct, where a user has
    spoken, else missing.

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
    seen = rows[list(INPUTS)].astype(float)
    seen["megapixels"] = rows["width"] * rows["height"] / 1e6
    seen["label"] = [_surest(found) for found in rows["detections"]]
    seen["objects"] = rows["n_detections"]
    seen["confidence"] = rows["max_confidence"].astype(float)
    seen["correct"] = rows["correct"]
    return seen


def _surest(found) -> str | None:
    if found is None or not isinstance(found, list | tuple):
        return None
    return max(found, key=lambda detection: detection.confidence).label if found else "nothing"
