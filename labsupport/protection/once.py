"""Limit how often a warning is logged that any client can cause."""

import logging
import math
import time


class Once(logging.Filter):
    """Pass a repeated text only once a minute, because any client can cause it and so fill the disk.

    Texts are compared by their first line, before arguments are filled in. Records with a traceback always pass, except
    those of `socket.accept()`.
    """

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
