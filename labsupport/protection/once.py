"""Limit how often a warning is logged that any client can cause."""

import logging
import math
import time


class Once(logging.Filter):
    """Pass a repeated warning only once a minute, because any client can cause it and so fill the disk."""

    SECONDS = 60

    def __init__(self) -> None:
        super().__init__()
        self._logged: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        text, now = str(record.msg).partition("\n")[0], time.monotonic()
        if record.exc_info and not text.startswith("socket.accept()"):
            return True
        if now - self._logged.get(text, -math.inf) < self.SECONDS:
            return False
        self._logged[text] = now
        return True
